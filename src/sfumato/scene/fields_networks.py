"""Fields that are networks of coordinates: smooth and small, but each sample costs the whole network."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.scene import harmonics
from sfumato.scene.fields import Matter, Solid
from sfumato.scene.regions import Region


def waves(x: Float[Tensor, "p d"], frequencies: int) -> Float[Tensor, "p k"]:
    """x, and sines and cosines of 2^i pi x for each i below ``frequencies`` (Mildenhall et al. 2020, eq. 4)."""
    phase = (x[..., None] * (math.pi * 2.0 ** torch.arange(frequencies).to(x))).flatten(-2)
    return torch.cat([x, phase.sin(), phase.cos()], -1)


class Network(Solid):
    """What the networks have in common: places as waves go through ``trunk``; a density and, with the direction's
    spherical harmonics, values come of it."""

    def __init__(
        self,
        width: int,
        depth: int,
        frequencies: int,
        channels: int,
        region: Region | None,
        latent: bool,
        shift: float,
        degree: int,
        blob: float,
        blob_radius: float,
        gain: float,
        seed: int,
    ):
        super().__init__(channels, region, latent, shift, blob, blob_radius, gain)
        if width < 2 or depth < 1 or frequencies < 0:
            raise SfumatoError(f"a network has layers of some width, got {depth} of {width}, {frequencies} frequencies")
        self.width, self.depth, self.frequencies, self.degree, self.seed = width, depth, frequencies, degree, seed
        self.inputs = 3 * (1 + 2 * frequencies)
        self.dense = nn.Linear(width, 1)
        self.colour = nn.Linear(width + harmonics.count(degree) - 1, width // 2)
        self.last = nn.Linear(width // 2, channels)

    def drawn(self) -> None:
        """Draw all weights from the seed, as torch draws them."""
        rng = torch.Generator().manual_seed(self.seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                for p in layer.parameters():
                    bound = 1 / math.sqrt(layer.in_features)
                    p.data = (2 * torch.rand(p.shape, generator=rng) - 1) * bound

    def trunk(self, at: Float[Tensor, "p k"]) -> Float[Tensor, "p w"]:
        raise NotImplementedError

    def forward(self, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"] | None = None) -> Matter:
        deep = self.trunk(waves(self.region.local(points), self.frequencies))
        density = self.solid(self.dense(deep)[:, 0], points)
        deep = harmonics.beside(deep, directions, self.degree)
        return Matter(density, self.shown(self.last(F.relu(self.colour(deep)))))

    def density(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        deep = self.trunk(waves(self.region.local(points), self.frequencies))
        return self.solid(self.dense(deep)[:, 0], points)

    def settings(self) -> dict[str, Any]:
        names = ("width", "depth", "frequencies", "degree", "seed")
        return {**{name: getattr(self, name) for name in names}, **super().settings()}


class NeRF(Network):
    """Layers of one width, the fifth of which sees the place again (Mildenhall et al. 2020: 8 of 256, 10 frequencies).

    The direction comes as spherical harmonics rather than waves.
    """

    def __init__(
        self,
        width: int = 256,
        depth: int = 8,
        frequencies: int = 10,
        channels: int = 3,
        region: Region | None = None,
        latent: bool = False,
        shift: float = 0.0,
        degree: int = 0,
        blob: float = 0.0,
        blob_radius: float = 0.5,
        gain: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(
            width, depth, frequencies, channels, region, latent, shift, degree, blob, blob_radius, gain, seed
        )  # fmt: skip
        again = {0: self.inputs, SKIP: width + self.inputs}
        self.layers = nn.ModuleList(nn.Linear(again.get(i, width), width) for i in range(depth))
        self.drawn()

    def trunk(self, at: Float[Tensor, "p k"]) -> Float[Tensor, "p w"]:
        deep = at
        for i, layer in enumerate(self.layers):
            deep = F.relu(layer(torch.cat([deep, at], -1) if i == SKIP else deep))
        return deep


SKIP = 4
"""The layer that sees the place again."""


class Residual(Network):
    """Blocks of two layers, what comes out of each added to what went in: ``depth`` of them."""

    def __init__(
        self,
        width: int = 128,
        depth: int = 5,
        frequencies: int = 10,
        channels: int = 3,
        region: Region | None = None,
        latent: bool = False,
        shift: float = 0.0,
        degree: int = 0,
        blob: float = 0.0,
        blob_radius: float = 0.5,
        gain: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(
            width, depth, frequencies, channels, region, latent, shift, degree, blob, blob_radius, gain, seed
        )  # fmt: skip
        self.first = nn.Linear(self.inputs, width)
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(2)) for _ in range(depth))
        self.drawn()

    def trunk(self, at: Float[Tensor, "p k"]) -> Float[Tensor, "p w"]:
        deep = self.first(at)
        for one, two in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            deep = deep + two(F.relu(one(F.relu(deep))))
        return F.relu(deep)
