"""A scene while a model's prior makes it: shown larger than it is rendered, looked after, held to a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.distill.annealing import Ramp
from sfumato.distill.generators import Generator, Rendering
from sfumato.errors import SfumatoError
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.scene.cameras import Pinholes, Rays
from sfumato.scene.render import FieldScene

EMPTY, FULL = 0.005, 0.98
"""Mean opacity of views in which there is nothing, and in which nothing else is."""
PATIENCE = 20
"""Steps one after the other in which a scene is empty, or full, before that is said."""


class Horizon(nn.Module):
    """What lies behind, by elevation alone: a ground and a sky that are the same all around, so that no thing is there.

    A table of values at elevations from straight down to straight up, and linear between them.
    """

    def __init__(self, channels: int = 3, latent: bool = False, rows: int = 25):
        super().__init__()
        if rows < 2:
            raise SfumatoError(f"a horizon is a table of two rows or more, got {rows}")
        self.channels, self.latent, self.rows = channels, latent, rows
        self.table = nn.Parameter(torch.zeros(rows, channels))

    def forward(self, directions: Float[Tensor, "*r 3"]) -> Float[Tensor, "*r c"]:
        place = (torch.asin(directions[..., 1].clamp(-1, 1)) / math.pi + 0.5) * (self.rows - 1)
        row = place.detach().floor().long().clamp(0, self.rows - 2)
        raw = torch.lerp(self.table[row], self.table[row + 1], (place - row)[..., None])
        return raw if self.latent else raw.sigmoid()

    def settings(self) -> dict[str, Any]:
        return {"channels": self.channels, "latent": self.latent, "rows": self.rows}


class Lifting(Generator):
    """A scene whose views are enlarged to what a model reads, and that says when it is empty, or nothing but full."""

    def __init__(self, scene: FieldScene, steps: int, size: tuple[int, int] | None = None):
        super().__init__()
        self.scene, self.steps, self.size = scene, steps, size
        self.space = scene.space
        self.rates = {f"scene.{k}": rate for k, rate in scene.rates.items()}
        self.opacity = float("nan")
        """Mean of the last views."""
        self.step = self._odd = 0

    def render(self, viewpoints: Any = None) -> Rendering:
        shown = self.scene.render(viewpoints)
        if shown.alpha is not None:
            self.opacity = float(shown.alpha.detach().mean())
        images = shown.images
        if self.size is not None and images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        return shown._replace(images=images, extra={**shown.extra, "progress": torch.tensor(self.step / self.steps)})

    def at_step(self, step: int) -> None:
        """Which step is next: what fields show, and how losses weigh."""
        self.step = step
        tell = getattr(self.scene, "at_step", self.scene.field.at_step)
        tell(step / self.steps)

    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        self.scene.after_backward(step, optimisers)

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self.scene.after_step(step, optimisers)
        self.at_step(step + 1)
        self._odd = self._odd + 1 if not EMPTY <= self.opacity <= FULL else 0
        if self._odd >= PATIENCE:
            what = "empty" if self.opacity < EMPTY else "full: everything is covered"
            raise SfumatoError(
                f"step {step}: the scene has been {what} for {PATIENCE} steps (mean opacity {self.opacity:.3f}); take "
                "another seed, a lower rate, or less weight of what empties it (sparsity)"
            )


@dataclass(frozen=True)
class Ramped:
    """A loss on what is rendered whose weight changes over the run."""

    loss: Any
    weight: Ramp

    def __call__(self, rendering: Rendering) -> Float[Tensor, ""]:
        weight = self.weight(float(rendering.extra["progress"]))
        return weight * self.loss(rendering) if weight else rendering.images.new_zeros(())


@dataclass(frozen=True, eq=False)
class SeenIn:
    """A loss that holds a scene to a picture of it: squared differences of some rays' colours, opacities and depths.

    Its value is a mean over rays. Rays are drawn anew in each step.
    """

    scene: FieldScene
    picture: Float[Tensor, "3 h w"]
    """In [0, 1]."""
    camera: Pinholes
    """One, of the picture's size."""
    mask: Float[Tensor, "h w"] | None = None
    """How much of a pixel is the thing, where that is known."""
    depth: Float[Tensor, "h w"] | None = None
    """Along the ray; 0 where it is not known."""
    weight: float = 1.0
    masked: float = 0.5
    """Of the opacities, beside the colours."""
    deep: float = 0.1
    """Of the depths."""
    rays: int = 2048

    def __post_init__(self) -> None:
        if len(self.camera) != 1 or self.camera.size != self.picture.shape[-2:]:
            raise SfumatoError(
                f"a picture of {tuple(self.picture.shape[-2:])} has one camera of its size, got {len(self.camera)} of "
                f"{self.camera.size}"
            )
        for name in ("mask", "depth"):
            if (own := getattr(self, name)) is not None and own.shape != self.picture.shape[-2:]:
                raise SfumatoError(f"a {name} has its picture's size {self.camera.size}, got {tuple(own.shape)}")

    def __repr__(self) -> str:
        import zlib

        known = zlib.crc32(self.picture.detach().float().cpu().contiguous().numpy().tobytes())
        return f"SeenIn({known:08x}, {self.weight:g}, {self.masked:g}, {self.deep:g}, {self.rays})"

    def __call__(self, rendering: Rendering) -> Float[Tensor, ""]:
        if self.scene.space == "latent":
            raise SfumatoError("a picture's view is compared in pixels, and this scene is one of latents")
        rng = generator(7, round(float(rendering.extra["progress"]) * 1e6))
        h, w = self.camera.size
        some = torch.randint(h * w, (min(self.rays, h * w),), generator=rng)
        device = rendering.images.device
        every = self.camera.to(device).rays()
        found = self.scene.trace(Rays(*(x.reshape(-1, 3)[some.to(device)] for x in every)))
        loss = (found.values - self.picture.to(device).flatten(1).T[some]).square().mean()
        if self.mask is not None:
            loss = loss + self.masked * (found.opacity - self.mask.to(device).flatten()[some]).square().mean()
        if self.depth is not None:
            wanted = self.depth.to(device).flatten()[some]
            known = wanted > 0
            if known.any():
                loss = loss + self.deep * (found.depth - wanted)[known].square().mean()
        return self.weight * loss


@torch.no_grad()
def begun(scene: FieldScene, density: float = 10.0, radius: float = 0.5) -> FieldScene:
    """With a blob in the middle: raw density + ``density`` (1 - r / ``radius``), r of the region's half size.

    threestudio's, of every recipe. Only of dense grids, which begin with it; other fields have it in themselves.
    """
    grid = getattr(scene.field, "grid", None)
    if isinstance(grid, Tensor) and grid.ndim == 5:
        axes = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in grid.shape[2:]]
        r = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
        grid[0, 0] += (density * (1 - r / radius) - getattr(scene.field, "shift", 0.0)).clamp_min(-density / 2).to(grid)
    return scene


def small(cameras: Pinholes, most: int) -> Pinholes:
    """The same cameras with images of at most so many pixels a side."""
    h, w = cameras.size
    side = max(h, w)
    return cameras if side <= most else cameras.resized(max(1, h * most // side), max(1, w * most // side))


def watched(cameras: Pinholes, progress: float) -> Pinholes:
    """One of cameras that stand around, as a preview turns with the run."""
    return replace(cameras)[[round(progress * len(cameras)) % len(cameras)]]


Watch = Callable[[int, Tensor], None]
