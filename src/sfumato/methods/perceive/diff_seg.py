"""DiffSeg (Tian et al. 2023, arXiv 2308.12469): pixels that attend alike are one segment.

Each pixel's self-attention, of all layers and brought to one grid, is a distribution over the image. A grid of anchors
gathers the pixels whose distributions lie near by the symmetric Kullback-Leibler divergence; the means of these are
merged among themselves, greedily, until few are left, and each pixel goes to the one that is highest there.

Defaults: the paper and its code (no noise at t = 300, one pass, no words, 16 x 16 anchors, three passes of merging at
0.9, half of the sum of both divergences); ``COCO`` has the threshold that they used there. The code compares anchors in
half precision, here in single, as two matrix products; it has 64 x 64 cells and square images, here the finest grid
there is, of any shape, with as many anchors as fit. Weights are proportional to the resolution, among those present. Of
k-means (``refine``), a mean that loses all its pixels is left out, where theirs is moved to the pixel furthest off.

Needs: image->image maps, added up as they are made, so that one map of cells x cells exists beside the heads' own (64
MiB at 64 x 64), and as much again twice for the clustering. One call of the network.

Families: all. In joint attention the part that goes from pixels to pixels is made one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import FEWEST
from sfumato.core.settings import Count, Part, Positive, Settings, SomePart, Time
from sfumato.core.sites import Grid, Site
from sfumato.reading.reader import Noise, Reader, attended, chosen
from sfumato.reading.results import Segments

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class DiffSeg(Settings):
    """Segments by what the pixels' self-attention has in common; nothing is known of what they are."""

    threshold: Positive = 0.9
    """Maps that lie nearer to each other than this become one; more makes fewer segments."""
    anchors: Count | SomePart = 0.25
    """Rows and columns of anchors, as far as the grid has so many; or their part of its rows and columns, of which 16
    at least."""
    passes: Count = 3
    """The first gathers pixels around the anchors, the others merge what came of it."""
    refine: bool = False
    """Go on by k-means over all pixels' maps from there."""
    t: Time = 300
    """The step that the network is told, of a thousand; no noise is added."""
    least: Part = 0.0
    """Only maps of at least this part of the latents' side; 0 takes all."""
    stage: str | None = None
    """Only maps of this stage, in UNets down, mid or up; all when none is given."""
    spread: Literal["nearest", "bilinear"] = "nearest"
    """How the pixels between those of a coarser map get theirs."""

    def __call__(self, reader: Reader) -> Segments:
        sites = chosen(reader, "image->image", self.stage, self.least, "DiffSeg")
        maps, grid = self_attention(reader, sites, Noise(self.t, "none"), self.spread)
        near = anchored(grid, self.anchors)
        proposals = cluster(maps, near, self.threshold, self.passes)
        if self.refine:
            proposals = k_means_from(maps, proposals)
        return Segments(proposals.unflatten(1, grid), reader.size).used


COCO = DiffSeg(threshold=1.1)
"""The threshold that the paper and its code have for COCO-Stuff."""


def self_attention(
    reader: Reader, sites: Sequence[Site], noise: Noise, spread: Literal["nearest", "bilinear"] = "nearest"
) -> tuple[Float[Tensor, "n n"], Grid]:
    """What each pixel attends to, over all sites, at the finest grid among them; each row sums to one (eq. 2).

    Sites of one grid are averaged; grids are weighed by their side.
    """
    sums: dict[Grid, Tensor] = {}
    counts: dict[Grid, int] = {}

    def add(call: Call) -> Tensor:
        found = attended(call, "image->image").mean(0)
        sums[call.grid] = sums[call.grid].add_(found) if call.grid in sums else found
        counts[call.grid] = counts.get(call.grid, 0) + 1
        return found.new_zeros(call.rows.each, 1)

    reader.extract(sites, add, noise)
    finest = max(sums, key=min)
    total = sum(min(grid) for grid in sums)
    out = sums.pop(finest).mul_(min(finest) / total / counts[finest])
    for grid, found in sums.items():
        out += brought(found, grid, finest, spread).mul_(min(grid) / total / counts[grid])
    return out, finest


def brought(
    maps: Float[Tensor, "m m"], grid: Grid, to: Grid, spread: Literal["nearest", "bilinear"] = "nearest"
) -> Float[Tensor, "n n"]:
    """Self-attention of a grid on a finer one: keys bilinear, so that a row's sum stays; queries as ``spread`` says."""
    keys = F.interpolate(maps.view(1, -1, *grid), to, mode="bilinear", align_corners=False)[0].flatten(1)
    keys = (keys * (maps.sum(1) / keys.sum(1).clamp_min(_TINY))[:, None]).T.reshape(1, -1, *grid)
    options = {"align_corners": False} if spread == "bilinear" else {}
    return F.interpolate(keys, to, mode=spread, **options)[0].flatten(1).T


def anchored(grid: Grid, anchors: int | float) -> Int[Tensor, " a"]:
    """Cells of an even grid of anchors, row by row; their number a side, or their part of the shorter side."""
    most = anchors if isinstance(anchors, int) else max(FEWEST, round(anchors * min(grid)))
    y, x = (((torch.arange(m) + 0.5) * n / m - 0.5).floor().long() for n, m in ((n, min(most, n)) for n in grid))
    return (y[:, None] * grid[1] + x).flatten()


def divergence(
    p: Float[Tensor, "a n"], q: Float[Tensor, "b n"], log_q: Float[Tensor, "b n"] | None = None
) -> Float[Tensor, "a b"]:
    """Half of KL(p, q) + KL(q, p) of each with each, as two products of matrices (eq. 4)."""
    log_p = p.clamp_min(_TINY).log()
    log_q = q.clamp_min(_TINY).log() if log_q is None else log_q
    own = (p * log_p).sum(1)[:, None] + torch.linalg.vecdot(q, log_q)
    return (own - p @ log_q.T - log_p @ q.T) / 2


def cluster(
    maps: Float[Tensor, "n n"], anchors: Int[Tensor, " a"], threshold: float, passes: int = 3
) -> Float[Tensor, "k n"]:
    """Proposals: what maps near an anchor have in common, merged greedily (section 3.3).

    A mean takes in what an earlier one took; only what no mean has taken can begin one.
    """
    near = divergence(maps[anchors], maps) < threshold
    near[torch.arange(len(anchors)), anchors] = True  # an anchor lies nearest to itself, whatever rounding says
    found = _means(near, maps)
    for _ in range(passes - 1):
        alike = (divergence(found, found) < threshold).fill_diagonal_(True)
        free, begin = torch.ones(len(found), dtype=torch.bool), []
        for i, others in enumerate(alike.cpu()):
            if free[i]:
                begin.append(i)
                free &= ~others
        found = _means(alike[begin], found)
    return found


def _means(of: Bool[Tensor, "k n"], points: Float[Tensor, "n d"]) -> Float[Tensor, "k d"]:
    return of.to(points) @ points / of.sum(1, keepdim=True)


def k_means_from(points: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], most: int = 300) -> Float[Tensor, "k d"]:
    """Centres after k-means from these; those that lose all points are left out."""
    before = None
    for _ in range(most):
        labels = (centres.square().sum(1) - 2 * points @ centres.T).argmin(1).unique(return_inverse=True)[1]
        if before is not None and torch.equal(labels, before):
            break
        before = labels
        centres = _means(F.one_hot(labels).T.bool(), points)
    return centres
