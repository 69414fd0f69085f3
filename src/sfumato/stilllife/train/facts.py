"""What a caption states as labels, and linear readers of them that teach embeddings who has which colour.

Contrast alone learns the binding of colours to things last: a batch seldom holds two captions that differ in nothing
else. Readers that must tell each thing's colour ask for it in every caption. They are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.stilllife import networks
from sfumato.stilllife.captions import PLURALS, Said, parse
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.scene import COLOURS, GROUNDS, LIGHTS, MATERIALS, SIZES, STYLES

PLACES = {  # of the first and the second thing
    "left of": (0, 1),
    "right of": (1, 0),
    "in front of": (2, 3),
    "behind": (3, 2),
    "on top of": (4, 5),
}
UNSAID = -100  # cross_entropy's label for "no label"
ABSENT = len(COLOURS)
_TRAITS = (len(COLOURS) + 1, len(MATERIALS) + 1, len(SIZES) + 1)  # each with "not said"
_WIDTHS = (*(ABSENT + 1,) * len(TRAINED), *(6,) * len(TRAINED), len(GROUNDS), len(LIGHTS), len(STYLES))


class Facts(nn.Module):
    """Reads from an embedding of an image or a text each kind's colour (or absence) and place, and the world."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(_WIDTHS)))

    def loss(self, embedding: Float[Tensor, "b d"], facts: Int[Tensor, "b facts"]) -> Float[Tensor, ""]:
        """Cross entropy of what is said, summed over an image's facts; that a kind is absent weighs a tenth."""
        logits = self.read(embedding.float()).split(_WIDTHS, 1)
        loss = torch.zeros((), device=embedding.device)
        for k, part in enumerate(logits):
            weight = torch.ones(part.shape[1], device=part.device)
            if k < len(TRAINED):
                weight[ABSENT] = 0.1
            loss = loss + F.cross_entropy(part, facts[:, k], weight, ignore_index=UNSAID, reduction="sum")
        return loss / len(embedding)


class Nouns(nn.Module):
    """Reads from the hidden state of a noun's token the colour, material and size of the thing it names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(_TRAITS)))

    def loss(self, hidden: Float[Tensor, "b n d"], nouns: Int[Tensor, "b n 3"]) -> Float[Tensor, ""]:
        """Cross entropy, summed over the traits, averaged over the nouns."""
        at = (nouns != UNSAID).any(-1)
        parts = self.read(hidden[at].float()).split(_TRAITS, 1)
        terms = [F.cross_entropy(p, nouns[at][:, k], ignore_index=UNSAID) for k, p in enumerate(parts)]
        return torch.stack(terms).sum()


def facts(captions: Sequence[str]) -> Int[Tensor, "b facts"]:
    """The labels of captions; what a caption leaves open is ``UNSAID``."""
    return torch.tensor([_labels(parse(text)) for text in captions])


def _labels(stated: Said) -> list[int]:
    colours, places = dict.fromkeys(TRAINED, ABSENT), dict.fromkeys(TRAINED, UNSAID)
    kinds = [thing.kind for thing in stated.things]
    for thing in stated.things:
        clear = thing.colour is not None and kinds.count(thing.kind) == 1
        colours[thing.kind] = COLOURS.index(thing.colour) if clear and thing.colour else UNSAID
    if stated.relation is not None and kinds[0] != kinds[1]:
        places[kinds[0]], places[kinds[1]] = PLACES[stated.relation]
    world = ((GROUNDS, stated.ground), (LIGHTS, stated.light), (STYLES, stated.style))
    return [*colours.values(), *places.values(), *(UNSAID if w is None else of.index(w) for of, w in world)]


def nouns(captions: Sequence[str], ids: Int[Tensor, "b n"]) -> Int[Tensor, "b n 3"]:
    """What is said of the thing that each token names; ``UNSAID`` at all other tokens, and where two share the name."""
    named = _nouns()
    out = torch.full((*ids.shape, len(_TRAITS)), UNSAID)
    for row, text in enumerate(captions):
        things = parse(text).things
        kinds = [thing.kind for thing in things]
        traits_of = {t.kind: (t.colour, t.material, t.size) for t in things if kinds.count(t.kind) == 1}
        for place, token in enumerate(ids[row].tolist()):
            if (traits := traits_of.get(named.get(token, ""))) is not None:
                known = zip(traits, (COLOURS, MATERIALS, tuple(SIZES)), strict=True)
                out[row, place] = torch.tensor([len(of) if w is None else of.index(w) for w, of in known])
    return out


@cache
def _nouns() -> dict[int, str]:
    """Token -> the kind it names."""
    number: Any = networks.tokenizer().convert_tokens_to_ids
    return {number(f"{word}</w>"): kind for kind in TRAINED for word in (kind, PLURALS[kind])}
