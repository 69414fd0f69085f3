"""FlowEdit (Kulikov et al. 2025, arXiv 2412.08629): from image to edit directly, without a way to noise and back.

The edit z starts as the source image x. At each level fresh noise makes the source noisy, x_t; the target is asked at
x_t + (z - x), which is as far from x_t as the edit is from the image, and z goes on by the difference of the two
velocities. Source and target are two streams of one prediction, so methods that edit by attention go with it.

Defaults: the authors' settings for Stable Diffusion 3 (T 50, n_max 33, n_min 0, n_avg 1, guidance 3.5 and 13.5),
``FLUX`` theirs for Flux (28, 24, 1.5 and 5.5, which Flux dev reads as an input: ``guidance.scaled``). Noise is each
image's own, from its seed. Unlike in their code, which stops with a NameError there for Stable Diffusion 3, the last
part of the steps may be ordinary sampling (``finish``, their n_min). ``average`` (n_avg) is as many steps of the run at
each level, with other noise, of which the last moves.

The analogue for networks that predict noise: in y = x / alpha, s = sigma / alpha the probability-flow equation is
dy/ds = eps(y, s) (Song et al. 2021, eq. 14), and there x + s n is the noisy source. So the target is asked at
y = x + s n + (z - x) = z + s n, which is alpha z + sigma n in latents, and z goes on by (s' - s) (eps' - eps). That is
delta denoising (Hertz et al. 2023) whose levels fall and whose step is the equation's own. A flow's time is
sigma / (alpha + sigma), in which the same would be asked at alpha x + sigma n + (alpha + sigma) (z - x); the noise is
then not the edit's.

Needs: nothing before, and no further network calls.

Families: all; flows, which are Stable Diffusion 3 and Flux, as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.guidance import Guide, Scales
from sfumato.core.method import Phases, Requires, Run, Step
from sfumato.core.schedule import Level, add_noise, joined, part_of
from sfumato.core.settings import Count, Part, Whole
from sfumato.errors import SfumatoError
from sfumato.inversion.path import Advance, Inversion, Path


class Scaled(Inversion):
    """A start with guidances of its own for the image and for its edits."""

    source_scale: float
    target_scale: float

    def source_guidance(self, scale: float) -> float:
        return self.source_scale

    def guide(self, model: Backbone, scale: float | None = None) -> Guide | Scales:
        return super().guide(model, self.target_scale if scale is None else scale)


@dataclass(frozen=True)
class FlowEdit(Scaled):
    """Gives a start whose streams stay images; the run's guidance should be its own (``guide``)."""

    requires: ClassVar = Requires(words=True)

    source_scale: float = 3.5
    """Guidance of the source."""
    target_scale: float = 13.5
    """Guidance of the edit."""
    skip: Part = 0.34
    """Part of the steps, the noisiest, that are left out: less changes more. 1 - n_max / T."""
    finish: Part = 0.0
    """Part of the steps, the last, that are ordinary sampling of the target. n_min / T."""
    average: Count = 1
    """How many noises each level has. n_avg."""
    seed: Whole = 0
    """Of the noise."""
    steps: Count = 50
    """T, of which those that ``skip`` leaves are run."""

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        if self.average < 1 or self.skip < 0 or self.finish < 0 or self.skip + self.finish > 1:
            raise SfumatoError(
                f"skip and finish are parts of the steps and average a number from 1, got {self.skip:g}, "
                f"{self.finish:g} and {self.average}"
            )
        levels = model.levels(self.steps, image.shape[-2:]).without(self.skip)
        finish = part_of(self.steps, self.finish)
        moving = len(levels) - finish
        if moving and model.schedule.prediction != "flow" and not levels[0].alpha:
            raise SfumatoError(f"the first level of {model.name} is noise alone: let FlowEdit skip it")
        several = levels.all.rows(torch.arange(moving).repeat_interleave(self.average))
        levels = joined(several, levels.all.rows(slice(moving, None)))
        return Beside(image, levels, prompts, image, average=self.average, finish=finish, seed=self.seed)


FLUX = FlowEdit(1.5, 5.5, skip=4 / 28, steps=28)
"""The authors' settings for Flux."""


@dataclass(frozen=True, eq=False)
class Beside(Path):
    """Between steps the streams are images, the first the source; in a step they are noisy."""

    average: Count = 1
    finish: Whole = 0
    """Last steps that are ordinary."""
    seed: Whole = 0

    def start(self, run: Run) -> Phases:
        first, streams = run.images(run.rows.streams[0]), len(run.rows.streams)
        image = self.image.expand(first.stop - first.start, -1, -1, -1)
        draw = run.model.noises.drawing([self.seed + i for i in range(len(image))], image.shape[1:])
        last, flow = run.steps - self.finish, run.model.schedule.prediction == "flow"
        noise, edit, total = torch.zeros(()), torch.zeros(()), torch.zeros(())

        def time(level: Level) -> Tensor:
            return level.sigma if flow else level.sigma / level.alpha

        def before(step: Step) -> None:
            nonlocal noise, edit
            if step.i <= last:
                noise = draw().to(step.x)
            source = add_noise(image.to(step.x), noise, step.level)
            if step.i > last:
                step.x = step.x.clone()
                step.x[first] = source
                return
            edit, away = step.x, step.x - image.to(step.x).repeat(streams, 1, 1, 1)
            step.x = source.repeat(streams, 1, 1, 1) + (away if flow else step.level.alpha * away)

        def after(step: Step) -> None:
            nonlocal total
            if step.i >= last:
                step.x_next = step.x_next.clone()
                step.x_next[first] = image.to(step.x_next)
                return
            velocity = step.eps - step.x0 if flow else step.eps
            change = velocity - velocity[first].repeat(streams, 1, 1, 1)
            total = change if step.i % self.average == 0 else total + change
            # levels are repeated: time stands still up to the last of them
            step.x_next = edit + (time(step.next) - time(step.level)) * total / self.average

        return Phases(before=before, after=after)
