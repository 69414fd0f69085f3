"""How what the network says of each view becomes one canvas at each step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.core.method import Step
from sfumato.core.sites import Grid
from sfumato.core.steppers import Move
from sfumato.core.views import Views


class Canvas:
    """What the network sees of a canvas: ``split`` into windows of the model's own size, and ``merge``."""

    def __init__(self, views: Views, canvas: Grid, side: int):
        self.views = views
        self.window = (min(side, canvas[0]), min(side, canvas[1]))
        self.count = views.count(*canvas, self.window)

    def split(self, x: Tensor) -> Tensor:
        return self.views.split(x, self.window)

    def step(
        self, move: Move, step: Step, x: Tensor, x0: Tensor, eps: Tensor, noise: Callable[[], Tensor]
    ) -> Callable[[], Tensor] | None:
        """Fuse windows' ``x0`` or ``eps`` into the step; for ``x_prev``, what gives the canvas at the next level."""
        _, alpha, sigma = step.level
        if self.views.fuse == "eps":
            step.eps = self.views.merge(eps, step.x)
            step.x0 = (step.x - sigma * step.eps) / alpha
            return None
        step.x0 = self.views.merge(x0, step.x)
        step.eps = (step.x - alpha * step.x0) / sigma
        if self.views.fuse == "x0":
            return None
        return lambda: self.views.merge(move(x, x0, eps, step.level, step.next, lambda: self.split(noise())), step.x)
