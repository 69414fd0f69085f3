"""Universal guidance (Bansal et al. 2023, arXiv 2302.07121): any differentiable loss on the clean image steers it.

At each step the image that the prediction stands for is worked out, its loss is differentiated back to the noisy
latents, and the noise prediction gains s(t) times that gradient, s(t) = s sqrt(1 - alpha_bar) (eq. 6, forward
guidance). As one such step is often not enough, each step may be run k times, with new noise back to its level in
between (section 3.3). The backward guidance of section 3.2 is not part of it.

With ``network=False`` the gradient stops at x0, with the noise held fixed: cheaper, a weaker hint. Scale and repeats
are the authors' own for each loss: faces 20000 and 2, segmentation 400 and 10, style 6 and 6.

Needs: a backward pass through the network in each step, for ``on="images"`` also through the decoder; maps where asked.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from sfumato.core.method import Energy, Maps, Method, Need, Phases, Run, Span, Step, span
from sfumato.core.settings import Count
from sfumato.errors import SfumatoError


@dataclass(frozen=True, eq=False)
class UniversalGuidance(Method):
    """Goes down a loss while painting."""

    loss: Callable[[Tensor], Float[Tensor, ""]] | Callable[[Maps], Float[Tensor, ""]]
    """Of the images in [0, 1], of x0, or of the maps: summed, not averaged, over the images of a batch."""
    scale: float = 1.0
    on: Literal["images", "x0"] | Need = "images"
    """What the loss is of; a ``Need`` gives it the maps of its sites."""
    repeats: Count = 1
    """k: how often each step is run."""
    steps: Span = (0, None)
    network: bool = True
    """Differentiate through the network."""

    def start(self, run: Run) -> Phases:
        if isinstance(self.on, Need) and not self.network:
            raise SfumatoError("maps are made in the network, so their loss goes through it; leave network=True")
        need = replace(self.on, where=replace(self.on.where, steps=self.steps)) if isinstance(self.on, Need) else None

        def energy(step: Step) -> Tensor:
            if need is not None:
                return self.scale * self.loss(step.maps[need])  # pyright: ignore[reportArgumentType]
            seen = run.model.decode(step.x0) if self.on == "images" else step.x0
            return self.scale * self.loss(seen)  # pyright: ignore[reportArgumentType]

        first, end = span(self.steps, run.steps)
        return Phases(
            needs=(need,) if need else (),
            energy=Energy(energy, self.network, self.repeats, self.steps),
            calls=(self.repeats - 1) * (end - first) / run.steps,
        )
