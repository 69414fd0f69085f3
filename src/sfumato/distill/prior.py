"""What a frozen model says of noisy images, as noise, under each of several conditions: all of it in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide
from sfumato.core.rows import single
from sfumato.core.schedule import Level, Schedule
from sfumato.errors import SfumatoError

Images = Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class At:
    """A noise level for each image of a batch."""

    levels: tuple[Level, ...]

    @classmethod
    def of(cls, schedule: Schedule, t: float | Sequence[float] | Float[Tensor, "b"], n: int) -> At:
        """Of training steps: one for all n images, or one an image. ``SfumatoError`` for steps the model has not."""
        times = [t] * n if isinstance(t, int | float) else [float(v) for v in t]
        if len(times) == 1:
            times *= n
        if len(times) != n:
            raise SfumatoError(f"{n} images need a level each or one for all, got {len(times)}")
        if schedule.prediction == "flow" and not all(0 < v <= schedule.train_steps for v in times):
            raise SfumatoError(f"t lies above 0 and up to {schedule.train_steps} in this model, got {times}")
        known = {v: schedule.at(v) for v in set(times)}
        return cls(tuple(known[v] for v in times))

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, at: slice) -> At:
        return At(self.levels[at])

    @property
    def t(self) -> float | Float[Tensor, "b"]:
        """What the network is told: one number where all images have the same level."""
        first = self.levels[0].t
        alike = all(level.t == first for level in self.levels)
        return first if alike else torch.tensor([level.t for level in self.levels])

    def each(self, value: Callable[[Level], float], like: Tensor) -> Float[Tensor, "b 1 1 1"]:
        """A number of each level, to multiply a batch with."""
        numbers = torch.tensor([value(level) for level in self.levels], dtype=torch.float64)
        return numbers.to(like).view(-1, 1, 1, 1)

    def alpha(self, like: Tensor) -> Float[Tensor, "b 1 1 1"]:
        return self.each(lambda level: level.alpha, like)

    def sigma(self, like: Tensor) -> Float[Tensor, "b 1 1 1"]:
        return self.each(lambda level: level.sigma, like)

    def noised(self, x: Images, noise: Images) -> Images:
        """alpha x + sigma noise."""
        return self.alpha(x) * x + self.sigma(x) * noise

    def clean(self, x: Images, eps: Images) -> Images:
        """The image that a noisy one is without this noise: (x - sigma eps) / alpha."""
        return (x - self.sigma(x) * eps) / self.alpha(x)


def predictions(model: Backbone, x: Images, at: At, conds: Mapping[str, Cond]) -> dict[str, Images]:
    """The network's own prediction for the same noisy images under each of the conditions, in one batch."""
    t = at.t.to(x.device).repeat(len(conds)) if isinstance(at.t, Tensor) else at.t
    predicted = model.predict(x.repeat(len(conds), 1, 1, 1), t, Cond.cat(list(conds.values())))
    return dict(zip(conds, predicted.split(len(x)), strict=True))


def as_clean_and_noise(schedule: Schedule, prediction: Images, x: Images, at: At) -> tuple[Images, Images]:
    """What a network's prediction (noise, v, flow velocity or data) says of image and noise."""
    if len(set(at.levels)) == 1:
        return schedule.x0_and_eps(prediction, x, at.levels[0])
    rows = zip(prediction.split(1), x.split(1), at.levels, strict=True)
    clean, noise = zip(*(schedule.x0_and_eps(p, one, level) for p, one, level in rows), strict=True)
    return torch.cat(clean), torch.cat(noise)


def as_noise(schedule: Schedule, prediction: Images, x: Images, at: At) -> Images:
    """A network's prediction (noise, v, flow velocity or data) read as noise."""
    return as_clean_and_noise(schedule, prediction, x, at)[1]


def noises(model: Backbone, x: Images, at: At, conds: Mapping[str, Cond]) -> dict[str, Images]:
    """Condition -> the noise that the model sees in the images under it."""
    return {k: as_noise(model.schedule, p, x, at) for k, p in predictions(model, x, at, conds).items()}


@dataclass(frozen=True)
class GuidedModel:
    """A frozen model asked about a batch of images, each by its prompt, under a guidance: u + s (c - u) and the like.

    Gradients flow through it where they are on, so callers that want none turn them off.
    """

    model: Backbone
    prompts: tuple[str, ...]
    """One an image."""
    guide: Guide

    @cached_property
    def conds(self) -> dict[str, Cond]:
        return self.guide.embed(self.model, self.prompts)

    def __call__(self, x: Images, at: At) -> Images:
        """The guided noise of images at their levels. It is guided in what the network predicts, as samplers do."""
        return self.clean_and_noise(x, at)[1]

    def clean_and_noise(self, x: Images, at: At) -> tuple[Images, Images]:
        """The guided prediction as an image and its noise: the former is good where no image is left in x as well."""
        prediction = self.guide.combine(predictions(self.model, x, at, self.conds), single(len(x)))
        return as_clean_and_noise(self.model.schedule, prediction, x, at)

    def embedded(self, **texts: str | Sequence[str]) -> dict[str, Cond]:
        """Conditions by their names, for ``noises``: a text for all images, or one each."""
        n = len(self.prompts)
        return {k: self.model.embed([v] * n if isinstance(v, str) else list(v)) for k, v in texts.items()}
