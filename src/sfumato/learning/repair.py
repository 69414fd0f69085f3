"""A learned word that outshouts the rest of a prompt is brought nearer to the word that it began with, untrained.

Unbounded optimisation lengthens and turns vectors, until a prompt says little beside them. TEA (test-time embedding
adjustment, Bui et al. 2025, arXiv 2506.22685) takes some of both back: a vector v of a kind's c becomes

    n = (1 - norm) |v| + norm |c|,    slerp(n v / |v|, n c / |c|; rotation)

whose length is n and whose angle to c is (1 - rotation) of what it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept, Rows, padded


def repaired(concept: Concept, model: Any, kind: str = "", rotation: float = 0.2, norm: float = 0.5) -> Concept:
    """The concept with each vector adjusted towards that of its ``kind``; without one, of what it was learned as.

    ``rotation``: part of the angle that is taken back; ``norm``: part of the length. Both lie in [0, 1]; the defaults
    are the authors'. ``rotation=0, norm=1`` repairs lengths alone. The kind's last vector counts for all beyond its
    number. Raises ``SfumatoError`` for a concept without vectors, and one of another kind of model.
    """
    kind = kind or str(concept.about.get("kind", ""))
    if not concept.rows or not kind:
        lacks = "no vectors to repair" if not concept.rows else "no kind; say what it is, such as duck"
        raise SfumatoError(f"the concept {concept.word!r} has {lacks}")
    begun = model.vectors(kind)
    wide = {key: rows.shape[-1] for key, rows in concept.rows.items()}
    if wide != (reads := {key: rows.shape[-1] for key, rows in begun.items()}):
        raise SfumatoError(
            f"the concept {concept.word!r} is {wide} wide, and {model.name} reads words of {reads}; take the model "
            "that it was learned with"
        )
    kinds = {word: kind if word == concept.word else known for word, known in concept.about.get("kinds", {}).items()}
    made, others = _made(concept.rows, begun, rotation, norm), {}
    for word, rows in concept.others.items():
        if not kinds.get(word):
            raise SfumatoError(f"the concept {concept.word!r} does not say of which kind its word {word!r} is")
        others[word] = _made(rows, model.vectors(kinds[word]), rotation, norm)
    about = {**concept.about, "repaired": {"kind": kind, "rotation": rotation, "norm": norm}}
    return replace(concept, rows=made, about=about, others=others)


def _made(rows: Rows, begun: Rows, rotation: float, norm: float) -> dict[str, Tensor]:
    return {key: adjusted(own, padded(begun[key], own.shape[-2]), rotation, norm) for key, own in rows.items()}


def adjusted(
    rows: Float[Tensor, "*of k d"], towards: Float[Tensor, "k d"], rotation: float, norm: float
) -> Float[Tensor, "*of k d"]:
    """TEA of vectors: their lengths and directions moved towards those of others. A zero vector stays."""
    if not (0 <= rotation <= 1 and 0 <= norm <= 1):
        raise SfumatoError(f"rotation and norm of a repair lie between 0 and 1, got {rotation:g} and {norm:g}")
    v, c = rows.double(), towards.to(rows).double().expand_as(rows)
    long, goal = v.norm(dim=-1, keepdim=True), c.norm(dim=-1, keepdim=True)
    a, b = v / long, c / goal
    cosine = (a * b).sum(-1, keepdim=True)
    across = b - cosine * a
    sine = across.norm(dim=-1, keepdim=True)
    angle = torch.where(sine > 1e-9, torch.atan2(sine, cosine), 0)  # along c there is nowhere to turn
    turned = torch.cos(rotation * angle) * a + torch.sin(rotation * angle) * across / sine.clamp_min(1e-9)
    made = ((1 - norm) * long + norm * goal) * turned
    return torch.where((long > 0) & (goal > 0), made, v).to(rows)
