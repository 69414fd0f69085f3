"""docs/methods/README.md: every method with its picture, from the pages beside it.

python docs/make_index.py
"""

from __future__ import annotations

from pathlib import Path

from sfumato.methods import index

PAGES = Path(__file__).parent / "methods"
INTRO = """# Methods

Each page says what a method does, shows a picture that its own command made with the built-in model
(`python docs/make_pictures.py`), and says when to use it and when not, what it costs, and on which models it works.
[Which method for which edit](../which-method.md) and [reading images](../reading.md) compare them, and so does
[score distillation](../distillation.md).
"""


def line(word: str) -> str:
    """A row of the table: the picture if there is one, the title, and the first sentence."""
    page = (PAGES / f"{word}.md").read_text(encoding="utf-8")
    title = page.splitlines()[0].removeprefix("# ")
    first = " ".join(page.split("\n\n")[1].split()).split(". ")[0].rstrip(".")
    picture = PAGES.parent / "images" / "methods" / f"{word}.png"
    shown = f'<img src="../images/methods/{word}.png" width="160" alt="">' if picture.exists() else ""
    return f"| {shown} | [{title}]({word}.md) | {first}. |"


def table(group: str) -> str:
    words = sorted(entry.word for entry in index.METHODS if entry.group == group)
    rows = [line(word) for word in words if (PAGES / f"{word}.md").exists()]
    return "\n".join(["| | method | |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    text = f"{INTRO}\n## Editing\n\n{table('edit')}\n\n## Control\n\n{table('control')}\n"
    text += f"\n## Reading images\n\n{table('perceive')}\n\n## Score distillation\n\n{table('distill')}\n"
    (PAGES / "README.md").write_text(text, encoding="utf-8")
