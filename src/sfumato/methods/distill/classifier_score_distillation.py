"""Classifier score distillation (Yu et al. 2023, arXiv 2310.19415): descend guidance alone.

Score distillation at a high guidance is almost all guidance, c - u: the gradient of an implicit classifier that tells
the prompt from any image. So the rest, the model's own denoising, is left out. A negative prompt is a second
classifier, with a weight of its own that may change over the run: it makes images sharper, but less like the prompt.

Defaults: the text's plain form, without a negative prompt, w = sigma^2 and DreamFusion's levels. The authors' code has
three weights (of prompt, negative and empty prompt), which are 1, -against and against - 1 here. ``IF``: its settings
for scenes from DeepFloyd IF, where the negative prompt's weight grows in the first half, levels end at 0.5 in the
second, w is 1, and each gradient is divided by its norm; ``REFINE``: for textures from Stable Diffusion. Its Perp-Neg
is of views and has no place here.

Needs: two rows an image and step, three with a negative prompt.

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
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.prior import Images, noises
from sfumato.learning.annealing import Ramp, Times, between, constant, linear, piecewise

NEVER = constant(0.0)


def classifier_score_distillation(
    model: Backbone,
    conds: Mapping[str, Cond],
    x: Images,
    at: Level,
    noise: Images,
    guidance: float = 1.0,
    against: float = 0.0,
    weighting: Weighting = "variance",
) -> Images:
    """w(t) (s (c - u) - against (negative - u)).

    ``conds``: cond, uncond and, unless ``against`` is 0, negative, a row an image each.
    """
    predicted = noises(model, add_noise(x, noise, at), at, conds)
    direction = guidance * (predicted["cond"] - predicted["uncond"])
    if against:
        direction = direction - against * (predicted["negative"] - predicted["uncond"])
    return weight(weighting, at, x) * direction


@dataclass(frozen=True)
class ClassifierScoreDistillation(Weighted):
    """Guidance alone, with the text's settings."""

    requires: ClassVar = Requires(words=True)

    guidance: float = 1.0
    """Weight of the prompt's classifier; Adam does not see it while there is no other."""
    negative: str = ""
    """What images are not to be; asked while its weight is not 0."""
    against: Ramp = NEVER
    """Weight of the negative prompt's classifier."""
    normalised: bool = False
    """Divide each image's gradient by its norm."""

    def gradient(self, now: Now) -> Images:
        at = self.level(now)
        against = self.against(now.progress)
        texts = {"negative": self.negative} if against else {}
        conds = self.prior(now).embedded(cond=now.prompts, uncond="", **texts)
        found = classifier_score_distillation(
            now.model, conds, now.x, at, now.noise(), self.guidance, against, self.weighting
        )
        if self.normalised:
            found = found / found.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1, 1)
        return found


BAD = "oversaturated color, ugly, tiling, low quality, noisy"
IF = ClassifierScoreDistillation(
    negative=BAD,
    against=piecewise((0.0, 0.0), (0.5, 1.0)),
    times=Times(constant(0.02), piecewise((0.0, 0.98), (0.5, 0.5), shape="steps")),
    weighting="one",
    normalised=True,
)
"""csd-if.yaml: 10000 steps of Adam at 0.001."""
REFINE = ClassifierScoreDistillation(negative=BAD, against=linear(1.0, 0.5), times=between(0.02, 0.5))
"""csd-sd-refine.yaml: 10000 steps of Adam at 0.001."""
