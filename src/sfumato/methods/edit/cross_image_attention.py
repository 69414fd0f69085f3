"""Cross-image attention (Alaluf et al. 2024, arXiv 2311.03335): one image's thing in the looks of another's.

While the target is painted from the structure's noise, its self-attention asks with its own queries but reads the
appearance image's keys and values, so that each part finds the part that means the same. Three things make it
look right: maps with more contrast, a guidance from the plain prediction to the one across images, and latents
whose statistics, within the thing, are the appearance's (AdaIN).

Defaults: the authors' code, as parts of the 68 steps that it runs (100, the first 32 skipped): from step 10 on, AdaIN
from 20; its ends for the two grids, 70 and 90, lie behind the last step. Every fifth of the first 40 steps reads the
structure's keys and values. There the attention of a step goes by the number of the one before, and FreeU is on, which
is no part of the method and left out. Guidance falls linearly to its half. Its five clusters of self-attention, named
by a word, are one map cut halfway here; without a word and masks statistics are of the whole images. Start from
``together({("source", "target"): path, "appearance": other})``, both inverted with ``EditFriendly(scale=1,
skip=0.32)``, at a guidance of 1: then source and appearance are exact, where the authors invert at 3.5 and paint at 1.

Needs: image->image keys and values at the two finest grids of the decoder, fused; with contrast its probabilities, of
the targets; with a word, maps of the steps before the statistics. A further network call of the targets a step.

Families: all; in transformers the later half of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from sfumato.core.attention import Call
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Step, Where, span
from sfumato.core.settings import Between, PartOfSteps, Weight, Whole
from sfumato.methods.edit.appearance import APPEARANCE, Things, grids, in_decoder, matched, of_structure, roles
from sfumato.prompts.layout import Mask

PAIR = "image->image"


@dataclass(frozen=True)
class CrossImageAttention(Method):
    """The first stream is the structure, ``appearance`` the looks, all others are painted. No prompt need differ."""

    requires: ClassVar = Requires(windows=False)

    fine: tuple[PartOfSteps, PartOfSteps] = (10 / 68, 1.0)
    """Parts of the steps between which attention of the finest grid is across images."""
    coarse: tuple[PartOfSteps, PartOfSteps] = (10 / 68, 1.0)
    """The same of the next grid."""
    contrast: Weight = 1.67
    """Factor of what a probability has over the mean; 1 for none."""
    guidance: Annotated[float, Between(1)] = 3.5
    """From the plain prediction to the one across images, in the first step; 1 for none."""
    adain: tuple[PartOfSteps, PartOfSteps] = (20 / 68, 1.0)
    """Parts of the steps between which the latents get the appearance's mean and deviation."""
    every: Whole = 5
    """Of the early steps each so manieth reads the structure itself; 0 for none."""
    early: PartOfSteps = 40 / 68
    """Part of the steps that are early."""
    word: str | None = None
    """What the thing is called in the source's prompt."""
    appearance_word: str | None = None
    """What it is called in the appearance's prompt, if otherwise."""
    mask: Mask | None = None
    """Where the thing is in the source, instead of a word."""
    appearance_mask: Mask | None = None
    """Where the thing is in the appearance's image."""

    def start(self, run: Run) -> Phases:
        structure, painted = roles(run, "cross-image attention")
        first, end = span(self.adain, run.steps)
        words = {structure: self.word, APPEARANCE: self.appearance_word or self.word}
        masks = {structure: self.mask, APPEARANCE: self.appearance_mask}
        things = Things(run, words, masks, first + 1 if first < end else 0)
        sides, drawn = grids(run, PAIR), in_decoder(run, PAIR)
        spans = dict(zip(sides, (self.fine, self.coarse), strict=False))
        edits = []
        for side, between in spans.items():
            for target in painted:
                here = Where(PAIR, side, between, (target, "cond"), drawn)
                edits.append(Edit(here, "qkv", self._across(run, structure, target)))
                if self.contrast != 1:
                    edits.append(Edit(here, "probs", self._contrasted(target)))
        active = [span(between, run.steps) for between in spans.values()]

        def denoised(step: Step) -> None:  # appearance guidance
            if not any(a <= step.i < b for a, b in active):
                return
            last = max(self.guidance / 2, 1.0)
            scale = self.guidance + step.i / max(1, run.steps - 1) * (last - self.guidance)
            x0 = step.x0.clone()
            for target in painted:
                at = run.images(target)
                plain = run.model.predict(step.x[at], step.level.t, step.cond[run.rows[target, "cond"]])
                more = (scale - 1) * (step.parts["cond"][at] - plain)
                x0[at] += run.model.schedule.x0_and_eps(more, torch.zeros_like(more), step.level)[0]
            step.x0 = x0

        guided = self.guidance != 1
        share = sum(any(a <= i < b for a, b in active) for i in range(run.steps)) / run.steps
        return Phases(
            tuple(edits),
            things.needs,
            denoised=denoised if guided else None,
            after=matched(run, things, structure, painted, (first, end)),
            calls=guided * share * len(painted) / len(run.rows.names),
        )

    def _across(self, run: Run, structure: str, target: str):
        def across(call: Call) -> None:  # softmax(Q_target K_appearance) V_appearance
            back = of_structure(call.step, run.steps, self.every, self.early)
            source = structure if back else APPEARANCE
            for which in "kv":
                call.set(which, (target, "cond"), call.get(which, (source, "cond"), "image"), "image")

        return across

    def _contrasted(self, target: str):
        def contrasted(call: Call) -> None:  # not normalised again
            maps = call.block((target, "cond"), PAIR)
            mean = maps.mean(-1, keepdim=True)
            call.set_block((target, "cond"), PAIR, ((maps - mean) * self.contrast + mean).clamp(0, 1))

        return contrasted
