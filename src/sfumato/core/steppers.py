"""From one noise level to the next. Written in alpha and sigma, so each serves variance-preserving models and flows.

A stepper is data; what it remembers from step to step lives in the function that ``start`` gives. Those that remember
more than the last step's data stand in ``core.solvers``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.schedule import Level, Levels, Schedule

Noise = Callable[[], Tensor]
Move = Callable[[Tensor, Tensor, Tensor, Level, Level, Noise], Tensor]
"""(x, x0, eps, level, next level, unit noise) -> x at the next level."""


class Stepper:
    """How a run goes from level to level."""

    remembers: ClassVar[bool] = False
    """Does a step depend on the ones before?"""

    def visits(self, levels: Levels, schedule: Schedule) -> Levels:
        """The levels at which the network is asked on the way through these: some ask more than once a step."""
        return levels

    def start(self, schedule: Schedule, steps: int) -> Move:
        """What moves a run of so many steps, one a visit."""
        raise NotImplementedError


@dataclass(frozen=True)
class DDIM(Stepper):
    """Song et al. 2021, eqs. 12 and 16. ``eta`` 0 is deterministic, 1 has DDPM's posterior variance.

    For flows with ``eta`` 0 it is the Euler step.
    """

    eta: float = 0.0

    def start(self, schedule: Schedule, steps: int) -> Move:
        return self._move

    def _move(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
        if not self.eta:
            return to.alpha * x0 + to.sigma * eps
        std = self.eta * posterior_std(level, to)
        return to.alpha * x0 + (to.sigma**2 - std**2).clamp_min(0).sqrt() * eps + (std * noise() if std else 0)


@dataclass(frozen=True)
class DDPM(DDIM):
    """Ho et al. 2020, eqs. 6 and 7: DDIM with ``eta`` 1, and as much noise as the checkpoint has it."""

    eta: float = 1.0

    def strength(self, schedule: Schedule, level: Level, to: Level, variance: Tensor | None) -> Tensor | float:
        """Deviation of a step's noise over the posterior's, by the scheduler's ``variance_type``.

        ``variance``: what the network says of it, for ``learned_range`` (Nichol and Dhariwal 2021, eq. 15) from -1, the
        posterior's variance, to 1, beta; for ``learned`` the variance.
        """
        kind = schedule.config.get("variance_type") or "fixed_small"
        if to.sigma == 0 or kind.startswith("fixed_small"):
            return 1.0
        most = level.sigma / to.sigma
        if variance is None:
            return most
        return most ** ((variance + 1) / 2) if kind == "learned_range" else variance.sqrt() / posterior_std(level, to)


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

    def start(self, schedule: Schedule, steps: int) -> Move:
        return self._move

    def _move(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
        if not self.ancestral or to.sigma == 0:
            return to.alpha * x0 + to.sigma * eps
        if level.alpha == 0:  # nothing of x is of the image, so nothing of it is kept
            return to.alpha * x0 + to.sigma * noise()
        down, up = ancestral(level.sigma / level.alpha, to.sigma / to.alpha)
        return to.alpha * (x0 + down * eps + up * noise())


def ancestral(now: Float[Tensor, ""], then: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """k-diffusion's step from sigma / alpha to a smaller one: to where, and the noise that leads up from there."""
    up = then.minimum(then * (now**2 - then**2).clamp_min(0).sqrt() / now)
    return (then**2 - up**2).sqrt(), up


@dataclass(frozen=True)
class LCM(Stepper):
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3): to data, and to the next level by new noise.

    ``scaling`` is of the times in the boundary condition that keeps x where there is no noise (``timestep_scaling`` in
    diffusers); none of it where the network was distilled without, such as a flow.
    """

    scaling: float | None = 10.0

    def start(self, schedule: Schedule, steps: int) -> Move:
        return self._move

    def _move(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
        data = x0
        if self.scaling is not None:
            scaled, deviation = level.t * self.scaling, 0.5  # of data, as it was trained
            size = scaled**2 + deviation**2
            data = scaled / size.sqrt() * x0 + deviation**2 / size * x
        return to.alpha * data + (to.sigma * noise() if to.sigma else 0)


def limiting(move: Move, schedule: Schedule) -> Move:
    """A stepper's move from the data as the scheduler's own step limits it (``Schedule.limited``)."""

    def limited(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
        return move(x, *schedule.limited(x, x0, eps, level), level, to, noise)

    return limited
