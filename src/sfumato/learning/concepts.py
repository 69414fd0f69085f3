"""What a model was taught, as one safetensors file: a word, the vectors that it is read as, what the network became.

``Concept.on(model)`` is the model that knows it; the model itself stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError, finite, unknown
from sfumato.io.files import from_json, save_tensors, shared
from sfumato.learning import concept_files
from sfumato.learning.checkpoint import header_of, read
from sfumato.learning.mappers import read_as, seen_from

HEADER = "sfumato concept"
Rows = Mapping[str, Float[Tensor, "*of k d"]]
"""By the encoder's key: clip_l, clip_g."""


@dataclass(frozen=True)
class PerLayer(Brief):
    """A word whose vectors are each layer's own (P+, Voynov et al. 2023)."""

    rows: Mapping[str, Float[Tensor, "layers k d"]]
    timed: bool = False

    @property
    def plain(self) -> Mapping[str, Float[Tensor, "k d"]]:
        """The mean of all layers', for what reads the text once."""
        return {key: rows.mean(0) for key, rows in self.rows.items()}

    def at(self, t: Float[Tensor, " b"], layers: int) -> tuple[Mapping[str, Float[Tensor, "b layers k d"]], None]:
        _check_layers(len(next(iter(self.rows.values()))), layers)
        return {key: rows.expand(len(t), *rows.shape) for key, rows in self.rows.items()}, None


def _check_layers(has: int, layers: int) -> None:
    if has != layers:
        raise SfumatoError(
            f"the concept has vectors for {has} layers that read the text, and this model has {layers}; take one "
            "that was learned with a model of this kind"
        )


@dataclass(frozen=True)
class PerTime(Brief):
    """A word whose vectors change with time (multiresolution textual inversion, Daras & Dimakis 2022).

    Of n sets of vectors, the i-th is read at times t with ``int(t / total * n) = i``.
    """

    rows: Mapping[str, Float[Tensor, "n layers k d"]]
    """Of all layers alike where there is one."""
    total: float
    """Steps that the network was trained on."""
    timed: bool = True

    @property
    def plain(self) -> Mapping[str, Float[Tensor, "k d"]]:
        """The mean of all times' and layers', for what reads the text once."""
        return {key: rows.mean((0, 1)) for key, rows in self.rows.items()}

    def at(self, t: Float[Tensor, " b"], layers: int) -> tuple[Mapping[str, Float[Tensor, "b layers k d"]], None]:
        first = next(iter(self.rows.values()))
        if first.shape[1] != 1:
            _check_layers(first.shape[1], layers)
        which = bins(t, self.total, len(first))
        return {key: rows[which] for key, rows in self.rows.items()}, None


def padded(rows: Float[Tensor, "n d"], k: int) -> Float[Tensor, "k d"]:
    """The first k vectors, the last as often as it takes."""
    return torch.cat([rows, rows[-1:].expand(k, -1)])[:k].clone()


def bins(t: Float[Tensor, " b"], total: float, n: int) -> Int[Tensor, " b"]:
    """Which of n parts of all times these lie in; the first has no noise."""
    return (t.double() / total * n).long().clamp(0, n - 1).cpu()


@dataclass(frozen=True, eq=False)
class Concept(Brief):
    """A word, or several that were learned together, and what they stand for in one kind of model."""

    word: str
    rows: Rows = field(default_factory=dict)
    """Vectors (k, d); of each layer that reads the text (layers, k, d); of each part of all times and each layer, or
    one for all layers (times, layers, k, d)."""
    changes: Mapping[str, Tensor] = field(default_factory=dict)
    """Of weights, by the pipeline's part and the weight's name, as ``Latent.with_changes`` reads them."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it came to be: model, method, steps, seed."""
    mapper: Mapping[str, Tensor] = field(default_factory=dict)
    """What gives the word's vectors by time, layer and camera, in the place of rows (``sfumato.learning.mappers``)."""
    others: Mapping[str, Rows] = field(default_factory=dict)
    """Further words that were learned with it, and their vectors."""

    @property
    def words(self) -> tuple[str, ...]:
        """All that it teaches."""
        return (self.word, *self.others)

    def on(self, model: Any) -> Any:
        """A model that knows all of it. Raises ``SfumatoError`` for a model of another kind."""
        if self.changes:
            model = model.with_changes(self.changes)
        if self.mapper:
            return model.with_words({self.word: read_as(self.mapper)})
        if not self.rows:
            return model
        kinds = {3: PerLayer, 4: partial(PerTime, total=model.schedule.train_steps)}
        own = {self.word: self.rows, **self.others}
        return model.with_words({w: kinds.get(next(iter(of.values())).ndim, dict)(of) for w, of in own.items()})

    def called(self, *words: str) -> Concept:
        """The same by another word, or by as many as it holds. Raises ``SfumatoError`` for another number."""
        if len(words) != len(self.words) or len(set(map(checked, words))) != len(words):
            raise SfumatoError(
                f"the concept holds {', '.join(self.words)}, and as many other words rename it, with commas between "
                f"them; got {', '.join(words)}"
            )
        others = dict(zip(map(checked, words[1:]), self.others.values(), strict=True))
        return replace(self, word=checked(words[0]), others=others)

    def seen_from(self, *camera: float) -> Concept:
        """The same as seen from there: azimuth and elevation in degrees, or whatever numbers it was learned with.

        Those that are left out are the mean of what it was learned from. Raises ``SfumatoError`` for one that was
        learned without cameras, for too many numbers and for what is not finite.
        """
        return replace(self, mapper=seen_from(self.mapper, camera))

    def resolved(self, how: Literal["fully", "semi", "fixed"], i: int) -> Concept:
        """Of a word that changes with time one of its published readings (Daras & Dimakis 2022).

        ``fully``, ``<S[i]>``: its i-th vectors below the i-th part of all times, above it those of the time, so that 0
        is the word itself; ``semi``, ``<S(i)>``: zeros up to the i-th part; ``fixed``, ``<S|i|>``: the i-th at any
        time. Raises ``SfumatoError`` for a word that does not change, and a part that it does not have.
        """
        n = len(next(iter(self.rows.values()))) if self.timed else 0
        if not 0 <= i < n:
            raise SfumatoError(f"{self.word!r} has {n} resolutions, got the number {i}; sfumato learn --resolutions 10")
        parts = torch.arange(n)

        def read_as(rows: Tensor) -> Tensor:
            if how == "fixed":
                return rows[i, 0] if rows.shape[1] == 1 else rows[i]
            if how == "fully":
                return rows[parts.clamp_min(i)]
            return rows * (parts > i)[:, None, None, None]

        return replace(self, rows={key: read_as(rows) for key, rows in self.rows.items()})

    @property
    def timed(self) -> bool:
        """Does it change with time?"""
        return any(rows.ndim == 4 for rows in self.rows.values())

    def export(self, path: str | Path, format: concept_files.Format) -> None:
        """Write the word for another program: whole or not at all.

        ``diffusers``: ``{word: vectors}``; ``a1111``: ``emb_params``, ``sdxl``: ``clip_l`` and ``clip_g``, ``xti``:
        a tensor for each layer, the word being the file's name. Raises ``SfumatoError`` for what the format has no
        place for.
        """
        if self.changes or self.others or not self.rows:
            what = "changes weights" if self.changes else "is one of several" if self.others else "is given by a mapper"
            raise SfumatoError(f"{format} holds vectors of a word alone, and {self.word!r} {what}")
        save_tensors(path, concept_files.laid(self.word, self.rows, format))

    def save(self, path: str | Path) -> None:
        """Write it; whole or not at all."""
        tensors = {f"rows.{k}": v for k, v in self.rows.items()} | {f"changes.{k}": v for k, v in self.changes.items()}
        tensors |= {f"mapper.{k}": v for k, v in self.mapper.items()}
        if not tensors:
            raise SfumatoError(f"the concept {self.word!r} holds nothing that was learned")
        header: dict[str, Any] = {"word": self.word, "about": dict(self.about)}
        if self.others:
            header["others"] = list(self.others)
            tensors |= {f"others.{i}.{k}": v for i, of in enumerate(self.others.values()) for k, v in of.items()}
        save_tensors(path, tensors, {HEADER: json.dumps(shared(header))})

    @classmethod
    def load(cls, path: str | Path) -> Concept:
        """Read it. Raises ``SfumatoError`` for a file that is damaged, or no concept."""
        path = _file(path)
        tensors, header = read(path)
        return cls._made(path, tensors, header)

    @classmethod
    def _made(cls, path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Concept:
        (word, *further), about = _of_header(path, header)
        others: dict[str, dict[str, Tensor]] = {other: {} for other in further}
        parts: dict[str, dict[str, Tensor]] = {"rows": {}, "changes": {}, "mapper": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part == "others" and (found := re.fullmatch(r"(\d+)\.(.+)", name)) and int(found[1]) < len(others):
                list(others.values())[int(found[1])][found[2]] = value
                continue
            if part not in parts:
                raise SfumatoError(f"{path} has {key!r}, which no concept has; it is of a newer version")
            parts[part][name] = value
        if not any(parts.values()):
            raise SfumatoError(f"{path} is damaged: nothing is there of its word {word!r}")
        if lost := [other for other, rows in others.items() if not rows]:
            raise SfumatoError(f"{path} is damaged: nothing is there of its word {lost[0]!r}")
        return cls(word, parts["rows"], parts["changes"], about, parts["mapper"], others)

    @classmethod
    def read(cls, path: str | Path, word: str | None = None) -> Concept:
        """Read what ``save`` wrote, and learned words of other programs (``concept_files``); of several this one.

        Nothing is unpickled. Raises ``SfumatoError`` for a file that is damaged, or holds no word, or several.
        """
        path = _file(path)
        tensors, header = ({}, {}) if path.suffix in concept_files.PICKLED else read(path)
        if HEADER in header:
            return cls._made(path, tensors, header)
        found = concept_files.words(tensors or concept_files.tensors(path), path)
        if not found:
            raise SfumatoError(f"{path} holds no word that was learned; LoRAs are read by --lora")
        if word is None and len(found) > 1:
            raise SfumatoError(f"{path} holds {len(found)} words: {', '.join(found)}; say which")
        if word is not None and word not in found:
            raise unknown(f"word of {path}", word, found)
        name = next(iter(found)) if word is None else word
        rows = found[name]
        if any(values.ndim not in (2, 3) or not values.numel() for values in rows.values()):
            raise SfumatoError(f"{path} is damaged: {name!r} has vectors {[tuple(v.shape) for v in rows.values()]}")
        for values in rows.values():
            finite(values, f"the word {name!r} of {path}", "the file is damaged; take another")
        return cls(checked(name), rows, about={"file": path.name})


def words_of(path: str | Path) -> tuple[str, ...]:
    """The words of a concept's file, of which nothing else is read. ``SfumatoError`` for a file that is none."""
    path = _file(path)
    return _of_header(path, header_of(path))[0]


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise SfumatoError(f"there is no concept {path}; sfumato learn PHOTOS --as '<word>' makes one")
    return path


def _of_header(path: Path, header: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The words, the first one first, and how it came to be."""
    try:
        kept = from_json(header[HEADER], dict)
        return tuple(checked(str(word)) for word in (kept["word"], *kept.get("others", ()))), dict(kept["about"])
    except (KeyError, ValueError, TypeError) as e:
        raise SfumatoError(f"{path} is no concept that sfumato learn wrote; LoRAs are read by --lora") from e


def checked(word: str) -> str:
    """A word that a concept may have. ``SfumatoError`` for one that prompts could not hold."""
    word = " ".join(word.split())
    if not word or not re.search(r"\w", word) or len(word) > 60 or re.search(r"[\\/|:(){}\[\]]", word):
        raise SfumatoError(f"a concept's word is such as '<duck>', got {word!r}")
    return word
