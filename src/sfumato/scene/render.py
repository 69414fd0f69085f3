"""A field as cameras see it: a ``Generator`` that distillation and reconstruction move alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.distill.generators import Generator, Rendering
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.scene import volume
from sfumato.scene.backgrounds import Background
from sfumato.scene.cameras import Pinholes, Rays, orbit
from sfumato.scene.fields import Field
from sfumato.scene.sampling import Occupancy, Sampling, edges

__all__ = ["Background", "FieldScene", "Sampling", "Seen", "Shading", "normals"]
EVEN = Sampling()
FAINT = 1e-3
"""Samples that are less of what a ray sees have no normals."""


class Seen(NamedTuple):
    """What rays see."""

    values: Float[Tensor, "r c"]
    opacity: Float[Tensor, " r"]
    depth: Float[Tensor, " r"]
    """Along the ray, 0 where nothing is."""
    weights: Float[Tensor, "r s"]
    edges: Float[Tensor, "r s+1"]
    """Distances between which samples lie."""
    parts: Float[Tensor, "r s+1"]
    """The same as parts of the ray's way, as its region draws what is far near."""
    extra: Mapping[str, Tensor]
    normals: Float[Tensor, "r s 3"] | None = None
    """Of samples, of length 1, or 0 of those that hardly count."""


@dataclass(frozen=True)
class Shading:
    """How things are lit: by a light at a place for each camera, and from all around (threestudio's numbers).

    ``textureless`` shows white things, which tells shape from colour; ``normals`` shows (n + 1) / 2 as colours.
    """

    kind: Literal["albedo", "lambert", "textureless", "normals"] = "lambert"
    lights: Float[Tensor, "b 3"] | None = None
    """In the world; None: where each camera is."""
    ambient: float = 0.1
    diffuse: float = 0.9


class FieldScene(Generator):
    """A field, what is behind it, and how rays are sampled."""

    normals: bool = False
    """Do renderings have normals, whoever looks?"""
    random_background: float = 0.0
    """How often a drawn viewpoint sees one random colour behind the scene."""

    def __init__(self, field: Field, background: Background | None = None, sampling: Sampling = EVEN):
        super().__init__()
        self.field, self.sampling = field, sampling
        latent = bool(getattr(field, "latent", False))
        self.space = "latent" if latent else "pixel"
        self.background: Background = background or Background(field.channels, latent)
        self.occupancy = Occupancy(sampling.cells) if sampling.guided else None
        self.rates = {f"field.{k}": v for k, v in field.rates.items()}

    def trace(
        self,
        rays: Rays,
        rng: torch.Generator | None = None,
        *,
        normals: bool = False,
        shading: Shading | None = None,
        lights: Float[Tensor, "r 3"] | None = None,
        behind: Float[Tensor, "r c"] | None = None,
    ) -> Seen:
        """What flat rays see; ``rng``: on the CPU, for samples that lie anywhere in their parts.

        ``lights``: a place a ray, for ``shading``; ``behind``: in the place of the background.
        """
        between, parts = edges(self.field.region, rays, self.sampling, self.occupancy, rng)
        lengths = between[..., 1:] - between[..., :-1]
        inside = 0.5 if rng is None else torch.rand(*lengths.shape, generator=rng).to(lengths)
        at = between[..., :-1] + inside * lengths
        back = self.background(rays.directions) if behind is None else behind
        meet = _meet(between)
        if meet is not None:
            rays, at, lengths = Rays(*(x[meet] for x in rays)), at[meet], lengths[meet]
            lights = None if lights is None else lights[meet]
        points = rays.at(at).flatten(0, -2)
        asked = self._asked(points, lengths)
        ways = rays.directions[..., None, :].expand(*at.shape, 3).flatten(0, -2)
        some = points if asked is None else points[asked]
        matter = self.field(some, ways if asked is None else ways[asked])
        w = volume.weights(_placed(matter.density, asked, at), lengths)
        lit, values = None, matter.values
        if normals or (shading is not None and shading.kind != "albedo"):
            lit = self._normals(some, w.each.detach().flatten() if asked is None else w.each.detach().flatten()[asked])
            if shading is not None and shading.kind == "normals":
                values = (lit + 1) / 2
            elif shading is not None and shading.kind != "albedo":
                places = rays.origins if lights is None else lights
                places = places[:, None].expand(*at.shape, 3).flatten(0, -2)
                to = F.normalize((places if asked is None else places[asked]) - some, dim=-1)
                light = shading.ambient + shading.diffuse * (lit * to).sum(-1, keepdim=True).clamp_min(0)
                values = light.expand_as(values) if shading.kind == "textureless" else light * values
        each = w.each.flatten() if asked is None else w.each.flatten()[asked]
        of = torch.arange(len(at), device=at.device).repeat_interleave(at.shape[-1])
        of = of if asked is None else of[asked]

        def seen(what: Tensor) -> Tensor:
            if asked is None:
                return volume.composite(w, what.view(*at.shape, -1))
            out = what.new_zeros(len(at), what.shape[-1])
            return out.index_add(0, of, each[:, None] * what)

        shown = seen(values) + (1 - w.opacity)[..., None] * (back if meet is None else back[meet])
        extra = {k: seen(v) for k, v in matter.extra.items()}
        turned = None if lit is None else _placed(lit, asked, at)
        found = Seen(shown, w.opacity, volume.distance(w, at), w.each, between, parts, extra, turned)
        return found if meet is None else _among(found, meet, back)

    def _asked(self, points: Float[Tensor, "p 3"], lengths: Float[Tensor, "r s"]) -> Tensor | None:
        """Which samples the field is asked for; None for all."""
        if self.occupancy is None or not self.sampling.skip or not self.occupancy.known:
            return None
        with torch.no_grad():
            density = self.occupancy.at(self.field.region.local(points))
            return (-torch.expm1(-density * lengths.flatten()) > self.sampling.skip).nonzero()[:, 0]

    def _normals(self, points: Float[Tensor, "p 3"], w: Float[Tensor, " p"]) -> Float[Tensor, "p 3"]:
        some = (w > FAINT).nonzero()[:, 0]
        return torch.zeros_like(points).index_copy(0, some, normals(self.field, points[some]))

    def render(self, viewpoints: Any = None) -> Rendering:
        """What ``viewpoints.cameras`` see (or cameras themselves), (b, c, h, w) each; None: four around it.

        Of viewpoints it reads, where they have them, ``rng``, ``normals`` (are they wanted?) and ``shading``.
        ``extra`` has ``weights``, ``edges`` and ``parts`` of samples, ``rays`` (directions) and ``poses``, with
        normals also ``turned``, those of samples, and whatever else the field shows.
        """
        cameras = getattr(viewpoints, "cameras", viewpoints)
        cameras = (orbit(4, (64, 64)) if cameras is None else cameras).to(next(self.parameters()))
        rays = cameras.rays()
        shape, (h, w) = (len(cameras), *cameras.size), cameras.size
        rng, shading = getattr(viewpoints, "rng", None), getattr(viewpoints, "shading", None)
        lights = cameras.eyes if shading is None or shading.lights is None else shading.lights.to(cameras.eyes)
        seen = self.trace(
            Rays(*(x.flatten(0, -2) for x in rays)), rng, normals=self.normals or getattr(viewpoints, "normals", False),
            shading=shading, lights=lights.repeat_interleave(h * w, 0), behind=self._drawn(len(cameras), h * w, rng),
        )  # fmt: skip

        def image(x: Tensor) -> Tensor:
            return x.view(*shape, -1).permute(0, 3, 1, 2)

        extra = {k: getattr(seen, k).view(*shape, -1) for k in ("weights", "edges", "parts")}
        extra |= {"rays": rays.directions.permute(0, 3, 1, 2), "poses": cameras.poses}
        extra |= {k: image(v) for k, v in seen.extra.items()}
        turned = None
        if seen.normals is not None:
            turned = F.normalize(image((seen.weights[..., None] * seen.normals).sum(-2)), dim=1, eps=1e-6)
            extra["turned"] = seen.normals.view(*shape, -1, 3)
        return Rendering(image(seen.values), image(seen.opacity), image(seen.depth), turned, extra)

    def _drawn(self, cameras: int, pixels: int, rng: torch.Generator | None) -> Tensor | None:
        """One random colour a camera, or nothing where none is drawn."""
        if rng is None or not self.random_background or float(torch.rand((), generator=rng)) >= self.random_background:
            return None
        colours = torch.rand(cameras, self.field.channels, generator=rng).to(next(self.parameters()))
        return colours.repeat_interleave(pixels, 0)

    @torch.no_grad()
    def view(self, cameras: Pinholes, rays_at_once: int = 2**13, normals: bool = False) -> Rendering:
        """The same without gradients, a few rays at a time."""
        found: dict[str, list[Tensor]] = {}
        like = next(self.parameters())
        for i in range(len(cameras)):
            rays = cameras[i : i + 1].to(like).rays()
            flat = Rays(*(x.flatten(0, -2) for x in rays))
            rows: dict[str, list[Tensor]] = {}
            for o, d in zip(*(x.split(rays_at_once) for x in flat), strict=True):
                seen = self.trace(Rays(o, d), normals=normals)
                part = {"values": seen.values, "opacity": seen.opacity, "depth": seen.depth, **seen.extra}
                if seen.normals is not None:
                    part["normals"] = F.normalize((seen.weights[..., None] * seen.normals).sum(-2), dim=-1, eps=1e-6)
                for name, x in part.items():
                    rows.setdefault(name, []).append(x)
            for name, parts in rows.items():
                x = torch.cat(parts).view(1, *cameras.size, -1)
                found.setdefault(name, []).append(x.permute(0, 3, 1, 2))
        images = {name: torch.cat(x) for name, x in found.items()}
        own = [images.pop(name, None) for name in ("values", "opacity", "depth", "normals")]
        return Rendering(*own, extra=MappingProxyType(images))  # pyright: ignore[reportArgumentType]

    def at_step(self, progress: float) -> None:
        self.field.at_step(progress)

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        """Where something is, is looked at again every few steps."""
        if self.occupancy is not None and (step + 1) % self.occupancy.every == 0:
            self.occupancy.update(self.field, generator(0, step))


def _meet(between: Float[Tensor, "r s+1"]) -> Int[Tensor, " m"] | None:
    """Which rays meet the region, one at least; None for all."""
    hit = between[:, -1] > between[:, 0]
    return None if bool(hit.all()) else hit.nonzero()[:, 0] if bool(hit.any()) else hit.new_zeros(1, dtype=torch.long)


def _among(found: Seen, meet: Int[Tensor, " m"], back: Float[Tensor, "r c"]) -> Seen:
    """What some rays see, among those that see only what is behind."""

    def every(x: Tensor) -> Tensor:
        return x.new_zeros(len(back), *x.shape[1:]).index_copy(0, meet, x)

    opacity, depth, weights = (every(x) for x in (found.opacity, found.depth, found.weights))
    extra = {k: every(v) for k, v in found.extra.items()}
    turned = None if found.normals is None else every(found.normals)
    shown = back.to(found.values).index_copy(0, meet, found.values)
    return Seen(shown, opacity, depth, weights, found.edges, found.parts, extra, turned)


def _placed(some: Float[Tensor, "q *k"], asked: Tensor | None, at: Float[Tensor, "r s"]) -> Float[Tensor, "r s *k"]:
    """What was found at some samples, in its place among all; 0 at the others."""
    if asked is None:
        return some.view(*at.shape, *some.shape[1:])
    all_of = some.new_zeros(at.numel(), *some.shape[1:])
    return all_of.index_copy(0, asked, some).view(*at.shape, *some.shape[1:])


def normals(field: Field, points: Float[Tensor, "p 3"], step: float = 0.01) -> Float[Tensor, "p 3"]:
    """Where density falls fastest, by differences over twice ``step`` each way (threestudio's finite differences)."""
    offsets = step * torch.eye(3).to(points)
    around = torch.cat([points + o for o in offsets] + [points - o for o in offsets])
    density = field.density(around).view(2, 3, -1)
    return F.normalize((density[1] - density[0]).T, dim=-1, eps=1e-6)
