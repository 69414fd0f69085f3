"""Propagation: from a click or a box to the thing that is there, by walks along what pixels attend to.

A row of self-attention is where a walker may step from a pixel. Walkers that start in the click's or the box's cells
stay in what belongs to them; walkers from everywhere else visit it less. A pixel is the thing's where the first come
``ratio`` times as often as the others. What is found is where the next round starts, so that one cell grows to a thing;
of a box, nothing outside of it is the thing's.

Stable Diffusion's self-attention is walked along by Karmann and Urfalioglu (2024, arXiv 2411.10411), who count a
click's steps up to a threshold, and by Wang et al. (2023, arXiv 2309.02773), who refine words' maps by its powers. The
ratio, the rounds and all defaults are this project's own, measured on renders; maps are added up as ``diff_seg`` does,
and read at its step.

Needs: image->image maps, added up as they are made, so that one map of cells x cells exists beside the heads' own. One
call of the network.

Families: all. In joint attention the part that goes from pixels to pixels is made one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.settings import Count, Part, Positive, Settings, Time
from sfumato.core.sites import Grid
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.diff_seg import self_attention
from sfumato.reading.reader import Noise, Reader, chosen
from sfumato.reading.results import Segments


@dataclass(frozen=True)
class Propagation(Settings):
    """The thing at a click, or in a box."""

    click: tuple[float, float] | None = None
    """x and y in the image's pixels."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom in the image's pixels."""
    walks: Count = 2
    """Steps of each walk; more reach further and tell less."""
    ratio: Positive = 1.5
    """How many times as often a pixel must be visited from the thing as from elsewhere."""
    rounds: Count = 3
    """Walks one after the other, each from what the last one found."""
    t: Time = 300
    """The step that the network is told, of a thousand; no noise is added."""
    least: Part = 0.0
    """Only maps of at least this part of the latents' side; 0 takes all."""
    stage: str | None = None
    """Only maps of this stage, in UNets down, mid or up; all when none is given."""

    def __call__(self, reader: Reader) -> Segments:
        """The background first, then the thing."""
        if (self.click is None) == (self.box is None):
            raise SfumatoError("propagation starts from a click or from a box; give one of them")
        sites = chosen(reader, "image->image", self.stage, self.least, "propagation")
        maps, grid = self_attention(reader, sites, Noise(self.t, "none"))
        seeds = self._seeds(reader, grid)
        inside = torch.ones_like(seeds) if self.box is None else seeds
        scores = grown(maps, seeds.to(maps.device), inside.to(maps.device), self.walks, self.ratio, self.rounds)
        return Segments(scores.unflatten(1, grid), reader.size, ("background", "thing"))

    def _seeds(self, reader: Reader, grid: Grid) -> Bool[Tensor, " n"]:
        """The click's cell, or those whose middles lie in the box; of a box without any, that at its middle."""
        if self.click is not None:
            return cell(reader.inside(torch.tensor([self.click])), grid)
        assert self.box is not None
        (left, top), (right, bottom) = corners = reader.inside(torch.tensor(self.box).view(2, 2))
        if left >= right or top >= bottom:
            raise SfumatoError(f"a box is left, top, right and bottom, got {', '.join(f'{v:g}' for v in self.box)}")
        y, x = ((torch.arange(n) + 0.5) / n for n in grid)
        found = (((y >= top) & (y <= bottom))[:, None] & (x >= left) & (x <= right)).flatten()
        return found if found.any() else cell(corners.mean(0, keepdim=True), grid)


def cell(share: Float[Tensor, "1 2"], grid: Grid) -> Bool[Tensor, " n"]:
    """The cell that a point, in parts of the sides, lies in."""
    x, y = (min(int(v * n), n - 1) for v, n in zip(share[0].tolist(), (grid[1], grid[0]), strict=True))
    out = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    out[y * grid[1] + x] = True
    return out


def grown(
    maps: Float[Tensor, "n n"],
    seeds: Bool[Tensor, " n"],
    inside: Bool[Tensor, " n"],
    walks: int,
    ratio: float,
    rounds: int = 1,
) -> Float[Tensor, "2 n"]:
    """Shares of the background and of the thing in each cell: of the walkers there, weighed by ``ratio``.

    ``maps``: rows that sum to one. Nothing outside of ``inside`` is the thing's. A round that finds no cell, or all,
    begins where the last one did.
    """
    start = seeds
    thing = other = seeds.to(maps)
    for _ in range(rounds):
        thing, other = start.to(maps), (~start).to(maps)
        thing, other = thing / thing.sum(), other / other.sum().clamp_min(1)
        for _ in range(walks):
            thing, other = thing @ maps, other @ maps
        thing = thing * inside
        found = (thing > ratio * other) | (seeds & (seeds.sum() == 1))
        start = found if found.any() and not found.all() else start
    total = (thing + ratio * other).clamp_min(1e-30)
    share = thing / total
    return torch.stack([1 - share, share])
