"""Dynamic thresholding (Saharia et al. 2022, Imagen, arXiv 2205.11487, section 2.3): strong guidance without burning.

Guidance drives pixels out of [-1, 1]. At each step the image is clipped at the quantile p of its absolute values, where
that is more than 1, and divided by it, so that pixels are pushed inwards and not pinned to the border.

p is 0.995, as in diffusers; unlike there, where the greatest divisor is 1 unless told otherwise, so that all is plainly
clipped, there is none. Latents have no border to clip at; for them there is ``cfg(rescale=0.7)``.

Needs: nothing.

Families: those that work in pixels, which are DeepFloyd IF and DDPM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.method import Method, Phases, Run, Step
from sfumato.core.settings import Between, SomePart
from sfumato.errors import SfumatoError


@dataclass(frozen=True)
class DynamicThresholding(Method):
    """Clips x0 at a quantile and rescales it."""

    quantile: SomePart = 0.995
    """p, between 0 and 1."""
    most: Annotated[float, Between(1)] | None = None
    """Greatest divisor; 1 is static thresholding. DeepFloyd IF's own samplers have 1.5 with a quantile of 0.95."""

    def start(self, run: Run) -> Phases:
        if run.model.factor != 1:
            raise SfumatoError(
                f"{run.model.name} works in latents, which have no border to clip at; take a lower guidance, or "
                "in Python cfg(rescale=0.7)"
            )

        def denoised(step: Step) -> None:
            step.x0 = thresholded(step.x0, self.quantile, self.most)

        return Phases(denoised=denoised)


def thresholded(x0: Float[Tensor, "b *shape"], quantile: float, most: float | None = None) -> Tensor:
    """``x0`` clipped to +-s and divided by s, s the quantile of its absolute values, from 1 to ``most``."""
    flat = x0.flatten(1)
    s = torch.quantile(flat.abs(), quantile, dim=1, keepdim=True).clamp(1, most)
    return (flat.clamp(-s, s) / s).view_as(x0)
