"""Files in which programs keep learned words: which words are in one, and how a word is written for another.

| layout | tensors | the word |
|---|---|---|
| diffusers | ``{word: vectors}`` | in the file |
| A1111 | ``emb_params``, pickled ``string_to_param`` | the file's name |
| SDXL | ``clip_l`` and ``clip_g``, one for each encoder | the file's name |
| kohya's XTI | ``IN01`` ... ``OUT11``, one for each layer that reads the text | the file's name |
| kohya's LoRA | ``bundle_emb.WORD.emb_params``, beside the changes | in the file |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError, unknown
from sfumato.io import archives
from sfumato.learning.checkpoint import read as read_safetensors

Format = Literal["diffusers", "a1111", "sdxl", "xti"]
"""What a word is written as."""
Rows = Mapping[str, Float[Tensor, "*layers k d"]]
PICKLED = {".pt", ".pth", ".bin", ".ckpt"}
"""Ends of files that are read without unpickling (``sfumato.io.archives``)."""
LAYERS = ("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{i:02}" for i in range(3, 12)))
"""Stable Diffusion 1's layers that read the text, as kohya calls them, in the order in which they run."""
OWN = ("rows.", "changes.")
"""Before the names of tensors in a file of ``Concept.save``."""
_ENCODERS = ("clip_l", "clip_g")
_OLD = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}  # as diffusers once wrote them
_BUNDLED = re.compile(r"^bundle_emb\.(?P<word>.+?)\.(?P<kind>clip_l|clip_g|emb_params|string_to_param\.\*)$")
_NAMELESS = re.compile(r"emb_params|string_to_param\.(_parameters\.)?[^.]+")


def tensors(file: str | Path) -> dict[str, Tensor]:
    """What is in a file by its names. Raises ``SfumatoError`` for one that is damaged, or holds more than tensors."""
    file = Path(file).expanduser()
    return archives.tensors(file) if file.suffix in PICKLED else read_safetensors(file)[0]


def words(found: Mapping[str, Tensor], file: str | Path) -> dict[str, dict[str, Tensor]]:
    """The words among a file's tensors, with their vectors (k, d) or (layers, k, d) by encoder; none in another file.

    A tensor of one encoder alone is that of ``clip_l``. ``file`` names words that have no name in it.
    """
    stem = Path(file).stem
    named = {_OLD.get(key, key): values for key, values in found.items()}
    if named and named.keys() <= {*_ENCODERS}:
        return {stem: {key: _rows(values) for key, values in named.items()}}
    if named.keys() == {*LAYERS}:
        return {stem: {"clip_l": torch.stack([_rows(named[layer]) for layer in LAYERS])}}
    if inside := bundled(named)[0]:
        return {word: {key: _rows(values) for key, values in rows.items()} for word, rows in inside.items()}
    nameless = [key for key in named if _NAMELESS.fullmatch(key)]
    if len(nameless := [key for key in nameless if key.endswith(".*")] or nameless) == 1:
        return {stem: {"clip_l": _rows(named[nameless[0]])}}
    if any(key.startswith(OWN) for key in named):
        return {}
    if len(named) == 1 or (named and all(re.fullmatch(r"<.+>", key) for key in named)):
        return {word: {"clip_l": _rows(values)} for word, values in named.items()}
    return {}


def bundled(found: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Words beside the changes of a LoRA, and what else is in it."""
    inside: dict[str, dict[str, Tensor]] = {}
    for key, values in found.items():
        if match := _BUNDLED.match(key):
            kind = match["kind"] if match["kind"] == "clip_g" else "clip_l"
            inside.setdefault(match["word"], {})[kind] = values
    return inside, {key: values for key, values in found.items() if not _BUNDLED.match(key)}


def laid(word: str, rows: Rows, format: Format) -> dict[str, Tensor]:
    """A word's vectors under another program's names. ``SfumatoError`` for those that it has no place for."""
    if format not in get_args(Format):
        raise unknown("format", format, get_args(Format))
    deep = next(iter(rows.values())).ndim
    fit = {
        "diffusers": (deep == 2 and {*rows} == {"clip_l"}, "the same vectors everywhere, of one encoder"),
        "a1111": (deep == 2 and {*rows} == {"clip_l"}, "the same vectors everywhere, of one encoder"),
        "sdxl": (deep == 2 and {*rows} == {*_ENCODERS}, "the same vectors everywhere, of SDXL's two encoders"),
        "xti": (
            deep == 3 and {*rows} == {"clip_l"} and len(rows["clip_l"]) == len(LAYERS),
            f"vectors for each of Stable Diffusion 1's {len(LAYERS)} layers",
        ),
    }
    sound, holds = fit[format]
    if not sound:
        shapes = ", ".join(f"{key} {tuple(values.shape)}" for key, values in rows.items())
        fits = [name for name, (fitting, _) in fit.items() if fitting]
        raise SfumatoError(
            f"{format} holds {holds}, and {word!r} has {shapes}; {f'take {fits[0]}' if fits else 'it fits no format'}"
        )
    if format == "sdxl":
        return dict(rows)
    if format == "xti":
        return dict(zip(LAYERS, rows["clip_l"], strict=True))
    return {word if format == "diffusers" else "emb_params": rows["clip_l"]}


def _rows(values: Tensor) -> Tensor:
    return (values[None] if values.ndim == 1 else values).float()
