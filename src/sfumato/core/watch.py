"""Where an image's words look: cross-attention of a run, over all its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.choice import choose, side_of
from sfumato.core.method import Method, Need, Phases, Requires, Run, Step, Where

PART = 0.25
"""Maps are taken at the grid nearest to this part of the latents' side: there things are seen best (Hertz et al. 2023).
"""


@dataclass(eq=False)
class Attention(Method):
    """Adds up the maps of one stream's words, of the last run that it took part in."""

    requires: ClassVar = Requires(windows=False)
    stream: str = "main"
    sums: list[Tensor] = field(default_factory=list)
    """Of each step, (each, h, w, tokens)."""

    def start(self, run: Run) -> Phases:
        side = side_of(choose(run.model, "image->text", run.grid, "the watch on words"), run.grid, PART)
        need = Need(Where("image->text", side, rows=(self.stream, "cond")))

        def after(step: Step) -> None:
            if step.i == 0:
                self.sums.clear()
            maps = step.maps[need]
            mean = torch.stack([m[self.stream, "cond"] for m in maps.values()]).mean(0)
            self.sums.append(mean.unflatten(1, next(iter(maps)).grid(run.grid)).cpu())

        return Phases(needs=(need,), after=after)

    def map(self, image: int, tokens: slice) -> Float[Tensor, "h w"]:
        """Mean over the steps of what one word's tokens get together."""
        return torch.stack([m[image][..., tokens].sum(-1) for m in self.sums]).mean(0)

    def maps(self, words: Sequence[tuple[str, slice]], image: int = 0) -> list[tuple[str, Float[Tensor, "h w"]]]:
        """Words with their maps."""
        return [(word, self.map(image, tokens)) for word, tokens in words]
