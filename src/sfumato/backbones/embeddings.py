"""Learned words (textual inversion): vectors of one's own that text encoders read for a new word of the prompt.

Files are safetensors of diffusers (``{word: vectors}``), of A1111 (``emb_params``; the word is the file's name), or of
SDXL (``clip_l`` and ``clip_g``, for its two encoders).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.backbones.folder import WEIGHTS
from sfumato.backbones.text import quietly
from sfumato.errors import SfumatoError, first_line

Vectors = Tensor | Mapping[str, Tensor]
"""Of shape (width) or (n, width); of SDXL by ``clip_l`` and ``clip_g``."""
Embeddings = Mapping[str, str | Path | Vectors] | Sequence[str | Path]
"""Files, or words with their files or vectors."""
_ENCODERS = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}


def read(file: str | Path) -> tuple[str, Vectors]:
    """The word of a file, and its vectors. Raises ``SfumatoError`` for a file that holds none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(file)
    if file.suffix in WEIGHTS - {".safetensors"}:
        raise SfumatoError(
            f"{file} is pickled, which is not read; write it as safetensors once: x = torch.load(FILE, "
            "weights_only=True); safetensors.torch.save_file({'emb_params': x['string_to_param']['*'].detach()} if "
            "'string_to_param' in x else x, NEW)"
        )
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as e:
        raise SfumatoError(f"{file} cannot be read as an embedding: {first_line(e)}") from e
    if tensors and tensors.keys() <= _ENCODERS.keys():
        return file.stem, tensors
    if len(tensors) != 1:
        raise SfumatoError(
            f"{file} is no embedding: of that there is one tensor, or clip_l and clip_g, and it has {len(tensors)} "
            f"({', '.join([*tensors][:3]) or 'none'}, ...)"
        )
    ((name, vectors),) = tensors.items()
    return (file.stem if name == "emb_params" else name), vectors


def add(pipe: Any, name: str, embeddings: Embeddings) -> None:
    """Teach the encoders of a pipeline new words. Raises ``SfumatoError`` for what is not of their widths."""
    encoders = {key: parts for key, parts in _ENCODERS.items() if getattr(pipe, parts[0], None) is not None}
    widths = {key: getattr(pipe, parts[0]).get_input_embeddings().weight.shape[-1] for key, parts in encoders.items()}
    if isinstance(embeddings, Mapping):
        found = [(word, read(e)[1] if isinstance(e, str | Path) else e) for word, e in embeddings.items()]
    else:
        found = [read(file) for file in embeddings]
    for word, given in found:
        vectors = {next(iter(widths)): given} if isinstance(given, Tensor) else given
        wide = {key: each.shape[-1] for key, each in vectors.items()}
        if wide != widths:
            raise SfumatoError(
                f"the embedding {word!r} is {_widths(wide)} wide, and {name} reads words of {_widths(widths)}; "
                "take one that was learned with this kind of model"
            )
        for key, each in vectors.items():
            encoder, tokenizer = (getattr(pipe, part) for part in encoders[key])
            try:
                with quietly():
                    pipe.load_textual_inversion(each, token=word, text_encoder=encoder, tokenizer=tokenizer)
            except ValueError as e:
                raise SfumatoError(f"{name} cannot learn {word!r}: {first_line(e)}") from e


def _widths(wide: Mapping[str, int]) -> str:
    return " and ".join(f"{width} ({key})" if len(wide) > 1 else str(width) for key, width in wide.items())
