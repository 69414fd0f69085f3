"""All that lies around a point: an equirectangular canvas, seen in windows of a camera that looks about.

As in the panoramas of Kim et al. 2024 (SyncTweedies, arXiv 2403.14370): 72 degrees a window, one each 45 degrees, which
agree on pictures while each has latents of its own, looked up in one noise. Theirs look along the horizon; here they
look up and down as well, so that nothing is left out. Windows of 90 degrees each 90 are the faces of a cube.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.sites import Grid
from sfumato.core.views import Fuse, Side, View, Views, Warped
from sfumato.errors import SfumatoError


@dataclass(frozen=True)
class Sphere(Views):
    """Windows of ``fov`` degrees, one each ``step`` degrees: around the horizon, above and below it and at the poles.

    The canvas is twice as wide as it is high: 360 by 180 degrees, the right border next to the left. A cell counts by
    the solid angle that it has in a window, the cube of the cosine off its middle. Noise is looked up and stays unit.
    On a canvas four windows high no two cells of a window look at the same; at two, neighbours correlate by 0.1, at one
    by 0.5. The finer it is, the less do windows that overlap share of their noise.
    """

    fov: float = 72.0
    step: float = 45.0
    fuse: Fuse = "pixels"
    side: Side = "instance"
    around = True

    def __post_init__(self) -> None:
        if not (0 < self.step <= 90 and 0 < self.fov < 180 and self.fov >= self.step):
            raise SfumatoError(
                f"windows of a sphere are less than 180 degrees wide and one each 90 at most, no further apart than "
                f"they are wide, got {self.fov:g} each {self.step:g}"
            )

    @property
    def places(self) -> tuple[tuple[float, float], ...]:
        """Degrees to the right of the canvas' middle, and up, to which each window looks."""
        found = []
        rings = math.ceil(90 / self.step - 1e-9)
        for k in range(-rings, rings + 1):
            up = 90 * k / rings
            around = max(1, math.ceil(360 * math.cos(math.radians(up)) / self.step - 1e-9))
            found += [(360 * i / around, up) for i in range(around)]
        return tuple(found)

    def window(self, canvas: Grid, side: int) -> Grid:
        if canvas[1] != 2 * canvas[0]:
            raise SfumatoError(
                f"a sphere's canvas is twice as wide as it is high, got {canvas[0]} x {canvas[1]} cells; "
                f"take {canvas[0]} x {2 * canvas[0]}"
            )
        return side, side

    def of(self, canvas: Grid, window: Grid, cell: int = 1) -> tuple[View, ...]:
        return _windows(self, canvas, window)


@lru_cache(8)  # they are the same in every step
def _windows(sphere: Sphere, canvas: Grid, window: Grid) -> tuple[Spherical, ...]:
    half = math.tan(math.radians(sphere.fov) / 2)
    everywhere = directions(canvas)
    return tuple(_window(axes(*place), half, everywhere, window) for place in sphere.places)


def directions(canvas: Grid) -> Float[Tensor, "H W 3"]:
    """Of each cell, to the right, up and ahead, where ahead is the canvas' middle."""
    up = math.pi * (0.5 - (torch.arange(canvas[0], dtype=torch.float64)[:, None] + 0.5) / canvas[0])
    right = 2 * math.pi * ((torch.arange(canvas[1], dtype=torch.float64) + 0.5) / canvas[1] - 0.5)
    return torch.stack([up.cos() * right.sin(), up.sin().expand(canvas), up.cos() * right.cos()], -1)


def axes(right: float, up: float) -> Float[Tensor, "3 3"]:
    """A camera's own directions, to the right, up and ahead, that looks so many degrees to the right and up."""
    a, e = math.radians(right), math.radians(up)
    sideways = [math.cos(a), 0.0, -math.sin(a)]
    above = [-math.sin(e) * math.sin(a), math.cos(e), -math.sin(e) * math.cos(a)]
    ahead = [math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)]
    return torch.tensor([sideways, above, ahead], dtype=torch.float64)


def _window(camera: Tensor, half: float, everywhere: Tensor, window: Grid) -> Spherical:
    y, x = (half * (2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1) for n in window)
    rays = torch.stack([x.expand(window), -y[:, None].expand(window), torch.ones(window, dtype=torch.float64)], -1)
    rays = torch.nn.functional.normalize(rays @ camera, dim=-1)
    right, up = torch.atan2(rays[..., 0], rays[..., 2]), rays[..., 1].clamp(-1, 1).asin()
    there = torch.stack([right / (2 * math.pi) + 0.5, 0.5 - up / math.pi], -1)
    seen = everywhere @ camera.T
    ahead = seen[..., 2]
    at = seen[..., :2] / ahead.clamp_min(1e-6)[..., None] * torch.tensor([1.0, -1.0], dtype=torch.float64) / half
    inside = (ahead > 1e-6) & (at.abs() <= 1 + 1e-9).all(-1)
    back = torch.where(inside[..., None], (at + 1) / 2, 0.5)
    return Spherical(there.float(), back.float(), torch.where(inside, ahead**3, 0.0).float())


@dataclass(frozen=True, eq=False)
class Spherical(Warped):
    """A window of a canvas whose right border is next to the left one."""

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return Warped.project(*_around(self, canvas))

    def noise(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return Warped.noise(*_around(self, canvas))


def _around(view: Spherical, canvas: Tensor) -> tuple[Spherical, Tensor]:
    """With a column more at both ends, and the places there."""
    width = canvas.shape[-1]
    wide = torch.cat([canvas[..., -1:], canvas, canvas[..., :1]], -1)
    right = (view.there[..., 0] * width + 1) / (width + 2)
    return replace(view, there=torch.stack([right, view.there[..., 1]], -1)), wide
