"""Blended latent diffusion (Avrahami et al. 2023, arXiv 2206.02779): new words inside a mask, the image outside of it.

The image is noised to a level, and painted from there with the new sentence. After each step whatever lies outside of
the mask is replaced by the image noised to the level that the step leads to, so that inside and outside meet at every
level; at the last one there is no noise, so outside of the mask the latents are the image's own. In pixels it is
blended diffusion (Avrahami et al. 2022, arXiv 2111.14818), of which CLIP's guidance is not part.

Defaults: the authors' code (50 steps, of which the first quarter is left out; guidance 7.5). It differs from their
algorithm 1, which is followed here, in two places: it starts from pure noise at a level that is not, and it blends with
the image at the level that a step comes from, so that the background ends with the noise of one step. Their decoder,
fitted to each image so that the background keeps its pixels (section 4.2), is not needed: ``sfumato edit`` puts pixels
back where latents did not change.

Needs: nothing; no network call beside those of the steps.

Families: all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.method import Phases, Run, Step
from sfumato.core.schedule import Levels, add_noise
from sfumato.core.settings import Count, Part, Whole
from sfumato.errors import SfumatoError
from sfumato.inversion.path import Advance, Inversion, Path
from sfumato.prompts.layout import Mask


def edits(run: Run) -> tuple[str, ...]:
    """All streams but the first, which is the source; or one that is alone: these runs need no source."""
    return run.rows.streams[1:] or run.rows.streams


def holding(path: Path, run: Run, masks: Mapping[str, Bool[Tensor, "*b h w"]]) -> Phases:
    """Hold the source to a path's track, and edits that have a mask to what of the track is outside of it."""

    def after(step: Step) -> None:
        x, track = step.x_next.clone(), path.track[step.i + 1].to(step.x_next)
        if len(run.rows.streams) > 1:
            x[run.images(run.rows.streams[0])] = track
        for stream, mask in masks.items():
            at = run.images(stream)
            x[at] = torch.where(mask.to(x.device).unsqueeze(-3), x[at], track)
        step.x_next = x

    return Phases(after=after)


@dataclass(frozen=True, eq=False, kw_only=True)
class Masked(Path):
    """A path whose edits change only inside of a mask."""

    mask: Bool[Tensor, "h w"]
    """Of the latents' cells."""

    def start(self, run: Run) -> Phases:
        return holding(self, run, dict.fromkeys(edits(run), self.mask))


def noisy(model: Backbone, image: Tensor, levels: Levels, seed: int) -> tuple[Tensor, ...]:
    """An image at every level, each with noise of its own, at the last without: image i of a batch from seed + i."""
    draw = model.noises.drawing([seed + i for i in range(len(image))], image.shape[1:])
    return (*(add_noise(image, draw().to(image), levels[i]) for i in range(len(levels))), image)


@dataclass(frozen=True)
class BlendedLatents(Inversion):
    """Paints inside a mask and leaves the rest."""

    mask: Mask | None = None
    """Where the picture may change; it has to be given."""
    skip: Part = 0.25
    """Part of the steps that is left out: more keeps more of what is inside the mask."""
    seed: Whole = 0
    """Of the noise; image i of a batch has seed + i."""
    steps: Count = 50
    """DDIM steps, of which ``skip`` are left out."""

    has_source: ClassVar = False

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        if self.mask is None:
            raise SfumatoError("blended latents paint inside a mask; give one, or take diff-edit, which finds its own")
        levels = model.levels(self.steps, image.shape[-2:]).without(self.skip)
        track = noisy(model, image, levels, self.seed)
        mask = self.mask.at((image.shape[-2], image.shape[-1]))
        return Masked(track[0], levels, prompts, image, track=track, mask=mask)
