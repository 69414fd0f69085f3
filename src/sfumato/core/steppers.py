"""From one noise level to the next. Written in alpha and sigma, so each serves variance-preserving models and flows.

A stepper is data; what it remembers from step to step lives in the function that ``start`` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.schedule import Level
from sfumato.errors import SfumatoError

Noise = Callable[[], Tensor]
Move = Callable[[Tensor, Tensor, Tensor, Level, Level, Noise], Tensor]
"""(x, x0, eps, level, next level, unit noise) -> x at the next level."""


class Stepper:
    """How a run goes from level to level."""

    remembers: ClassVar[bool] = False
    """Does a step depend on the ones before?"""

    def start(self) -> Move:
        raise NotImplementedError


@dataclass(frozen=True)
class DDIM(Stepper):
    """Song et al. 2021, eqs. 12 and 16. ``eta`` 0 is deterministic, 1 has DDPM's posterior variance.

    For flows with ``eta`` 0 it is the Euler step.
    """

    eta: float = 0.0

    def start(self) -> Move:
        return self._move

    def _move(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
        if not self.eta:
            return to.alpha * x0 + to.sigma * eps
        std = self.eta * posterior_std(level, to)
        return to.alpha * x0 + (to.sigma**2 - std**2).clamp_min(0).sqrt() * eps + (std * noise() if std else 0)


def DDPM() -> DDIM:
    """Ho et al. 2020, eqs. 6 and 7, with the posterior's variance: DDIM with ``eta`` 1."""
    return DDIM(1.0)


def posterior_std(level: Level, to: Level) -> Float[Tensor, ""]:
    """Deviation of x at ``to`` given x at ``level`` and x0 (Song et al. 2021, eq. 16 with eta 1)."""
    if to.sigma == 0:
        return torch.zeros_like(to.sigma)
    ratio = level.alpha / to.alpha
    return to.sigma / level.sigma * (level.sigma**2 - (ratio * to.sigma) ** 2).clamp_min(0).sqrt()


@dataclass(frozen=True)
class Euler(Stepper):
    """Euler in x / alpha (Karras et al. 2022), which without noise is DDIM. ``ancestral``: with k-diffusion's noise."""

    ancestral: bool = False

    def start(self) -> Move:
        return self._move

    def _move(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
        if not self.ancestral or to.sigma == 0:
            return to.alpha * x0 + to.sigma * eps
        if level.alpha == 0:
            raise SfumatoError("ancestral Euler divides by alpha, which is zero at this model's first level; take DDIM")
        now, then = level.sigma / level.alpha, to.sigma / to.alpha
        up = then.minimum(then * (now**2 - then**2).clamp_min(0).sqrt() / now)
        down = (then**2 - up**2).sqrt()
        return to.alpha * (x0 + down * eps + up * noise())


@dataclass(frozen=True)
class DPMSolver(Stepper):
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), first order in the first step and in a last one to no noise."""

    remembers = True

    def start(self) -> Move:
        before: list[tuple[Tensor, Tensor]] = []

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            last = before.pop() if before else None
            now = _log_snr(level)
            before.append((now, x0))
            if to.sigma == 0 or level.alpha == 0:
                return to.alpha * x0 + to.sigma * eps
            h = _log_snr(to) - now
            data = x0
            if last is not None and last[0].isfinite():
                r = (now - last[0]) / h
                data = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last[1]
            return to.sigma / level.sigma * x - to.alpha * torch.expm1(-h) * data

        return move


def _log_snr(level: Level) -> Float[Tensor, ""]:
    """lambda = log(alpha / sigma), from minus infinity to infinity."""
    return (level.alpha / level.sigma).log()
