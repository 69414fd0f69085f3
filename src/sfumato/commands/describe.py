"""``sfumato describe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Device, Json
from sfumato.io.terminal import print_json, quiet


def describe(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE", help="PNG, JPEG or any picture file.")
    ],
    *,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Say what the oracle sees in pictures of still lifes: things, colours, ground, light and style.

    Example: sfumato describe out/generate/*.png
    """
    from sfumato.errors import SfumatoError
    from sfumato.media import opening

    if not images:
        raise SfumatoError("describe takes one or more images: sfumato describe picture.png")
    for path in images:
        opening.checked(path)
    quiet()
    import torch

    from sfumato.io.device import choose
    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.sketches import read

    target = choose(device)
    pixels = torch.stack([read(path) for path in images])
    readings = Oracle.load(device=target).read(pixels)
    if json:
        print_json([{"image": str(p), **r.to_dict()} for p, r in zip(images, readings, strict=True)])
        return
    for path, reading in zip(images, readings, strict=True):
        print(reading.describe() if len(images) == 1 else f"{path}: {reading.describe()}")
