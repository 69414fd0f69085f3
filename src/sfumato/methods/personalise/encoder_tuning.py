"""Encoder-based domain tuning (E4T, Gal et al. 2023, arXiv 2302.12228): an encoder gives the word, a few steps tune it.

An encoder that was taught a domain sees a picture, features of the network and of a CLIP, and says how far the word's
vector is from that of the domain's own word: v = v(kind) + s E(picture), s = 0.1. With it offsets of
attention were learned, W * (1 + high low), by which the network reads such words. Encoder and offsets are
tuned on the new thing for a handful of steps; what is kept is the word and the offsets, and no encoder.

Defaults: the paper's, 15 steps of 16 pictures at a rate of 5e-6, the squared length of the encoder's output counting
0.1 (``sfumato train-encoder`` before it: 100 000 steps of 16 at 1.6e-5, 0.01). Its authors published no code; different
from the one public implementation: what it penalises is the whole word, summed over a batch, here the offset alone, its
mean; it tunes all weights of the network (``--network``); it mixes CLIP's tokens where layers are meant, here it is the
CLIP's image feature; the vectors of an offset pass two linear layers there, which give such vectors again.
Different from both: features are those of one level of noise under the empty prompt, not of the picture that is being
painted at its time, so that the word is a word in a file; of several pictures it is the mean.

Needs: half of a network call for each picture, and a forward and a backward pass for each picture of a step.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from sfumato.core.settings import Between, Count, LesserPart, Weight
from sfumato.learning import tuning
from sfumato.learning.concepts import Concept
from sfumato.learning.encoders import offset
from sfumato.learning.encoding import Encoding
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.teaching import Part, filled


@dataclass(frozen=True)
class EncoderTuning(Personalisation):
    """Tunes a word that an encoder gives, and how attention reads it."""

    wants_encoder: ClassVar[bool] = True
    mirrors: ClassVar[bool] = False  # a handful of steps sees few of them, and each takes as long as a picture
    steps: Count = 15
    rate: Weight = 5e-6
    """Of AdamW, for the encoder."""
    weights_rate: Weight | None = None
    """Of the offsets of weights, or of the weights; none: the same."""
    batch: Annotated[int, Between(1, 4096)] = 16
    """Pictures of a step."""
    penalty: Weight = 0.1
    """What the squared length of the encoder's offset counts."""
    network: bool = False
    """Do all weights of the network learn, in the place of their offsets?"""
    since: LesserPart = 0.0
    """Levels below this part of all times are not learned from."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Captions, with {} for the word."""

    def problem(self, asked: Asked) -> Encoding:
        begun = asked.encoder
        assert begun is not None
        begun.check(asked.model)
        encoder = deepcopy(begun.encoder).to(asked.model.device).requires_grad_(True).train()
        if self.network:
            tuning.check(asked.model, type(self).__name__)
            changed = asked.model.with_changes(begun.offsets)
            model, moved = tuning.copies(changed, tuning.parts_of(changed))
            learns = {part: tuning.Weights(named) for part, named in moved.items()}
        else:
            model, offsets = offset(asked.model, begun.offsets)
            learns = {"offsets": offsets}
        problem = Encoding(
            model, [Part(asked.lesson, filled(self.templates, asked.word), self.batch)], asked.seed, encoder=encoder,
            features=begun.features(asked.model, asked.lesson), first=begun.first(asked.model), scale=begun.scale,
            penalty=self.penalty, together=True, since=self.since, weights_of=learns, word=asked.word,
        )  # fmt: skip
        if self.weights_rate is not None:
            problem.rates = dict.fromkeys(learns, self.weights_rate)
        return problem

    def concept(self, asked: Asked, problem: Any) -> Concept:
        rows = {key: value.detach() for key, value in problem.rows(problem.offsets(())).items()}
        if self.network:
            moved = {part: own.named for part, own in problem.weights_of.items()}
            return Concept(asked.word, rows, tuning.differences(asked.model, moved))
        changes = {name: value.detach().clone() for name, value in problem.weights_of["offsets"].named.items()}
        return Concept(asked.word, rows, changes)


WHOLE_NETWORK = EncoderTuning(network=True)
"""The public implementation: all weights of the network are tuned."""
