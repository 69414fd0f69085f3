"""Optimal transport (SCOT, Liu et al., CVPR 2020, "Semantic Correspondence as an Optimal Transport Problem"): all cells
are matched at once.

Where each cell looks for its own best match, many find the same one. Here all cells of one image are carried to all of
another at once: the plan of least cost, one less the cosine of features clamped at 0, whose rows and columns add up to
given masses, smoothed by an entropy. A point goes where the plan carries most of its mass, to a part of a cell's width.

Defaults: the authors' epsilon 0.05, features as of ``DIFT`` instead of their classifier's. Their masses come of class
activation maps; here they are uniform, or the attention that each cell receives. Their code runs one iteration, which
is a scaling and no transport (``AUTHORS``); here 100 do, in logarithms, so nothing overflows. Their exponent (0.5 for
one benchmark, else 1) and the Hough vote over the plan are left out. A dustbin (Sarlin et al. 2020) is not theirs: it
takes what has no match.

Needs: as ``DIFT``; for masses by attention, image->image maps as well. The plan has cells times cells numbers.

Families: all, as ``DIFT``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.choice import choose, nearest_side
from sfumato.core.method import Where
from sfumato.core.settings import Count, Positive
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.dift import DIFT
from sfumato.ops.correspondence import cosines, peak, returned, sampled, sinkhorn
from sfumato.reading.reader import Noise, Reader, attended
from sfumato.reading.results import Matches


@dataclass(frozen=True)
class OptimalTransport(DIFT):
    """Matches points by the plan that carries all cells of one image to those of another."""

    epsilon: Positive = 0.05
    """Of the entropy: the smaller, the nearer to one match for each cell."""
    iterations: Count = 100
    """Of Sinkhorn."""
    masses: Literal["uniform", "attention"] = "uniform"
    """Of the cells: all alike, or the attention that each receives from all."""
    dustbin: float | None = None
    """Cost of having no match, such as 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None or self.refine != DIFT.refine:
            raise SfumatoError("transport has its own refinement; leave refine and temperature as they are")

    def plan(
        self, source: Reader, target: Reader, a: Float[Tensor, "c h w"], b: Float[Tensor, "c hb wb"]
    ) -> Float[Tensor, "h w hb wb"]:
        """How much of each cell goes to each, without the dustbin."""
        cost = 1 - cosines(a.flatten(1).T, b).flatten(1).clamp_min(0)
        rows, columns = (self.mass(r, (map.shape[1], map.shape[2])) for r, map in ((source, a), (target, b)))
        found = sinkhorn(cost, self.epsilon, self.iterations, rows, columns, self.dustbin)
        return found[: len(cost), : cost.shape[1]].unflatten(0, a.shape[1:]).unflatten(2, b.shape[1:])

    def mass(self, reader: Reader, grid: tuple[int, int]) -> Float[Tensor, " cells"] | None:
        """Of each cell; None for all alike."""
        if self.masses == "uniform":
            return None
        all_sites = choose(reader.model, "image->image", reader.grid, who="transport")
        res = nearest_side(all_sites, reader.grid, min(1.0, min(grid) / min(reader.grid)))
        sites = choose(reader.model, Where("image->image", res), reader.grid, "transport")
        noise = Noise(self.t, "gaussian", self.seed, self.ensemble)
        found = reader.extract(sites, lambda call: attended(call, "image->image").mean(1), noise, self.prompt)
        maps = [value.view(1, 1, *site.grid(reader.grid)) for site, value in found.items()]
        return F.interpolate(torch.cat(maps).mean(0, keepdim=True), grid, mode="area").flatten()

    def __call__(self, source: Reader, target: Reader, points: Float[Tensor, "n 2"]) -> Matches:
        at = source.inside(points)
        a, b = self.both(source, target)
        at, plan = at.to(a.device), self.plan(source, target, a, b)
        found, scores = carried(plan, at)
        sure = torch.ones(len(at), dtype=torch.bool)
        if self.cycle is not None:
            back = carried(plan.permute(2, 3, 0, 1), found)[0]
            sure = returned(back, at, source.size, self.cycle)
        sides = [torch.tensor([w, h], dtype=torch.float32) for h, w in (source.size, target.size)]
        return Matches(at.cpu() * sides[0], found.float().cpu() * sides[1], scores.float().cpu(), sure.cpu())


AUTHORS = OptimalTransport(iterations=1)
"""As their code runs it."""
# 20 pairs as of ``DIFT``: 0.30 of named keypoints, 0.19 of points anywhere; epsilon 0.05 0.29 and 0.21, one iteration
# 0.30 and 0.19, a dustbin at 0.4 0.30 and 0.16. So few pairs do not tell them apart, nor from ``DIFT`` (0.27, 0.16).


def carried(
    plan: Float[Tensor, "h w hb wb"], at: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Where places go, and the share of their mass that goes to the best cell."""
    rows = sampled(plan.flatten(2).permute(2, 0, 1), at)
    share = rows / rows.sum(1, keepdim=True).clamp_min(1e-30)
    return peak(rows.unflatten(1, plan.shape[2:])), share.amax(1)
