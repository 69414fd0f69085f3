"""The run in which mappers learn what a word is read as by time, layer and camera; the settings that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.conditions import Cond
from sfumato.core.settings import Between, Count, Weight
from sfumato.learning.concepts import Concept
from sfumato.learning.mappers import PARTS, Mapped, Mapper, named
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Part, Taught, Teaching, filled

WAVES, DROPPED = -1, -2
"""What a generator is for, beside a step."""


@dataclass(frozen=True)
class MapperLearning(Personalisation):
    """A way to teach mappers: the settings that they share."""

    steps: Count
    """How often the mappers move."""
    batch: Count
    """Pictures of a step."""
    rate: Weight
    """Of AdamW."""
    hidden: Count
    """Width of a mapper."""
    waves: Count
    """Fourier features are twice as many."""
    time_spread: Weight
    layer_spread: Weight = 2.0
    """Standard deviation of the waves along the layers; 0: all read the same, at the cost of one."""
    begin: Literal["noise", "kind"] = "noise"
    """What a thing's mapper gives at first: anything of the length of the kind's vector, or nearly that itself."""
    dropout: Annotated[float, Between(0, 1)] = 0.0
    """How often hidden numbers are dropped from a random one on."""
    bypass: Weight = 0.0
    """Length of what goes around the text encoder, in parts of what that gives; 0: nothing does."""
    templates: tuple[str, ...] = ()
    """Other captions than those of objects, with {} for the word."""

    def taught(
        self, asked: Asked, mappers: dict[str, Mapper], templates: Sequence[str], cameras: Tensor | None = None
    ) -> Mappers:
        """The run of these mappers, under its own templates or these."""
        parts = [Part(asked.lesson, filled(self.templates or templates, asked.word), self.batch)]
        return Mappers(
            asked.model, parts, asked.seed, word=asked.word, mappers=mappers, dropout=self.dropout, cameras=cameras
        )

    def concept(self, asked: Asked, problem: Any) -> Concept:
        return Concept(asked.word, mapper=named(problem.modules))


def waves(asked: Asked, n: int, spread: Sequence[float]) -> Float[Tensor, "n i"]:
    """Normal random waves, of a standard deviation along each input; a function of the seed."""
    return torch.randn(n, len(spread), generator=generator(asked.seed, WAVES)) * torch.tensor(spread)


def made(asked: Asked, kind: str, waves: Tensor, begin: str = "noise", **options: Any) -> Mapper:
    """A mapper for a model, whose vectors are as long as that of the last word of a kind, and begin near it where
    ``begin`` is ``kind``; a function of the seed."""
    rows = asked.model.vectors(kind)
    widths = {key: own.shape[-1] for key, own in rows.items()}
    norms = {key: float(own[-1].norm()) for key, own in rows.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        model = asked.model
        options |= {"layers": model.text_layers, "total": model.schedule.train_steps}
        found = Mapper(widths, norms, waves, **options).to(model.device)
    if begin == "kind":
        found.begins_as(rows)
    return found


@dataclass(eq=False)
class Mappers(Teaching):
    """The mappers of a word are to make the network see the pictures."""

    word: str = ""
    mappers: dict[str, Mapper] = field(default_factory=dict)
    """By ``PARTS``, in their order."""
    dropout: float = 0.0
    cameras: Tensor | None = None
    """Of each picture."""
    name: str = "the word's mapper"

    def __post_init__(self) -> None:
        self.modules = {part: self.mappers[part] for part in PARTS if part in self.mappers}
        self.all = [self.mappers[part] for part in self.modules]
        camera = None if self.cameras is None else self.cameras[0]
        with torch.no_grad():
            plain = Mapped(self.all, camera).plain
        self.model = self.model.with_words({self.word: plain})

    def kept(self, step: int, rows: int) -> list[Tensor | None]:
        """How many hidden numbers each mapper keeps, of each row and layer: all, or as many as chance has it."""
        if not self.dropout:
            return [None] * len(self.all)
        out: list[Tensor | None] = []
        for part, mapper in enumerate(self.all):
            rng, shape = generator(self.seed, DROPPED, step, part), (rows, mapper.apart)
            dropped = torch.rand(shape, generator=rng) < self.dropout
            some = torch.randint(mapper.hidden, shape, generator=rng)
            out.append(torch.where(dropped, some, mapper.hidden).to(mapper.waves.device))
        return out

    def cond(self, taught: Sequence[Taught]) -> Cond:
        captions = [c for each in taught for c in each.captions]
        which = [i for each in taught for i in each.drawn.which]
        cameras = None if self.cameras is None else self.cameras[which]
        own = Mapped(self.all, cameras, self.kept(taught[0].step, len(captions)))
        return self.model.read(captions, {self.word: own})
