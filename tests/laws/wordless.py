"""How the methods of the tables are asked of a model that reads no words, and which of them cannot be."""

from __future__ import annotations

from dataclasses import replace
from inspect import isfunction
from typing import Any

from laws import painting, reading
from laws.painting import Row

from sfumato.methods.edit import CrossImageAttention, DiffEdit, EyeForAnEye, MasaCtrl

EMPTY = {stream: ("", "") for stream in painting.SAID}
BY_WORDS = {
    *("collaborative-editing", "delta-denoising", "flow-edit", "ledits", "prompt-to-prompt", "attend-and-excite"),
    *("box-diff", "dense-diffusion", "given-attention", "layout-guidance", "linguistic-binding", "llm-grounded"),
    *("consi-story", "fate-zero", "region-prompts", "rich-text", "self-guidance", "spatial-temporal"),
    "structured-diffusion",
}
WORDLESS = {
    "cross-image-attention": CrossImageAttention(fine=(0, 1), coarse=(0, 1), adain=(0.5, 1)),
    "diff-edit": DiffEdit(painting.LEFT, strength=1.0, steps=2),
    "eye-for-an-eye": EyeForAnEye(tokens=(0, 1), adain=(0.5, 1), every=0),
    "masactrl": MasaCtrl(after=0.0, layer=0.0),
}
"""Settings that name no word, of methods that may be given some."""


def settings(model: Any, row: Row) -> Any:
    on = WORDLESS.get(row.word.partition(":")[0], row.on)
    on = on(model) if isfunction(on) else on
    return replace(on, cross=0.0) if row.word.startswith("feature-transfer") else on


PAINTING = [
    word
    for word, row in painting.ROWS.items()
    if row.views is None
    and row.families in (painting.ALL, painting.CROSS, painting.UNETS)
    and word.partition(":")[0] not in BY_WORDS
]
"""Rows of methods that it is asked for."""
READING_WORDS = ("pacl", "text-attribution", "prompt-embeddings", "unsupervised-keypoints")
"""Methods that read images by words."""
READING = [word for word, row in reading.ROWS.items() if row.families and word not in READING_WORDS]
