"""Interval score matching (LucidDreamer, Liang et al. 2023, arXiv 2311.11284): a step of DDIM in place of random noise.

Score distillation noises an image anew each time, so that what the model sees in it is never the same, and its mean is
smooth. Here the image goes up a deterministic way, DDIM run backwards without a prompt, in a few long steps to x_s and
a short one to x_t; what the prompt, guided, says at x_t is compared with what was seen at x_s without one, and not with
noise.

Defaults: the authors' bagel.yaml. Guidance 7.5; levels 0.02 to 0.98 at first and to 0.5 from 0.3 of the run on (1500 of
5000 steps); five steps of 0.2 at most to x_s, and an interval to x_t of 0.1 at first, 0.08 later; w = sigma / alpha.
Their factor of 0.1 in front is left to the rate. In their code the way starts from the image with a little noise of the
first level, whose channels have an offset of 0.1; here it starts from the image, as the text has it. They flip renders
at random and ask about depths in a fifth of the steps, which is a matter of scenes.

Needs: three to eight rows an image and step, in two to seven calls of the network: 4.4 rows in the mean at levels up to
0.5.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.core.conditions import Cond
from sfumato.core.schedule import Level, Schedule, add_noise, without_noise
from sfumato.core.settings import Count, Positive
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.guided import Weighted
from sfumato.distill.loop import Now
from sfumato.distill.prior import GuidedModel, Images, noises
from sfumato.learning.annealing import Ramp, Times, constant, piecewise

WARMING = Times(constant(0.02), piecewise((0.0, 0.98), (0.3, 0.5)))
SHRINKING = piecewise((0.0, 0.1), (0.3, 0.08))


def interval_score_matching(
    prior: GuidedModel,
    uncond: Cond,
    x: Images,
    at: Level,
    interval: float = 0.08,
    stride: float = 0.2,
    most: int = 5,
    weighting: Weighting = "noise-to-signal",
) -> Images:
    """w(t) (eps(x_t, t, prompt) - eps(x_s, s, no prompt)), s an ``interval`` of the training's levels before t.

    x_s lies ``most`` steps of a ``stride`` or less from the image. ``uncond``: a row an image. Images that are there
    sooner than others wait.
    """
    here, *further = way(prior.model.schedule, at, interval, stride, most)
    for to in further:
        x = stepped(x, here, to, noises(prior.model, x, here, {"": uncond})[""])
        here = to
    seen = noises(prior.model, x, here, {"": uncond})[""]
    return weight(weighting, at, x) * (prior(stepped(x, here, at, seen), at) - seen)


def stepped(x: Images, here: Level, to: Level, eps: Images) -> Images:
    """A step of DDIM from level to level, either way."""
    return add_noise(without_noise(x, eps, here), eps, to)


def way(schedule: Schedule, level: Level, interval: float, stride: float, most: int) -> list[Level]:
    """Levels from which to which images go before they come to this one, the last an ``interval`` before it."""
    total = schedule.train_steps
    end = (level.t - interval * total).clamp_min(0)
    start = (end - most * stride * total).clamp_min(0)
    steps = int(((end - start) / (stride * total) - 1e-9).ceil().max())
    return [schedule.nearest((start + i * stride * total).minimum(end)) for i in range(steps + 1)]


@dataclass(frozen=True)
class IntervalScoreMatching(Weighted):
    """ISM with the authors' settings."""

    guidance: float = 7.5
    """Scale of classifier-free guidance at x_t."""
    negative: str = ""
    """What takes the place of the empty prompt, on the way as well."""
    times: Times = WARMING
    """Levels t, as parts of the training's."""
    interval: Ramp = SHRINKING
    """From s to t, as a part of the training's levels."""
    stride: Positive = 0.2
    """Of a step on the way to x_s, as a part of them."""
    most: Count = 5
    """Steps on the way to x_s at most."""
    weighting: Weighting = "noise-to-signal"

    def gradient(self, now: Now) -> Images:
        at = self.level(now)
        prior = self.prior(now)
        uncond = prior.embedded(uncond=self.negative)["uncond"]
        interval = self.interval(now.progress)
        return interval_score_matching(prior, uncond, now.x, at, interval, self.stride, self.most, self.weighting)
