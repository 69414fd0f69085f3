"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a new word is learned, and nothing else.

A vector that the text encoder reads for a placeholder is optimised by the model's own loss on three to five pictures
under neutral captions (eq. 2); the word can then stand in any prompt.

Defaults: diffusers' example as its README runs it, 3000 steps of 4 pictures at a rate of 5e-4 times 4, weight decay
0.01; the paper has 5000 at 0.005 times its batch. Different from both: the vectors are parameters of their own in
float32, so that no other word moves or decays; pictures are encoded once and latents are the encoder's means; each
picture is seen once before any comes again.

Needs: a forward and a backward pass through the network and the text encoder for each picture of a step.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sfumato.core.conditions import Cond
from sfumato.learning.concepts import Concept
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.teaching import Part, Taught, Teaching, filled
from sfumato.methods.personalise.templates import OBJECT


@dataclass(frozen=True)
class TextualInversion(Personalisation):
    """Learns the vectors of a word."""

    steps: int = 3000
    batch: int = 4
    rate: float = 2e-3
    vectors: int = 1
    """How many the word is read as."""
    templates: tuple[str, ...] = OBJECT
    """Captions, with {} for the word."""

    def problem(self, asked: Asked) -> Word:
        parts = [Part(asked.lesson, filled(self.templates, asked.word), self.batch)]
        return Word(asked.model, parts, asked.seed, word=asked.word, first=begun(asked, self.vectors))

    def concept(self, asked: Asked, problem: Any) -> Concept:
        return Concept(asked.word, {key: rows.detach().clone() for key, rows in problem.rows.items()})


def begun(asked: Asked, vectors: int) -> dict[str, torch.Tensor]:
    """Rows that a word begins with: those of its kind, the last as often as it takes."""
    found = asked.model.vectors(asked.kind)
    return {key: torch.cat([rows, rows[-1:].expand(vectors, -1)])[:vectors].clone() for key, rows in found.items()}


@dataclass(eq=False)
class Word(Teaching):
    """The rows of a word are to make the network see the pictures."""

    word: str = ""
    first: dict[str, torch.Tensor] = field(default_factory=dict)
    name: str = "the word"

    def __post_init__(self) -> None:
        self.rows = nn.ParameterDict({key: nn.Parameter(rows) for key, rows in self.first.items()})
        self.modules = {"rows": self.rows}
        self.model = self.model.with_words({self.word: self.known()})

    def known(self) -> Any:
        """What the model is taught before the first step."""
        return self.first

    def cond(self, taught: Sequence[Taught]) -> Cond:
        return self.model.read([c for each in taught for c in each.captions], {self.word: dict(self.rows)})
