"""Neural textual inversion (NeTI, Alaluf et al. 2023, arXiv 2305.15391): a small network gives the word's vectors.

A mapper reads the time and the layer and gives the vector that the text encoder reads for the word (section 4.1), and
a second one that goes around the encoder: it is added to what the encoder makes of the word, for values alone, so that
keys, which place the thing, stay with the word (section 4.2). Nested dropout orders the mapper's hidden numbers, so
that fewer of them are a simpler, easier edited concept (section 4.3; ``simpler``).

Defaults: the paper's and its authors' code's: 1000 steps of 2 pictures four times, at a rate of 1e-3 times 8. As in the
code the bypass is added before the encoder's last norm. Different from it: the word's vector alone has the length of
the kind's, where the code gives that length to word and bypass together; the random waves are no parameters.

Needs: as extended textual inversion; painting reads the text encoder for all layers at each time, once a prompt.

Families: Stable Diffusion 1, 2, XL. XL's text passes no last norm: its length is kept instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.core.conditions import Cond
from sfumato.errors import SfumatoError, whole
from sfumato.learning.concepts import Concept
from sfumato.learning.mappers import PARTS, Mapped, Mapper, named
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Part, Taught, Teaching, filled
from sfumato.methods.personalise.templates import OBJECT

WAVES, DROPPED = -1, -2
"""What a generator is for, beside a step."""


@dataclass(frozen=True)
class NeuralInversion(Personalisation):
    """Learns a mapper from time and layer to a word's vector."""

    steps: int = 1000
    """How often the mapper moves."""
    batch: int = 8
    """Pictures of a step."""
    rate: float = 8e-3
    """Of AdamW."""
    hidden: int = 128
    """Width of the mapper."""
    waves: int = 1024
    """Fourier features are twice as many."""
    time_spread: float = 0.03
    """Standard deviation of the waves along the time, of 1000."""
    layer_spread: float = 2.0
    """Along the layers."""
    anchors: int = 10
    """Times at which the first layer's rows begin, for each layer of the network."""
    dropout: float = 0.5
    """How often hidden numbers are dropped from a random one on."""
    bypass: float = 0.2
    """Length of what goes around the text encoder, in parts of what that gives; 0: nothing does."""
    templates: tuple[str, ...] = ()
    """Other captions than those of objects, with {} for the word."""

    def problem(self, asked: Asked) -> Mappers:
        total, layers = asked.model.schedule.train_steps, asked.model.text_layers
        spread = torch.tensor([self.time_spread, self.layer_spread])
        waves = torch.randn(self.waves, 2, generator=generator(asked.seed, WAVES)) * spread
        times = torch.arange(self.anchors) * total / self.anchors
        anchors = torch.cartesian_prod(times, torch.arange(float(layers)))
        thing = made(
            asked, asked.kind, waves, hidden=self.hidden, bypass=self.bypass, anchors=anchors, length=1.0,
            shift=torch.zeros(2), scale=torch.tensor([1000 / total, 1.0]),
        )  # fmt: skip
        parts = [Part(asked.lesson, filled(self.templates or OBJECT, asked.word), self.batch)]
        return Mappers(asked.model, parts, asked.seed, word=asked.word, mappers={"thing": thing}, dropout=self.dropout)

    def concept(self, asked: Asked, problem: Any) -> Concept:
        return Concept(asked.word, mapper=named(problem.modules))


def simpler(concept: Concept, kept: int) -> Concept:
    """A concept of whose mappers' hidden numbers only so many first ones count (section 4.3, at inference).

    With fewer it follows the rest of a prompt better and its pictures less. Raises ``SfumatoError`` for a concept
    without mappers and for more numbers than it has.
    """
    outs = [key for key in concept.mapper if ".out." in key and key.endswith(".weight")]
    most = min((concept.mapper[key].shape[1] for key in outs), default=0)
    if not outs:
        raise SfumatoError(f"{concept.word!r} has no mapper; neural-inversion and view-inversion learn one")
    whole("hidden numbers that are kept", kept, 1, most)
    cut = {key: torch.cat([concept.mapper[key][:, :kept], 0 * concept.mapper[key][:, kept:]], 1) for key in outs}
    return replace(concept, mapper={**concept.mapper, **cut}, about={**concept.about, "kept": kept})


def made(asked: Asked, kind: str, waves: Tensor, **options: Any) -> Mapper:
    """A mapper for a model, whose vectors are as long as that of the last word of a kind; a function of the seed."""
    rows = asked.model.vectors(kind)
    widths = {key: own.shape[-1] for key, own in rows.items()}
    norms = {key: float(own[-1].norm()) for key, own in rows.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        model = asked.model
        options |= {"layers": model.text_layers, "total": model.schedule.train_steps}
        return Mapper(widths, norms, waves, **options).to(model.device)


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
            rng, shape = generator(self.seed, DROPPED, step, part), (rows, int(mapper.layers))
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
