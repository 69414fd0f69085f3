"""Words for where a thing is seen from: ", side view", and what else a prompt needs so that backs are not faces.

Azimuth 0 sees the front. Poole et al. 2022 (DreamFusion, section 3.2) say the view; stable-dreamfusion brings the words
of two neighbouring views together as the camera turns; Armandpour et al. 2023 (Perp-Neg, arXiv 2304.04968, section 4)
also keep each view away from the words of the others, by weights that decay as a view goes over into the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide, Parts, perpendicular
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError

Decay = tuple[float, float, float]
Way = Literal["off", "word", "between", "perp-neg"]
"""A prompt as it is; with its view's word; between the words of the two nearest views; and away from others' as well.
"""
SIDE_BACK: Decay = (1.0, 0.5, -0.606)
FRONT_SIDE_BACK: Decay = (1.0, 0.5, 0.967)
FRONT_SIDE: Decay = (4.0, 0.5, -2.426)
"""(a, b, c) of weights -(a exp(-b r) + c), threestudio's: of the side between side and back, of the front there, and of
either of front and side between them."""


class Blend(NamedTuple):
    """What is asked of one image: ``part`` of the first text and the rest of the second, away from others."""

    first: str
    second: str
    part: float
    away: tuple[tuple[str, float], tuple[str, float]]
    """Texts and their weights, from 0 down."""


@dataclass(frozen=True)
class ViewWords:
    """How a prompt says where its image is seen from; angles in degrees."""

    template: str = "{prompt}, {view} view"
    front: float = 45.0
    """Up to so far from azimuth 0 a view is a front view (45: threestudio; 30: its ProlificDreamer)."""
    back: float = 45.0
    """Up to so far from azimuth 180 it is one of the back."""
    side: float = 90.0
    """Up to so far from 90 and 270 it is one of a side, where it is neither; beyond it no word is right."""
    overhead: float = 60.0
    """Above this elevation it is one from overhead."""
    way: Way = "word"
    """How a view is said."""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.template or "{view}" not in self.template:
            raise SfumatoError(f"a template has places for {{prompt}} and {{view}}, got {self.template!r}")

    def word(self, azimuth: float, elevation: float) -> str | None:
        """Front, side, back or overhead; None between two where no word is right."""
        if elevation > self.overhead:
            return "overhead"
        turn = abs(_turn(azimuth))
        if turn < self.front:
            return "front"
        if turn > 180 - self.back:
            return "back"
        return "side" if abs(turn - 90) <= self.side else None

    def text(self, prompt: str, word: str | None) -> str:
        """The prompt with a view's word, or as it is."""
        return prompt if word is None else self.template.replace("{view}", word).replace("{prompt}", prompt)

    def prompt(self, prompt: str, azimuth: float, elevation: float) -> str:
        """What an image from there reads."""
        return prompt if self.way == "off" else self.text(prompt, self.word(azimuth, elevation))

    def blend(self, prompt: str, azimuth: float, elevation: float) -> Blend:
        """The same between words, with what it is kept away from (threestudio's Perp-Neg)."""
        front, side, back, overhead = (self.text(prompt, w) for w in ("front", "side", "back", "overhead"))
        if elevation > self.overhead:
            return Blend(overhead, overhead, 1.0, ((front, 0.0), (side, 0.0)))
        turn = abs(_turn(azimuth))
        if turn < 90:
            r = 1 - turn / 90
            return Blend(front, side, r, ((front, _weight(FRONT_SIDE, r)), (side, _weight(FRONT_SIDE, 1 - r))))
        r = 2 - turn / 90
        return Blend(side, back, r, ((side, _weight(SIDE_BACK, r)), (front, _weight(FRONT_SIDE_BACK, r))))


DREAMFUSION = ViewWords()
PROLIFICDREAMER = ViewWords(front=30.0, back=30.0)
STILL_LIFE = ViewWords("{view} view of {prompt}", 36.0, 36.0, 30.0, 55.0)
"""As the captions of the built-in model have them: between two views they have no word."""


def _turn(azimuth: float) -> float:
    """In [-180, 180)."""
    return (azimuth + 180) % 360 - 180


def _weight(decay: Decay, r: float) -> float:
    a, b, c = decay
    return min(0.0, -(a * math.exp(-b * r) + c))


@dataclass(frozen=True)
class SeenFrom(Guide):
    """A guidance whose images are asked for between two texts each, and kept away from two others (Perp-Neg, eq. 6).

    The prompts that it is given are not read. An image's result depends on no other image.
    """

    guide: Guide
    blends: tuple[Blend, ...]
    """Of each image of a stream."""
    away: bool = True
    """Kept away from the others?"""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        times, rest = divmod(len(prompts), len(self.blends))
        if rest:
            raise SfumatoError(f"{len(self.blends)} views do not go into {len(prompts)} prompts; give one an image")
        blends = self.blends * times
        out = self.guide.embed(model, [b.first for b in blends])
        if self.away and "uncond" not in out:
            raise SfumatoError(
                "Perp-Neg compares with the empty prompt, which is not asked at guidance 1 or by a model that reads "
                "its guidance; take another guidance, or views between words alone"
            )
        first, second = out["cond"], model.embed([b.second for b in blends])
        part = torch.tensor([b.part for b in blends]).to(first.text)
        out["cond"] = replace(first, text=_lerp(second.text, first.text, part), extra={
            k: _lerp(second.extra[k], v, part) if v.is_floating_point() else v for k, v in first.extra.items()
        })  # fmt: skip
        if self.away:
            out |= {f"away {i}": model.embed([b.away[i][0] for b in blends]) for i in range(2)}
        return out

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        if not self.away:
            return self.guide.combine(parts, rows)
        u, c = parts["uncond"], parts["cond"]
        total, d = c, c - u
        for i in range(2):
            weights = torch.tensor([b.away[i][1] for b in self.blends]).to(c)
            weights = weights.repeat(len(c) // len(weights)).view(-1, *[1] * (c.ndim - 1))
            total = total + weights * perpendicular(parts[f"away {i}"] - u, d)
        return self.guide.combine({**parts, "cond": total}, rows)


def _lerp(start: Tensor, end: Tensor, part: Tensor) -> Tensor:
    return torch.lerp(start, end, part.to(start).view(-1, *[1] * (start.ndim - 1)))
