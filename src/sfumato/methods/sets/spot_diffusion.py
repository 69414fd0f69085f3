"""SpotDiffusion (Frolov et al. 2024, arXiv 2407.15507): a panorama in windows that do not overlap and never stay.

In each step the windows lie side by side, somewhere else than in the last one (section 3). Where two meet, the next
step paints over, so that no seam lasts; the steps do what overlaps do elsewhere, at a fraction of the predictions.

Defaults: the paper's; offsets are drawn evenly for each step, all images of a run have the same. The authors roll their
canvas, so that every panorama is a ring, as on a ring here. On a strip the first and the last window end at its
borders, which takes one more, and cells that two then show are their mean.

Needs: nothing inside the network. As many windows as cover the canvas once (on a strip one more): an eighth of
MultiDiffusion's at its stride.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sfumato.core.method import Method, Phases, Run
from sfumato.core.settings import Whole
from sfumato.core.sites import Grid
from sfumato.core.views import Fuse, Ring, Side, Tiles, Views, Windows
from sfumato.errors import SfumatoError


@dataclass(frozen=True)
class SpotDiffusion(Method):
    """Windows side by side, moved in each step."""

    offsets: Whole = 0
    """Seed of the offsets, which are the same for all images of a run."""

    def seeing(self, views: Views) -> Views:
        if views.side == "instance" or not isinstance(views, Tiles):
            raise SfumatoError("SpotDiffusion moves windows over one canvas; views are tiles or a ring of it")
        if views.stride is not None:
            raise SfumatoError("SpotDiffusion's windows lie side by side; leave the stride out")
        return Spots(self.offsets, isinstance(views, Ring), fuse=views.fuse)

    def start(self, run: Run) -> Phases:
        return Phases()


@dataclass(frozen=True)
class Spots(Windows):
    """Windows side by side, in step ``step`` at an offset that is drawn for it."""

    offsets: int = 0
    around: bool = False
    step: int = 0
    fuse: Fuse = "x_prev"
    side: Side = "canvas"

    def at(self, i: int) -> Spots:
        return replace(self, step=i)

    def places(self, height: int, width: int, window: Grid) -> tuple[tuple[int, int], ...]:
        generator = torch.Generator().manual_seed(self.offsets)
        down, across = torch.rand(self.step + 1, 2, generator=generator)[-1].tolist()
        if min(height, width) < 1 or height < window[0] or width < window[1]:
            raise SfumatoError(
                f"a canvas is at least as large as the window, {window[0]} x {window[1]} cells, got {height} x {width}"
            )
        rows = _strip(height, window[0], down)
        columns = _ring(width, window[1], across) if self.around else _strip(width, window[1], across)
        return tuple((top, left) for top in rows for left in columns)


def _strip(length: int, side: int, part: float) -> list[int]:
    """Where windows begin that cover a strip, the first ones ``part`` of a window before it, kept inside."""
    if length == side:
        return [0]
    first = int(part * side) - side
    return [min(max(first + k * side, 0), length - side) for k in range(-(-length // side) + 1)]


def _ring(length: int, side: int, part: float) -> list[int]:
    """Where they begin on a ring: anywhere, then one after the other."""
    first = int(part * length)
    return [(first + k * side) % length for k in range(-(-length // side))]
