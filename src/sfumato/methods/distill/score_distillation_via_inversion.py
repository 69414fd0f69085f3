"""Score distillation via inversion (SDI, Lukoianov et al. 2024, arXiv 2405.15891): DDIM, said of clean images.

Score distillation is a step of DDIM for x0(t), the image that a model sees in a noisy one, except for its noise: DDIM's
is kappa, which solves eps(alpha x + sigma kappa) = kappa (eq. 4.4), and random noise does not. Here the noise is
inferred from the image, by running DDIM backwards, at levels that fall through the run; images get detail at the
guidance of samplers. Other choices of kappa (section 6.2) are in ``sfumato.distill.kappa``; with "cached", the last
prediction, a run of flat images is DDIM: after its step k, at rate 1 of plain gradient descent, they are x0(t_k).

Defaults: the text's. Guidance 7.5, of the inversion -7.5, one t for all images from 1 to 0.2, kappa inverted up to
t + tau in int(10 t) steps, tau from U(0, 1/30), and 0.3 sigma of new noise added to it. The text's sigma (below its eq.
3.1) is sigma / alpha here, so that x moves to x0(t). threestudio's code starts at 0.98, ends at 0.25 and has tau up to
0.1 (``THREESTUDIO``). There latents at t + tau are told to be at t, noise is added in each step of the inversion, the
network is told t = -99 in its first, and a batch gets one image's level; none of that is done here. ``NOTEBOOK``: the
authors' flat images, 40 predictions in 1000 steps of Adam at a rate of 0.1, each of them a target for 25 steps.

Needs: two rows an image and step, and two for each step of the inversion: 13 in the mean. Cached: two alone.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from sfumato.core.schedule import Level, Schedule, add_noise, noise_in
from sfumato.core.settings import Count, Part, Weight
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.kappa import fixed_point, inverted, regressed, residual
from sfumato.distill.loop import Now
from sfumato.distill.prior import GuidedModel, Images
from sfumato.errors import SfumatoError
from sfumato.learning.annealing import Times, linear

Kappa = Literal["inversion", "resampled", "fixed", "fixed-point", "sgd", "cached"]
ANNEALED = Times(linear(1.0, 0.2))


def score_distillation_via_inversion(
    prior: GuidedModel, x: Images, at: Level, kappa: Images, weighting: Weighting = "noise-to-signal"
) -> Images:
    """w(t) (eps(alpha x + sigma kappa) - kappa), eq. 4.6."""
    return _moved(weighting, at, residual(prior, x, kappa, at))


def _moved(weighting: Weighting, at: Level, difference: Images) -> Images:
    """The weighted gradient of a difference of clean images, sigma / alpha times that of noises."""
    if weighting == "noise-to-signal":
        return difference
    alpha, sigma = at.like(difference)
    return weight(weighting, at, difference) * alpha / sigma * difference


@dataclass(frozen=True)
class ScoreDistillationViaInversion(Weighted):
    """SDI; of ``resampled`` noise it is score distillation with falling levels."""

    inversion_guidance: float = -7.5
    """Scale of guidance in the inversion."""
    kappa: Kappa = "inversion"
    """Inverted, drawn in each step or once, by 10 fixed-point rounds or gradient steps, or the last prediction."""
    times: Times | None = ANNEALED  # pyright: ignore[reportIncompatibleVariableOverride]: may be without
    """Levels, as parts of the training's; none for those of the model's own sampler, with its last step."""
    tau: Part = 1 / 30
    """The inversion goes up to so much more than t at most."""
    per_unit: Count = 10
    """Steps of an inversion up to t = 1; to other levels as many as their part, at least one."""
    entropy: Weight = 0.3
    """How much new noise, in sigmas, is added to one that was inferred."""
    weighting: Weighting = "noise-to-signal"
    refresh: Count = 1
    """For so many steps images move to the same prediction."""

    def gradient(self, now: Now) -> Images:
        at, ending = self._at(now)
        if self.refresh > 1 and now.step % self.refresh:
            return _moved(self.weighting, at, now.x - now.memory["target"])
        kappa = self._kappa(now, at)
        x0, eps = self.prior(now).clean_and_noise(add_noise(now.x, kappa, at), at)
        target = x0 if ending is None else add_noise(x0, eps, ending)
        if self.kappa == "cached":
            now.memory["noise"] = eps
        if self.refresh > 1:
            now.memory["target"] = target
        return _moved(self.weighting, at, now.x - target)

    def _at(self, now: Now) -> tuple[Level, Level | None]:
        """The step's level; for the last of the sampler's, where its step leads to as well."""
        if self.times is not None:
            return self.level(now), None
        turns, turn = -(-now.steps // self.refresh), now.step // self.refresh
        levels = now.model.levels(turns, now.x.shape[-2:])
        return levels[turn], levels[turns] if turn + 1 == turns else None

    def _kappa(self, now: Now, at: Level) -> Images:
        """The noise of eq. 4.6, with the entropy that it is given."""
        match self.kappa:
            case "resampled":
                return now.noise()
            case "fixed" | "cached":
                return self._remembered(now, at)
            case "inversion":
                kappa = self._inverted(now, at)
            case "fixed-point":
                kappa = fixed_point(self.prior(now), now.x, at, now.noise())
            case "sgd":
                kappa = regressed(self.prior(now), now.x, at, now.noise())
        return kappa + self.entropy * at.like(kappa)[1] * now.noise() if self.entropy else kappa

    def _remembered(self, now: Now, at: Level) -> Images:
        """Of the first step; what is cached makes a first image that is all noise, whatever was rendered."""
        if "noise" not in now.memory:
            drawn = now.noise()
            now.memory["noise"] = drawn if self.kappa == "fixed" else noise_in(drawn, now.x, at)
        known = now.memory["noise"]
        if known.shape != now.x.shape:
            raise SfumatoError(
                f"noise is kept for {len(known)} images and {len(now.x)} are rendered: kappa {self.kappa!r} is of "
                "images that are all rendered in each step"
            )
        return known

    def inversion_steps(self, schedule: Schedule, level: Level) -> Int[Tensor, "*b"]:
        """Of an inversion up to a level: as many of ``per_unit`` as it is a part of the noisiest, at least one."""
        return (self.per_unit * level.t / _noisiest(schedule)).long().clamp_min(1)

    def _inverted(self, now: Now, at: Level) -> Images:
        schedule = now.model.schedule
        tau = now.draws.each(len(now.x), lambda rng: torch.rand((), generator=rng, dtype=torch.float64)) * self.tau
        up_to = schedule.nearest((at.t + tau * schedule.train_steps).clamp_max(_noisiest(schedule)))
        steps = self.inversion_steps(schedule, at)
        return inverted(self.prior(now, guidance=self.inversion_guidance), now.x, up_to, steps)


def _noisiest(schedule: Schedule) -> int:
    """The last of the training's steps."""
    return schedule.train_steps - (schedule.prediction != "flow")


THREESTUDIO = ScoreDistillationViaInversion(times=Times(linear(0.98, 0.25)), tau=0.1)
CACHED = ScoreDistillationViaInversion(kappa="cached", times=None)
NOTEBOOK = replace(CACHED, refresh=25)
