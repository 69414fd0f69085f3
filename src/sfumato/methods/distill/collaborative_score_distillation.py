"""Collaborative score distillation (Kim et al. 2023, arXiv 2307.04787): a set of images that goes down together.

What the model says of each image is shared with the others by Stein variational gradient descent, as far as their
noisy latents are alike, eq. 3, so that images of one prompt come to agree; the kernel's own gradient keeps them apart.
A set of one is score distillation. Unlike all that is abbreviated CSD elsewhere, it leaves the guidance as it is.

Defaults: the text's of text-to-3D (appendix D.2), guidance 20, DreamFusion's levels, one for the set, and its w =
sigma^2; noise is each image's own and subtracted, with ``source`` as baseline what the model sees in the images of the
run's beginning under the same noise (section 3.2 and appendix B.3). A step is divided by the sum of the kernel, not by
N as printed (``number``): with N, sets of images that differ would move 2 / N as far as one image. The bandwidth is
that of the text, median^2 / log N, of different images; the code's is ``code``. ``EDITING`` is the code's for edits.

Needs: two rows an image and step, four with a source; ``pixels`` also the decoder and its gradient.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfumato.core.schedule import Level, add_noise
from sfumato.core.settings import Weight
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.prior import GuidedModel, Images
from sfumato.distill.stein import PUBLISHED, Bandwidth, Division, Features, Stein
from sfumato.errors import SfumatoError
from sfumato.learning.annealing import DREAMFUSION, Times, between


def collaborative_score_distillation(
    prior: GuidedModel,
    x: Images,
    at: Level,
    noise: Images,
    baseline: Images | None = None,
    stein: Stein = PUBLISHED,
    features: Features | None = None,
    weighting: Weighting = "variance",
) -> Images:
    """w(t) times the Stein direction of eps(alpha x + sigma noise) - baseline, which is the noise if not given (eq. 3).

    Noisy latents are compared, or ``features`` of x.
    """
    noisy = add_noise(x, noise, at)
    score = prior(noisy, at) - (noise if baseline is None else baseline)
    return weight(weighting, at, x) * stein(score, noisy if features is None else x, features)


@dataclass(frozen=True)
class CollaborativeScoreDistillation(Weighted):
    """All images of a step are one set."""

    guidance: float = 20.0
    times: Times = DREAMFUSION
    """Levels, as parts of the training's; one for all images."""
    bandwidth: Bandwidth = "text"
    """Of the kernel, for images to share gradients; off: each goes alone."""
    repulsion: Weight = 1.0
    """How much images are kept apart."""
    division: Division = "kernel"
    """What a step is divided by: the sum of the kernel, or the number of images."""
    distance: Literal["latents", "pixels"] = "latents"
    """What is compared: noisy latents, or the images without noise."""
    shared_noise: bool = False
    """One noise for all images."""
    baseline: Literal["random", "source"] = "random"
    """What is subtracted: the noise, or the model's prediction for the images that the run began with."""
    described: str = ""
    """What those show."""

    def gradient(self, now: Now) -> Images:
        n, x = len(now.x), now.x
        at = self.level(now, shared=True)
        noise = now.noise()[:1].expand_as(x) if self.shared_noise else now.noise()
        stein = Stein(self.bandwidth, self.repulsion, self.division)
        baseline = None
        if self.baseline == "source":
            source = now.memory.setdefault("source", x.clone())
            if source.shape != x.shape:
                raise SfumatoError(
                    f"the source was {len(source)} images, and {n} are rendered; render all in each step"
                )
            baseline = self.prior(now, (self.described,) * n)(add_noise(source, noise, at), at)
        features = now.model.decode if self.distance == "pixels" else None
        return collaborative_score_distillation(
            self.prior(now), x, at, noise, baseline, stein, features, self.weighting
        )


EDITING = CollaborativeScoreDistillation(7.5, times=between(0.02, 0.5), bandwidth="code", baseline="source")
