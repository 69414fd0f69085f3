"""FreeNoise (Qiu et al. 2023, arXiv 2310.15169): clips longer than those that a model was trained on.

A model attends over as many frames as it was trained on and no more. Here its motion modules attend over windows of so
many, one every few frames, and what windows say of a frame is averaged, the middle of a window counting most. Frames
beyond the first window start from the noise of earlier ones in a shuffled order, so that distant windows paint the same
things.

Needs: clips of several frames by a model with motion modules. A layer over time takes ``context`` / ``stride`` times
the memory and time of plain attention over as many frames; all frames are in the network together.

Defaults are the authors': windows of 16 frames, one every 4, pyramid weights (eq. 9), shuffled noise (eq. 5). The last
window ends with the clip. Where the frames are no whole number of strides diffusers lets that window speak only of the
frames that no other has, by the weight of one of them; here it is a window like the others. Shuffles are drawn by
``seed``, alike for all clips of a run; the authors draw them behind the noise. Prompts that change along the clip are
not here.

Families: AnimateDiff.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float

from sfumato.backbones.motion import STRIDE, WEIGHTS, Motion
from sfumato.core.conditions import Cond
from sfumato.core.method import Method, Phases, Requires, Run, Step
from sfumato.core.settings import Count, Whole
from sfumato.errors import SfumatoError, whole

Weights = Literal["pyramid", "flat"]


@dataclass(frozen=True)
class FreeNoise(Method):
    """FreeNoise's parameters."""

    requires: ClassVar = Requires(clip=True)
    lengthens: ClassVar = True

    context: Count = 16
    """Frames of a window; a clip of no more is painted as ever."""
    stride: Count = 4
    """Frames from window to window."""
    weights: Weights = "pyramid"
    """How much each frame of a window counts where windows overlap."""
    noise: Literal["shuffle", "repeat", "own"] = "shuffle"
    """Of frames beyond the first window: that of earlier ones shuffled, that of the first window over again, or their
    own, as for a clip that is not painted from noise alone."""
    seed: Whole = 0
    """Of the shuffles."""

    def start(self, run: Run) -> Phases:
        model, frames = run.model, run.rows.frames
        if not isinstance(model, Motion):
            raise SfumatoError(f"FreeNoise is for AnimateDiff's motion modules, and {model.name} has none")
        whole("frames of a window", self.context, 1, model.frames)
        whole("frames between windows", self.stride, 1, self.context)
        if frames <= self.context:
            return Phases()
        order = self.order(frames)

        def begin(step: Step) -> None:
            if not step.i and not step.passed:
                step.x = step.x.unflatten(0, (-1, frames))[:, order].flatten(0, 1)

        def windows(step: Step, cond: Cond) -> Cond:
            share = weights(self.context, self.weights).to(cond.text).expand(len(cond), -1)
            stride = torch.full((len(cond),), self.stride)
            return replace(cond, extra={**cond.extra, WEIGHTS: share, STRIDE: stride})

        return Phases(before=begin, cond=windows)

    def order(self, frames: int, generator: torch.Generator | None = None) -> list[int]:
        """Which frame's noise each frame starts from."""
        order = list(range(frames))
        if self.noise == "repeat":
            return [i % self.context for i in order]
        generator = generator or torch.Generator().manual_seed(self.seed)
        for i in range(self.context, frames, self.stride) if self.noise == "shuffle" else ():
            some = order[i - self.context : i - self.context + self.stride]
            mixed = [some[j] for j in torch.randperm(len(some), generator=generator).tolist()]
            order[i : i + self.stride] = mixed[: frames - i]
        return order


def weights(frames: int, kind: Weights = "pyramid") -> Float[torch.Tensor, " frames"]:
    """Of a window's frames; a pyramid grows by one from its ends to its middle."""
    if kind == "flat":
        return torch.ones(frames)
    return torch.minimum(torch.arange(1, frames + 1), torch.arange(frames, 0, -1)).float()
