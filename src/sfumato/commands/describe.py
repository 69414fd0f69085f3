"""``sfumato describe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands.options import Device, Json
from sfumato.commands.reading import files_of, finish
from sfumato.errors import SfumatoError
from sfumato.io.terminal import print_json, quiet


def describe(
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE", help="Picture files, or folders.")
    ],
    *,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Say what the oracle sees in pictures of still lifes: things, colours, ground, light and style.

    Of pictures that are unlike what it has learned it says so. One that fails does not stop the others.

    Example: sfumato describe out/generate/*.png
    """
    if not images:
        raise SfumatoError("describe takes one or more images, or folders of them: sfumato describe picture.png")
    files = files_of(images)
    quiet()
    from sfumato.io.device import choose
    from sfumato.stilllife.oracle import Oracle
    from sfumato.stilllife.sketches import read

    oracle, failed, rows = Oracle.load(device=choose(device)), dict[str, str](), list[dict[str, Any]]()
    for path in files:
        try:
            (reading,) = oracle.read(read(path)[None])
        except SfumatoError as e:
            failed[str(path)] = str(e)
            continue
        rows.append({"image": str(path), **reading.to_dict()})
        if not json:
            doubt = " (unlike anything it knows: hardly a still life of its kind)" if reading.strange else ""
            print(f"{'' if len(files) == 1 else f'{path}: '}{reading.describe()}{doubt}")
    if json:
        print_json(rows)
    finish(files, failed)
