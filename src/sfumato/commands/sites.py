"""``sfumato show sites``."""

from __future__ import annotations

import tyro

from sfumato.commands.first import known
from sfumato.commands.options import Json, Loading, Model, Size, painted_size, size_of
from sfumato.io.terminal import print_json, print_table, quiet


def sites(
    model: tyro.conf.Positional[Model] = "stilllife",
    *,
    loading: tyro.conf.OmitArgPrefixes[Loading],
    size: Size = None,
    json: Json = False,
) -> None:
    """List the attention calls of a model: where they are, what attends to what, at which grid of tokens.

    Example: sfumato show sites stilllife
    """
    asked = size_of(size)
    known(model)
    quiet()
    net = loading.load(model)
    height, width = (side // net.factor for side in painted_size(net, asked))
    rows = [
        {
            "index": site.index,
            "path": site.path,
            "stage": site.stage,
            "pairs": ", ".join(site.pairs),
            "axis": site.axis,
            "grid": "x".join(map(str, site.grid((height, width)))),
            "heads": site.heads,
        }
        for site in net.sites
    ]
    print_json(rows) if json else print_table(rows)
