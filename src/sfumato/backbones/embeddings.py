"""Learned words (textual inversion): vectors of one's own that text encoders read for a new word of the prompt.

Files are those of ``sfumato.learning.concept_files``, and what ``sfumato learn`` writes. They are found in prompts as
whole words, large or small, as CLIP does not tell capitals from small letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.backbones import single_file
from sfumato.backbones.text import quietly, token_of
from sfumato.core.settings import check as checked
from sfumato.errors import SfumatoError, finite
from sfumato.learning import concept_files

Vectors = Tensor | Mapping[str, Tensor]
"""Of shape (width) or (n, width); of SDXL by ``clip_l`` and ``clip_g``."""
Embeddings = Mapping[str, str | Path | Vectors] | Sequence[str | Path] | str | Path
"""A file or several, or words with their files or vectors."""
ENCODERS = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
"""Of a pipeline, by the keys that files have."""


def read(file: str | Path) -> tuple[str, Vectors]:
    """The word of a file, and its vectors. Raises ``SfumatoError`` for a file that holds none, or several."""
    file = Path(file).expanduser()
    if file.suffix not in concept_files.PICKLED:
        single_file.tensors(file)  # says what is wrong with it
    tensors = concept_files.tensors(file)
    found = concept_files.words(tensors, file)
    if (other := single_file.is_lora(tensors) or any(key.startswith(concept_files.OWN) for key in tensors)) or len(
        found
    ) != 1:
        what = single_file.instead(tensors) if other else f"it has {', '.join([*tensors][:3])}"
        raise SfumatoError(f"{file} is no embedding, which is one tensor, or clip_l and clip_g: {what}")
    ((word, vectors),) = found.items()
    if any(values.ndim > 2 for values in vectors.values()):
        raise SfumatoError(f"{file} has vectors of each layer; give it as a concept (--concept {file})")
    return word, vectors["clip_l"] if vectors.keys() == {"clip_l"} else vectors


def add(pipe: Any, name: str, embeddings: Embeddings) -> None:
    """Teach the encoders of a pipeline new words. Raises ``SfumatoError`` for what is not of their widths."""
    encoders = {key: parts for key, parts in ENCODERS.items() if getattr(pipe, parts[0], None) is not None}
    widths = {key: getattr(pipe, parts[0]).get_input_embeddings().weight.shape[-1] for key, parts in encoders.items()}
    checked("embeddings", embeddings, Path | Mapping[str, Any] | Sequence[str | Path])
    if isinstance(embeddings, str | Path):
        embeddings = [embeddings]
    if isinstance(embeddings, Mapping):
        found = [(word, read(e)[1] if isinstance(e, str | Path) else e) for word, e in embeddings.items()]
    else:
        found = [read(file) for file in embeddings]
    for word, given in found:
        checked(f"the embedding {word!r}", given, Tensor | Mapping[str, Tensor])
        vectors = {next(iter(widths)): given} if isinstance(given, Tensor) else given
        check(word, vectors, widths, name)
        for key, each in vectors.items():
            encoder, tokenizer = (getattr(pipe, part) for part in encoders[key])
            rows = [*each.reshape(-1, each.shape[-1])]
            tokens = [token_of(word, i) for i in range(len(rows))]
            if tokens[0] in tokenizer.added_tokens_encoder:
                raise SfumatoError(
                    f"{name} has learned {word!r} already; call the other otherwise: FILE:WORD, {{word: file}}"
                )
            with quietly():
                pipe.load_textual_inversion(rows, token=tokens, text_encoder=encoder, tokenizer=tokenizer)


def check(word: str, vectors: Mapping[str, Tensor], widths: Mapping[str, int], name: str) -> None:
    """Refuse what are no vectors, of two encoders not as many, or of other widths than a model of this name reads."""
    shapes = [tuple(each.shape) for each in vectors.values()]
    counts = {len(each) if each.ndim > 1 else 1 for each in vectors.values()}
    if any(len(shape) not in (1, 2) or 0 in shape for shape in shapes) or len(counts) != 1:
        raise SfumatoError(
            f"the embedding {word!r} has the shapes {', '.join(map(str, shapes))}; vectors are (width) or (n, width), "
            "of two encoders as many"
        )
    for each in vectors.values():
        finite(each, f"the embedding {word!r}", "the file is damaged; take another")
    wide = {key: each.shape[-1] for key, each in vectors.items()}
    if wide != widths:
        raise SfumatoError(
            f"the embedding {word!r} is {_widths(wide)} wide, and {name} reads words of {_widths(widths)}; "
            "take one that was learned with this kind of model"
        )


def _widths(wide: Mapping[str, int]) -> str:
    return " and ".join(f"{width} ({key})" if len(wide) > 1 else str(width) for key, width in wide.items())
