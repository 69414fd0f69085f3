"""Fields: at every place of a region a density and a colour (or latents, or features)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.scene.regions import Box, Region


class Matter(NamedTuple):
    """What a field has at points."""

    density: Float[Tensor, " p"]
    """Per unit of length, from 0."""
    values: Float[Tensor, "p c"]
    """Colours in [0, 1], or latents as they are."""
    extra: Mapping[str, Float[Tensor, "p k"]] = MappingProxyType({})
    """Whatever else is to be seen, such as features."""


class Field(nn.Module):
    """A density and values at every place; a subclass has ``forward``, and ``density`` where that is cheaper alone.

    It is made again from ``settings`` and its state, which is what a scene's file holds.
    """

    region: Region
    channels: int = 3
    """Of the values."""
    rates: Mapping[str, float] = MappingProxyType({})
    """Learning rates of parameters, by name; others have the optimiser's own."""

    def forward(self, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"] | None = None) -> Matter:
        """At points in the world, seen along ``directions`` of length 1 (None where it does not matter)."""
        raise NotImplementedError

    def density(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        return self.forward(points).density

    def settings(self) -> dict[str, Any]:
        """What ``type(self)(**settings)`` takes, as JSON has it."""
        raise NotImplementedError

    def at_step(self, progress: float) -> None:
        """A run is so far, in [0, 1): show finer levels, if there are any."""


class Voxels(Field):
    """A dense grid, read trilinearly: what is fastest on a CPU.

    Density is softplus(raw + ``shift``), colours leave through a sigmoid unless ``latent``.
    """

    def __init__(
        self,
        resolution: int = 64,
        channels: int = 3,
        region: Region | None = None,
        latent: bool = False,
        shift: float = -4.0,
    ):
        super().__init__()
        if resolution < 2 or channels < 1:
            raise SfumatoError(f"a grid has 2 cells a side or more and a channel, got {resolution}, {channels}")
        self.region, self.channels, self.latent, self.shift = region or Box(), channels, latent, shift
        n = resolution
        self.grid = nn.Parameter(torch.zeros(1, 1 + channels, n, n, n))

    def raw(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "k p"]:
        at = self.region.local(points).view(1, -1, 1, 1, 3)
        return F.grid_sample(self.grid, at, align_corners=False, padding_mode="border")[0, :, :, 0, 0]

    def forward(self, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"] | None = None) -> Matter:
        raw = self.raw(points)
        values = raw[1:].T
        return Matter(F.softplus(raw[0] + self.shift), values if self.latent else values.sigmoid())

    def settings(self) -> dict[str, Any]:
        size = {"resolution": self.grid.shape[-1], "channels": self.channels}
        return {**size, "region": self.region, "latent": self.latent, "shift": self.shift}
