"""Relation inversion (ReVersion, Huang et al. 2023, arXiv 2303.13495): a word is learned for what two things do.

Pictures show a relation between things of many kinds, each under a caption of its own, "a cat {} a stone", and the
word is learned that stands between them. Looks would be the easiest thing to learn, so that a contrastive loss steers
the word to prepositions and away from what captions name: of the cosines of its vector to a few prepositions, drawn
anew for each picture, and to the caption's other words, those of the prepositions are to be the greater. Levels of much
noise, where things are placed, are seen more often than others.

Defaults: the authors' command, 3000 steps of 2 pictures four times at a rate of 2.5e-4 times 8, weight decay 0.01,
beginning as "and", 4 positives of 56 prepositions at a temperature of 0.07, weights of 0.01 for steering and 1 for the
prediction, an importance of 1 - 0.5 cos(pi t / T). Pictures are not mirrored. A kind of several tokens is read as as
many vectors. Different from the code: each picture's positives and negatives are its own, as in the paper, where the
code throws those of two pictures together; captions lose stop words and prepositions as words, not as tokens; a
preposition that is no single token of the model is left out; of XL the loss is the mean of both encoders'.

Needs: as textual inversion, and a caption of each picture.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.conditions import Cond
from sfumato.core.schedule import Level
from sfumato.core.settings import Between, Count, Positive, Weight
from sfumato.errors import SfumatoError, whole
from sfumato.learning.concepts import Concept
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Part, Taught, Teaching
from sfumato.methods.personalise.prepositions import BASIS, named

FOCAL, POSITIVES = -21, -22
"""What a generator is for, beside a step."""


@dataclass(frozen=True)
class ReVersion(Personalisation):
    """Learns the vector of a word for a relation."""

    wants_captions: ClassVar[bool] = True
    usual_kind: ClassVar[str] = "and"
    steps: Count = 3000
    """How often the vector moves."""
    batch: Count = 8
    """Pictures of a step."""
    rate: Weight = 2e-3
    """Of AdamW."""
    steer: Weight = 0.01
    """What the contrastive loss counts."""
    denoise: Weight = 1.0
    """What the error of the prediction counts."""
    temperature: Positive = 0.07
    """Of the contrastive loss."""
    positives: Count = 4
    """Prepositions that are drawn for each picture."""
    basis: tuple[str, ...] = ()
    """Other prepositions than the published 56."""
    alpha: Annotated[float, Between(0, 1)] = 0.5
    """How much more often noisy levels are seen, from 0 to 1; 0: all the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("prepositions of a picture", self.positives, 1, len(self.basis or BASIS))

    def problem(self, asked: Asked) -> Relation:
        parts = [Part(asked.lesson, (), self.batch, self.denoise, asked.captioned)]
        first = asked.model.vectors(asked.kind)
        return Relation(asked.model, parts, asked.seed, method=self, word=asked.word, first=first)

    def concept(self, asked: Asked, problem: Any) -> Concept:
        return Concept(asked.word, {key: rows.detach().clone() for key, rows in problem.rows.items()})


@dataclass(eq=False)
class Relation(Teaching):
    """The vectors of a word between things are to make the network see the pictures, and to be a preposition's."""

    method: ReVersion = field(default_factory=ReVersion)
    word: str = ""
    first: Mapping[str, Float[Tensor, "k d"]] = field(default_factory=dict)
    name: str = "the relation"

    def __post_init__(self) -> None:
        self.rows = nn.ParameterDict({key: nn.Parameter(rows.clone()) for key, rows in self.first.items()})
        self.modules = {"rows": self.rows}
        self.odds = importance(self.model.schedule.train_steps, self.method.alpha)
        self.basis = _basis(self.model, self.method)
        captions = {caption for part in self.parts for some in part.each for caption in some}
        self.negatives = {caption: _rows(self.model, named(caption, self.word)) for caption in sorted(captions)}
        self.model = self.model.with_words({self.word: self.first})

    def levels(self, part: int, step: int) -> Level:
        rng = generator(self.seed + part, FOCAL, step)
        return self.model.schedule.at(torch.multinomial(self.odds, self.parts[part].batch, True, generator=rng))

    def cond(self, taught: Sequence[Taught]) -> Cond:
        return self.model.read([c for each in taught for c in each.captions], {self.word: dict(self.rows)})

    def beside(self, taught: Sequence[Taught], predicted: Tensor) -> Tensor | float:
        if not self.method.steer:
            return 0.0
        rng, losses = generator(self.seed, taught[0].step, POSITIVES), []
        for caption in (caption for each in taught for caption in each.captions):
            for key, own in self.rows.items():
                drawn = torch.randperm(len(self.basis[key]), generator=rng)[: self.method.positives]
                losses.append(
                    steering(own, self.basis[key][drawn], self.negatives[caption][key], self.method.temperature)
                )
        return self.method.steer * torch.stack(losses).mean()


def steering(
    own: Float[Tensor, "k d"], positives: Float[Tensor, "p d"], negatives: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE of several positives: -log of their part of all exp(cosine / temperature); a mean over k."""
    others = F.normalize(torch.cat([positives, negatives]), dim=-1)
    logits = F.normalize(own, dim=-1) @ others.T / temperature
    return (logits.logsumexp(-1) - logits[:, : len(positives)].logsumexp(-1)).mean()


def importance(total: int, alpha: float) -> Float[Tensor, " total"]:
    """How often each of so many levels is seen: f(t) = (1 - alpha cos(pi t / total)) / total, to a sum of 1."""
    found = 1 - alpha * torch.cos(math.pi * torch.arange(total, dtype=torch.float64) / total)
    return found / found.sum()


def _basis(model: Any, method: ReVersion) -> Mapping[str, Float[Tensor, "n d"]]:
    """Rows of the prepositions that a model knows, by encoder."""
    each = [model.vectors(word) for word in method.basis or BASIS]
    known = [rows for rows in each if all(len(own) == 1 for own in rows.values())]
    if len(known) < method.positives:
        raise SfumatoError(
            f"{model.name} knows {len(known)} of {len(each)} prepositions as words, and {method.positives} are drawn; "
            "draw fewer (positives), or name others (basis)"
        )
    return {key: torch.cat([rows[key] for rows in known]) for key in known[0]}


def _rows(model: Any, words: Sequence[str]) -> Mapping[str, Float[Tensor, "n d"]]:
    """Rows of all tokens of words, by encoder."""
    if words:
        return model.vectors(" ".join(words))
    return {key: rows[:0] for key, rows in model.vectors("a").items()}


SCRIPT = ReVersion(batch=16, rate=2.5e-4, steer=0.0, alpha=0.0)
"""The authors' script without options: no steering, and all levels the same."""
