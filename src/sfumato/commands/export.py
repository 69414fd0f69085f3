"""``sfumato export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from sfumato.commands.options import Json
from sfumato.errors import SfumatoError
from sfumato.io.terminal import print_json, quiet
from sfumato.methods.outline import look


def export(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME", help="A model that ships.")],
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR", help="A new or an empty folder.")],
    *,
    half: Annotated[
        bool, tyro.conf.arg(help="In half precision, as the weights ship."), tyro.conf.FlagCreatePairsOff
    ] = False,
    json: Json = False,
) -> None:
    """Write a model that ships as a plain diffusers folder, which other programs load.

    Example: sfumato export stilllife out/stilllife
    """
    if name.endswith(".safetensors"):
        raise SfumatoError(f"{name} is no model that ships; for a scene: sfumato export-scene {name} --out scene.glb")
    look("stilllife.weights:export", name, folder)
    quiet()
    from sfumato.stilllife import weights

    weights.export(name, folder, half=half)
    print_json({"name": name, "folder": str(folder)}) if json else print(folder)
