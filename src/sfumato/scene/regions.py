"""Where a scene is: a box, or all of space with what is far drawn near; either is brought to the cube [-1, 1]^3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.scene.cameras import Rays

FAR = 1e3
"""Where rays end in space without bounds, in radii."""


@dataclass(frozen=True)
class Box:
    """A cube; outside of it nothing is."""

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    half: float = 1.0
    """Half of its side."""
    bounded = True

    def __post_init__(self) -> None:
        _sound(self.centre, self.half)

    def local(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """In [-1, 1] inside."""
        return (points - points.new_tensor(self.centre)) / self.half

    def world(self, local: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """Where what ``local`` gives came from."""
        return local * self.half + local.new_tensor(self.centre)

    def span(self, rays: Rays, near: float = 0.0) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
        """Where rays enter and leave, from a distance of ``near`` on; where a ray misses, both are the same."""
        start, way = self.local(rays.origins), rays.directions / self.half
        way = torch.where(way.abs() < 1e-9, torch.full_like(way, 1e-9), way)
        one, two = (-1 - start) / way, (1 - start) / way
        enter, leave = torch.minimum(one, two).amax(-1), torch.maximum(one, two).amin(-1)
        enter = enter.clamp_min(near)
        return enter, torch.maximum(leave, enter)


@dataclass(frozen=True)
class Space:
    """All of space: a cube as it is, what lies beyond drawn into one of twice the side.

    Barron et al. 2022, mip-NeRF 360, eq. 10, in the greatest coordinate, as nerfstudio has it.
    """

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: float = 1.0
    bounded = False

    def __post_init__(self) -> None:
        _sound(self.centre, self.radius)

    def local(self, points: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """In [-1/2, 1/2] inside of the cube, in (-1, 1) everywhere."""
        x = (points - points.new_tensor(self.centre)) / self.radius
        size = x.abs().amax(-1, keepdim=True).clamp_min(1)
        return torch.where(size > 1, (2 - 1 / size) * (x / size), x) / 2

    def world(self, local: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """Where what ``local`` gives came from; of the cube's faces, as far as rays go."""
        x = 2 * local
        size = x.abs().amax(-1, keepdim=True).clamp_min(1)
        far = x / size / (2 - size).clamp_min(1 / FAR)
        return torch.where(size > 1, far, x) * self.radius + local.new_tensor(self.centre)

    def span(self, rays: Rays, near: float = 0.05) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
        """From ``near``, in radii, to far away."""
        start = torch.full_like(rays.origins[..., 0], near * self.radius)
        return start, torch.full_like(start, FAR * self.radius)


Region = Box | Space


def _sound(centre: tuple[float, float, float], half: float) -> None:
    if len(centre) != 3 or not 0 < half < float("inf") or not all(abs(c) < float("inf") for c in centre):
        raise SfumatoError(f"a region has a middle of three numbers and a size above 0, got {centre} and {half:g}")


def spaced(
    region: Region,
    start: Float[Tensor, "*r"],
    end: Float[Tensor, "*r"],
    parts: Float[Tensor, "*r s"],
    reach: float = 1.0,
) -> Float[Tensor, "*r s"]:
    """Distances at parts of the way: even in a box, in space even up to ``reach`` radii and then in disparity."""
    if isinstance(region, Box):
        return start[..., None] + parts * (end - start)[..., None]
    one = reach * region.radius
    first, last = _drawn(start, one)[..., None], _drawn(end, one)[..., None]
    at = first + parts * (last - first)
    return torch.where(at < 0.5, 2 * one * at, one / (2 * (1 - at)).clamp_min(1e-9))


def parts_of(
    region: Region,
    start: Float[Tensor, "*r"],
    end: Float[Tensor, "*r"],
    distances: Float[Tensor, "*r s"],
    reach: float = 1.0,
) -> Float[Tensor, "*r s"]:
    """Which parts of the way distances are: what ``spaced`` makes distances of."""
    if isinstance(region, Box):
        return (distances - start[..., None]) / (end - start)[..., None].clamp_min(1e-9)
    one = reach * region.radius
    first, last = _drawn(start, one)[..., None], _drawn(end, one)[..., None]
    return (_drawn(distances, one) - first) / (last - first)


def _drawn(x: Tensor, one: float) -> Tensor:
    """Distances from 0 to infinity as parts of 1, half of it up to ``one``."""
    return torch.where(x < one, x / (2 * one), 1 - one / (2 * x.clamp_min(one)))
