"""Which sites and layers of a model are meant: of a pair or kind, at a resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sfumato.core.backbone import Backbone
from sfumato.core.method import Where
from sfumato.core.sites import Grid, Layer, Site
from sfumato.errors import SfumatoError, unknown

PAIRS = {f"{a}->{b}" for a in ("image", "text") for b in ("image", "text")}
"""Of attention, from what to what; other words are kinds of features."""


def choose(model: Backbone, where: Where | str, grid: Grid, who: str = "this") -> tuple[Any, ...]:
    """The sites of a pair, or the layers of a kind, at a resolution: ``where`` says which, or is the pair alone.

    Raises ``SfumatoError`` that says what the model offers.
    """
    where = Where(where) if isinstance(where, str) else where
    pair, res = where.pair, where.res
    offers = (*model.sites, *model.layers)
    offers = [s for s in offers if s.axis == where.axis]
    pairs = sorted({p for s in offers for p in s.pairs})
    if pair not in pairs:
        what, none = "attention" if pair in PAIRS else "features", "no attention at all"
        if where.axis == "time":
            what, none = "attention over time", "none over time; load it with motion"
        raise SfumatoError(f"{who} asks for {pair!r} {what}; {model.name} offers {', '.join(pairs) or none}")
    found = [s for s in offers if pair in s.pairs]
    if res is not None:
        sides = {s: min(s.grid(grid)) for s in found}
        if isinstance(res, str):
            if res not in ("coarsest", "finest"):
                raise unknown("resolution", res, ("coarsest", "finest", "a number", "a fraction"))
            wanted = (min if res == "coarsest" else max)(sides.values())
        else:
            wanted = res if isinstance(res, int) else round(res * min(grid))
        offered = sorted(set(sides.values()))
        found = [s for s in found if sides[s] == wanted]
        if not found:
            raise SfumatoError(
                f"{who} asks for {pair} at resolution {res}; at this size {model.name} has it at "
                f"{', '.join(map(str, offered))}"
            )
    if where.sites is not None:
        found = [s for s in found if where.sites(s)]
        if not found:
            raise SfumatoError(f"{who} leaves no site of {pair} in {model.name}; its condition on sites is too narrow")
    return tuple(found)


FEWEST = 16
"""Cells a side of which a part of small latents is made at least: fewer say little of where things are."""


def side_of(sites: Sequence[Site | Layer], grid: Grid, res: int | float) -> int:
    """A grid's shorter side: a number as it is; of a part of the latents' side the nearest that there is.

    A part of small latents counts as 16 cells, as far as they have so many.
    """
    return res if isinstance(res, int) else nearest_side(sites, grid, min(1.0, max(res, FEWEST / min(grid))))


def nearest(model: Backbone, pair: str, grid: Grid, res: int | float, who: str) -> tuple[Any, ...]:
    """The sites of a pair at the side that ``side_of`` says. Raises ``SfumatoError`` as ``choose`` does."""
    offered = choose(model, pair, grid, who)
    side = side_of(offered, grid, res)
    return tuple(site for site in offered if min(site.grid(grid)) == side)


def nearest_side(sites: Sequence[Site | Layer], grid: Grid, part: float) -> int:
    """Of the sides that sites have, for latents of this grid, that nearest to a part of the latents' shorter side."""
    if not 0 < part <= 1:
        raise SfumatoError(f"a part of the latents' side is above 0 and at most 1, got {part}")
    sides = sorted({min(site.grid(grid)) for site in sites})
    return min(sides, key=lambda side: abs(math.log(side / (part * min(grid)))))
