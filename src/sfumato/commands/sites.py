"""``sfumato show sites``."""

from __future__ import annotations

from typing import Annotated

import tyro

from sfumato.commands.options import Json, Loading, Model, check_size
from sfumato.io.terminal import print_json, print_table, quiet


def sites(
    model: tyro.conf.Positional[Model] = "stilllife",
    *,
    loading: tyro.conf.OmitArgPrefixes[Loading],
    size: Annotated[int | None, tyro.conf.arg(help="Side of the image in pixels [default: the model's].")] = None,
    json: Json = False,
) -> None:
    """List the attention calls of a model: where they are, what attends to what, at which grid of tokens.

    Example: sfumato show sites stilllife
    """
    if size is not None:
        check_size(size)
    quiet()
    net = loading.load(model)
    side = (size or net.size) // net.factor
    rows = [
        {
            "index": site.index,
            "path": site.path,
            "stage": site.stage,
            "pairs": ", ".join(site.pairs),
            "grid": "x".join(map(str, site.grid((side, side)))),
            "heads": site.heads,
        }
        for site in net.sites
    ]
    print_json(rows) if json else print_table(rows)
