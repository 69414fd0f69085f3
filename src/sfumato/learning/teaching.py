"""The run in which a frozen model learns something of a few pictures: the loss that it was trained by, on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.conditions import Cond
from sfumato.core.gradients import gradients
from sfumato.core.schedule import Level, Schedule, add_noise
from sfumato.errors import SfumatoError
from sfumato.learning.lessons import Drawn, Lesson, levels
from sfumato.learning.loop import Modules, Problem
from sfumato.learning.seeds import generator


class Taught(NamedTuple):
    """One step: its pictures, what is said of them, and how noisy they are."""

    step: int
    drawn: Drawn
    captions: tuple[str, ...]
    at: Level
    noise: Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class Part:
    """What is learned from: pictures, how many of them in a step, and what this part of the loss counts."""

    lesson: Lesson
    captions: tuple[str, ...]
    """One is drawn for each picture."""
    batch: int = 1
    weight: float = 1.0
    each: tuple[tuple[str, ...], ...] = ()
    """Captions of each picture, of which one is drawn in the place of ``captions``."""

    def captioned(self, which: Sequence[int], rng: torch.Generator) -> tuple[str, ...]:
        """A caption for each of these pictures, drawn from what is given of it."""
        if not self.each:
            chosen = torch.randint(len(self.captions), (len(which),), generator=rng).tolist()
            return tuple(self.captions[i] for i in chosen)
        own = [self.each[picture] for picture in which]
        return tuple(some[int(torch.randint(len(some), (), generator=rng))] for some in own)


@dataclass(eq=False)
class Teaching(Problem):
    """Mean squared error of what the network predicts of noisy latents, under captions; a mean over each part."""

    model: Any
    parts: Sequence[Part]
    seed: int = 0
    name: str = "the concept"
    doing: str = "learning"
    modules: Modules = field(default_factory=dict)

    def cond(self, taught: Sequence[Taught]) -> Cond:
        """What the network reads, a row for each picture of all parts one after the other."""
        return self.model.embed([caption for each in taught for caption in each.captions])

    def levels(self, part: int, step: int) -> Level:
        """How noisy the pictures of a part are."""
        return levels(self.model, self.seed + part, step, self.parts[part].batch)

    def weights(self, taught: Taught) -> Float[Tensor, " b"] | None:
        """What the error of each picture counts; None: all the same."""
        return None

    def beside(self, taught: Sequence[Taught], predicted: Float[Tensor, "b c h w"]) -> Float[Tensor, ""] | float:
        """What else is descended."""
        return 0.0

    def teach(self, part: int, step: int) -> Taught:
        """What a step sees of a part; a function of the seed and the step alone."""
        own, rng = self.parts[part], generator(self.seed, step, part)
        drawn = own.lesson.draw(self.seed + part, step, own.batch)
        captions = own.captioned(drawn.which, rng)
        noise = torch.randn(drawn.x0.shape, generator=rng).to(drawn.x0)
        return Taught(step, drawn, captions, self.levels(part, step), noise)

    def loss(self, step: int) -> Float[Tensor, ""]:
        taught = [self.teach(part, step) for part in range(len(self.parts))]
        x = torch.cat([add_noise(each.drawn.x0, each.noise, each.at) for each in taught])
        times = torch.cat([each.at.t.expand(len(each.noise)) for each in taught])
        predicted = self.model.predict(x, times, self.cond(taught))
        total = predicted.new_zeros(())
        for part, each, own in zip(self.parts, taught, predicted.split([p.batch for p in self.parts]), strict=True):
            target = self.model.schedule.prediction_of(each.drawn.x0, each.noise, each.at)
            total = total + part.weight * masked(own - target, each.drawn.mask, self.weights(each))
        return total + self.beside(taught, predicted)

    def backward(self, loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter]) -> None:
        found = gradients(self.model, loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient


def masked(
    error: Float[Tensor, "b c h w"], mask: Float[Tensor, "b h w"] | None, weights: Float[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Mean square, of what is inside a mask alone: over its cells and all channels, an image each, then over images."""
    square = error.square()
    if mask is None and weights is None:
        return square.mean()
    if mask is None:
        each = square.mean((1, 2, 3))
    else:
        each = (square * mask[:, None]).sum((1, 2, 3)) / (mask.sum((1, 2)) * error.shape[1]).clamp_min(1e-8)
    return (each if weights is None else each * weights.to(each)).mean()


def min_snr(schedule: Schedule, at: Level, gamma: float) -> Float[Tensor, "*b"]:
    """What an error in the prediction counts for that of the data to count min(SNR, gamma).

    Hang et al. 2023 (arXiv 2303.09556, section 3.4): of noise min(SNR, gamma) / SNR, of v over SNR + 1; of a flow,
    whose data is x - sigma v, times sigma^2. Finite at all levels.
    """
    signal, noise = at.alpha.square(), at.sigma.square()
    if schedule.prediction == "epsilon":
        return (gamma * noise / signal).clamp_max(1)
    if schedule.prediction == "sample":
        return (signal / noise).clamp_max(gamma)
    return torch.minimum(signal, gamma * noise)


def filled(templates: Sequence[str], word: str) -> tuple[str, ...]:
    """Captions of templates with ``{}`` for the word. Raises ``SfumatoError`` for one without a place for it."""
    if bad := [t for t in templates if "{}" not in t] or (not templates and [""]):
        raise SfumatoError(f"a template has a place for the word, as 'a photo of a {{}}', got {bad[0]!r}")
    return tuple(template.replace("{}", word) for template in templates)
