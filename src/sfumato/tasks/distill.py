"""Distil a model into flat images: what they became, and how they looked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone, check_model
from sfumato.core.brief import Shown
from sfumato.core.denoising import denoise
from sfumato.core.hints import DISTILLING, hinting
from sfumato.distill import Distillation, Images, Ramp, Viewpoints, canvases, distil
from sfumato.distill.loop import Regulariser
from sfumato.distill.regularisers import Histogram, Hue, Saturation
from sfumato.errors import SfumatoError, kind
from sfumato.io.progress import Listener, heard, show
from sfumato.media import pictures

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class Distilled(Shown):
    """What a run came to."""

    images: Float[Tensor, "n 3 H W"]
    """In [0, 1], on the CPU."""
    frames: tuple[Picture, ...]
    """All images side by side, as they came (of a run that went on, since then), the last as they are now."""
    strength: tuple[float, ...]
    """Root mean square of each step's gradient by the latents."""

    @property
    def pictures(self) -> list[Picture]:
        """The images as pictures."""
        return list(map(pictures.picture, self.images))


@hinting(DISTILLING)
def distill_images(
    model: Backbone,
    prompts: str | Sequence[str],
    method: Distillation,
    steps: int,
    *,
    n: int | None = None,
    space: canvases.Space = "latent",
    size: tuple[int, int] | None = None,
    image: Float[Tensor, "3 h w"] | None = None,
    optimiser: canvases.Optimiser = "adam",
    rate: float | None = None,
    viewpoints: Viewpoints | None = None,
    regularisers: Sequence[Regulariser] = (),
    clip: Ramp | None = None,
    seed: int = 0,
    keep: Path | None = None,
    frame_every: int = 0,
    on_progress: Listener | None = None,
) -> Distilled:
    """Distil into ``n`` images of one prompt, or into one of each; image i starts from seed + i, or all from ``image``.

    ``size``: height and width in pixels, that of ``image`` or the model's own if not given. ``rate``: one that suits
    the space if not given. ``frame_every``: steps between two frames, each of which is a preview; 0 is the last alone.
    The rest is ``distil``'s, a run that was cut off goes on from ``keep``.
    """
    check_model(model)
    kind("prompts are a text, or one an image", prompts, (str, Sequence))
    if not isinstance(prompts, str) and not prompts:
        raise SfumatoError("there is no prompt to distil; give one, or one an image")
    if size is None and image is not None:
        size = (image.shape[-2], image.shape[-1])
    count = n if n is not None else 1 if isinstance(prompts, str) else len(prompts)
    generator = canvases.canvas(model, space, count, seed, size, image)
    film = _Film(model, generator.space, frame_every)
    with heard(on_progress):
        records = distil(
            model, generator, prompts, method, steps,
            optimiser=canvases.optimiser(optimiser, space, rate), viewpoints=viewpoints, regularisers=regularisers,
            clip=clip, seed=seed, keep=keep, watch=film if frame_every else None,
        )  # fmt: skip
    images = canvases.shown(model, generator)
    film.add(images)
    return Distilled(images, tuple(film.frames), tuple(r.strength for r in records))


def regularised(
    model: Backbone,
    prompt: str,
    *,
    saturation: float = 0.0,
    hue: float = 0.0,
    histogram: float = 0.0,
    reference: Float[Tensor, "3 h w"] | None = None,
    seed: int = 0,
) -> list[Regulariser]:
    """Losses of these weights against a reference image, or what the model paints of the prompt."""
    kinds = [(Saturation, saturation), (Hue, hue), (Histogram, histogram)]
    if not any(weight for _, weight in kinds):
        return []
    like = denoise(model, prompt, seed=seed).images[0] if reference is None else reference.to(model.device)
    return [kind(like, weight) for kind, weight in kinds if weight]


@dataclass
class _Film:
    """Frames of a run as they come."""

    model: Backbone
    space: str
    every: int
    frames: list[Picture] = field(default_factory=list)

    def __call__(self, step: int, images: Images) -> None:
        if step % self.every == 0:
            with torch.no_grad():
                self.add(self.model.decode(images) if self.space == "latent" else images)
            show(self.frames[-1])

    def add(self, images: Float[Tensor, "n 3 H W"]) -> None:
        self.frames.append(pictures.grid([pictures.picture(image) for image in images]))
