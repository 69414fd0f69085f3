"""The pictures of docs/methods: each page's own command is run, and what it shows becomes the page's picture.

python docs/make_pictures.py [PAGE ...]
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from sfumato.cli import main

DOCS = Path(__file__).parent
SHOWN = ("attention", "compare", "beside", "grid", "image")
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


if __name__ == "__main__":
    asked = sys.argv[1:] or sorted(path.stem for path in (DOCS / "methods").glob("*.md"))
    for name in asked:
        page = DOCS / "methods" / f"{name}.md"
        if not command(page):
            print(f"{page} has no command")
            continue
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(picture(page, Path(folder)), DOCS / "images" / "methods" / f"{name}.png")
        print(f"docs/images/methods/{name}.png", flush=True)
