"""Score Jacobian chaining (Wang et al. 2022, arXiv 2212.00774): follow the score of an image that was perturbed.

A network that denoises knows the score of noisy images alone, so an image x is perturbed by sigma times noise first,
and the scores of many perturbed copies stand, in the mean, for that of x at the level sqrt(2) sigma. It chains by the
renderer's Jacobian to that of a scene. sigma is that of noise beside an image of full strength, which is sigma / alpha
here; the noise's own part of a score has no mean and is left out (variance reduction). What remains is score
distillation with other weights.

Defaults: the authors' code, of Stable Diffusion: guidance 100, levels 0.01 to 0.969, an image each, and (x - D) /
sigma; the score itself has sigma^2 below, ``power`` 2. They descend with Adamax at a rate of 0.05. threestudio writes
guidance as c + s (c - u), so that its 100 is a 101 here: ``THREESTUDIO``. The emptiness loss is one of scenes.

Needs: two rows an image and step.

Families: all. Where alpha is zero (zero-SNR schedules at their last step) sigma is infinite; the levels end before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.core.schedule import Level
from sfumato.core.settings import Whole
from sfumato.distill.guided import Guided
from sfumato.distill.loop import Now
from sfumato.distill.prior import GuidedModel, Images
from sfumato.learning.annealing import Times, between

LEVELS = between(0.01, 0.969)


def score_jacobian_chaining(prior: GuidedModel, x: Images, at: Level, noise: Images, power: int = 1) -> Images:
    """(x - D(x + sigma noise)) / sigma^power, D(z) = z - sigma eps(alpha z); alpha is 1 / sqrt(1 + sigma^2)."""
    alpha, sigma = at.like(x)
    sigma = sigma / alpha
    perturbed = x + sigma * noise
    denoised = perturbed - sigma * prior(alpha * perturbed, at)
    return (x - denoised) / sigma**power


@dataclass(frozen=True)
class ScoreJacobianChaining(Guided):
    """SJC with the authors' settings."""

    guidance: float = 100.0
    times: Times = LEVELS
    power: Whole = 1
    """Of sigma, by which the difference to the denoised image is divided: 1 in the code, 2 makes it a score."""

    def gradient(self, now: Now) -> Images:
        return score_jacobian_chaining(self.prior(now), now.x, self.level(now), now.noise(), self.power)


THREESTUDIO = ScoreJacobianChaining(guidance=101.0, times=between(0.01, 0.97))
