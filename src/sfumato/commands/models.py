"""``sfumato show models``."""

from __future__ import annotations

from sfumato.commands.options import Json
from sfumato.io.terminal import print_json, quiet


def models(*, json: Json = False) -> None:
    """List the models that ship.

    Example: sfumato show models
    """
    quiet()
    from sfumato.stilllife import weights

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
