"""Null-text inversion: the empty prompt's text is fitted, level by level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.gradients import gradients
from sfumato.core.guidance import CFG
from sfumato.core.method import Requires
from sfumato.core.schedule import Level, add_noise
from sfumato.core.settings import Count, Weight, Whole
from sfumato.inversion.ddim import DDIMInversion
from sfumato.inversion.path import Advance, Path, Replacing


@dataclass(frozen=True)
class NullText(Replacing):
    """Null-text inversion (Mokady et al. 2023): at each step the empty prompt's text is fitted so that the guided step
    follows the DDIM track.

    Defaults of the authors' code: at most 10 steps of a new Adam a level, rate 1e-2 (1 - i/100), end at 1e-5 + 2e-5 i.
    Images of a batch are fitted together and stop on their own, with the result of fitting each alone.

    Needs: three network calls a step, and up to ``inner`` more with a backward pass to the text; on the way back a
    guidance that has an empty prompt.

    Families: all.
    """

    requires: ClassVar = Requires(words=True, groups=True)

    scale: float = 7.5
    inner: Whole = 10
    rate: Weight = 1e-2
    tolerance: Weight = 1e-5
    steps: Count = 50

    def source_guidance(self, scale: float) -> float:
        return self.scale

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        levels = model.levels(self.steps, image.shape[-2:])
        track = DDIMInversion(1.0, 0, self.steps).track(model, image, prompts, lambda x: None, guide=CFG(1.0))
        cond, empty = model.embed(prompts), model.embed_negative([""] * len(image))
        x, found = track[0], []
        for i in range(self.steps):
            at, to = levels[i], levels[i + 1]
            prediction = model.predict(x, at.t, cond)
            empty = replace(empty, text=self._fit(model, x, track[i + 1], at, to, prediction, empty, i))
            found.append(empty.text)
            x = self._step(model, x, at, to, prediction, model.predict(x, at.t, empty))
            advance(x)
        return Path(track[0], levels, prompts, image, track=track, uncond=tuple(found))

    def _step(self, model: Backbone, x: Tensor, at: Level, to: Level, prediction: Tensor, empty: Tensor) -> Tensor:
        x0, eps = model.schedule.x0_and_eps(empty + self.scale * (prediction - empty), x, at)
        return add_noise(x0, eps, to)

    def _fit(
        self, model: Backbone, x: Tensor, goal: Tensor, at: Level, to: Level, prediction: Tensor, empty: Cond, i: int
    ) -> Float[Tensor, "b n d"]:
        """eq. 3 of the paper: the text for which the step from ``x`` leads to ``goal``."""
        texts = [text.clone().requires_grad_() for text in empty.text.split(1)]
        adam = torch.optim.Adam(texts, lr=self.rate * (1 - i / 100))
        enough, going = self.tolerance + i * 2e-5, list(range(len(x)))
        for _ in range(self.inner):
            fitted = [texts[j] for j in going]
            with torch.enable_grad():
                asked = replace(Cond.cat([empty[j : j + 1] for j in going]), text=torch.cat(fitted))
                step = self._step(model, x[going], at, to, prediction[going], model.predict(x[going], at.t, asked))
                error = (step - goal[going]).square().mean((1, 2, 3))
                found = gradients(model, error.sum(), fitted)
            for text, gradient in zip(fitted, found, strict=True):
                text.grad = gradient
            adam.step()
            for text in fitted:  # Adam passes over texts without a gradient
                text.grad = None
            going = [
                j for j, e in zip(going, error.tolist(), strict=True) if e >= enough
            ]  # after the step, as published
            if not going:
                break
        return torch.cat(texts).detach()
