"""``sfumato show models``."""

from __future__ import annotations

from sfumato.commands.options import Json
from sfumato.io.terminal import print_json, print_table, quiet


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
    shown = []
    for row in rows:
        size = f"{row['bytes'] / 2**20:.1f} MiB" if row["shipped"] else "not shipped"
        count = f"{row['parameters'] / 1e6:.1f} M" if row["shipped"] else ""
        shown.append(
            {"name": row["name"], "parameters": count, "size": size, "for": row["for"], "pipeline": row["pipeline"]}
        )
    print_table(shown)
    print(f"folder: {weights.folder()}")
