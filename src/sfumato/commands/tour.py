"""``sfumato tour``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json, Seed, seed_of
from sfumato.io.files import writable
from sfumato.io.terminal import note, print_json, quiet


def tour(
    *,
    out: Annotated[Path, tyro.conf.arg(help="Folder for the page.")] = Path("out/tour"),
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Make a page that shows what Sfumato does, and print its path. Opens from disk in any browser.

    The page is there within seconds and grows while the rest is made, in about two minutes of one core.

    Example: sfumato tour --out out/tour
    """
    seed_of(seed)
    from sfumato.studio import tour as painter

    note(f"{painter.begin(writable(out))} is there, and grows while the rest is made")
    quiet()
    page, seconds = painter.make(out, seed, device)
    if json:
        print_json({"page": str(page), "seconds": seconds})
    else:
        print(page)
