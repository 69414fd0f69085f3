"""Steppers of higher order, by what the network said at several levels.

Those that ask it once a step are one idea: what it said at the last levels lies on a polynomial, and a step is its
integral. They differ in what the polynomial is of (data, noise, slope), in which variable (lambda = log(alpha / sigma),
or sigma / alpha), and in what of it is left out. Heun's and the midpoint's ask twice (``Stepper.visits``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.schedule import Level, Levels, Schedule, joined
from sfumato.core.steppers import Move, Noise, Stepper, ancestral

Moments = Callable[[Tensor, int], list[Tensor]]
"""(size of the exponent, how many values are known) -> what each power of a polynomial counts over a step."""


class _Known(NamedTuple):
    """What the network said, and where."""

    at: Float[Tensor, ""]
    value: Tensor


def _exact(size: Float[Tensor, ""], count: int) -> list[Tensor]:
    """Integrals over u in [0, 1] of size exp(size (u - 1)) u^k, by parts."""
    found = [-torch.expm1(-size)]
    for power in range(1, count):
        found.append(1 - power * found[-1] / size)
    return found


def _integral(places: Sequence[Tensor], values: Sequence[Tensor], moments: Sequence[Tensor]) -> Tensor:
    """Of the polynomial through values at places: 0 is where the step begins, 1 where it ends."""
    powers = torch.stack(list(places)) ** torch.arange(len(places)).view(-1, 1)
    weights = torch.linalg.solve(powers, torch.stack(list(moments)))
    return sum((w * value for w, value in zip(weights, values, strict=True)), torch.zeros_like(values[0]))


def _moved(
    x: Tensor, level: Level, to: Level, known: Sequence[_Known], moments: Moments, data: bool, tau: float, noise: Noise
) -> Tensor:
    """x at another level by a polynomial, in lambda, of the data (Lu et al. 2022, arXiv 2211.01095, eq. 8) or the noise
    (2206.00927, eq. 3.4), with new noise of weight ``tau`` (Xue et al. 2023, arXiv 2305.14267, proposition 4.2).

    The first of what is known is at ``level``.
    """
    begin = _log_snr(level)
    h = _log_snr(to) - begin
    if data:
        size, kept, gained = (1 + tau**2) * h, to.sigma / level.sigma * torch.exp(-(tau**2) * h), to.alpha
        std = to.sigma * (-torch.expm1(-2 * tau**2 * h)).sqrt()
    else:
        size, kept, gained = -h, to.alpha / level.alpha, (1 + tau**2) * to.sigma
        std = to.sigma * tau * torch.expm1(2 * h).sqrt()
    places = [(each.at - begin) / h for each in known]
    moved = kept * x + gained * _integral(places, [each.value for each in known], moments(size, len(known)))
    return moved + std * noise() if tau else moved


def _at_once(level: Level, to: Level) -> bool:
    """Is lambda infinite at one of the two, or the same at both, so that there is no polynomial of it?"""
    return bool(level.alpha == 0 or to.sigma == 0 or to.sigma == level.sigma)


@dataclass(frozen=True)
class DPMSolver(Stepper):
    """DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) or, of the noise, DPM-Solver (arXiv 2206.00927): multistep.

    By default 2M (algorithm 2 of the first). The first steps have fewer values to go by.
    """

    remembers = True

    order: int = 2
    data: bool = True
    tau: float = 0.0
    """Weight of new noise: 0 is the ODE, 1 the SDE."""
    rule: Literal["midpoint", "heun", "exact"] = "midpoint"
    """How the last power of the polynomial counts: of second order as half of its begin or by its integral, of third by
    half of its integral unless ``exact``."""
    few: int = 15
    """Runs of fewer steps end in lower orders."""
    euler: bool = False
    """Is the last step of any run of first order?"""

    def start(self, schedule: Schedule, steps: int) -> Move:
        known: list[_Known] = []
        left = steps

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            nonlocal left
            most = left if steps < self.few or (self.euler and left == 1) else self.order
            left -= 1
            if _at_once(level, to):
                known.clear()
                return to.alpha * x0 + to.sigma * (noise() if self.tau and level.alpha == 0 else eps)
            known.insert(0, _Known(_log_snr(level), x0 if self.data else eps))
            del known[self.order :]
            return _moved(x, level, to, known[:most], self._moments, self.data, self.tau, noise)

        return move

    def _moments(self, size: Tensor, count: int) -> list[Tensor]:
        found = _exact(size, count)
        if count == 2 and self.rule == "midpoint":
            found[1] = found[0] / 2
        if count == 3 and self.rule != "exact":
            found[2] = found[2] / 2
        return found


def DEIS(order: int = 2, few: int = 15) -> DPMSolver:
    """Zhang and Chen 2023, arXiv 2204.13902, tAB in log(sigma / alpha): a polynomial of the noise, and its integral."""
    return DPMSolver(order, data=False, rule="exact", few=few)


@dataclass(frozen=True)
class Singlestep(Stepper):
    """DPM-Solver++ and DPM-Solver in blocks of ``order`` steps, each of which starts at its block's begin."""

    remembers = True

    order: int = 2
    data: bool = True
    tau: float = 0.0
    rule: Literal["midpoint", "heun"] = "midpoint"
    """``midpoint``: third order goes by a block's first and last values alone."""
    ends: bool = True
    """Is the last step of a run of whole blocks of first order?"""

    def start(self, schedule: Schedule, steps: int) -> Move:
        known: list[_Known] = []
        i, begin, first = 0, Level.of(0, 1, 0), torch.empty(0)

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            nonlocal i, begin, first
            last = i + 1 == steps and self.ends and steps % self.order == 0
            if i % self.order == 0 or last or to.sigma == 0:
                begin, first = level, x
                known.clear()
            i += 1
            known.append(_Known(_log_snr(level), x0 if self.data else eps))
            if _at_once(begin, to):
                return to.alpha * x0 + to.sigma * (noise() if self.tau and level.alpha == 0 else eps)
            used = known if self.rule == "heun" else known[:1] + known[1:][-1:]
            halved = self.rule == "midpoint" and len(known) == 2

            def moments(size: Tensor, count: int) -> list[Tensor]:
                found = _exact(size, count)
                return [found[0], found[0] / 2] if halved else found

            return _moved(first, begin, to, used, moments, self.data, self.tau, noise)

        return move


@dataclass(frozen=True)
class UniPC(Stepper):
    """Zhao et al. 2023, arXiv 2302.04867: each prediction also corrects the step that led to it.

    With new noise, and ``bh1``, it is SA-Solver (Xue et al. 2023, arXiv 2305.14267).
    """

    remembers = True

    order: int = 2
    corrector: int | None = None
    """By how many values a step is corrected, the newest too; None for one more than it was made by."""
    data: bool = True
    tau: Callable[[float], float] | None = None
    """Weight of new noise at a time."""
    rule: Literal["bh1", "bh2", "exact"] = "bh2"
    """How a polynomial of first power counts: by half of the step, or of the integral of its begin, or by its own."""
    ends: bool = True
    """Do runs end in lower orders?"""
    uncorrected: tuple[int, ...] = ()
    """Steps that no prediction corrects."""

    def start(self, schedule: Schedule, steps: int) -> Move:
        known: list[_Known] = []
        before: tuple[Tensor, Level, int, float, Tensor] | None = None
        i = 0

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            nonlocal i, before
            here = _Known(_log_snr(level), x0 if self.data else eps)
            if before is not None and i - 1 not in self.uncorrected:
                first, at, count, tau, drawn = before
                x = _moved(first, at, level, [*known[:count], here], self._moments, self.data, tau, lambda: drawn)
            most = steps - i if self.ends else steps
            i += 1
            if _at_once(level, to):
                before = None
                known.clear()
                return x if to.sigma == level.sigma else to.alpha * x0 + to.sigma * eps
            known.insert(0, here)
            del known[max(self.order, (self.corrector or 1) - 1) :]
            tau, drawn = (self.tau(float(level.t)), noise()) if self.tau else (0.0, x)
            before = x, level, min(most, (self.corrector or self.order + 1) - 1), tau, drawn
            used = known[: min(most, self.order)]
            return _moved(x, level, to, used, self._moments, self.data, tau, lambda: drawn)

        return move

    def _moments(self, size: Tensor, count: int) -> list[Tensor]:
        found = _exact(size, count)
        if count == 2 and self.rule != "exact":
            found[1] = (size if self.rule == "bh1" else found[0]) / 2
        return found


@dataclass(frozen=True)
class PLMS(Stepper):
    """PNDM (Liu et al. 2022, arXiv 2202.09778) as Stable Diffusion runs it: Adams and Bashforth's fourth order, of what
    the network says, as if steps were equal. The first step is taken twice, as Heun does.
    """

    remembers = True

    def visits(self, levels: Levels, schedule: Schedule) -> Levels:
        return _twice(levels, 1)

    def start(self, schedule: Schedule, steps: int) -> Move:
        known: list[Tensor] = []
        i, begin = 0, (torch.empty(0), Level.of(0, 1, 0))

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            nonlocal i, begin
            now = schedule.prediction_of(x0, eps, level)
            if i == 0:
                begin = x, level
            if i == 1 and to.sigma == level.sigma:
                (x, level), now = begin, (now + known[0]) / 2
            else:
                known.insert(0, now)
                del known[4:]
                places = -torch.arange(len(known), dtype=torch.float64)
                now = _integral(tuple(places), known, tuple(1 / (1 - places)))
            i += 1
            x0, eps = schedule.x0_and_eps(now, x, level)
            return to.alpha * x0 + to.sigma * eps

        return move


def _twice(levels: Levels, most: int | None = None) -> Levels:
    """Levels with those between the first and the last twice, the first ``most`` of them."""
    between = torch.arange(1, max(1, len(levels)))
    again = torch.cat([torch.arange(len(levels) + 1), between[:most]]).sort()[0]
    return replace(levels, all=levels.all.rows(again))


@dataclass(frozen=True)
class _Slopes:
    """Straight ways: of x / alpha by sigma / alpha, whose slope is the noise; of a flow, of x by sigma."""

    flow: bool

    def at(self, level: Level) -> Float[Tensor, ""]:
        return level.sigma if self.flow else level.sigma / level.alpha

    def of(self, x0: Tensor, eps: Tensor) -> Tensor:
        return eps - x0 if self.flow else eps

    def along(self, x: Tensor, level: Level, to: Level, slope: Tensor) -> Tensor:
        far = self.at(to) - self.at(level)
        return x + far * slope if self.flow else to.alpha * (x / level.alpha + far * slope)


@dataclass(frozen=True)
class LMS(Stepper):
    """k-diffusion's linear multistep: the integral of the polynomial through the last slopes."""

    remembers = True

    order: int = 4

    def start(self, schedule: Schedule, steps: int) -> Move:
        slopes, known = _Slopes(schedule.prediction == "flow"), list[_Known]()

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            here, there = slopes.at(level), slopes.at(to)
            if here.isinf() or here == there:
                return to.alpha * x0 + to.sigma * eps
            known.insert(0, _Known(here, slopes.of(x0, eps)))
            del known[self.order :]
            places = [(each.at - here) / (there - here) for each in known]
            means = [1 / (1 + torch.tensor(power, dtype=torch.float64)) for power in range(len(known))]
            return slopes.along(x, level, to, _integral(places, [each.value for each in known], means))

        return move


@dataclass(frozen=True)
class Heun(Stepper):
    """Karras et al. 2022, algorithm 1 without new noise: each step but the last by the mean of two slopes."""

    remembers = True

    def visits(self, levels: Levels, schedule: Schedule) -> Levels:
        return _twice(levels)

    def start(self, schedule: Schedule, steps: int) -> Move:
        slopes = _Slopes(schedule.prediction == "flow")
        begin: list[tuple[Tensor, Level, Tensor]] = []

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            now = slopes.of(x0, eps)
            if not begin:
                begin.append((x, level, now))
                return to.alpha * x0 + to.sigma * eps
            first, at, before = begin.pop()
            return x if slopes.at(at).isinf() else slopes.along(first, at, level, (before + now) / 2)

        return move


@dataclass(frozen=True)
class Midpoint(Stepper):
    """k-diffusion's DPM2: each step but the last by the slope at the level half-way, by logarithms."""

    remembers = True

    ancestral: bool = False
    """With new noise, from a level below the next."""

    def visits(self, levels: Levels, schedule: Schedule) -> Levels:
        *whole, last = levels
        found = whole[:1]
        for level, to in pairwise(whole):
            now, then = level.sigma / level.alpha, self._aim(level, to)[0]
            found += [to if now.isinf() else schedule.at_ratio((now * then).sqrt()), to]
        return replace(joined(*found, last), spread=levels.spread)

    def start(self, schedule: Schedule, steps: int) -> Move:
        begin: list[tuple[Tensor, Level]] = []

        def move(x: Tensor, x0: Tensor, eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            if not begin:
                begin.append((x, level))
                return to.alpha * x0 + to.sigma * eps
            first, at = begin.pop()
            if at.alpha == 0:
                return to.alpha * x0 + to.sigma * eps
            then, up = self._aim(at, to)
            moved = first / at.alpha + (then - at.sigma / at.alpha) * eps
            return to.alpha * (moved + up * noise() if up else moved)

        return move

    def _aim(self, level: Level, to: Level) -> tuple[Tensor, Tensor]:
        """sigma / alpha where a step goes, and of the noise that then leads to ``to``."""
        then = to.sigma / to.alpha
        return ancestral(level.sigma / level.alpha, then) if self.ancestral else (then, torch.zeros_like(then))


def _log_snr(level: Level) -> Float[Tensor, ""]:
    """lambda = log(alpha / sigma), from minus infinity to infinity."""
    return (level.alpha / level.sigma).log()
