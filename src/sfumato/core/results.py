"""What a run gives: images of streams, what was kept of its steps, previews while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief, Shown
from sfumato.core.method import Step
from sfumato.core.modes import unmoded
from sfumato.errors import SfumatoError
from sfumato.media import pictures
from sfumato.ops.circular import around

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def decoded_around(model: Backbone, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
    """Images of latents whose right border is next to the left one, without a seam.

    Convolutions go around, and what else a decoder has (norms and attention over all of it) knows no places. A VAE
    that decodes in tiles would close each on itself: it gets a third of the ring more at both ends, which are cut off.
    """
    if not _tiling(model):
        with around():
            return model.decode(latents)
    columns = max(1, latents.shape[-1] // 3)
    return model.decode(_longer(latents, columns))[..., columns * model.factor : -columns * model.factor]


def encoded_around(model: Backbone, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """Latents of images whose right border is next to the left one, the other way round."""
    if not _tiling(model):
        with around():
            return model.encode(images)
    columns = max(1, images.shape[-1] // model.factor // 3)
    return model.encode(_longer(images, columns * model.factor))[..., columns:-columns]


def _tiling(model: Backbone) -> bool:
    return bool(getattr(getattr(model, "vae", None), "use_tiling", False))


def _longer(x: Tensor, columns: int) -> Tensor:
    """With so many columns more at both ends."""
    return torch.cat([x[..., -columns:], x, x[..., :columns]], -1)


@dataclass(frozen=True, repr=False)
class Sample(Shown):
    """What one stream became: latents, and images once they are looked at."""

    model: Backbone
    latents: Float[Tensor, "b c h w"]
    prompts: tuple[str, ...]
    frames: int = 1
    """How many images one after the other are a clip."""
    around: bool = False
    """Is the right border next to the left one? Then it is decoded so."""
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """How it was made, in words and numbers; its files carry it."""

    @cached_property
    def images(self) -> Float[Tensor, "b 3 H W"]:
        """In [0, 1], on the CPU. They are decoded once, when they are first looked at."""
        with unmoded(), torch.no_grad():
            clips = self.latents.split(self.frames) if self.frames > 1 else [self.latents]
            decode = partial(decoded_around, self.model) if self.around else self.model.decode
            return torch.cat([decode(clip).cpu() for clip in clips])

    @property
    def clips(self) -> Float[Tensor, "b f 3 H W"]:
        """The images as frames of clips."""
        return self.images.unflatten(0, (-1, self.frames))

    @property
    def pictures(self) -> list[Picture]:
        """The images as pictures."""
        return [pictures.picture(image) for image in self.images]

    def differs(self, other: Sample) -> Bool[Tensor, "b h w"]:
        """Cells whose latents are not those of the other stream: where an edit changed something."""
        return (self.latents != other.latents).any(1)

    def save(self, path: str | File) -> File:
        """Write the image (of several, their grid) as a PNG that says how it was made."""
        words = {"prompt": " | ".join(dict.fromkeys(self.prompts)), "model": self.model.name, **self.about}
        return pictures.write(self.picture, File(path), words)


@dataclass
class Trajectory(Brief):
    """What was asked to be kept of each step: ``x``, ``x0``, ``eps``, or a condition's prediction by its name."""

    keep: tuple[str, ...]
    steps: list[dict[str, Tensor]] = field(default_factory=list)

    def note(self, step: Step) -> None:
        have = {"x": step.x, "x0": step.x0, "eps": step.eps, "x_next": step.x_next, **step.parts}
        for name in self.keep:
            if name not in have:
                raise SfumatoError(f"a step has no {name!r} to keep; it has: {', '.join(have)}")
        self.steps.append({name: have[name].detach().cpu() for name in self.keep})

    def __getitem__(self, name: str) -> Float[Tensor, "steps b c h w"]:
        return torch.stack([s[name] for s in self.steps])


def previews(folder: str | File, every: int = 10) -> Callable[[Step], None]:
    """A ``callback`` that writes what the prediction stands for as ``folder/step-010.png``, every so many steps."""

    def show(step: Step) -> None:
        if (step.i + 1) % every == 0 or step.i + 1 == step.run.steps:
            with torch.no_grad():
                images = step.run.model.decode(step.x0).cpu()
            pictures.write(
                pictures.grid([pictures.picture(x) for x in images]), File(folder) / f"step-{step.i + 1:03d}.png"
            )

    return show
