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
from sfumato.scene import harmonics
from sfumato.scene.regions import Box, Region
from sfumato.scene.trilinear import read


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
    latent: bool = False
    """Are values as they are, rather than colours in [0, 1]?"""
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


class Solid(Field):
    """What the fields here have in common: how raw numbers become densities and values.

    Density is ``gain`` softplus(raw + ``shift`` + ``blob`` (1 - r / ``blob_radius``)), r from the region's middle: a
    blob to begin with (threestudio's, of 10 and 0.5). ``gain``: what raw numbers of about 1 are to mean, per unit of
    length. Values leave through a sigmoid unless ``latent``.
    """

    def __init__(
        self,
        channels: int,
        region: Region | None,
        latent: bool,
        shift: float,
        blob: float,
        blob_radius: float,
        gain: float,
    ):
        super().__init__()
        if channels < 1 or not blob_radius > 0 or not gain > 0:
            raise SfumatoError(
                f"a field has a channel or more, a radius and a gain above 0, got {channels}, {blob_radius}, {gain}"
            )
        self.region, self.channels, self.latent = region or Box(), channels, latent
        self.shift, self.blob, self.blob_radius, self.gain = shift, blob, blob_radius, gain

    def solid(self, raw: Float[Tensor, " p"], points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        """Densities of raw numbers."""
        if self.blob:
            radius = (points - points.new_tensor(self.region.centre)).norm(dim=-1)
            raw = raw + self.blob * (1 - radius / self.blob_radius)
        return self.gain * F.softplus(raw + self.shift)

    def shown(self, raw: Float[Tensor, "p c"]) -> Float[Tensor, "p c"]:
        return raw if self.latent else raw.sigmoid()

    def settings(self) -> dict[str, Any]:
        names = ("channels", "region", "latent", "shift", "blob", "blob_radius", "gain")
        return {name: getattr(self, name) for name in names}


class Voxels(Solid):
    """A dense grid, read trilinearly: what is fastest on a CPU.

    With a ``degree`` raw colours have spherical harmonics of the direction added, from a grid of a quarter as many
    cells a side: how light changes with the view is smooth in space.
    """

    def __init__(
        self,
        resolution: int = 64,
        channels: int = 3,
        region: Region | None = None,
        latent: bool = False,
        shift: float = -4.0,
        degree: int = 0,
        blob: float = 0.0,
        blob_radius: float = 0.5,
        gain: float = 1.0,
    ):
        super().__init__(channels, region, latent, shift, blob, blob_radius, gain)
        if resolution < 2:
            raise SfumatoError(f"a grid has 2 cells a side or more, got {resolution}")
        n, self.degree = resolution, degree
        self.grid = nn.Parameter(torch.zeros(1, 1 + channels, n, n, n))
        if (others := harmonics.count(degree) - 1) > 0:
            n = max(2, resolution // 4)
            self.turning = nn.Parameter(torch.zeros(1, channels * others, n, n, n))

    @property
    def resolution(self) -> int:
        """Cells a side."""
        return self.grid.shape[-1]

    def raw(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "k p"]:
        return read(self.grid, self.region.local(points))

    def forward(self, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"] | None = None) -> Matter:
        raw, values = self.raw(points).split([1, self.channels])
        values = values.T
        if self.degree > 0 and directions is not None:
            turning = read(self.turning, self.region.local(points)).view(self.channels, -1, len(points))
            values = values + torch.einsum("ckp,pk->pc", turning, harmonics.basis(directions, self.degree)[:, 1:])
        return Matter(self.solid(raw[0], points), self.shown(values))

    def density(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        return self.solid(read(self.grid[:, :1], self.region.local(points))[0], points)

    def settings(self) -> dict[str, Any]:
        return {"resolution": self.resolution, "degree": self.degree, **super().settings()}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """A grid that was refined comes with the cells that it has."""
        for name, own in list(self.named_parameters()):
            found = state_dict.get(prefix + name)
            if found is not None and found.ndim == 5 and found.shape != own.shape and found.shape[1] == own.shape[1]:
                setattr(self, name, nn.Parameter(own.new_empty(found.shape)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def refined(self, resolution: int) -> Voxels:
        """The same field with another number of cells a side, as this one is read there."""
        finer = type(self)(**{**self.settings(), "resolution": resolution}).to(self.grid)
        for name, own in finer.named_parameters():
            own.copy_(F.interpolate(getattr(self, name), own.shape[-3:], mode="trilinear", align_corners=False))
        return finer
