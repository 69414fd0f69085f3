"""Feature fields: what is read of pictures, such as latents or where words look, as something that a scene has at
every place (seed 000, chapter 4; DFF, Kobayashi et al. 2022, arXiv 2205.15585; N3F, Tschernezki et al. 2022, arXiv
2209.03494).

A ray shows its samples' features by the weights with which it shows their colours; they are moved until that is what
was read there. Unless said otherwise no gradient goes to the density: geometry is what the photographs say. The branch
that has the features is ``Simple``, a head on what the field itself knows of a place, or ``Dual``, a field of its own,
which may depend on the direction. Maps are coarser than pictures: what a ray should show is read between their cells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, save_tensors, shared
from sfumato.learning.checkpoint import read
from sfumato.learning.loop import Problem
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.ops.blur import blur
from sfumato.scene.cameras import Pinholes, Rays
from sfumato.scene.fields import Field, Voxels
from sfumato.scene.fields_networks import waves

Kind = Literal["simple", "dual"]
FAINT = 1e-3
"""Samples that are less of what a ray sees have no features; the rest of the ray is what lies behind."""


class Simple(nn.Module):
    """Two layers on what the field has at a place: of networks and hash grids their last hidden layer, of a dense grid,
    which has none, its own raw densities and colours."""

    def __init__(self, inside: int, channels: int, width: int = 64, seed: int = 0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.first, self.last = (
            nn.Parameter(torch.randn(n, m, generator=rng) / n**0.5) for n, m in ((inside + 1, width), (width, channels))
        )

    def forward(self, of: Field, points: Tensor, directions: Tensor, stopped: bool = True) -> Float[Tensor, "p k"]:
        at = hidden(of, points)
        at = at.detach() if stopped else at
        return F.relu(torch.cat([at, torch.ones_like(at[:, :1])], 1) @ self.first) @ self.last


class Dual(nn.Module):
    """A dense grid of features alone, in the region of the field; of a ``degree`` above 0 they turn with the view."""

    def __init__(self, of: Field, channels: int, resolution: int = 32, degree: int = 0):
        super().__init__()
        self.own = Voxels(resolution, channels, of.region, latent=True, degree=degree)

    def forward(self, of: Field, points: Tensor, directions: Tensor, stopped: bool = True) -> Float[Tensor, "p k"]:
        return self.own(points, directions).values


def hidden(of: Field, points: Float[Tensor, "p 3"]) -> Float[Tensor, "p w"]:
    """What a field knows of places before it says density and colour."""
    known: Any = of
    if hasattr(of, "deep"):
        return known.deep(points)
    if hasattr(of, "trunk"):
        return known.trunk(waves(of.region.local(points), known.frequencies))
    if hasattr(of, "raw"):
        return known.raw(points).T
    raise SfumatoError(f"{type(of).__name__} has no inside that a simple branch could read; take a dual one")


class FeatureField(nn.Module):
    """Features of a scene's places; the scene itself is not part of what is learned, unless ``stopped`` is off."""

    def __init__(
        self,
        scene: Generator,
        channels: int,
        kind: Kind = "dual",
        *,
        resolution: int = 32,
        degree: int = 0,
        width: int = 64,
        stopped: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if not hasattr(scene, "trace"):
            raise SfumatoError(f"features are lifted into fields; {type(scene).__name__} is none")
        if channels < 1 or kind not in ("simple", "dual"):
            raise SfumatoError(f"a branch is simple or dual and has a channel or more, got {kind!r}, {channels}")
        if degree and kind == "simple":
            raise SfumatoError("a simple branch knows no direction; take a dual one for features that turn")
        self.settings = {
            "channels": channels, "kind": kind, "resolution": resolution, "degree": degree, "width": width,
            "stopped": stopped, "seed": seed,
        }  # fmt: skip
        self.scene_of = (scene,)  # in a tuple: no module of this one
        self.stopped = stopped
        of: Field = scene.field  # type: ignore[attr-defined, assignment]
        if kind == "dual":
            self.branch: nn.Module = Dual(of, channels, resolution, degree)
        else:
            with torch.no_grad():
                inside = hidden(of, torch.zeros(1, 3).to(next(scene.parameters()))).shape[1]
            self.branch = Simple(inside, channels, width, seed)
        self.behind = nn.Parameter(torch.zeros(channels))
        self.register_buffer("middle", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    @property
    def scene(self) -> Any:
        return self.scene_of[0]

    def along(self, rays: Rays, rng: torch.Generator | None = None) -> tuple[Float[Tensor, "r k"], Any]:
        """What flat rays show of the features, standardised, and what they see of the scene."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stopped):
            seen = self.scene.trace(rays, rng)
        row, column = (seen.weights > FAINT).nonzero().unbind(1)
        at = ((seen.edges[..., 1:] + seen.edges[..., :-1]) / 2)[row, column]
        points = rays.origins[row] + at[:, None] * rays.directions[row]
        values = self.branch(self.scene.field, points.detach(), rays.directions[row], self.stopped)
        w = seen.weights[row, column]
        out = values.new_zeros(len(rays.origins), values.shape[1]).index_add(0, row, w[:, None] * values)
        rest = 1 - w.new_zeros(len(out)).index_add(0, row, w)
        return out + rest[:, None] * self.behind, seen

    @torch.no_grad()
    def view(
        self, cameras: Pinholes, smooth: float = 0.0, rays_at_once: int = 2**13
    ) -> Float[Tensor, "n k h w"]:  # fmt: skip
        """Maps from cameras, blurred by a Gaussian of so many pixels."""
        out = []
        for i in range(len(cameras)):
            rays = cameras[i : i + 1].to(self.behind).rays()
            flat = Rays(*(x.flatten(0, -2) for x in rays))
            parts = [self.along(Rays(o, d))[0] for o, d in zip(*(x.split(rays_at_once) for x in flat), strict=True)]
            out.append(self.plain(torch.cat(parts)).view(*cameras.size, -1).permute(2, 0, 1))
        return blur(torch.stack(out), smooth)

    def plain(self, values: Float[Tensor, "*r k"]) -> Float[Tensor, "*r k"]:
        """Standardised features as they were read."""
        return values * self.spread + self.middle  # type: ignore[operator]


@dataclass(eq=False)
class Lift(Problem):
    """Features that are moved to maps of a scene's views, ray by ray, by mean squared error."""

    features: FeatureField
    cameras: Pinholes
    """Of the pictures; maps may have fewer cells."""
    maps: Float[Tensor, "n k h w"]
    seed: int = 0
    rays: int = 2048
    between: bool = True
    """Is a map read between its cells? If not, a ray has the value of the cell that it goes through."""
    images: Float[Tensor, "n 3 H W"] | None = None
    """Photographs, which a scene that learns with its features is moved to as well."""
    doing: str = field(default="lifting features", init=False)
    name: str = field(default="the feature field", init=False)

    def __post_init__(self) -> None:
        n, k = self.maps.shape[:2]
        if n != len(self.cameras) or k != self.features.settings["channels"]:
            raise SfumatoError(
                f"{len(self.cameras)} cameras have a map each of {self.features.settings['channels']} channels, got "
                f"{n} of {k}"
            )
        if not self.maps.isfinite().all():
            raise SfumatoError("maps to lift are finite; read the pictures again")
        middle, spread = ((f(self.maps.double(), (0, 2, 3))).to(self.maps) for f in (torch.mean, torch.std))
        state: dict[str, Any] = dict(self.features.named_buffers())
        state["middle"].copy_(middle)
        state["spread"].copy_(torch.where(spread > 1e-5 * middle.abs() + 1e-8, spread, torch.ones_like(spread)))
        self.modules = {"features": self.features}
        if not self.features.stopped:
            self.modules["scene"] = self.features.scene

    def loss(self, step: int) -> Float[Tensor, ""]:
        rng, (h, w) = generator(self.seed, step), self.cameras.size
        camera = torch.randint(len(self.cameras), (self.rays,), generator=rng)
        part = torch.rand(self.rays, 2, generator=rng)
        like = self.features.behind
        place = part * torch.tensor([w, h])
        rays = self.cameras.to(like).through(camera.to(like.device), place.to(like))
        found, seen = self.features.along(rays, rng)
        wanted = (self._at(camera, part).to(like) - self.features.middle) / self.features.spread  # type: ignore[operator]
        loss = (found - wanted).square().mean()
        if self.images is None or self.features.stopped:
            return loss
        x, y = place.long().clamp_max(torch.tensor([w - 1, h - 1])).unbind(1)
        return loss + (seen.values - self.images[camera, :, y, x].to(like)).square().mean()

    def _at(self, camera: Tensor, part: Float[Tensor, "r 2"]) -> Float[Tensor, "r k"]:
        """Of each ray's map what it has there."""
        h, w = self.maps.shape[-2:]
        size = torch.tensor([w, h])
        if not self.between:
            x, y = (part * size).long().clamp_max(size - 1).unbind(1)
            return self.maps[camera, :, y, x]
        at = (part * size - 0.5).clamp_min(0)
        low = at.long().clamp_max(size - 1)
        high, more = (low + 1).minimum(size - 1), at - low
        (x0, y0), (x1, y1), (u, v) = low.unbind(1), high.unbind(1), more[..., None].unbind(1)
        m = self.maps
        upper = m[camera, :, y0, x0] * (1 - u) + m[camera, :, y0, x1] * u
        lower = m[camera, :, y1, x0] * (1 - u) + m[camera, :, y1, x1] * u
        return upper * (1 - v) + lower * v

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        if not self.features.stopped:
            self.features.scene.after_step(step, optimisers)


def save_features(path: str | Path, features: FeatureField, about: Mapping[str, Any] | None = None) -> Path:
    """Write a branch; the scene it belongs to has a file of its own."""
    header = {"settings": features.settings, "about": dict(about or {})}
    save_tensors(path, features.state_dict(), {"features": json.dumps(shared(header))})
    return Path(path)


def load_features(path: str | Path, scene: Generator) -> tuple[FeatureField, dict[str, Any]]:
    """The features of a scene, and what is known of them. Raises ``SfumatoError`` for a file of another kind."""
    tensors, header = read(path)
    try:
        made = from_json(header["features"], dict)
        features = FeatureField(scene, **made["settings"])
        features.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        reason = " ".join(str(e).split())[:200]
        raise SfumatoError(f"{path} holds no features of this scene ({reason}); lift them again") from e
    return features, made["about"]
