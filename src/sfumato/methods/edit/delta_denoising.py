"""Delta denoising (DDS, Hertz et al. 2023, arXiv 2304.07090): an image goes downhill to what its edit should be.

Score distillation asks the network what is wrong with an image and blurs it, as some of the answer is the network's
own error. The same question about the source, with its own words, the same noise and the same level, has only that
error as its answer, so the difference of the two is where the words differ. The edit starts as the source and
follows it at levels drawn at random; what both sentences agree on has no gradient, and stays.

Defaults: the authors' code, 200 steps between 0.05 and 0.95 of the training's levels, guidance 7.5. Its rate of 0.1 is
of 2000 times a loss that is divided by the number of the latents' cells, 64 x 64: each step moves a latent by 200 /
4096 of its gradient, which is the rate here, at any size. Velocities (v, flows) become noise before they are
subtracted. Images of one run share the levels that are drawn, not the noise. The gradient by itself, for anything that
renders, is ``sfumato.methods.distill.delta_score``.

Needs: a network call a step; the run's steps are those of the descent, in which other methods may take part.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.method import Phases, Requires, Run, Step
from sfumato.core.schedule import Level, Levels, Schedule, add_noise, joined
from sfumato.core.settings import Count, Part, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.inversion.path import Advance, Inversion, Path
from sfumato.prompts.layout import Mask

CLEAN = Level.of(0, 1.0, 0.0)


@dataclass(frozen=True)
class DeltaDenoising(Inversion):
    """The run's first stream is the source, all others are its edits; guidance is the run's, 7.5 as published."""

    requires: ClassVar = Requires(words=True)

    rate: Weight = 200 / 4096
    """How much of the gradient a step takes from each latent."""
    least: Part = 0.05
    """Cleanest level that is drawn, as a part of the training's."""
    most: Part = 0.95
    """Noisiest level."""
    mask: Mask | None = None
    """Where the picture may change; everywhere if not given."""
    seed: Whole = 0
    """Of the levels and the noise; image i has noise of its own from seed + i."""
    steps: Count = 200

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        levels = drawn_levels(model.schedule, self.least, self.most, self.steps, self.seed)
        inside = None if self.mask is None else self.mask.at((image.shape[-2], image.shape[-1]))
        return Descent(image, levels, prompts, image, rate=self.rate, seed=self.seed, inside=inside)


@dataclass(frozen=True, eq=False)
class Descent(Path):
    """Clean latents from step to step, noised for a prediction alone; no stepper moves them."""

    requires: ClassVar = Requires("DeltaDenoising", source=True)

    rate: Weight = 0.0
    seed: Whole = 0
    inside: Tensor | None = None
    """Where latents may change, (h, w)."""

    def start(self, run: Run) -> Phases:
        source, *edits = run.rows.streams
        first, streams = run.images(source), len(run.rows.streams)
        seeds = [self.seed + 1 + i for i in range(first.stop - first.start)]
        draw = run.model.noises.drawing(seeds, self.image.shape[1:])
        clean: list[Tensor] = []

        def before(step: Step) -> None:
            clean[:] = [step.x]
            step.x = add_noise(step.x, draw().to(step.x).repeat(streams, 1, 1, 1), step.level)

        def after(step: Step) -> None:
            x = clean[0].clone()
            for edit in edits:
                at = run.images(edit)
                way = self.way(step, at, step.eps[at] - step.eps[first])
                x[at] -= way if self.inside is None else way * self.inside.to(x)
            step.x_next = x

        return Phases(before=before, after=after)

    def way(self, step: Step, edit: slice, gradient: Tensor) -> Tensor:
        """How far a step moves the images of an edit, of which ``step.x`` has the noisy latents."""
        return self.rate * gradient


def drawn_levels(schedule: Schedule, least: float, most: float, steps: int, seed: int) -> Levels:
    """A level a step, uniform between two parts of the training's; what comes of them is clean."""
    if not 0 <= least < most <= 1:
        raise SfumatoError(f"levels are drawn between two parts of the training's, got {least} to {most}")
    first, end = (round(part * schedule.train_steps) for part in (least, most))
    drawn = torch.randint(first, max(first + 1, end - 1), (steps,), generator=torch.Generator().manual_seed(seed))
    return joined(schedule.at(drawn), CLEAN)
