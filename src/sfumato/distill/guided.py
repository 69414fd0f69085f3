"""What most ways to distil have in common: a guidance, and levels that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.core.guidance import guided
from sfumato.core.schedule import Level
from sfumato.distill.gradients import Weighting
from sfumato.distill.loop import Distillation, Now
from sfumato.distill.prior import GuidedModel
from sfumato.learning.annealing import DREAMFUSION, Times


@dataclass(frozen=True)
class Guided(Distillation):
    """A distillation by guided predictions, at levels that are drawn."""

    guidance: float = 7.5
    """Scale of classifier-free guidance; a network that reads its guidance is told it."""
    negative: str = ""
    """What takes the place of the empty prompt."""
    times: Times = DREAMFUSION
    """Levels, as parts of the training's."""

    def prior(self, now: Now, prompts: Sequence[str] | None = None, guidance: float | None = None) -> GuidedModel:
        """The model under the step's prompts and the guidance, or under others."""
        scale = self.guidance if guidance is None else guidance
        asked = now.prompts if prompts is None else tuple(prompts)
        guide = guided(now.model, scale, self.negative)
        if prompts is None and now.seen is not None:
            guide = now.seen(guide, now.asked)
        return GuidedModel(now.model, asked, guide)

    def level(self, now: Now, shared: bool = False) -> Level:
        """The step's, drawn for each image or for all."""
        return self.times.draw(now.model.schedule, now.progress, len(now.x), now.draws, shared=shared)


@dataclass(frozen=True)
class Weighted(Guided):
    """One whose gradients are weighted by their level."""

    weighting: Weighting = "variance"
    """w(t)."""
