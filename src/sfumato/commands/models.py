"""``sfumato models``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.commands.options import Json
from sfumato.errors import SfumatoError
from sfumato.io.terminal import print_json, quiet


def models(
    action: Annotated[
        tyro.conf.Positional[Literal["list", "export"]], tyro.conf.arg(metavar="list|export", help="What to do.")
    ] = "list",
    name: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME", help="The model to export.")
    ] = None,
    folder: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DIR", help="The folder to write it to.")
    ] = None,
    *,
    half: Annotated[
        bool, tyro.conf.arg(help="Export in half precision, as the weights ship."), tyro.conf.FlagCreatePairsOff
    ] = False,
    json: Json = False,
) -> None:
    """List the models that ship, or write one as a plain diffusers folder that other programs load.

    Example: sfumato models

    Example: sfumato models export stilllife out/stilllife
    """
    quiet()
    from sfumato.stilllife import weights

    if action == "export":
        if name is None or folder is None:
            raise SfumatoError("models export takes a NAME and a DIR: sfumato models export stilllife out/stilllife")
        weights.export(name, folder, half=half)
        print_json({"name": name, "folder": str(folder)}) if json else print(folder)
        return
    if name is not None:
        raise SfumatoError(f"models list takes no name, got {name!r}; did you mean: models export {name} DIR")
    rows = weights.table()
    if json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "parameters", "size", "for", "pipeline", box=None, pad_edge=False)
    for row in rows:
        size = f"{row['bytes'] / 2**20:.1f} MiB" if row["shipped"] else "not shipped"
        count = f"{row['parameters'] / 1e6:.1f} M" if row["shipped"] else ""
        table.add_row(row["name"], count, size, row["for"], row["pipeline"])
    Console().print(table)
    print(f"folder: {weights.folder()}")
