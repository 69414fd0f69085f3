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

from dataclasses import dataclass, replace

import torch

from sfumato.core.settings import Count, Part, Weight, Whole
from sfumato.errors import SfumatoError, whole
from sfumato.learning.concepts import Concept
from sfumato.learning.mapping import MapperLearning, Mappers, made, waves
from sfumato.learning.personal import Asked
from sfumato.methods.personalise.templates import OBJECT


@dataclass(frozen=True)
class NeuralInversion(MapperLearning):
    """Learns a mapper from time and layer to a word's vector."""

    steps: Count = 1000
    batch: Count = 8
    rate: Weight = 8e-3
    hidden: Count = 128
    waves: Count = 1024
    time_spread: Weight = 0.03
    """Standard deviation of the waves along the time, of 1000."""
    dropout: Part = 0.5
    bypass: Weight = 0.2
    anchors: Whole = 10
    """Times at which the first layer's rows begin, for each layer of the network."""

    def problem(self, asked: Asked) -> Mappers:
        total, layers = asked.model.schedule.train_steps, asked.model.text_layers
        times = torch.arange(self.anchors) * total / self.anchors
        anchors = torch.cartesian_prod(times, torch.arange(float(layers)))
        thing = made(
            asked, asked.kind, waves(asked, self.waves, (self.time_spread, self.layer_spread)), hidden=self.hidden,
            begin=self.begin, bypass=self.bypass, anchors=anchors, length=1.0, shift=torch.zeros(2),
            scale=torch.tensor([1000 / total, 1.0]),
        )  # fmt: skip
        return self.taught(asked, {"thing": thing}, OBJECT)


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
