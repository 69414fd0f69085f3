"""DiffEdit (Couairon et al. 2022, arXiv 2210.11427): the mask of an edit is where two sentences disagree.

The image is noised, and the network asked for the noise under the source's sentence and under the target's; where the
answers differ, averaged over several noises, the picture has to change (step 1). The image is inverted by DDIM (step 2)
and painted again with the target's sentence, while everything outside of the mask is put back on the inversion's track
after each step (step 3), so that it ends as the image itself.

Defaults: the paper (10 noises at half of the steps, threshold 0.5, an inversion that is told no words, 50 steps,
guidance 7.5), its clamp of extreme values and the strength of 0.8 from diffusers' pipeline, which inverts with the
source's words at guidance 7.5 (``DIFFUSERS``). There the background is blended a level late: a step that has led to
level i + 1 is blended with the image at level i, so that even an empty mask does not return the image. Both here and
there a cell changes where its difference is more than clamp * threshold = 1.5 times the mean; guidance multiplies all
differences alike and cancels, so none is computed. The same sentence twice is no edit here; there, all of the picture.

Needs: a network call a step for the inversion; before the first step ``maps`` calls of the two sentences; the latents
of all levels are kept.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.method import Phases, Requires, Run, Step
from sfumato.core.schedule import Level, add_noise, part_of
from sfumato.core.settings import Count, Part, Positive, Whole
from sfumato.errors import SfumatoError
from sfumato.inversion.ddim import DDIMInversion
from sfumato.inversion.path import Advance, Inversion, Path, noise_of
from sfumato.methods.edit.blended_latents import Masked, edits, holding
from sfumato.prompts.layout import Mask


@dataclass(frozen=True)
class DiffEdit(Inversion):
    """Finds out where to edit, and edits there."""

    mask: Mask | None = None
    """Where the picture may change, instead of the mask that is found."""
    strength: Part = 0.8
    """Encoding ratio: part of the steps that are run; more changes more."""
    scale: float = 0.0
    """Guidance by the source's words on the way to noise; 0 tells the network no words."""
    maps: Count = 10
    """Noises that the differences are averaged over."""
    encode: Part = 0.5
    """Part of the steps at whose level the differences are taken."""
    clamp: Positive = 3.0
    """Differences count up to so many times their mean, ..."""
    threshold: Part = 0.5
    """... and a cell changes above this part of that."""
    seed: Whole = 0
    """Of the noise; image i of a batch has seed + i."""
    steps: Count = 50
    """DDIM steps, of which ``strength`` are painted."""

    has_source: ClassVar = False

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        depth = part_of(self.steps, self.encode)
        if depth < 1:
            raise SfumatoError(f"encode is a part of the steps, at least one; got {self.encode} of {self.steps}")
        if self.mask is None:
            Requires("DiffEdit without a mask", words=True).check_model(model, "")
        levels = model.levels(self.steps, image.shape[-2:])
        run = levels.last(float(self.strength))
        words, scale = (prompts, self.scale) if self.scale else (("",) * len(image), 1.0)
        track = DDIMInversion(scale, steps=self.steps).track(model, image, words, advance, len(run))
        if self.mask is not None:
            mask = self.mask.at((image.shape[-2], image.shape[-1]))
            return Masked(track[0], run, prompts, image, track=track, mask=mask)
        return Found(track[0], run, prompts, image, track=track, how=self, at=levels.last(depth)[0])

    def difference(
        self, model: Backbone, image: Float[Tensor, "b c h w"], at: Level, source: Cond, target: Cond
    ) -> Bool[Tensor, "b h w"]:
        """The mask of step 1: image i of a batch with noises from seed + i on; nowhere for the same sentence twice.

        (For that one all differences are rounding, which the threshold, a part of their mean, would cut a mask from.)
        """
        both, total = Cond.cat([source, target]), torch.zeros(())
        for i in range(self.maps):
            x = add_noise(image, noise_of(model, image, self.seed + i), at)
            predicted = model.predict(x.repeat(2, 1, 1, 1), at.t, both)
            total = total + (predicted[len(x) :] - predicted[: len(x)]).abs().mean(1).cpu()
        differ = [a != b for a, b in zip(source.prompts, target.prompts, strict=True)]
        total = total * torch.tensor(differ)[:, None, None]
        limit = self.clamp * total.mean((1, 2), keepdim=True)
        return total.clamp(max=limit) > self.threshold * limit


DIFFUSERS = DiffEdit(scale=7.5)
"""What diffusers' pipeline has (0.42), with its blending put right."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Found(Path):
    """A path whose edits change only where their words differ from the path's own."""

    how: DiffEdit
    at: Level
    """Where the differences are taken."""

    def start(self, run: Run) -> Phases:
        masks: dict[str, Tensor] = {}
        images = len(run.prompts[run.rows.streams[0]])

        def before(step: Step) -> None:
            if step.i == 0:
                image = self.image.expand(images, -1, -1, -1)
                source = run.model.embed(self.prompts * (images // len(self.prompts)))
                for stream in edits(run):
                    target = run.model.embed(run.prompts[stream])
                    masks[stream] = self.how.difference(run.model, image, self.at, source, target)

        calls = self.how.maps * 2 * len(edits(run)) * run.rows.each / len(run.rows) / max(run.steps, 1)
        return replace(holding(self, run, masks), before=before, calls=calls)
