"""Delta score (DDS, Hertz et al. 2023, arXiv 2304.07090): descend what an edit's words say, less its source's.

The gradient of score distillation has a part of its own that blurs, whatever the image. Asked about the source, under
its own words and with the same noise at the same level, a model answers with that part alone; the difference of the two
answers is what the new words want. It is zero where words and images are the same.

Defaults: the authors' notebook: guidance 7.5, levels 0.05 to 0.948, an image each, w = 1. They move by SGD at 0.1 of
2000 times a loss that is divided by 64 x 64 cells: a plain rate of 200 / 4096 of this gradient, for 200 steps. An edit
of a picture as one more method among others is ``sfumato.methods.edit.delta_denoising``; this is for whatever renders.

Needs: four rows an image and step; a run keeps the images of its first step, which are the source: views must not
change.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sfumato.core.conditions import Cond
from sfumato.core.method import Requires
from sfumato.core.rows import single
from sfumato.core.schedule import Level, add_noise
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.prior import GuidedModel, Images, predictions
from sfumato.errors import SfumatoError
from sfumato.learning.annealing import Times, between

LEVELS = between(0.05, 0.948)


def delta_score(
    edit: GuidedModel,
    source: GuidedModel,
    x: Images,
    images: Images,
    at: Level,
    noise: Images,
    weighting: Weighting = "one",
) -> Images:
    """w(t) (eps(noisy x, edit) - eps(noisy source, source)): both have this noise, and are asked in one batch.

    ``source``: the same model's prior of the source ``images``, guided by the same conditions; scales may differ.
    """
    if edit.conds.keys() != source.conds.keys():
        raise SfumatoError(
            f"edit and source are guided by one set of conditions, got {[*edit.conds]}, {[*source.conds]}"
        )
    both = at.rows(torch.arange(len(at.t)).repeat(2)) if at.t.ndim else at
    noisy = add_noise(torch.cat([x, images]), noise.repeat(2, 1, 1, 1), both)
    conds = {k: Cond.cat([edit.conds[k], source.conds[k]]) for k in edit.conds}
    predicted = {k: v.chunk(2) for k, v in predictions(edit.model, noisy, both, conds).items()}
    guided = [
        prior.guide.combine({k: v[i] for k, v in predicted.items()}, single(len(x)))
        for i, prior in enumerate((edit, source))
    ]
    wanted, own = edit.model.schedule.x0_and_eps(torch.cat(guided), noisy, both)[1].chunk(2)
    return weight(weighting, at, x) * (wanted - own)


@dataclass(frozen=True)
class DeltaScore(Weighted):
    """DDS with the notebook's settings."""

    requires: ClassVar = Requires(words=True)

    source: str = ""
    """Says what the images of the first step show."""
    guidance: float = 7.5
    """Scale of classifier-free guidance, of both."""
    times: Times = LEVELS
    weighting: Weighting = "one"

    def gradient(self, now: Now) -> Images:
        images = now.memory.setdefault("source", now.x.clone())
        if images.shape != now.x.shape:
            raise SfumatoError(
                f"an edit has its source's shape {tuple(images.shape)}, got {tuple(now.x.shape)}; render the same views"
            )
        at = self.level(now)
        edit, source = self.prior(now), self.prior(now, (self.source,) * len(now.x))
        return delta_score(edit, source, now.x, images, at, now.noise(), self.weighting)
