"""Noise-free score distillation (Katzir et al. 2023, arXiv 2310.17590): score distillation without the noise's part.

What a network sees in a noisy image that nobody photographed is the way to the prompt, the way to real images, and the
noise, which score distillation subtracts badly: it takes the noise that was added, not the noise that was seen, and
drowns the rest unless guidance is high. Here the way to real images is told apart: where there is little noise, it is
all that is seen without a prompt; above, it is what lies between that and a prompt of all that is ugly. An ordinary
guidance is enough.

Defaults: guidance 7.5, the negative prompt, and 200 of 1000 steps as the border; levels and w = sigma^2 are
DreamFusion's. The noise serves to make the noisy image alone.

Needs: three rows an image and step.

Families: all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.method import Requires
from sfumato.core.schedule import Level, add_noise, beside
from sfumato.core.settings import Part
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.prior import Images, noises

UGLY = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"


def noise_free_score_distillation(
    model: Backbone,
    conds: Mapping[str, Cond],
    x: Images,
    at: Level,
    noise: Images,
    guidance: float = 7.5,
    border: float = 0.2,
    weighting: Weighting = "variance",
) -> Images:
    """w(t) (delta_D + s delta_C), delta_C = c - u; delta_D = u below the border, u - negative from there on.

    ``conds``: cond, uncond and negative, a row an image each. ``border``: part of the training's levels.
    """
    predicted = noises(model, add_noise(x, noise, at), at, conds)
    above = beside(at.t >= border * model.schedule.train_steps, x)
    domain = predicted["uncond"] - above * predicted["negative"]
    return weight(weighting, at, x) * (domain + guidance * (predicted["cond"] - predicted["uncond"]))


@dataclass(frozen=True)
class NoiseFreeScoreDistillation(Weighted):
    """NFSD with the paper's settings."""

    requires: ClassVar = Requires(words=True)

    guidance: float = 7.5
    """How much the prompt's direction weighs beside that to real images."""
    negative: str = UGLY
    """What images are not to be."""
    border: Part = 0.2
    """Level, as a part of the training's, from which on the negative prompt is asked."""

    def gradient(self, now: Now) -> Images:
        at = self.level(now)
        conds = self.prior(now).embedded(cond=now.prompts, uncond="", negative=self.negative)
        return noise_free_score_distillation(
            now.model, conds, now.x, at, now.noise(), self.guidance, self.border, self.weighting
        )


BRIDGE = NoiseFreeScoreDistillation(guidance=40.0)
"""As SDS-Bridge's code of flat images compares with it."""
