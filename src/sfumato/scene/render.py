"""A field as cameras see it: a ``Generator`` that distillation and reconstruction move alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.distill.generators import Generator, Rendering
from sfumato.learning.optimisers import Optimisers
from sfumato.scene import volume
from sfumato.scene.cameras import Pinholes, Rays, orbit
from sfumato.scene.fields import Field
from sfumato.scene.regions import spaced


class Background(nn.Module):
    """What lies behind a scene, by direction; here one learned value for all."""

    def __init__(self, channels: int = 3, latent: bool = False):
        super().__init__()
        self.latent = latent
        self.value = nn.Parameter(torch.zeros(channels))

    def forward(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        value = self.value if self.latent else self.value.sigmoid()
        return value.expand(*directions.shape[:-1], -1)


class Seen(NamedTuple):
    """What rays see."""

    values: Float[Tensor, "r c"]
    opacity: Float[Tensor, " r"]
    depth: Float[Tensor, " r"]
    """Along the ray, 0 where nothing is."""
    weights: Float[Tensor, "r s"]
    edges: Float[Tensor, "r s+1"]
    extra: Mapping[str, Tensor]


@dataclass(frozen=True)
class Sampling:
    """How a ray is sampled: evenly between where it enters and leaves its region."""

    samples: int = 64
    near: float = 0.05


class FieldScene(Generator):
    """A field, what is behind it, and how rays are sampled."""

    def __init__(self, field: Field, background: nn.Module | None = None, sampling: Sampling = Sampling()):
        super().__init__()
        self.field, self.sampling = field, sampling
        latent = bool(getattr(field, "latent", False))
        self.space = "latent" if latent else "pixel"
        self.background = background or Background(field.channels, latent)
        self.rates = {f"field.{k}": v for k, v in field.rates.items()}

    def trace(self, rays: Rays, rng: torch.Generator | None = None) -> Seen:
        """What flat rays see; ``rng``: on the CPU, for samples that lie anywhere in their parts."""
        n = self.sampling.samples
        start, end = self.field.region.span(rays, self.sampling.near)
        parts = torch.linspace(0, 1, n + 1).to(start).expand(*start.shape, -1)
        edges = spaced(self.field.region, start, end, parts)
        part = 0.5 if rng is None else torch.rand(*start.shape, n, generator=rng).to(start)
        at = edges[..., :-1] + part * (edges[..., 1:] - edges[..., :-1])
        points = rays.at(at).flatten(0, -2)
        matter = self.field(points, rays.directions[..., None, :].expand(*at.shape, 3).flatten(0, -2))
        w = volume.weights(matter.density.view(at.shape), edges[..., 1:] - edges[..., :-1])
        values = volume.composite(w, matter.values.view(*at.shape, -1), self.background(rays.directions))
        extra = {k: volume.composite(w, v.view(*at.shape, -1)) for k, v in matter.extra.items()}
        return Seen(values, w.opacity, volume.distance(w, at), w.each, edges, extra)

    def render(self, viewpoints: Any = None) -> Rendering:
        """What ``viewpoints.cameras`` see (or cameras themselves), (b, c, h, w) each; None: four around it."""
        cameras = getattr(viewpoints, "cameras", viewpoints)
        cameras = orbit(4, (64, 64)) if cameras is None else cameras
        device = next(self.parameters()).device
        rays = cameras.to(device).rays()
        seen = self.trace(Rays(*(x.flatten(0, -2) for x in rays)), getattr(viewpoints, "rng", None))
        shape = (len(cameras), *cameras.size)

        def image(x: Tensor) -> Tensor:
            return x.view(*shape, -1).permute(0, 3, 1, 2)

        extra = {"weights": seen.weights.view(*shape, -1), "edges": seen.edges.view(*shape, -1)}
        extra |= {k: image(v) for k, v in seen.extra.items()}
        return Rendering(image(seen.values), image(seen.opacity), image(seen.depth), extra=extra)

    @torch.no_grad()
    def view(self, cameras: Pinholes, rays_at_once: int = 2**14) -> Rendering:
        """The same without gradients, a few rays at a time."""
        images, alphas, depths = [], [], []
        device = next(self.parameters()).device
        for i in range(len(cameras)):
            rays = cameras[i : i + 1].to(device).rays()
            flat = Rays(*(x.flatten(0, -2) for x in rays))
            parts = [self.trace(Rays(o, d)) for o, d in zip(*(x.split(rays_at_once) for x in flat), strict=True)]
            for out, of in ((images, "values"), (alphas, "opacity"), (depths, "depth")):
                x = torch.cat([getattr(p, of) for p in parts]).view(1, *cameras.size, -1)
                out.append(x.permute(0, 3, 1, 2))
        return Rendering(torch.cat(images), torch.cat(alphas), torch.cat(depths))

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        """Nothing has to be put right."""


def normals(field: Field, points: Float[Tensor, "p 3"], step: float = 0.01) -> Float[Tensor, "p 3"]:
    """Where density falls fastest, by differences over twice ``step`` each way (threestudio's finite differences)."""
    offsets = step * torch.eye(3).to(points)
    around = torch.cat([points + o for o in offsets] + [points - o for o in offsets])
    density = field.density(around).view(2, 3, -1)
    return F.normalize((density[1] - density[0]).T, dim=-1, eps=1e-6)
