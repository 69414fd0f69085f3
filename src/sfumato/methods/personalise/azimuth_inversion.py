"""View-dependent textual inversion (Jambon 2023, section 6.1): a word has vectors at several azimuths all around.

One vector for all views of a thing mixes them: backs get faces. As many are learned as there are azimuths, evenly
spaced, and at any other one the word is read as the nearest of them, each counting the inverse of its distance (eq.
6.1). ``concept.seen_from(90)`` is the word at one azimuth, an ordinary one; without an azimuth it is that of 0.

Defaults: the text's, 6 azimuths of which 3 count; all else as textual inversion, as the text has it. Where no picture
was seen from nearby a vector stays what it began as.

Needs: as textual inversion. Pictures are not mirrored.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.conditions import Cond
from sfumato.core.settings import Between, Count, Weight
from sfumato.errors import SfumatoError, whole
from sfumato.learning.concepts import Concept
from sfumato.learning.mappers import RING, around
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.teaching import Part, Taught, Teaching, filled
from sfumato.methods.personalise.templates import OBJECT
from sfumato.methods.personalise.textual_inversion import begun


@dataclass(frozen=True)
class AzimuthInversion(Personalisation):
    """Learns the vectors of a word at azimuths all around."""

    wants_cameras: ClassVar[bool] = True
    steps: Count = 3000
    """How often the vectors move."""
    batch: Count = 4
    """Pictures of a step."""
    rate: Weight = 2e-3
    """Of AdamW."""
    azimuths: Annotated[int, Between(1, 360)] = 6
    """At how many the word has vectors."""
    neighbours: Count = 3
    """How many of them count at any other."""
    vectors: Count = 1
    """How many the word is read as."""
    templates: tuple[str, ...] = ()
    """Other captions than those of objects, with {} for the word."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("azimuths that count", self.neighbours, 1, self.azimuths)

    def check(self, asked: Asked) -> None:
        super().check(asked)
        assert asked.cameras is not None
        if asked.cameras.shape[1] > 2:
            raise SfumatoError(
                f"AzimuthInversion learns azimuths, and cameras have {asked.cameras.shape[1]} numbers; give azimuth "
                "and elevation in degrees, or take view-inversion"
            )

    def problem(self, asked: Asked) -> Ring:
        assert asked.cameras is not None
        parts = [Part(asked.lesson, filled(self.templates or OBJECT, asked.word), self.batch)]
        first = {key: rows.repeat(self.azimuths, 1, 1) for key, rows in begun(asked, self.vectors).items()}
        azimuths = asked.cameras[:, 0].float().to(asked.model.device)
        return Ring(
            asked.model, parts, asked.seed, word=asked.word, first=first, azimuths=azimuths, neighbours=self.neighbours
        )

    def concept(self, asked: Asked, problem: Any) -> Concept:
        kept = {key: rows.detach().clone() for key, rows in problem.rows.items()}
        kept |= {"neighbours": torch.tensor(self.neighbours), "usual": torch.zeros(1)}
        return Concept(asked.word, mapper={f"{RING}.{key}": value for key, value in kept.items()})


@dataclass(eq=False)
class Ring(Teaching):
    """The rows (azimuths, k, d) of a word are to make the network see the pictures from where they were seen."""

    word: str = ""
    first: Mapping[str, Float[Tensor, "m k d"]] = field(default_factory=dict)
    azimuths: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    """Of each picture, in degrees."""
    neighbours: int = 1
    name: str = "the word"

    def __post_init__(self) -> None:
        self.rows = nn.ParameterDict({key: nn.Parameter(rows.clone()) for key, rows in self.first.items()})
        self.modules = {"rows": self.rows}
        self.model = self.model.with_words({self.word: {key: rows[0] for key, rows in self.first.items()}})

    def cond(self, taught: Sequence[Taught]) -> Cond:
        seen = self.azimuths[[i for each in taught for i in each.drawn.which]]
        rows = {key: around(own, seen, self.neighbours) for key, own in self.rows.items()}
        return self.model.read([c for each in taught for c in each.captions], {self.word: rows})
