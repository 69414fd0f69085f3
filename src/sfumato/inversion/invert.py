"""Invert images, and find them again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone, check_model
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG, Guide, Scales
from sfumato.core.hints import INVERTING, hinting
from sfumato.core.modes import unmoded
from sfumato.errors import SfumatoError, finite, kind, shown
from sfumato.inversion.ddim import Direct
from sfumato.inversion.path import Advance, Inversion, Path
from sfumato.io.progress import progress
from sfumato.reading.reader import Image, pixels


@hinting(INVERTING)
@unmoded()
def invert(
    model: Backbone,
    images: Float[Tensor, "b 3 H W"] | Image,
    prompt: str | Sequence[str] = "",
    how: Inversion | None = None,
) -> Path:
    """The path back from images in [0, 1], each described by its prompt. The default is ``Direct()``.

    One image may be a file, a picture or an array too. Raises ``SfumatoError`` for values outside [0, 1], when sides
    are not multiples of what the model works in, or prompts and images do not match, and where a step leads to what is
    not finite.
    """
    check_model(model)
    images = images if isinstance(images, Tensor) else pixels(images)
    images = images[None] if images.ndim == 3 else images
    model.check_images(images)
    kind("a prompt is a text, or one an image", prompt, (str, Sequence))
    prompts = (prompt,) * len(images) if isinstance(prompt, str) else tuple(prompt)
    if len(prompts) != len(images):
        raise SfumatoError(f"{len(images)} images need a prompt each, got {len(prompts)}")
    how = Direct() if how is None else how
    if not isinstance(how, Inversion):
        raise SfumatoError(f"how is an inversion as it is set, such as Direct() or NullText(), got {shown(how)}")
    how.requires.check_model(model, type(how).__name__)
    with torch.no_grad():
        image = model.encode(images.to(model.device))
        with progress("inverting", how.steps) as bar:
            return how(model, image, prompts, checked(model, how, bar))


def checked(model: Backbone, how: Inversion, bar: Callable[[], None]) -> Advance:
    """An ``Advance`` of an inversion's bar, which raises ``SfumatoError`` for latents that are not finite."""
    count = itertools.count(1)

    def advance(x: Tensor) -> None:
        step = next(count)
        finite(x, f"step {step} of {how.steps} of {type(how).__name__}: the latents", model.remedy)
        bar()

    return advance


@hinting()
@unmoded()
def reconstruct(model: Backbone, path: Path, guide: Guide | Scales = 1.0) -> Tensor:
    """The latents that following a path with its own prompts leads to, under CFG where it replaces the empty one."""
    check_model(model)
    kind("a path is what invert gives", path, Path)
    if path.replaces and not isinstance(guide, Guide):
        guide = CFG(guide)
    return denoise(model, path.prompts, start=path, guide=guide).latents
