"""Classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233): a classifier of noisy images pulls to a class.

The score of p(x) p(y | x)^s is the model's plus s times the classifier's: the noise prediction loses s sigma times the
gradient of log p(y | x_t) (algorithm 2). The classifier reads the noisy latents themselves, so the network is not
differentiated.

The scale is the paper's for a conditional model at 256 pixels (1.0); 10.0 is what it uses without conditions.

Needs: the classifier's forward and backward pass in each step.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.core.method import Energy, Method, Phases, Run, Step
from sfumato.core.schedule import Level


@dataclass(frozen=True, eq=False)
class ClassifierGuidance(Method):
    """Adds a classifier's gradient to the score."""

    log_prob: Callable[[Tensor, Level], Float[Tensor, " b"]]
    """log p(y | x) of noisy latents (b, c, h, w) at a level, one for each image."""
    scale: float = 1.0

    def start(self, run: Run) -> Phases:
        def energy(step: Step) -> Tensor:
            return -self.scale * self.log_prob(step.x, step.level).sum()

        return Phases(energy=Energy(energy, through_network=False))
