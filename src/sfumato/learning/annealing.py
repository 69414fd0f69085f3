"""Values that change over a run: constant, linear, square root, piecewise; and the levels that are drawn with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.core.schedule import Level, Schedule
    from sfumato.learning.seeds import Draws

Shape = Literal["linear", "sqrt", "steps"]
FORMS = "A number, A>B, A>B:sqrt, or points such as 0=0.98;0.2=0.5 (progress=value), :steps to jump between them"


@dataclass(frozen=True)
class Ramp:
    """A value at each part of a run, through points (progress, value); before the first and after the last it stays.

    Between two points it is linear, follows the square root of the way (``sqrt``: HiFA, Zhu et al. 2023, eq. 10), or
    keeps the first's value (``steps``).
    """

    points: tuple[tuple[float, float], ...]
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        at = [p for p, _ in self.points]
        if not at or at != sorted(at) or not all(math.isfinite(v) for point in self.points for v in point):
            raise SfumatoError(f"a ramp goes through points in the order of their progress, got {self.points}")

    @classmethod
    def read(cls, text: str) -> Ramp:
        """From words of a command line: see ``FORMS``. ``SfumatoError`` for anything else."""
        body, _, shape = text.partition(":")
        try:
            if "=" in body:
                points = tuple((float(a), float(b)) for a, b in (part.split("=") for part in body.split(";")))
            else:
                points = tuple((float(i), float(end)) for i, end in enumerate(body.split(">")))
            if points[-1][0] > 1 or shape not in ("", "linear", "sqrt", "steps"):
                raise ValueError
            return cls(points, shape or "linear")
        except ValueError:
            raise SfumatoError(f"{text!r} is no ramp; it is written as: {FORMS}") from None

    def __call__(self, progress: float) -> float:
        before = [p for p in self.points if p[0] <= progress] or [self.points[0]]
        after = [p for p in self.points if p[0] > progress] or [self.points[-1]]
        (a, start), (b, end) = before[-1], after[0]
        if self.shape == "steps" or b <= a:
            return start
        part = (progress - a) / (b - a)
        return start + (end - start) * (math.sqrt(part) if self.shape == "sqrt" else part)

    def __str__(self) -> str:
        tail = "" if self.shape == "linear" else f":{self.shape}"
        if len(self.points) == 1:
            return _written(self.points[0][1])
        if [p for p, _ in self.points] == [0, 1]:
            return ">".join(_written(v) for _, v in self.points) + tail
        return ";".join(f"{_written(p)}={_written(v)}" for p, v in self.points) + tail


def _written(value: float) -> str:
    """As short as it is read back the same."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def constant(value: float) -> Ramp:
    """The same all the way."""
    return Ramp(((0.0, value),))


def linear(start: float, end: float) -> Ramp:
    """From start to end at an even pace."""
    return Ramp(((0.0, start), (1.0, end)))


def square_root(start: float, end: float) -> Ramp:
    """start + (end - start) sqrt(progress): fast at first."""
    return Ramp(((0.0, start), (1.0, end)), "sqrt")


def piecewise(*points: tuple[float, float], shape: Shape = "linear") -> Ramp:
    """Through points (progress, value)."""
    return Ramp(points, shape)


@dataclass(frozen=True)
class Times:
    """Noise levels of a run as parts of the training's, in [0, 1]: uniform between two ramps, or on one."""

    low: Ramp
    high: Ramp = field(default=None)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.high is None:
            object.__setattr__(self, "high", self.low)
        for _, value in (*self.low.points, *self.high.points):
            if not 0 <= value <= 1:
                raise SfumatoError(f"levels are parts of the training's, from 0 to 1, got {value:g}")

    @classmethod
    def read(cls, text: str) -> Times:
        """``LOW,HIGH`` for levels drawn between two ramps, one ramp for levels that are not drawn."""
        parts = text.split(",")
        if len(parts) > 2:
            raise SfumatoError(f"{text!r} are no levels; they are one ramp, or two with a comma. A ramp: {FORMS}")
        return cls(*map(Ramp.read, parts))

    def draw(self, schedule: Schedule, progress: float, n: int, draws: Draws, shared: bool = False) -> Level:
        """Levels for n images, or the first's for all if ``shared``. Of whole steps both ends are included."""
        import torch

        low, high = self.low(progress), self.high(progress)
        if low > high:
            raise SfumatoError(f"levels are drawn upwards, got {low:g} to {high:g} at {progress:.0%} of the run")
        u = draws.each(n, lambda rng: torch.rand((), generator=rng, dtype=torch.float64))
        return schedule.at(steps_of(schedule, low, high, u[0] if shared else u))

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low},{self.high}"


def steps_of(schedule: Schedule, low: float, high: float, u: Tensor) -> Tensor:
    """Training steps at ``u`` in [0, 1) of the way between two parts of the training."""
    total = schedule.train_steps
    if schedule.prediction == "flow":
        return (low + u * (high - low)).clamp_min(1e-3) * total
    first, last = (min(round(part * total), total - 1) for part in (low, high))
    return first + (u * (last - first + 1)).floor()


def between(low: float, high: float) -> Times:
    """Uniform between two parts of the training's levels."""
    return Times(constant(low), constant(high))


DREAMFUSION = between(0.02, 0.98)
"""Poole et al. 2022, section 3.2; most of what came after draws its levels so."""
