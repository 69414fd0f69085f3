"""What lies behind a scene, by the direction of a ray."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.scene import harmonics


class Background(nn.Module):
    """One learned value for all directions; subclasses know directions. Made again from ``settings`` and its state."""

    def __init__(self, channels: int = 3, latent: bool = False):
        super().__init__()
        self.channels, self.latent = channels, latent
        self.value = nn.Parameter(torch.zeros(channels))

    def raw(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        return self.value.expand(*directions.shape[:-1], -1)

    def forward(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        raw = self.raw(directions)
        return raw if self.latent else raw.sigmoid()

    def settings(self) -> dict[str, Any]:
        return {"channels": self.channels, "latent": self.latent}


class Plain(Background):
    """One value that is given, and not learned."""

    def __init__(self, value: tuple[float, ...] = (1.0, 1.0, 1.0), latent: bool = False):
        super().__init__(len(value), latent)
        self.value.requires_grad_(False)
        self.value.copy_(torch.tensor(value))

    def forward(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        return self.raw(directions)

    def settings(self) -> dict[str, Any]:
        return {"value": tuple(self.value.tolist()), "latent": self.latent}


class Harmonic(Background):
    """Spherical harmonics: a sky that is soft."""

    def __init__(self, channels: int = 3, latent: bool = False, degree: int = 2):
        super().__init__(channels, latent)
        self.degree = degree
        self.turning = nn.Parameter(torch.zeros(harmonics.count(degree) - 1, channels))

    def raw(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        return self.value + harmonics.basis(directions, self.degree)[..., 1:] @ self.turning

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "degree": self.degree}


class Directional(Background):
    """A network of two layers of 16 of the direction's spherical harmonics, as threestudio has it."""

    def __init__(self, channels: int = 3, latent: bool = False, width: int = 16, seed: int = 0):
        super().__init__(channels, latent)
        self.width, self.seed = width, seed
        rng = torch.Generator().manual_seed(seed)
        sizes = (harmonics.count(harmonics.MOST), width, width, channels)
        self.layers = nn.ParameterList(
            nn.Parameter((2 * torch.rand(n, m, generator=rng) - 1) / math.sqrt(n)) for n, m in pairwise(sizes)
        )

    def raw(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        deep = harmonics.basis(directions, harmonics.MOST)
        for i, layer in enumerate(self.layers):
            deep = (F.relu(deep) if i else deep) @ layer
        return self.value + deep

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "width": self.width, "seed": self.seed}


class Horizon(Background):
    """By elevation alone: a ground and a sky that are the same all around, so that no thing hides in them.

    A table of values at elevations from straight down to straight up, and linear between them.
    """

    def __init__(self, channels: int = 3, latent: bool = False, rows: int = 25):
        super().__init__(channels, latent)
        self.rows = rows
        self.table = nn.Parameter(torch.zeros(max(2, rows), channels))

    def raw(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        return self.value + _by_elevation(self.table, directions)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "rows": self.rows}


class Outdoors(Harmonic):
    """A soft sky and ``Horizon``'s table: what is far changes with the elevation, and softly all around."""

    def __init__(self, channels: int = 3, latent: bool = False, degree: int = 2, rows: int = 25):
        super().__init__(channels, latent, degree)
        self.rows = rows
        self.table = nn.Parameter(torch.zeros(max(2, rows), channels))

    def raw(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        return super().raw(directions) + _by_elevation(self.table, directions)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "rows": self.rows}


def _by_elevation(table: Float[Tensor, "n c"], directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
    """A table from straight down to straight up, linear between its rows."""
    place = (torch.asin(directions[..., 1].clamp(-1, 1)) / math.pi + 0.5) * (len(table) - 1)
    row = place.detach().floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[row], table[row + 1], (place - row)[..., None])
