"""Where along rays a field is asked: evenly, or where a coarse grid of its densities says that something is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.scene import volume
from sfumato.scene.cameras import Rays
from sfumato.scene.regions import Region, spaced

if TYPE_CHECKING:
    from sfumato.scene.fields import Field


@dataclass(frozen=True)
class Sampling:
    """How a ray is sampled between where it enters and leaves its region."""

    samples: int = 64
    """At which the field is asked."""
    near: float = 0.05
    """Nothing is nearer; in radii in a ``Space``."""
    reach: float = 1.0
    """In a ``Space``: up to how many radii parts of a ray are of one length, before they are of one disparity."""
    coarse: int = 0
    """Even parts of the ray of which the occupancy's densities say where samples go; 0: samples are even themselves."""
    skip: float = 0.0
    """Samples whose opacity would be below this by the occupancy's density are left out."""
    cells: int = 64
    """Of the occupancy, a side; there is none where neither is asked for."""

    def __post_init__(self) -> None:
        if (
            self.samples < 1
            or self.coarse < 0
            or min(self.near, self.reach - 1e-9) < 0
            or not 0 <= self.skip < 1
            or self.cells < 2
        ):
            raise SfumatoError(f"a ray has samples, from a distance of 0 on, got {self}")

    @property
    def guided(self) -> bool:
        """Is there an occupancy?"""
        return self.coarse > 0 or self.skip > 0


class Occupancy(nn.Module):
    """Densities of a field in the cells of its region, as they were lately (Mueller et al. 2022, Instant-NGP, C.1).

    An update takes the greater of what a cell had, faded, and the field's density somewhere in it. Before the first
    one nothing is known, and samples are even. It is all state: a run that goes on from a checkpoint samples alike.
    """

    density: Tensor
    updates: Tensor
    fade = 0.95
    every = 16
    """Steps between two updates."""
    warm = 16
    """Updates of all cells; after them each takes a quarter of the cells."""

    def __init__(self, cells: int = 64):
        super().__init__()
        self.cells = cells
        self.register_buffer("density", torch.zeros(cells**3))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def known(self) -> bool:
        return bool(self.updates > 0)

    @torch.no_grad()
    def update(self, field: Field, rng: torch.Generator, at_once: int = 2**17) -> None:
        """Look at the field again."""
        n, device = self.cells, self.density.device
        some = torch.arange(n**3)
        if int(self.updates) >= self.warm:
            some = torch.randint(n**3, (n**3 // 4,), generator=rng)
        z, y, x = some // n**2, some // n % n, some % n
        inside = torch.rand(len(some), 3, generator=rng)
        local = ((torch.stack([x, y, z], -1) + inside) / n * 2 - 1).to(self.density)
        found = torch.cat([field.density(field.region.world(part)) for part in local.split(at_once)])
        self.density *= self.fade
        self.density.scatter_reduce_(0, some.to(device), found, "amax")
        self.updates += 1

    def at(self, local: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p"]:
        """The densities of the cells in which places in [-1, 1] lie."""
        n = self.cells
        x, y, z = ((local + 1) * (n / 2)).long().clamp_(0, n - 1).unbind(-1)
        return self.density[(z * n + y) * n + x]


def edges(
    region: Region,
    rays: Rays,
    sampling: Sampling,
    occupancy: Occupancy | None = None,
    rng: torch.Generator | None = None,
) -> tuple[Float[Tensor, "r s+1"], Float[Tensor, "r s+1"]]:
    """Between which distances samples lie, and which parts of the way these are.

    Samples go to where weights would be by the occupancy's densities: the inverse of their sum at even places, moved
    by one draw a ray with ``rng``.
    """
    start, end = region.span(rays, sampling.near)
    n, reach = sampling.samples, sampling.reach
    if occupancy is None or not sampling.coarse or not occupancy.known:
        parts = torch.linspace(0, 1, n + 1).to(start).expand(*start.shape, -1)
        return spaced(region, start, end, parts, reach), parts
    with torch.no_grad():
        parts = torch.linspace(0, 1, sampling.coarse + 1).to(start).expand(*start.shape, -1)
        far = spaced(region, start, end, parts, reach)
        density = occupancy.at(region.local(rays.at((far[..., 1:] + far[..., :-1]) / 2)))
        w = volume.weights(density, far.diff(dim=-1)).each
        move = 0.5 if rng is None else torch.rand(*start.shape, 1, generator=rng).to(start)
        wanted = (torch.arange(n + 1).to(start) + move) / (n + 1)
        parts = resampled(widened(w), parts, wanted.expand(*start.shape, -1))
        return spaced(region, start, end, parts, reach), parts


def widened(w: Float[Tensor, "*r s"], rest: float = 0.01) -> Float[Tensor, "*r s"]:
    """Weights that reach a neighbour further, with a ``rest`` that goes everywhere (Barron et al. 2021, eq. 18)."""
    beside = torch.cat([w[..., :1], w, w[..., -1:]], -1)
    top = torch.maximum(beside[..., 1:], beside[..., :-1])
    return (top[..., 1:] + top[..., :-1]) / 2 + rest / w.shape[-1]


def resampled(
    w: Float[Tensor, "*r s"], edges: Float[Tensor, "*r s+1"], wanted: Float[Tensor, "*r k"]
) -> Float[Tensor, "*r k"]:
    """Where the weights' running sum, as a part of all, is as ``wanted``; it grows evenly between two edges."""
    total = w.cumsum(-1)
    sums = torch.cat([torch.zeros_like(total[..., :1]), total / total[..., -1:].clamp_min(1e-9)], -1).contiguous()
    after = torch.searchsorted(sums, wanted.contiguous(), right=True).clamp_(1, w.shape[-1])
    low, high = sums.gather(-1, after - 1), sums.gather(-1, after)
    part = ((wanted - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
    return torch.lerp(edges.gather(-1, after - 1), edges.gather(-1, after), part)
