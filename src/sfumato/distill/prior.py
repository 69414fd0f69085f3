"""What a frozen model says of noisy images, as noise, under each of several conditions: all of it in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone, check_model
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide
from sfumato.core.rows import single
from sfumato.core.schedule import Level
from sfumato.errors import kind

Images = Float[Tensor, "b c h w"]


def predictions(model: Backbone, x: Images, at: Level, conds: Mapping[str, Cond]) -> dict[str, Images]:
    """The network's own prediction for the same noisy images under each of the conditions, in one batch."""
    t = at.t.repeat(len(conds)) if at.t.ndim else at.t
    predicted = model.predict(x.repeat(len(conds), 1, 1, 1), t, Cond.cat(list(conds.values())))
    return dict(zip(conds, predicted.split(len(x)), strict=True))


def noises(model: Backbone, x: Images, at: Level, conds: Mapping[str, Cond]) -> dict[str, Images]:
    """Condition -> the noise that the model sees in the images under it."""
    return {k: model.schedule.x0_and_eps(p, x, at)[1] for k, p in predictions(model, x, at, conds).items()}


@dataclass(frozen=True)
class GuidedModel:
    """A frozen model asked about a batch of images, each by its prompt, under a guidance: u + s (c - u) and the like.

    Gradients flow through it where they are on, so callers that want none turn them off.
    """

    model: Backbone
    prompts: tuple[str, ...]
    """One an image."""
    guide: Guide

    def __post_init__(self) -> None:
        check_model(self.model)
        kind('prompts are one an image, such as ("a cube",)', self.prompts, (tuple, list))
        kind("a guidance of a distillation is a Guide such as cfg(5)", self.guide, Guide)

    @cached_property
    def conds(self) -> dict[str, Cond]:
        return self.guide.embed(self.model, self.prompts)

    def __call__(self, x: Images, at: Level) -> Images:
        """The guided noise of images at their levels. It is guided in what the network predicts, as samplers do."""
        return self.clean_and_noise(x, at)[1]

    def clean_and_noise(self, x: Images, at: Level) -> tuple[Images, Images]:
        """The guided prediction as an image and its noise: the former is good where no image is left in x as well."""
        prediction = self.guide.combine(predictions(self.model, x, at, self.conds), single(len(x)))
        return self.model.schedule.x0_and_eps(prediction, x, at)

    def embedded(self, **texts: str | Sequence[str]) -> dict[str, Cond]:
        """Conditions by their names, for ``noises``: a text for all images, or one each."""
        n = len(self.prompts)
        return {k: self.model.embed([v] * n if isinstance(v, str) else list(v)) for k, v in texts.items()}
