"""Extended textual inversion (P+, Voynov et al. 2023, arXiv 2303.09522): a word has a vector for each layer.

Each layer of the network that reads the text reads a prompt of its own, in which the word is its own vector; all are
optimised together by the model's loss. Coarse layers hold a thing's shape and the others its looks, so that the shape
of one concept and the style of another can be mixed by layers (section 5).

Defaults: the paper's, 500 steps of 8 pictures at a rate of 5e-3. Layers are attention layers, 16 of Stable Diffusion 1
and 2, in the order in which they run; public code has one vector a block. The text encoder runs once a step, on the
prompts of all layers, and a prompt that several pictures have is encoded once.

Needs: as textual inversion, and the text encoder's passes for as many prompts as there are layers.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.conditions import Cond
from sfumato.core.settings import Count, Weight
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept, PerLayer
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.teaching import Part, Taught, Teaching, filled
from sfumato.methods.personalise.templates import OBJECT
from sfumato.methods.personalise.textual_inversion import begun

OF = 16
"""Layers of Stable Diffusion 1 and 2 that read the text."""


@dataclass(frozen=True)
class ExtendedTextualInversion(Personalisation):
    """Learns the vectors of a word for each layer that reads the text."""

    steps: Count = 500
    """How often the vectors move."""
    batch: Count = 8
    """Pictures of a step."""
    rate: Weight = 5e-3
    """Of AdamW."""
    vectors: Count = 1
    """How many the word is read as by each layer."""
    falling: bool = False
    """Does the rate fall to zero over the run?"""
    templates: tuple[str, ...] = ()
    """Other captions than those of objects, with {} for the word."""

    def problem(self, asked: Asked) -> Layers:
        parts = [Part(asked.lesson, filled(self.templates or OBJECT, asked.word), self.batch)]
        layers = asked.model.text_layers
        first = {key: rows.expand(layers, -1, -1).clone() for key, rows in begun(asked, self.vectors).items()}
        return Layers(asked.model, parts, asked.seed, word=asked.word, first=first)

    def rate_at(self, rate: float, step: int, used: float) -> float:
        return super().rate_at(rate, step, used) * (1 - used if self.falling else 1)

    def concept(self, asked: Asked, problem: Any) -> Concept:
        return Concept(asked.word, {key: rows.detach().clone() for key, rows in problem.rows.items()})


@dataclass(eq=False)
class Layers(Teaching):
    """The rows (layers, k, d) of a word are to make the network see the pictures."""

    word: str = ""
    first: Mapping[str, Float[Tensor, "layers k d"]] = field(default_factory=dict)
    name: str = "the word"

    def __post_init__(self) -> None:
        self.rows = nn.ParameterDict({key: nn.Parameter(rows.clone()) for key, rows in self.first.items()})
        self.modules = {"rows": self.rows}
        self.model = self.model.with_words({self.word: PerLayer(self.first)})

    def cond(self, taught: Sequence[Taught]) -> Cond:
        return self.model.read([c for each in taught for c in each.captions], {self.word: PerLayer(dict(self.rows))})


def mixed(shape: Concept, style: Concept, low: int = 5, high: int = 10) -> Concept:
    """The shape of one concept in the style of another, by the word of the first (section 5; (k, K) = (5, 10)).

    Layers from ``low`` up to but without ``high``, of the 16 of Stable Diffusion in the order in which they run, are
    the first one's and all others the second's; of networks with other numbers of layers as large a part. One of the
    two may have the same vectors for all layers, as textual inversion learns them. Raises ``SfumatoError`` for concepts
    without such vectors, of different models or numbers of vectors, and for a range that is none.
    """
    if not 0 <= low <= high <= OF:
        raise SfumatoError(f"layers of a shape are from low to high in 0 to {OF}, got {low} to {high}")
    layers = {len(rows) for each in (shape, style) for rows in each.rows.values() if rows.ndim == 3}
    widths = [{key: rows.shape[-2:] for key, rows in each.rows.items()} for each in (shape, style)]
    if len(layers) != 1 or widths[0] != widths[1]:
        raise SfumatoError(
            f"{shape.word!r} and {style.word!r} cannot be mixed by layers; learn both with extended-textual-inversion, "
            "the same model and as many vectors"
        )
    (count,) = layers
    first, end = (round(n * count / OF) for n in (low, high))

    def by_layer(a: Tensor, b: Tensor) -> Tensor:
        out = b.expand(count, *b.shape[-2:]).clone()
        out[first:end] = a.expand(count, *a.shape[-2:])[first:end]
        return out

    rows = {key: by_layer(own, style.rows[key]) for key, own in shape.rows.items()}
    about = {"shape": dict(shape.about), "style": dict(style.about), "layers": [first, end]}
    return replace(shape, rows=rows, about=about)
