"""Inversions that add noise of their own instead of asking the network for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.guidance import Guide, guided
from sfumato.core.method import Requires
from sfumato.core.schedule import add_noise
from sfumato.core.settings import Count, Part, Whole
from sfumato.core.steppers import DDIM, posterior_std
from sfumato.core.suited import suited
from sfumato.inversion.path import Advance, Inversion, Path, noise_of, predict


@dataclass(frozen=True)
class Noise(Inversion):
    """One level of noise (as in SDEdit): the image is kept only as far as the noise lets it through.

    Needs: nothing.

    Families: all.
    """

    requires: ClassVar = Requires(groups=True)

    strength: Part = 0.8
    """Part of the steps that are run; diffusers' default."""
    seed: Whole = 0
    steps: Count = 50

    has_source: ClassVar = False

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        levels = model.levels(self.steps, image.shape[-2:]).last(float(self.strength))
        start = add_noise(image, noise_of(model, image, self.seed), levels[0]) if len(levels) else image
        return Path(start, levels, prompts, image, suited(model.schedule), undoes=False)


@dataclass(frozen=True)
class EditFriendly(Inversion):
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024): noise of its own for every level, and the unit
    noises with which DDPM walks from one to the next.

    Published: 100 steps, the first 36 skipped, source scale 3.5 and 15 for the edit. Following the path with the
    source's prompt and scale gives the image back exactly: unlike the authors' code, what the last step lacks is kept
    too, as its noise, or where levels end without any (flows) as what is added to every stream.

    Needs: a network call a step, of all rows of the guidance.

    Families: all.
    """

    requires: ClassVar = Requires(groups=True)

    scale: float = 3.5
    skip: Part = 0.36
    """Part of the steps that an edit leaves out."""
    seed: Whole = 0
    """Of the noises; image i has its own from seed + i."""
    steps: Count = 100
    negative: str = ""
    """What takes the place of the empty prompt."""

    edit_guidance: ClassVar = 15.0

    def source_guidance(self, scale: float) -> float:
        return self.scale

    def __call__(
        self,
        model: Backbone,
        image: Tensor,
        prompts: tuple[str, ...],
        advance: Advance,
        guide: Guide | None = None,
    ) -> Path:
        """By the scale, or another guidance."""
        levels = model.levels(self.steps, image.shape[-2:]).without(self.skip)
        guide = guide or guided(model, self.scale, self.negative)
        conds = guide.embed(model, prompts)
        draw = model.noises.drawing([self.seed + i for i in range(len(image))], image.shape[1:])
        noisy = [add_noise(image, draw().to(image), level) for level in levels]
        noisy[-1] = image
        x, noises = noisy[0], []
        for i in range(len(levels)):
            at, to = levels[i], levels[i + 1]
            x0, eps = predict(model, x, at.t, at, conds, guide)
            std = posterior_std(at, to)
            mean = to.alpha * x0 + (to.sigma**2 - std**2).clamp_min(0).sqrt() * eps
            noises.append((noisy[i + 1] - mean) / std if std else torch.zeros_like(x))
            x = mean + std * noises[-1]  # not noisy[i + 1]: errors must not add up
            advance(x)
        ending = image - x  # all but rounding is in the last step's noise, if it has one
        return Path(noisy[0], levels, prompts, image, DDIM(1.0), track=(noisy[0],), noises=tuple(noises), ending=ending)
