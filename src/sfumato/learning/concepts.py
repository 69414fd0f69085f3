"""What a model was taught, as one safetensors file: a word, the vectors that it is read as, what the network became.

``Concept.on(model)`` is the model that knows it; the model itself stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.files import save_tensors
from sfumato.learning.checkpoint import read
from sfumato.learning.mappers import Mapped, seen_from

HEADER = "sfumato concept"
Rows = Mapping[str, Float[Tensor, "*layers k d"]]
"""By the encoder's key: clip_l, clip_g."""


@dataclass(frozen=True)
class PerLayer:
    """A word whose vectors are each layer's own (P+, Voynov et al. 2023)."""

    rows: Mapping[str, Float[Tensor, "layers k d"]]
    timed: bool = False

    @property
    def plain(self) -> Mapping[str, Float[Tensor, "k d"]]:
        """The mean of all layers', for what reads the text once."""
        return {key: rows.mean(0) for key, rows in self.rows.items()}

    def at(self, t: Float[Tensor, " b"], layers: int) -> tuple[Mapping[str, Float[Tensor, "b layers k d"]], None]:
        has = len(next(iter(self.rows.values())))
        if has != layers:
            raise SfumatoError(
                f"the concept has vectors for {has} layers that read the text, and this model has {layers}; take one "
                "that was learned with a model of this kind"
            )
        return {key: rows.expand(len(t), *rows.shape) for key, rows in self.rows.items()}, None


@dataclass(frozen=True, eq=False)
class Concept:
    """A word, and what it stands for in one kind of model."""

    word: str
    rows: Rows = field(default_factory=dict)
    """Vectors (k, d), or of each layer that reads the text (layers, k, d)."""
    changes: Mapping[str, Tensor] = field(default_factory=dict)
    """Of weights, by the pipeline's part and the weight's name, as ``Latent.with_changes`` reads them."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it came to be: model, method, steps, seed."""
    mapper: Mapping[str, Tensor] = field(default_factory=dict)
    """What gives the word's vectors by time, layer and camera, in the place of rows (``sfumato.learning.mappers``)."""

    def on(self, model: Any) -> Any:
        """A model that knows it. Raises ``SfumatoError`` for a model of another kind."""
        if self.changes:
            model = model.with_changes(self.changes)
        if self.mapper:
            return model.with_words({self.word: Mapped.of(self.mapper)})
        if not self.rows:
            return model
        apart = next(iter(self.rows.values())).ndim == 3
        return model.with_words({self.word: PerLayer(self.rows) if apart else self.rows})

    def called(self, word: str) -> Concept:
        """The same by another word."""
        return replace(self, word=checked(word))

    def seen_from(self, *camera: float) -> Concept:
        """The same as seen from there: azimuth and elevation in degrees, or whatever numbers it was learned with.

        Those that are left out are the mean of what it was learned from. Raises ``SfumatoError`` for one that was
        learned without cameras, for too many numbers and for what is not finite.
        """
        return replace(self, mapper=seen_from(self.mapper, camera))

    def save(self, path: str | Path) -> None:
        """Write it; whole or not at all."""
        tensors = {f"rows.{k}": v for k, v in self.rows.items()} | {f"changes.{k}": v for k, v in self.changes.items()}
        tensors |= {f"mapper.{k}": v for k, v in self.mapper.items()}
        if not tensors:
            raise SfumatoError(f"the concept {self.word!r} holds nothing that was learned")
        save_tensors(path, tensors, {HEADER: json.dumps({"word": self.word, "about": dict(self.about)})})

    @classmethod
    def load(cls, path: str | Path) -> Concept:
        """Read it. Raises ``SfumatoError`` for a file that is damaged, or no concept."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise SfumatoError(f"there is no concept {path}; sfumato learn PHOTOS --as '<word>' makes one")
        tensors, header = read(path)
        try:
            kept = json.loads(header[HEADER])
            word, about = str(kept["word"]), dict(kept["about"])
        except (KeyError, ValueError, TypeError) as e:
            raise SfumatoError(
                f"{path} is no concept that sfumato learn wrote; learned words of other programs are read by "
                "--embedding, LoRAs by --lora"
            ) from e
        parts: dict[str, dict[str, Tensor]] = {"rows": {}, "changes": {}, "mapper": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise SfumatoError(f"{path} has {key!r}, which no concept has; it is of a newer version")
            parts[part][name] = value
        return cls(checked(word), parts["rows"], parts["changes"], about, parts["mapper"])


def checked(word: str) -> str:
    """A word that a concept may have. ``SfumatoError`` for one that prompts could not hold."""
    word = " ".join(word.split())
    if not word or not re.search(r"\w", word) or len(word) > 60 or re.search(r"[\\/|:(){}\[\]]", word):
        raise SfumatoError(f"a concept's word is such as '<duck>', got {word!r}")
    return word
