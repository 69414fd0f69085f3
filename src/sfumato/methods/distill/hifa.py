"""HiFA (Zhu et al. 2023, arXiv 2305.18766): score distillation in latents and in pixels, at levels that fall.

The residual of score distillation is a distance to the clean image that the model sees; that image is decoded, too, and
the pixels move towards it, past the encoder's Jacobian. Levels are not drawn but fall with the square root of the way
(eq. 10), fast at first and slowly where detail is made, one for all images.

Defaults: threestudio's hifa.yaml: guidance 100, levels 0.98 to 0.3, w = sigma^2, of pixels w alpha / sigma times 0.01;
pixels in [0, 1]. threestudio writes guidance as c + s (c - u) where no Perp-Neg is on: ``THREESTUDIO``, 101. The
authors' own code has u + 100 (c - u), w = 0.05 sigma / alpha, pixels times 0.1 and, unless one is asked for, four steps
to the clean image, where here it is always one. Regularisers of depths and samples along rays are of scenes.

Needs: two rows an image and step and a decoder's pass; of generators that render latents another two, one of them with
gradients.

Families: all. For models of pixels both terms say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sfumato.core.schedule import Level, add_noise
from sfumato.core.settings import Weight
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Gradient, Now
from sfumato.distill.prior import GuidedModel, Images
from sfumato.learning.annealing import Times, square_root

FALLING = Times(square_root(0.98, 0.3))


def hifa(
    prior: GuidedModel,
    x: Images,
    pixels: Images | None,
    at: Level,
    noise: Images,
    image: float = 0.01,
    weighting: Weighting = "variance",
) -> Gradient:
    """w(t) (eps - noise) by latents and image w(t) alpha / sigma (pixels - decoded x0) by pixels.

    ``pixels`` in [0, 1], those of ``x``; they are decoded from it if not given. ``image`` 0 leaves them out.
    """
    x0, eps = prior.clean_and_noise(add_noise(x, noise, at), at)
    w = weight(weighting, at, x)
    if not image:
        return Gradient(w * (eps - noise))
    if pixels is None:
        pixels, seen = prior.model.decode(torch.cat([x, x0])).chunk(2)
    else:
        seen = prior.model.decode(x0)
    alpha, sigma = at.like(x)
    return Gradient(w * (eps - noise), image * w * alpha / sigma * (pixels - seen))


@dataclass(frozen=True)
class HiFA(Weighted):
    """HiFA's two terms with threestudio's settings."""

    guidance: float = 100.0
    image: Weight = 0.01
    """Weight of the term of pixels."""
    times: Times = FALLING
    """Levels, as parts of the training's."""

    def gradient(self, now: Now) -> Gradient:
        at = self.level(now)
        return hifa(self.prior(now), now.x, now.pixels, at, now.noise(), self.image, self.weighting)


THREESTUDIO = HiFA(guidance=101.0)
