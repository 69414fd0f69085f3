"""DDIM run backwards, and what is put right on the way back: nothing, the latents, or the empty prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.guidance import CFG, Guide, guided
from sfumato.core.method import Requires
from sfumato.core.schedule import Level, Schedule, add_noise
from sfumato.core.settings import Count, Whole
from sfumato.inversion.path import Advance, Inversion, Path, Replacing, predict


@dataclass(frozen=True)
class DDIMInversion(Inversion):
    """DDIM run backwards (Song et al. 2021, eq. 14; Dhariwal and Nichol 2021, appendix F).

    The network is told the level that a step leads to while the latents are still one step cleaner; ``refine`` repeats
    each step with the latents it led to, towards the exact inverse (fixed-point iteration, Pan et al. 2023). ``scale``
    is the guidance on the way to noise: the way back may have another, and either may be negative.

    Needs: a network call a step, and ``refine`` more.

    Families: all.
    """

    requires: ClassVar = Requires(groups=True)

    scale: float = 1.0
    refine: Whole = 0
    steps: Count = 50
    negative: str = ""
    """What takes the place of the empty prompt."""

    def source_guidance(self, scale: float) -> float:
        return self.scale

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        track = self.track(model, image, prompts, advance)
        return Path(track[0], model.levels(self.steps, image.shape[-2:]), prompts, image, track=track)

    def track(
        self,
        model: Backbone,
        image: Tensor,
        prompts: tuple[str, ...],
        advance: Advance,
        last: int | None = None,
        guide: Guide | None = None,
    ) -> tuple[Tensor, ...]:
        """The image at every level, the noisiest first, by the scale or another guidance; or of the ``last`` steps."""
        levels = model.levels(self.steps, image.shape[-2:])
        guide = guide or guided(model, self.scale, self.negative)
        conds = guide.embed(model, prompts)
        track = [image]
        for i in reversed(range(0 if last is None else self.steps - last, self.steps)):
            at, to = levels[i + 1], levels[i]
            x0, eps = predict(model, track[-1], to.t, at, conds, guide)
            x = add_noise(x0, eps, to)
            for _ in range(self.refine):
                x0, eps = predict(model, x, to.t, to, conds, guide)
                x = _before(model.schedule, track[-1], x0, eps, to, at)
            track.append(x)
            advance(x)
        return tuple(reversed(track))


def _before(schedule: Schedule, x: Tensor, x0: Tensor, eps: Tensor, at: Level, to: Level) -> Tensor:
    """The latents at ``at`` from which a step with this prediction leads to ``x`` at ``to``.

    A step is a x + b p in latents and prediction. The prediction that is kept is the network's own: to keep another
    (the noise, for a flow) would not come closer to the inverse where the image is faint.
    """
    if schedule.prediction == "sample":  # of the data alone the last step keeps nothing
        schedule = schedule.predicting("epsilon")
    predicted = schedule.prediction_of(x0, eps, at)
    one, none = torch.ones(()), torch.zeros(())
    a, b = (float(add_noise(*schedule.x0_and_eps(p, y, at), to)) for y, p in ((one, none), (none, one)))
    return (x - b * predicted) / a


@dataclass(frozen=True)
class Direct(Inversion):
    """Direct inversion (Ju et al. 2024): after each step the source is put back on its DDIM track.

    The authors add the difference between track and step to the source; what results is the track itself, so here it is
    simply put there, and costs no prediction. Nor is the source then predicted without its prompt, unless a method
    reads it there: of the four rows of an edit three remain, and two in steps in which no method has a part.

    Needs: a network call a step; the latents of all levels are kept.

    Families: all.
    """

    requires: ClassVar = Requires(groups=True)

    refine: Whole = 0
    steps: Count = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        return replace(DDIMInversion(1.0, self.refine, self.steps)(model, image, prompts, advance), pinned=True)


@dataclass(frozen=True)
class NegativePrompt(Replacing):
    """Negative-prompt inversion (Miyake et al. 2023): the source's prompt takes the place of the empty one.

    With ``ProximalCFG`` as guidance it is ProxNPI (``sfumato.methods.edit.proximal_guidance``).

    Needs: a network call a step; on the way back a guidance that has an empty prompt.

    Families: all.
    """

    requires: ClassVar = Requires(words=True, groups=True)

    steps: Count = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        track = DDIMInversion(1.0, 0, self.steps).track(model, image, prompts, advance, guide=CFG(1.0))
        levels = model.levels(self.steps, image.shape[-2:])
        return Path(track[0], levels, prompts, image, track=track, negative=model.embed(prompts))
