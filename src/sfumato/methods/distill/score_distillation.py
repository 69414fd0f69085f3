"""Score distillation sampling (DreamFusion, Poole et al. 2022, arXiv 2209.14988): descend what noise a model sees.

A rendered image is noised, a frozen model says what noise it sees, and the image moves against the difference of the
two, eq. 3; the network's own Jacobian is left out. It seeks a mode, so that it wants a high guidance, and the images
come out smooth and saturated.

Defaults: guidance 100 (section 3.2 and threestudio's dreamfusion-sd), levels 0.02 to 0.98, an image each, w = sigma^2,
each image's own gradient. threestudio writes guidance as c + s (c - u) where no Perp-Neg is on, so that its 100 is a
101 here, where it is u + s (c - u): ``THREESTUDIO``.

Needs: two rows an image and step.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.core.schedule import Level, add_noise
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.prior import GuidedModel, Images


def score_distillation(
    prior: GuidedModel, x: Images, at: Level, noise: Images, weighting: Weighting = "variance"
) -> Images:
    """w(t) (eps(alpha x + sigma noise) - noise), eq. 3."""
    return weight(weighting, at, x) * (prior(add_noise(x, noise, at), at) - noise)


@dataclass(frozen=True)
class ScoreDistillation(Weighted):
    """SDS with DreamFusion's settings."""

    guidance: float = 100.0

    def gradient(self, now: Now) -> Images:
        return score_distillation(self.prior(now), now.x, self.level(now), now.noise(), self.weighting)


THREESTUDIO = ScoreDistillation(guidance=101.0)
