"""Concepts that were learned apart, in one model: weighted, added up, or merged so that each word reads as it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.learning.adapters import HIGH, LOW, SCALE_HIGH, SCALE_LOW, products
from sfumato.learning.concepts import Concept

DOWN, UP = (LOW, SCALE_LOW), (HIGH, SCALE_HIGH)
"""First and second halves of changes that are products."""


def weighted(concept: Concept, weight: float) -> Concept:
    """A concept whose changes count so much; what its word reads as stays."""
    changes = {key: value if key.endswith(DOWN) else weight * value for key, value in concept.changes.items()}
    return replace(concept, changes=changes, about={**concept.about, "weight": weight})


def summed(concepts: Sequence[Concept], weights: Sequence[float] | None = None) -> tuple[Concept, ...]:
    """Concepts whose changes, times their weights, the first one carries; each keeps its word.

    Low-rank changes stay low-rank, of the sum of their ranks. Put all of them on one model, in any order.
    """
    weights = [1.0] * len(concepts) if weights is None else weights
    total: dict[str, Tensor] = {}
    for concept in (weighted(c, w) for c, w in zip(concepts, weights, strict=True)):
        for key, value in concept.changes.items():
            if key not in total:
                total[key] = value
            elif key.endswith((*DOWN, *UP)):
                total[key] = torch.cat([total[key], value], 0 if key.endswith(DOWN) else 1)
            else:
                total[key] = total[key] + value
    return _shared(concepts, total, "sum")


@torch.no_grad()
def merged(
    concepts: Sequence[Concept], model: Any, captions: Sequence[str], *, template: str = "photo of a {}"
) -> tuple[Concept, ...]:
    """Concepts of which all know their words in one model, whose keys and values the first one carries.

    Of each layer the weight that reads the tokens of each concept's word as that concept's own does, and of all such
    the one that reads ``captions``, a few hundred of anything, most as the model does: constrained least squares,
    W = W0 + (V - W0 C^T) (C G^-1 C^T)^-1 C G^-1 with G = R^T R of the captions' tokens R (Kumari et al. 2022,
    section 3.3, in the limit of a small ridge where R does not span the text). ``template``: in which the words are
    read. One concept is itself.

    Raises ``SfumatoError`` for concepts that change other weights than those that read the text, for no captions, and
    for words that together have more vectors than the text is wide.
    """
    if len(concepts) < 2:
        return tuple(concepts)
    if not captions:
        raise SfumatoError("merging keeps how a model reads captions; give some, such as a hundred of other things")
    weights, changes = dict(model.network.named_parameters()), read_otherwise(concepts, model)
    layers = list(dict.fromkeys(key for own in changes for key in own))
    own = [_tokens(concept, model, template) for concept in concepts]
    words = torch.cat(own)
    if len(words) > words.shape[1]:
        raise SfumatoError(f"{len(words)} vectors of words cannot be kept by a text {words.shape[1]} wide; merge fewer")
    seen = torch.cat([model.embed([caption]).text[0].double() for caption in captions])
    gram = seen.T @ seen
    gram += 1e-8 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    ahead = torch.linalg.solve(gram, words.T)  # G^-1 C^T
    pull = torch.linalg.solve(words @ ahead, ahead.T)
    total: dict[str, Tensor] = {}
    for key in layers:
        # V - W0 C^T: what each concept adds to how its own tokens are read
        high = len(weights[key.partition(".")[2]])
        parts = [(change[key].double().to(c) @ c.T) if key in change else c.new_zeros(high, len(c))
                 for change, c in zip(changes, own, strict=True)]  # fmt: skip
        total[key] = (torch.cat(parts, 1) @ pull).float()
    return _shared(concepts, total, "merged")


def read_otherwise(concepts: Sequence[Concept], model: Any) -> list[dict[str, Tensor]]:
    """What each concept adds to the keys and values that the model's network makes of the text, by the weights' names.

    Raises ``SfumatoError`` for one that changes other weights, or was learned with another kind of model.
    """
    weights = dict(model.network.named_parameters())
    changes = [_added(concept, weights) for concept in concepts]
    for concept, own in zip(concepts, changes, strict=True):
        for key, value in own.items():
            weight = weights.get(key.partition(".")[2])
            if weight is None or not _reads_text(key):
                raise SfumatoError(
                    f"{concept.word!r} changes {key!r}, and only keys and values of cross-attention are merged or kept "
                    "to tokens (CustomDiffusion); add concepts up, or keep them apart by where their words look"
                )
            if value.shape != weight.shape:
                raise SfumatoError(
                    f"{concept.word!r} changes {key!r} by {tuple(value.shape)}, which {model.name} has as "
                    f"{tuple(weight.shape)}; it was learned with another kind of model"
                )
    return changes


def _shared(concepts: Sequence[Concept], changes: Mapping[str, Tensor], how: str) -> tuple[Concept, ...]:
    about = {how: [concept.word for concept in concepts]}
    return tuple(
        replace(concept, changes={} if i else changes, about={**concept.about, **about})
        for i, concept in enumerate(concepts)
    )


def _added(concept: Concept, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a concept adds to weights, by their names; also what it multiplies them with, less one."""
    found: dict[str, Tensor] = {}
    for change, value in products(concept.changes).items():
        key = f"{change.removesuffix('scale')}weight" if change.endswith(".scale") else change
        weight = weights.get(key.partition(".")[2])
        if change != key and weight is not None and weight.shape == value.shape:
            value = weight.float() * value.to(weight.device)
        found[key] = found[key] + value if key in found else value
    return found


def _reads_text(key: str) -> bool:
    return key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


def _tokens(concept: Concept, model: Any, template: str) -> Float[Tensor, "k d"]:
    """What the network is given of the tokens of a concept's words, in float64."""
    knows, found = replace(concept, changes={}).on(model), []
    for own in concept.words:
        prompt = template.replace("{}", own)
        text, parts = knows.embed([prompt]).text[0].double(), own.split()
        read = list(knows.words(prompt))
        at = [i for i in range(len(read)) if [word for word, _ in read[i : i + len(parts)]] == parts]
        if not at:
            raise SfumatoError(f"the model does not read {own!r} in {prompt!r} as a word of its own")
        found.append(text[read[at[0]][1].start : read[at[0] + len(parts) - 1][1].stop])
    return torch.cat(found)
