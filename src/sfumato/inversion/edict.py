"""EDICT: two latents that take turns make a step that can be undone exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.guidance import guided
from sfumato.core.schedule import Level, Levels, Schedule
from sfumato.core.settings import Count, Part, SomePart
from sfumato.core.steppers import Move, Noise, Stepper
from sfumato.errors import SfumatoError
from sfumato.inversion.path import Advance, Inversion, Path, predict


@dataclass(frozen=True, eq=False)
class Coupled(Stepper):
    """EDICT's step as two of a run: the latents of the run are the one of the two that is predicted from."""

    remembers: ClassVar[bool] = True

    levels: Levels
    waiting: Float[Tensor, "b c h w"]
    """The other one at the first level."""
    mixing: float

    def start(self, schedule: Schedule, steps: int) -> Move:
        half, waiting = 0, self.waiting

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            nonlocal half, waiting
            i, second = divmod(half, 2)
            half += 1
            if len(waiting) < len(x):  # all streams start from the same two
                waiting = waiting.repeat(len(x) // len(waiting), 1, 1, 1)
            a, b = _move(self.levels, i)
            moved = a * waiting + b * eps  # eqs. 10 and 13
            if not second:
                waiting = x
                return moved
            one, other = _turned(x, moved, i)
            one = self.mixing * one + (1 - self.mixing) * other  # eq. 14
            other = self.mixing * other + (1 - self.mixing) * one
            if i + 1 == len(self.levels):
                return one
            waiting, now = _turned(one, other, i + 1)
            return now

        return move


@dataclass(frozen=True)
class EDICT(Inversion):
    """EDICT (Wallace et al. 2023, arXiv 2211.12446): two latents, each moved by a prediction made from the other.

    Then they are mixed, or they would drift apart. As every sum can be undone, the way back is exact at any guidance,
    up to rounding: it is worked out in float64, the network in its own precision. Which of the two goes first changes
    with each step, told by the step's own number, so that odd counts of steps are undone as well.

    Defaults: the paper's (mixing 0.93, 50 steps, the last 0.8 of them, guidance 3). A run that follows the path has two
    steps for each of these, and the path's image again if it has the same guidance.

    Needs: two predictions a step.

    Families: all.
    """

    mixing: SomePart = 0.93
    """p: how much of itself each of the two keeps."""
    strength: Part = 0.8
    """Part of the steps that are run."""
    scale: float = 3.0
    steps: Count = 50
    negative: str = ""
    """What takes the place of the empty prompt."""

    edit_guidance: ClassVar = 3.0

    def source_guidance(self, scale: float) -> float:
        return self.scale

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        levels = model.levels(self.steps, image.shape[-2:]).last(float(self.strength))
        if not levels[0].alpha:
            raise SfumatoError(
                "EDICT divides by alpha, which is zero at this model's first level; take a strength below 1"
            )
        guide = guided(model, self.scale, self.negative)
        conds = guide.embed(model, prompts)
        one = other = image.double()

        def undone(moved: Tensor, seen: Tensor, i: int) -> Tensor:
            a, b = _move(levels, i)
            return (moved - b * predict(model, seen, levels[i].t, levels[i], conds, guide)[1]) / a

        for i in reversed(range(len(levels))):
            other = (other - (1 - self.mixing) * one) / self.mixing
            one = (one - (1 - self.mixing) * other) / self.mixing
            first, second = _turned(one, other, i)
            second = undone(second, first, i)
            first = undone(first, second, i)
            one, other = _turned(first, second, i)
            advance(one)
        waiting, now = _turned(one, other, 0)
        twice = Levels(levels.all.rows(torch.arange(2 * len(levels) + 1) // 2))
        return Path(now, twice, prompts, image, Coupled(levels, waiting, self.mixing))


def _turned(one: Tensor, other: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Which of the two moves first in a step, and which second: they take turns."""
    return (other, one) if i % 2 else (one, other)


def _move(levels: Levels, i: int) -> tuple[Tensor, Tensor]:
    """A DDIM step as a x + b eps."""
    at, to = levels[i], levels[i + 1]
    a = to.alpha / at.alpha
    return a, to.sigma - a * at.sigma
