"""A field of grids of many resolutions whose cells share one table each (Mueller et al. 2022, Instant-NGP)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.scene import harmonics
from sfumato.scene.fields import Matter, Solid
from sfumato.scene.regions import Region

PRIMES = (1, 2_654_435_761, 805_459_861)
"""Of the hash, eq. 4."""
SMALL = 1e-4
"""Features start between this and its negative."""


class HashGrid(Solid):
    """Features of ``levels`` grids, each read trilinearly, and a small network of them.

    Level l has floor(base growth^l) cells a side; a grid whose corners fit into 2^``log_size`` rows has a row each, of
    a finer one they share rows by a hash. Defaults are Instant-NGP's as threestudio has them: 16 levels of 2 features,
    2^19 rows, 16 to 4096 cells, a network of 64. That takes a GPU; on a CPU take log_size=14 and levels=8.

    ``progressive``: (levels seen first, part of a run at which they become more, part for each more), threestudio's are
    (8, 0.2, 0.05).
    """

    def __init__(
        self,
        levels: int = 16,
        features: int = 2,
        log_size: int = 19,
        base: int = 16,
        growth: float = 1.4472692,
        width: int = 64,
        channels: int = 3,
        region: Region | None = None,
        latent: bool = False,
        shift: float = 0.0,
        degree: int = 0,
        blob: float = 0.0,
        blob_radius: float = 0.5,
        gain: float = 1.0,
        progressive: tuple[int, float, float] | None = None,
        seed: int = 0,
    ):
        super().__init__(channels, region, latent, shift, blob, blob_radius, gain)
        if min(levels, features, base, width) < 1 or growth < 1 or not 1 <= log_size <= 30:
            raise SfumatoError(f"a hash grid has levels, features and cells, got {levels}, {features}, {base}")
        self.levels, self.features, self.log_size, self.base, self.growth = levels, features, log_size, base, growth
        self.width, self.degree, self.seed = width, degree, seed
        self.progressive = None if progressive is None else (int(progressive[0]), *progressive[1:])
        self.sides = [math.floor(base * growth**level) for level in range(levels)]
        rows = [min((side + 1) ** 3, 2**log_size) for side in self.sides]
        self.dense = [(side + 1) ** 3 <= 2**log_size for side in self.sides]
        self.starts = [sum(rows[:level]) for level in range(levels)]
        rng = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter((2 * torch.rand(sum(rows), features, generator=rng) - 1) * SMALL)
        inside = levels * features
        bound = [1 / math.sqrt(n) for n in (inside, width, width + harmonics.count(degree) - 1)]
        shapes = ((width, inside), (1, width), (channels, width + harmonics.count(degree) - 1))
        made = [(2 * torch.rand(s, generator=rng) - 1) * b for s, b in zip(shapes, bound, strict=True)]
        self.first, self.thick, self.colour = (nn.Parameter(x) for x in made)  # without biases, as tiny-cuda-nn's
        self.shown_levels = levels
        self.at_step(0.0)

    def at_step(self, progress: float) -> None:
        if self.progressive is not None:
            first, begin, each = self.progressive
            more = max(0, math.floor((progress - begin) / each) + 1) if progress >= begin else 0
            self.shown_levels = min(self.levels, first + more)

    def corners(self, local: Float[Tensor, "p 3"], level: int) -> tuple[Int[Tensor, "p 8"], Float[Tensor, "p 8"]]:
        """Rows of the corners around places in [-1, 1], and their parts."""
        side = self.sides[level]
        at = ((local + 1) / 2).clamp(0, 1) * side
        low = at.detach().floor().clamp(max=side - 1)
        part = at - low
        one = torch.tensor([[i >> k & 1 for k in range(3)] for i in range(8)], device=local.device)
        weights = torch.where(one.bool(), part[:, None], 1 - part[:, None]).prod(-1)
        corner = low.long()[:, None] + one
        if self.dense[level]:
            x, y, z = corner.unbind(-1)
            rows = x + (side + 1) * (y + (side + 1) * z)
        else:
            x, y, z = (corner * torch.tensor(PRIMES, device=local.device)).unbind(-1)
            rows = (x ^ y ^ z) & (2**self.log_size - 1)
        return rows + self.starts[level], weights

    def encoded(self, local: Float[Tensor, "p 3"]) -> Float[Tensor, "p k"]:
        """Features of all levels; those of levels that are not seen yet are 0."""
        out = []
        for level in range(self.shown_levels):
            rows, parts = self.corners(local, level)
            out.append(F.embedding_bag(rows, self.table, per_sample_weights=parts.to(self.table), mode="sum"))
        hidden = (self.levels - self.shown_levels) * self.features
        return torch.cat([*out, local.new_zeros(len(local), hidden)], -1)

    def deep(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "p w"]:
        return F.relu(self.encoded(self.region.local(points)) @ self.first.T)

    def forward(self, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"] | None = None) -> Matter:
        deep = self.deep(points)
        density = self.solid((deep @ self.thick.T)[:, 0], points)
        deep = harmonics.beside(deep, directions, self.degree)
        return Matter(density, self.shown(deep @ self.colour.T))

    def density(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        return self.solid((self.deep(points) @ self.thick.T)[:, 0], points)

    def settings(self) -> dict[str, Any]:
        names = ("levels", "features", "log_size", "base", "growth", "width", "degree", "progressive", "seed")
        return {**{name: getattr(self, name) for name in names}, **super().settings()}
