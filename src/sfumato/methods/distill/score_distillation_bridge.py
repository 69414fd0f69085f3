"""Score distillation as a bridge (McAllister et al. 2024, arXiv 2406.09417): from what images are to the prompt.

A gradient of score distillation points from the source, images as the model believes them to be, to the target, images
of the prompt; the source it takes, all images, is not where a run is. So a run has two stages: plain score
distillation, and then, when its images are smooth and saturated as such images are, a bridge from a prompt that says
just that to the prompt itself: s (eps(target) - eps(source)).

Defaults: the authors' scenes: 25000 steps, of which the last 5000 are the bridge, s = 100, levels 0.02 to 0.98 and from
a fifth of the run on up to 0.5, w = sigma^2 in the first stage and 1 in the second. Their code for scenes has no s in
the second stage, which to Adam is the same. ``FLAT``: their flat images, 1000 steps of Adam at 0.01, half of them the
bridge, s = 40, w = sigma^2 throughout, and words of praise for the target.

Needs: two rows an image and step.

Families: all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.method import Requires
from sfumato.core.schedule import Level, add_noise
from sfumato.core.settings import Part
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.prior import Images, noises
from sfumato.learning.annealing import DREAMFUSION, Times, constant, piecewise
from sfumato.methods.distill.score_distillation import score_distillation

DISTILLED = ", oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
LEVELS = Times(constant(0.02), piecewise((0.0, 0.98), (0.2, 0.5), shape="steps"))


def bridge(
    model: Backbone,
    conds: Mapping[str, Cond],
    x: Images,
    at: Level,
    noise: Images,
    guidance: float = 100.0,
    weighting: Weighting = "one",
) -> Images:
    """w(t) s (target - source). ``conds``: source and target, a row an image each."""
    predicted = noises(model, add_noise(x, noise, at), at, conds)
    return guidance * weight(weighting, at, x) * (predicted["target"] - predicted["source"])


@dataclass(frozen=True)
class ScoreDistillationBridge(Weighted):
    """SDS-Bridge with the authors' settings for scenes."""

    requires: ClassVar = Requires(words=True)

    guidance: float = 100.0
    """Scale of classifier-free guidance in the first stage, of the difference in the second."""
    switch: Part = 0.8
    """Part of the run after which the bridge begins: 0 for a bridge alone, 1 for none."""
    source: str = DISTILLED
    """Put behind the prompt to say what images are like when it begins."""
    target: str = ""
    """Put behind the prompt to say what they should be like."""
    times: Times = LEVELS
    weighting: Weighting = "variance"
    """w(t) of the first stage."""
    bridging: Weighting = "one"
    """w(t) of the bridge."""

    def gradient(self, now: Now) -> Images:
        at = self.level(now)
        prior = self.prior(now)
        if now.progress < self.switch:
            return score_distillation(prior, now.x, at, now.noise(), self.weighting)
        conds = prior.embedded(
            source=[prompt + self.source for prompt in now.prompts],
            target=[prompt + self.target for prompt in now.prompts],
        )
        return bridge(now.model, conds, now.x, at, now.noise(), self.guidance, self.bridging)


FLAT = ScoreDistillationBridge(
    guidance=40.0,
    switch=0.5,
    target=", detailed high resolution, high quality, sharp",
    times=DREAMFUSION,
    bridging="variance",
)
