"""Which noise an image should have had: solutions of eps(alpha x + sigma kappa) = kappa, eq. 4.4 of Lukoianov 2024.

kappa is the noise with which x is what the model sees in its own noisy image, so that x is a point of a trajectory of
DDIM. A model's prior and clean latents go in, noise comes out; nothing is drawn and nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sfumato.core.schedule import Level, Schedule
from sfumato.distill.prior import At, GuidedModel, Images
from sfumato.errors import SfumatoError


def noise_in(x: Images, noisy: Images, at: At) -> Images:
    """The noise that brought clean images to noisy ones: (noisy - alpha x) / sigma."""
    return (noisy - at.alpha(x) * x) / at.sigma(x)


def residual(prior: GuidedModel, x: Images, kappa: Images, at: At) -> Images:
    """The error of a noise in eq. 4.4 as an image: sigma / alpha (eps(alpha x + sigma kappa) - kappa).

    That is x less the image which the model sees in it, and so it is told where alpha is zero as well.
    """
    return x - prior.clean_and_noise(at.noised(x, kappa), at)[0]


def inverted(prior: GuidedModel, x: Images, at: At, steps: int | Sequence[int]) -> Images:
    """DDIM run backwards from clean latents, each up to its own level in as many steps (eq. 3.1, section 5.1).

    Steps are forward Euler ones, even in t: the network is told the level at which the latents are. Latents count as
    clean at the cleanest level that the network knows, as samplers leave them there. Images with fewer steps than
    others wait at their level.
    """
    counts = [steps] * len(x) if isinstance(steps, int) else list(steps)
    if len(counts) != len(x) or min(counts) < 1:
        raise SfumatoError(f"{len(x)} images are inverted in one step or more each, got {counts}")
    ways = [_way(prior.model.schedule, level, n) for level, n in zip(at.levels, counts, strict=True)]
    noisy = x
    for i in range(max(counts)):
        here, to = (At(tuple(way[min(j, len(way) - 1)] for way in ways)) for j in (i, i + 1))
        x0, eps = prior.clean_and_noise(noisy, here)
        noisy = to.noised(x0, eps)
    return noise_in(x, noisy, at)


def _way(schedule: Schedule, level: Level, steps: int) -> list[Level]:
    """Levels from the cleanest to this one; whole steps of the training where the model has such."""
    times = [level.t * i / steps for i in range(steps)]
    return [*(schedule.at(t if schedule.prediction == "flow" else round(t)) for t in times), level]


def fixed_point(prior: GuidedModel, x: Images, at: At, start: Images, rounds: int = 10) -> Images:
    """kappa <- eps(alpha x + sigma kappa), again and again (section 6.2, the third choice; 10 rounds)."""
    kappa = start
    for _ in range(rounds):
        kappa = prior(at.noised(x, kappa), at)
    return kappa


def regressed(prior: GuidedModel, x: Images, at: At, start: Images, rounds: int = 10, rate: float = 0.1) -> Images:
    """Gradient descent on |eps(alpha x + sigma kappa) - kappa|^2 / 2, through the network (the fourth; 10 rounds).

    The rate is not published.
    """
    kappa = start
    for _ in range(rounds):
        with torch.enable_grad():
            asked = kappa.detach().requires_grad_()
            loss = (prior(at.noised(x, asked), at) - asked).square().sum() / 2
        kappa = kappa - rate * torch.autograd.grad(loss, asked)[0]
    return kappa
