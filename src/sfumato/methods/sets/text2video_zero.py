"""Text2Video-Zero (Khachatryan et al. 2023, arXiv 2303.13439): a video from a model of images, moved by its noise.

Frames that start from the same noise are the same picture, and from other noise other pictures. So the first frame is
painted on for a few steps, in which its layout settles; the others begin as copies of that, each moved a little
further, with noise back to where the first one was (section 3.3.1). From there on all are painted together, and every
self-attention reads the first frame's keys and values, so that things stay what they are (3.3.2). What no thing covers
can be kept to the moved first frame as well (3.3.3).

Defaults: diffusers' pipeline and the paper: of 50 steps frames begin after 2 (its t1=47), copies are of 5 steps
(t0=44), 12 pixels of 512 a frame in both directions, smoothing by 0.6 where it is asked for. What is beyond the border
is reflected, and moves are by whole cells of the latents, halves down, as there; no side is a number of pixels, so any
size moves alike. Two things are otherwise: the noise back is exactly the schedule's (its product of alphas begins and
ends a step early), and is the one that the frame's own seed began with, so that a frame is a matter of its seed. Masks
of things are given; the authors find them by a network of their own.

Needs: image->image keys and values, which stay fused. In one step as many further calls of all rows as there are steps
between, by DDIM.

Families: all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.method import Method, Phases, Requires, Run, Step, span
from sfumato.core.schedule import noised
from sfumato.core.settings import Part, PartOfSteps
from sfumato.errors import SfumatoError
from sfumato.methods.sets.sources import read, shared
from sfumato.prompts.layout import Mask


@dataclass(frozen=True)
class Text2VideoZero(Method):
    """The images of a stream are its frames."""

    requires: ClassVar = Requires(windows=False, set=True, groups=True)

    right: float = 12 / 512
    """How far the first frame's content is looked for to the right, for each further frame, as a part of the width."""
    down: float = 12 / 512
    """And downwards, as a part of the height."""
    begin: PartOfSteps = 0.04
    """Part of the steps after which frames begin: T1."""
    settled: PartOfSteps = 0.1
    """Part of the steps of which the frames begin as copies: T0."""
    foreground: Mask | None = None
    """Where things are in the first frame: elsewhere frames keep to it, moved. None for no smoothing."""
    smooth: Part = 0.6
    """How much of the moved first frame the background has."""

    def start(self, run: Run) -> Phases:
        first, end = (span((0, part), run.steps)[1] for part in (self.begin, self.settled))
        if not 0 <= first <= end < run.steps:
            raise SfumatoError(
                f"frames begin before their copies settle, and both before the end; got {self.begin:g} and "
                f"{self.settled:g} of {run.steps} steps"
            )
        frames = run.rows.of_stream
        if frames == 1:
            return Phases()
        noise: dict[str, Tensor] = {}  # of the frames' seeds, which they get back later

        def before(step: Step) -> None:
            if step.i == 0:
                noise["of"] = step.x / run.levels.spread if run.levels else step.x
            if step.i == first:
                step.x = self._moved(step, self._settled(step, end), noise["of"])

        def after(step: Step) -> None:  # section 3.3.3
            if self.foreground is None or step.i < first:
                return
            x, thing = step.x_next.clone(), self.foreground.at(run.grid).to(step.x_next.device)
            for stream in run.rows.streams:
                at = run.images(stream)
                for k in range(1, frames):
                    there = shifted(x[at.start], *self._cells(k, run))
                    free = ~(thing | shifted(thing[None], *self._cells(k, run))[0])
                    own = x[at.start + k]
                    x[at.start + k] = torch.where(free, torch.lerp(own, there, self.smooth), own)
            step.x_next = x

        edits, calls = shared(run, read("first", frames)), (end - first) / run.steps
        return Phases(edits, before=before, after=after, calls=calls, state=noise)

    def _settled(self, step: Step, end: int) -> Tensor:
        """All images some steps later, each by itself."""
        run, x = step.run, step.x
        assert run.levels is not None and run.guide is not None
        for i in range(step.i, end):
            level, to = run.levels[i], run.levels[i + 1]
            n = len(run.rows.conditions)
            predicted = run.predict(x, level.t, step.cond).chunk(n)
            parts = dict(zip(run.rows.conditions, predicted, strict=True))
            x0, eps = run.model.schedule.x0_and_eps(run.guide.combine(parts, run.rows), x, level)
            x = to.alpha * x0 + to.sigma * eps
        return x

    def _moved(self, step: Step, settled: Tensor, noise: Tensor) -> Tensor:
        """Each further frame the first one, moved, with noise back to this step's level."""
        run, x = step.run, step.x.clone()
        assert run.levels is not None
        end = span((0, self.settled), run.steps)[1]
        for stream in run.rows.streams:
            at = run.images(stream)
            for k in range(1, run.rows.of_stream):
                copy = shifted(settled[at.start], *self._cells(k, run))
                x[at.start + k] = noised(copy, run.levels[end], step.level, noise[at.start + k])
        return x

    def _cells(self, k: int, run: Run) -> tuple[int, int]:
        """Rows and columns by which frame k looks away from itself; a half is rounded down."""
        parts = zip((self.down, self.right), run.grid, strict=True)
        rows, columns = (math.ceil(part * side * k - 0.5) for part, side in parts)
        return rows, columns


def shifted(x: Float[Tensor, "c h w"] | Bool[Tensor, "c h w"], down: int, right: int) -> Tensor:
    """What ``x`` has so many rows further down and columns further right, reflected beyond its borders."""
    rows, columns = (_reflected(torch.arange(n) + by, n) for n, by in zip(x.shape[-2:], (down, right), strict=True))
    return x[..., rows[:, None].to(x.device), columns.to(x.device)]


def _reflected(at: Tensor, n: int) -> Tensor:
    at = at % (2 * n)
    return torch.where(at < n, at, 2 * n - 1 - at)
