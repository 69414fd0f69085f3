"""Score-based iterative reconstruction (MicroDreamer, Chen et al. 2024, arXiv 2404.19525): paint views and fit them.

Score distillation asks a model once for each step of a scene. Here the model paints: renderings of some views are
noised and denoised in a few steps of its sampler, and for many steps the scene is fitted to these pictures in pixels,
as to photographs, past the encoder; then views are drawn anew. Noise levels fall, so that pictures agree ever more with
the scene. At first, pictures are painted from noise alone, as the scene is nothing yet.

Defaults: the text's. Guidance 7.5, levels 0.8 to 0.5 of the training's, 15 steps a set of views, DDIM without noise of
its own, absolute differences. Renderings are noised up to t^2 (its t1 = t2^2 / T), and inverted by DDIM from there to t
(``inversion`` off: noised up to t). Not in the text are its steps of sampling and of inversion: 10 t and 5 t here, at
least one. Their part of a run that starts from noise is that of 50 in 800. Views have to be held for as many steps as
pictures are, by ``RandomCameras(hold=15)``; images that no camera sees do not change in the meantime. ``anchor`` is not
in the text: its model paints views together, others paint each alone and agree as far as the prompt goes.

Needs: of every 15 steps one that samples: two rows an image and step of the sampler, 10 in the mean, and a decoder's
pass. The others ask nothing of the model.

Families: all. Latents that are rendered are compared as latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.schedule import Level, add_noise
from sfumato.core.settings import Count, Part, Weight
from sfumato.distill.guided import Guided
from sfumato.distill.loop import Gradient, Now
from sfumato.distill.prior import GuidedModel, Images, noises
from sfumato.errors import SfumatoError
from sfumato.learning.annealing import Times, linear
from sfumato.learning.seeds import Draws

Distance = Literal["absolute", "squared"]
MICRODREAMER = Times(linear(0.8, 0.5))


def climbed(prior: GuidedModel, x: Images, start: Level, at: Level, steps: int) -> Images:
    """Noisy latents at ``start`` brought up to the level ``at`` by DDIM backwards, in Euler steps even in t."""
    return _walked(prior, x, start, at, steps)


def sampled(prior: GuidedModel, x: Images, at: Level, steps: int) -> Images:
    """What DDIM paints from noisy latents at a level, in steps even in t; the last is the clean image that it sees."""
    end = prior.model.schedule.nearest(at.t / steps)
    return prior.clean_and_noise(_walked(prior, x, at, end, steps - 1), end)[0]


def _walked(prior: GuidedModel, x: Images, start: Level, end: Level, steps: int) -> Images:
    schedule = prior.model.schedule
    levels = [schedule.nearest(start.t + (end.t - start.t) * i / max(1, steps)) for i in range(steps + 1)]
    for here, there in pairwise(levels):
        x = add_noise(*prior.clean_and_noise(x, here), there)
    return x


def likeness(model: Backbone, x: Images, prompts: tuple[str, ...], negative: str, draws: Draws) -> Float[Tensor, " b"]:
    """How much better noise is found in each image with its prompt than without: a likelihood ratio (Li et al. 2023).

    Mean squares over values; the same noises, three levels of four each, in all images. Needs 12 calls of two rows.
    """
    conds = {"cond": model.embed(list(prompts)), "uncond": model.embed_negative([negative] * len(x))}
    better = x.new_zeros(len(x))
    for part in (0.3, 0.5, 0.7):
        at = model.schedule.nearest(part * model.schedule.train_steps)
        for _ in range(4):
            noise = torch.randn(x.shape[1:], generator=draws[0]).to(x)
            found = noises(model, add_noise(x, noise.expand_as(x), at), at, conds)
            without, within = ((found[k] - noise).square().flatten(1).mean(1) for k in ("uncond", "cond"))
            better = better + (without - within) / 12
    return better


@dataclass(frozen=True)
class ScoreIterativeReconstruction(Guided):
    """SIR with the text's settings."""

    times: Times = MICRODREAMER
    """Levels that renderings are noised to."""
    begin: Part = 0.0625
    """Part of the run whose pictures are painted from noise alone."""
    refresh: Count = 15
    """Steps that fit one set of pictures."""
    per_unit: Count = 10
    """Steps of sampling from t = 1; from other levels as many as their part, at least one."""
    inversion: bool = True
    """Is noise drawn up to t^2 alone, and inferred from there on?"""
    distance: Distance = "absolute"
    """Of pixels to the pictures'."""
    one_noise: bool = False
    """Do all views start from the same noise, so that what they leave open is alike?"""
    anchor: Part = 0.0
    """Level from which all first pictures are painted anew, out of the one that shows the prompt best, where they
    lie ``apart``: a prompt may leave colours open, and each picture has its own. Later levels are not above it then,
    from which pictures would part again. 0: never."""
    apart: Weight = 0.12
    """Mean over pixels of the standard deviation over pictures, of values in [0, 1], from which they do."""

    def reads(self, step: int) -> bool:
        return step % self.refresh == 0

    def gradient(self, now: Now) -> Gradient | Images:
        pixel = now.pixels is not None
        if self.reads(now.step):
            painted = self._painted(now)
            now.memory["target"] = now.model.decode(painted).clamp(0, 1) if pixel else painted
        target, shown = now.memory["target"], now.x if now.pixels is None else now.pixels
        if target.shape != shown.shape:
            raise SfumatoError(
                f"pictures are {tuple(target.shape)}, what is rendered {tuple(shown.shape)}; hold the same views"
            )
        away = shown - target
        away = away.sign() if self.distance == "absolute" else away
        return Gradient(None, away) if pixel else away

    def _painted(self, now: Now) -> Images:
        schedule, prior = now.model.schedule, self.prior(now)
        noise = now.noise()
        noise = noise[:1].expand_as(noise) if self.one_noise else noise
        if now.progress < self.begin:
            noisiest = schedule.nearest(schedule.train_steps - (schedule.prediction != "flow"))
            first = sampled(prior, add_noise(torch.zeros_like(now.x), noise, noisiest), noisiest, self._steps(1.0))
            return self._anchored(now, prior, first) if self.anchor and len(first) > 1 else first
        at = self.level(now, shared=True)
        if "anchored" in now.memory:
            at = schedule.nearest(at.t.clamp_max(self.anchor * schedule.train_steps))
        part = float(at.t) / schedule.train_steps
        start = schedule.nearest(at.t * part) if self.inversion else at
        noisy = add_noise(now.x, noise, start)
        if self.inversion:
            noisy = climbed(prior, noisy, start, at, max(1, round(self.per_unit * part / 2)))
        return sampled(prior, noisy, at, self._steps(part))

    def _anchored(self, now: Now, prior: GuidedModel, first: Images) -> Images:
        """Pictures as they are where they agree; else all out of the one that shows the prompt best."""
        if float(now.model.decode(first).clamp(0, 1).std(0).mean()) <= self.apart:
            return first
        now.memory["anchored"] = torch.ones(())
        best = first[int(likeness(now.model, first, now.asked, self.negative, now.draws).argmax())]
        at = now.model.schedule.nearest(self.anchor * now.model.schedule.train_steps)
        return sampled(prior, add_noise(best.expand_as(first), now.noise(), at), at, self._steps(self.anchor))

    def _steps(self, part: float) -> int:
        return max(1, round(self.per_unit * part))
