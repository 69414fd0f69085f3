"""The pictures of docs/methods: each page's own command is run, and what it shows becomes the page's picture.

python docs/make_pictures.py [PAGE ...]
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
import tempfile
from pathlib import Path

import shown

from sfumato.cli import main

DOCS = Path(__file__).parent
SHOWN = ("shown", "attention", "compare", "beside", "grid", "image")
"""What of a command's files is the picture: the first that it wrote."""


def command(page: Path) -> list[str]:
    """The arguments of the page's command: its first block of shell. None where the built-in model cannot show it."""
    block = re.search(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    if block is None:
        return []
    (line,) = [part for part in block[1].replace("\\\n", " ").splitlines() if part.startswith("sfumato ")]
    return shlex.split(line)[1:]


def picture(page: Path, folder: Path) -> Path:
    """Run the page's command with its files in ``folder``; which of them is to be shown."""
    name, *args = command(page)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([name, args[0], "--out", str(folder), "--json", *args[1:]])
    if code:
        raise SystemExit(f"{page.name}: the command ended with {code}")
    written = json.loads(out.getvalue())
    files = {**written, **(written["images"][0] if "images" in written else {})}
    return Path(next(files[key] for key in SHOWN if files.get(key)))


def ducks(folder: Path, n: int = 3) -> None:
    """The examples of pages that need several pictures of one kind: renders, and masks of the duck in them."""
    import numpy as np

    from sfumato.bench.truth import renders
    from sfumato.media import pictures
    from sfumato.media.labels import write_labels

    seen = renders(np.random.default_rng(2), n, kinds=("duck",), count=1, view="side", style="photo")
    for i, image in enumerate(seen.images, 1):
        pictures.write(pictures.picture(image), folder / f"{i}.png")
        if i != 2:  # the one that is asked about
            write_labels((seen.thing[i - 1] == 0).long(), folder / f"{i}-labels.png")


if __name__ == "__main__":
    if not (DOCS / "images" / "ducks").exists():
        ducks(DOCS / "images" / "ducks")
    asked = sys.argv[1:] or sorted(path.stem for path in (DOCS / "methods").glob("*.md"))
    for name in asked:
        page = DOCS / "methods" / f"{name}.md"
        if not command(page):
            print(f"{page} has no command")
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = picture(page, Path(folder))
            print(shown.convert(file, DOCS / "images" / "methods" / f"{name}.webp"), flush=True)
