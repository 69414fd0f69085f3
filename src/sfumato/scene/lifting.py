"""A scene while a model's prior makes it: shown larger than it is rendered, looked after, held to a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.distill.generators import Generator, Rendering
from sfumato.errors import SfumatoError
from sfumato.learning.annealing import Ramp
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.scene.cameras import Pinholes, Rays
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.render import FieldScene

EMPTY, FULL = 0.005, 0.98
"""Mean opacity of views in which there is nothing, and in which nothing else is."""
PATIENCE = 20
"""Steps one after the other in which a scene is empty, or full, before that is said."""


class Lifting(Generator):
    """A scene whose views are enlarged to what a model reads, and that says when it is empty, or nothing but full."""

    at: Tensor
    """The step, and for how many the scene has been empty or full; as all state it is part of a checkpoint."""

    def __init__(self, scene: FieldScene | Gaussians, steps: int, size: tuple[int, int] | None = None):
        super().__init__()
        self.scene, self.steps, self.size = scene, steps, size
        self.space = scene.space
        self.rates = {f"scene.{k}": rate for k, rate in scene.rates.items()}
        self.register_buffer("at", torch.zeros(2, dtype=torch.long))
        self.opacity = float("nan")
        """Mean of the last views."""

    @property
    def step(self) -> int:
        return int(self.at[0])

    def render(self, viewpoints: Any = None) -> Rendering:
        progress = self.step / self.steps
        self.scene.at_step(progress)
        shown = self.scene.render(viewpoints)
        if shown.alpha is not None:
            self.opacity = float(shown.alpha.detach().mean())
        images = shown.images
        if self.size is not None and images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        return shown._replace(images=images, extra={**shown.extra, "progress": torch.tensor(progress)})

    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        self.scene.after_backward(step, optimisers)

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self.scene.after_step(step, optimisers)
        odd = int(self.at[1]) + 1 if not EMPTY <= self.opacity <= FULL else 0
        self.at = torch.tensor([step + 1, odd])
        if odd >= PATIENCE:
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
        raw = density * (1 - r / radius) - getattr(scene.field, "shift", 0.0)
        grid[0, 0] += raw.clamp(-0.4 * density, 0.8 * density).to(grid)
    return scene
