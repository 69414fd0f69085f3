"""Where an image's words look: cross-attention of a run, over all its steps, laid over what it painted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor

from sfumato.plan import Method, Need, Phases, Run, Step
from sfumato.stilllife import pictures

SIDE = 16
"""Maps are taken at the grid whose shorter side is nearest: there things are seen best (Hertz et al. 2023)."""


@dataclass(frozen=True, eq=False)
class Attention(Method):
    """Adds up the maps of one stream's words."""

    stream: str = "main"
    sums: list[Tensor] = field(default_factory=list)
    """Of each step, (each, h, w, tokens)."""

    def start(self, run: Run) -> Phases:
        sides = {min(s.grid(run.grid)) for s in run.model.sites if "image->text" in s.pairs}
        side = min(sides, key=lambda n: abs(n - SIDE)) if sides else SIDE
        need = Need("image->text", side, rows=(self.stream, "cond"))
        self.sums.clear()

        def after(step: Step) -> None:
            maps = step.maps[need]
            mean = torch.stack([m[self.stream, "cond"] for m in maps.values()]).mean(0)
            self.sums.append(mean.unflatten(1, next(iter(maps)).grid(run.grid)).cpu())

        return Phases(needs=(need,), after=after)

    def map(self, image: int, tokens: slice) -> Float[Tensor, "h w"]:
        """Mean over the steps of what one word's tokens get together."""
        return torch.stack([m[image][..., tokens].sum(-1) for m in self.sums]).mean(0)


def overlay(picture: Picture, map: Float[Tensor, "h w"]) -> Picture:
    """The picture, dark where the map is weak beside its greatest value."""
    w, h = picture.size
    share = (map - map.min()) / (map.max() - map.min()).clamp_min(1e-8)
    light = F.interpolate(share[None, None].float(), (h, w), mode="bicubic").clamp(0, 1)[0, 0].numpy()[..., None]
    return Image.fromarray((np.asarray(picture) * (0.15 + 0.85 * light)).astype(np.uint8))


def sheet(picture: Picture, words: list[tuple[str, slice]], attention: Attention, image: int = 0) -> Picture:
    """The picture and one overlay a word, labelled."""
    shown = [picture, *(overlay(picture, attention.map(image, tokens)) for _, tokens in words)]
    return pictures.labelled(shown, ["", *(word for word, _ in words)])
