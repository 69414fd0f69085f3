"""Views of one picture that reads in more than one way: its inner circle turned, and what a mirror shows of it.

Geng et al. 2024 (Visual Anagrams, arXiv 2311.17919): what the network says of each view is averaged. Noise must stay
noise in each, so what a view does to it is a permutation of cells (flips, quarter turns and ``InnerCircle``), or each
view is sampled by itself and they agree on pictures (``CylinderMirror``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.sites import Grid
from sfumato.core.views import View, Warped
from sfumato.errors import SfumatoError


@dataclass(frozen=True)
class InnerCircle(View):
    """The canvas with the disc in its middle turned counter-clockwise by any angle, and the rest as it stands.

    Cells of latents are permuted, ring by ring around the middle, each ring by as many cells as come nearest to the
    angle: noise stays the noise it was, a turn back undoes it, quarters are exact, and of other angles a cell is half a
    cell off, two at most. ``smooth`` turns by bilinear interpolation, as suits pictures: that is what it is
    ``in_pixels``.
    """

    degrees: float
    radius: float = 1.0
    """Of the disc, in halves of the shorter side."""
    smooth: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.radius <= 1 and math.isfinite(self.degrees)):
            raise SfumatoError(
                f"a disc is turned by degrees, of a radius up to 1, got {self.degrees:g} and {self.radius:g}"
            )

    def in_pixels(self) -> View:
        return replace(self, smooth=True)

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        grid = (canvas.shape[-2], canvas.shape[-1])
        if self.smooth:
            return _disc(grid, self.degrees, self.radius).project(canvas)
        return _permuted(canvas, _rings(grid, self.degrees, self.radius))

    def unproject(self, part: Float[Tensor, "b c h w"], canvas: Grid) -> tuple[Tensor, Tensor]:
        if self.smooth:
            return _disc(canvas, self.degrees, self.radius).unproject(part, canvas)
        return _permuted(part, _rings(canvas, self.degrees, self.radius).argsort()), torch.ones(canvas).to(part)


def _permuted(x: Tensor, order: Int[Tensor, " cells"]) -> Tensor:
    return x.flatten(2)[..., order.to(x.device)].view_as(x)


def _centred(grid: Grid) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """How many cells each lies below and right of the middle."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in grid)
    return rows[:, None].expand(grid), columns.expand(grid)


@lru_cache(16)  # they are the same in every step
def _rings(grid: Grid, degrees: float, radius: float) -> Int[Tensor, " cells"]:
    """Which cell of the canvas each cell of the view shows."""
    y, x = (at.flatten() for at in _centred(grid))
    away, angle = torch.hypot(x, y), torch.atan2(-y, x)
    order = torch.arange(len(away))
    for ring in range(math.ceil(radius * min(grid) / 2)):
        cells = ((away >= ring) & (away < ring + 1) & (away <= radius * min(grid) / 2)).nonzero()[:, 0]
        cells = cells[angle[cells].argsort()]
        order[cells] = cells.roll(round(degrees * len(cells) / 360))
    return order


@lru_cache(16)
def _disc(grid: Grid, degrees: float, radius: float) -> Warped:
    return Warped(_spun(grid, degrees, radius), _spun(grid, -degrees, radius), torch.ones(grid))


def _spun(grid: Grid, degrees: float, radius: float) -> Float[Tensor, "h w 2"]:
    """Where each cell comes from when the disc is turned."""
    y, x = _centred(grid)
    inside = torch.hypot(x, y) <= radius * min(grid) / 2
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    at = torch.stack([torch.where(inside, cos * x - sin * y, x), torch.where(inside, sin * x + cos * y, y)], -1)
    sides = torch.tensor([grid[1], grid[0]])
    return (at / sides + 0.5).float()


@dataclass(frozen=True)
class CylinderMirror(View):
    """What a mirror shows that stands on the middle of the canvas, a cylinder, to who looks at it from the lower side.

    Columns of the view are directions around the mirror, rows are distances from it, the nearest at the bottom. Noise
    is looked up, not mixed: sample such views each by itself, agreeing on ``pixels`` or ``x0``.
    """

    foot: float = 0.3
    """The mirror's radius, in halves of the sides."""
    spread: float = 200.0
    """Degrees of the ground around the mirror that it shows."""

    def __post_init__(self) -> None:
        if not (0 < self.foot < 1 and 0 < self.spread < 360):
            raise SfumatoError(f"a mirror's foot lies between 0 and 1, its spread below 360, got {self.foot:g} and "
                               f"{self.spread:g}")  # fmt: skip

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return _mirror((canvas.shape[-2], canvas.shape[-1]), self.foot, self.spread).project(canvas)

    def noise(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return _mirror((canvas.shape[-2], canvas.shape[-1]), self.foot, self.spread).noise(canvas)

    def unproject(self, part: Float[Tensor, "b c h w"], canvas: Grid) -> tuple[Tensor, Tensor]:
        return _mirror(canvas, self.foot, self.spread).unproject(part, canvas)


@lru_cache(16)
def _mirror(grid: Grid, foot: float, spread: float) -> Warped:
    y, x = ((2 * at / n).expand(grid) for at, n in zip(_centred(grid), grid, strict=True))
    reach = math.radians(spread)
    around, away = (x / 2) * reach, 1 - (y + 1) / 2 * (1 - foot)
    there = torch.stack([away * around.sin(), away * around.cos()], -1) / 2 + 0.5
    across, down = torch.atan2(x, y) / reach + 0.5, (1 - torch.hypot(x, y)) / (1 - foot)
    shown = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
    return Warped(there.float(), torch.stack([across, down], -1).float(), shown.float())
