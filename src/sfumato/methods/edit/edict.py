"""EDICT (Wallace et al. 2023, arXiv 2211.12446): two latents that take turns make a step that can be undone exactly.

Each of the two is moved by a prediction made from the other (eqs. 10 and 13), then they are mixed (eq. 14), or they
would drift apart. As every sum can be undone, the way back is exact at any guidance, up to rounding: it is worked out
in float64, the network in its own precision. Which of the two goes first changes with each step, told by the step's own
number, so that odd counts of steps are undone as well.

Defaults: the paper's (mixing 0.93, 50 steps, the last 0.8 of them, guidance 3).

Needs: two network calls a step.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import Backbone, Cond
from sfumato.guidance import CFG, Guide
from sfumato.inversion import predict
from sfumato.schedule import Levels
from sfumato.terminal import progress

Pair = tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]


@dataclass(frozen=True)
class EDICT:
    """Inverts and samples with coupled latents."""

    mixing: float = 0.93
    """p: how much of itself each of the two keeps."""
    strength: float = 0.8
    """Part of the steps that are run."""
    scale: float = 3.0
    steps: int = 50

    @torch.no_grad()
    def invert(self, model: Backbone, images: Float[Tensor, "b 3 H W"], prompts: list[str]) -> Pair:
        """The two latents at the first level, for images in [0, 1] with a prompt each."""
        guide = CFG(self.scale)
        conds = guide.embed(model, prompts)
        x = y = model.encode(images).double()
        levels = self._levels(model)
        with progress("inverting", len(levels)) as advance:
            for i in reversed(range(len(levels))):
                a, b = _move(levels, i)
                y = (y - (1 - self.mixing) * x) / self.mixing  # eq. 14 undone
                x = (x - (1 - self.mixing) * y) / self.mixing
                if i % 2:
                    x, y = y, x
                y = (y - b * _eps(model, x, levels, i, conds, guide)) / a
                x = (x - b * _eps(model, y, levels, i, conds, guide)) / a
                if i % 2:
                    x, y = y, x
                advance()
        return x, y

    @torch.no_grad()
    def denoise(self, model: Backbone, start: Pair, prompts: list[str]) -> Float[Tensor, "b c h w"]:
        """Latents painted from the two that ``invert`` found, for the same prompts or others."""
        guide = CFG(self.scale)
        conds = guide.embed(model, prompts)
        x, y = start
        levels = self._levels(model)
        with progress("painting", len(levels)) as advance:
            for i in range(len(levels)):
                a, b = _move(levels, i)
                if i % 2:
                    x, y = y, x
                x = a * x + b * _eps(model, y, levels, i, conds, guide)  # eq. 10
                y = a * y + b * _eps(model, x, levels, i, conds, guide)
                if i % 2:
                    x, y = y, x
                x = self.mixing * x + (1 - self.mixing) * y  # eq. 14
                y = self.mixing * y + (1 - self.mixing) * x
                advance()
        return x.float()

    def _levels(self, model: Backbone) -> Levels:
        return model.schedule.levels(self.steps).last(int(self.steps * self.strength + 1e-9))


def _move(levels: Levels, i: int) -> tuple[float, float]:
    """A DDIM step as a x + b eps."""
    at, to = levels[i], levels[i + 1]
    a = to.alpha / at.alpha
    return a, to.sigma - a * at.sigma


def _eps(model: Backbone, x: Tensor, levels: Levels, i: int, conds: dict[str, Cond], guide: Guide) -> Tensor:
    return predict(model, x.float(), levels[i].t, levels[i], conds, guide)[1].double()
