"""The table of methods that teach a frozen model something of a few pictures: a row each, and what all laws need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sfumato.learning.lessons import Lesson
from sfumato.learning.personal import Asked
from sfumato.methods.personalise.textual_inversion import TextualInversion

UNETS = ("sd", "sd2", "sdxl")


@dataclass(frozen=True)
class Row:
    """A method of the index, and settings that show its parts."""

    word: str
    ways: Sequence[Any]
    families: Sequence[str] = UNETS


METHODS = (
    Row(
        "textual-inversion",
        (
            TextualInversion(batch=2),
            TextualInversion(batch=1, warmup=3, vectors=2, regularise=0.1),
            TextualInversion(batch=1, vectors=3, progressive=1),
            TextualInversion(batch=2, vectors=4, shuffle="all"),
            TextualInversion(batch=1, per_image=0.5),
            TextualInversion(batch=1, resolutions=5),
            TextualInversion(batch=1, vectors=2, begin="noise", pull=0.1),
        ),
    ),
)
WAYS = [(row.word, i, way) for row in METHODS for i, way in enumerate(row.ways)]


def asked(model: Any, n: int = 2, seed: int = 0) -> Asked:
    """A few random pictures, with masks, and others of the kind at large."""
    lessons = _lessons(model, n)
    return Asked(model, lessons[0], "<own>", "cube", prior=lessons[1], seed=seed)


@cache
def _lessons(model: Any, n: int) -> list[Lesson]:
    rng = torch.Generator().manual_seed(7)
    pictures = torch.rand(2 * n, 3, model.size, model.size, generator=rng)
    masks = torch.zeros(n, model.size, model.size)
    masks[:, : model.size // 2] = 1
    return [Lesson.of(model, pictures[:n], masks), Lesson.of(model, pictures[n:])]
