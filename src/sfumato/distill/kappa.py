"""Which noise an image should have had: solutions of eps(alpha x + sigma kappa) = kappa, eq. 4.4 of Lukoianov 2024.

kappa is the noise with which x is what the model sees in its own noisy image, so that x is a point of a trajectory of
DDIM. A model's prior and clean latents go in, noise comes out; nothing is drawn and nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sfumato.core.gradients import gradients
from sfumato.core.schedule import Level, add_noise, noise_in
from sfumato.distill.prior import GuidedModel, Images
from sfumato.errors import SfumatoError


def residual(prior: GuidedModel, x: Images, kappa: Images, at: Level) -> Images:
    """The error of a noise in eq. 4.4 as an image: sigma / alpha (eps(alpha x + sigma kappa) - kappa).

    That is x less the image which the model sees in it, and so it is told where alpha is zero as well.
    """
    return x - prior.clean_and_noise(add_noise(x, kappa, at), at)[0]


def inverted(prior: GuidedModel, x: Images, at: Level, steps: int | Sequence[int] | Int[Tensor, "*b"]) -> Images:
    """DDIM run backwards from clean latents, each up to its own level in as many steps (eq. 3.1, section 5.1).

    Steps are forward Euler ones, even in t: the network is told the level at which the latents are. Latents count as
    clean at the cleanest level that the network knows, as samplers leave them there. Images with fewer steps than
    others wait at their level.
    """
    counts = torch.as_tensor(steps)
    if counts.shape not in ((), (len(x),)) or int(counts.min()) < 1:
        raise SfumatoError(f"{len(x)} images are inverted in one step or more each, got {counts.tolist()}")

    def after(step: int) -> Level:
        return prior.model.schedule.nearest(at.t * counts.clamp_max(step) / counts)

    noisy = x
    for i in range(int(counts.max())):
        x0, eps = prior.clean_and_noise(noisy, after(i))
        noisy = add_noise(x0, eps, after(i + 1))
    return noise_in(noisy, x, at)


def fixed_point(prior: GuidedModel, x: Images, at: Level, start: Images, rounds: int = 10) -> Images:
    """kappa <- eps(alpha x + sigma kappa), again and again (section 6.2, the third choice; 10 rounds)."""
    kappa = start
    for _ in range(rounds):
        kappa = prior(add_noise(x, kappa, at), at)
    return kappa


def regressed(prior: GuidedModel, x: Images, at: Level, start: Images, rounds: int = 10, rate: float = 0.1) -> Images:
    """Gradient descent on |eps(alpha x + sigma kappa) - kappa|^2 / 2, through the network (the fourth; 10 rounds).

    The rate is not published.
    """
    kappa = start
    for _ in range(rounds):
        with torch.enable_grad():
            asked = kappa.detach().requires_grad_()
            loss = (prior(add_noise(x, asked, at), at) - asked).square().sum() / 2
        kappa = kappa - rate * gradients(prior.model, loss, (asked,))[0]
    return kappa
