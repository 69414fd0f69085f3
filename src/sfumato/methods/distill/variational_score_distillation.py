"""Variational score distillation (ProlificDreamer, Wang et al. 2023, arXiv 2305.16213): images as samples, not modes.

What noise the model sees is compared not with the noise that was drawn but with what a second network sees, which
learns meanwhile what the rendered images look like: where both agree, the images are distributed as the model has it,
and nothing moves, eq. 9. It needs no high guidance. The second network is a low-rank copy of the first, told where
an image was seen from, and trained on the images with the loss of diffusion, eq. 8.

Defaults: guidance 7.5, w = sigma^2, levels 0.02 to 0.98 and from a fifth of the run (5000 of 25000 steps) up to 0.5, an
image each; the copy has rank 4 and its own AdamW at 1e-4, learns from one level of all an image and step, and is not
told the camera with probability 0.1 (section 4, appendix C and threestudio's prolificdreamer).

threestudio draws whether cameras are told once for a batch; here it is once an image. The layer that tells them starts
at zero here, so that at first the copy is the model; there it starts at random.

Needs: three rows an image and step, and a row forwards and backwards for the copy.

Families: all whose network is a UNet or a transformer of diffusers; not offloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sfumato.core.backbone import Backbone
from sfumato.core.schedule import Level, add_noise
from sfumato.core.settings import Count, Part, Weight
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.particles import LowRank, Told, low_rank, numbered
from sfumato.distill.prior import Images
from sfumato.learning.annealing import Times, constant, piecewise

PROLIFICDREAMER = Times(constant(0.02), piecewise((0.0, 0.98), (0.2, 0.5), shape="steps"))


def variational(
    prior: Callable[[Images, Level], Images],
    particles: Callable[[Images, Level], Images],
    x: Images,
    at: Level,
    noise: Images,
    weighting: Weighting = "variance",
) -> Images:
    """w(t) (eps(z) - eps_particles(z)) at z = alpha x + sigma noise, eq. 9: both say what noise they see in it."""
    noisy = add_noise(x, noise, at)
    return weight(weighting, at, x) * (prior(noisy, at) - particles(noisy, at))


@dataclass(frozen=True)
class VariationalScoreDistillation(Weighted):
    """VSD with ProlificDreamer's settings."""

    guidance: float = 7.5
    """Scale of classifier-free guidance, of the model."""
    times: Times = PROLIFICDREAMER
    rank: Count = 4
    """Of the low-rank copy."""
    rate: Weight = 1e-4
    """At which the copy learns."""
    conditioned: bool = True
    """Is the copy told where each image was seen from? Flat images, which no camera saw, go by their index."""
    dropout: Part = 0.1
    """Probability that it is not told, while it learns."""
    particle_guidance: float = 1.0
    """Scale of guidance of the copy, by what it is told."""

    @contextmanager
    def started(self, model: Backbone, seed: int) -> Iterator[LowRank]:
        with low_rank(model, self.rank, self.rate, seed) as copy:
            yield copy

    def gradient(self, now: Now) -> Images:
        copy: LowRank = now.learner
        at = self.level(now)
        prior = self.prior(now)
        cond, camera = self.prior(now, now.asked, guidance=1.0).conds["cond"], self.camera(now)

        def particles(noisy: Images, at: Level) -> Images:
            return copy.noise(noisy, at, cond, camera, self.particle_guidance)

        found = variational(prior, particles, now.x, at, now.noise(), self.weighting)
        copy.learn(now.x, cond, camera, now.draws, self.dropout)
        return found

    def camera(self, now: Now) -> Told | None:
        """What the copy is told of each image."""
        if not self.conditioned:
            return None
        return (numbered(len(now.x)) if now.cameras is None else now.cameras.flatten(1)).to(now.x)


# Two prompts, four images, latents, Adam at 0.05; renders have a mean saturation of 0.44. As published, step 100 of
# 200 is grainy and dark, at 0.68. A rate of 1e-3 without conditions takes the grain away, at 0.63, but ends at 0.75.
# This has 0.48 at step 60 of 100 and ends at 0.60. The oracle reads 4 of 4 things right at step 100 of each.
