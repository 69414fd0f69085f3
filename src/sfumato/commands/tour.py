"""``sfumato tour``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json, Seed, seed_of
from sfumato.io.files import writable
from sfumato.io.terminal import print_json, quiet


def tour(
    *,
    out: Annotated[Path, tyro.conf.arg(help="Folder for the page.")] = Path("out/tour"),
    seed: Seed = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Paint a page that shows the world and the model, and print its path. Opens from disk in any browser.

    Example: sfumato tour --out out/tour
    """
    quiet()
    from sfumato.studio import tour as painter

    page, seconds = painter.make(writable(out), seed_of(seed), device)
    if json:
        print_json({"page": str(page), "seconds": seconds})
    else:
        print(page)
