"""How far a run is, as one safetensors file that is written whole or not at all.

Tensors are named ``part.name``. Parts are ``live`` (what is learned), ``ema`` (its running mean), ``moments`` (those of
the optimisers, by the names of what is learned), and what a problem keeps besides, such as ``memory`` and ``learner``.
The header says of which ``run`` they are, and in ``state`` the step and the seconds that it took.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.errors import SfumatoError, finite
from sfumato.io.files import from_json, save_tensors, unread

if TYPE_CHECKING:
    from torch import Tensor

Parts = Mapping[str, Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` whole steps in ``elapsed`` seconds."""

    parts: Parts
    step: int
    elapsed: float = 0.0

    def save(self, path: str | Path, about: str) -> None:
        """Write it; ``about`` says what the run is."""
        tensors = {f"{part}.{name}": v for part, named in self.parts.items() for name, v in named.items()}
        header = {"run": about, "state": json.dumps({"step": self.step, "elapsed": self.elapsed})}
        save_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: str | Path, about: str, learned: Sequence[str] = ()) -> Checkpoint:
        """Read it. ``learned``: names of what is learned, by which older files that count it are read.

        Raises ``SfumatoError`` for a file that is damaged, and for one of another run than ``about``.
        """
        try:
            tensors, header = read(path)
        except SfumatoError as e:
            raise SfumatoError(f"cannot go on: {e}; remove it to start anew") from e
        if header.get("run", about) != about:
            raise SfumatoError(
                f"{path} is of another run, with other settings, data or another model: "
                f"{_unlike(header['run'], about)}; take another place or remove it"
            )
        try:
            if "state" not in header:
                tensors, header = _renamed(tensors, header, learned)
            state = from_json(header["state"], dict)
            step, elapsed = int(state["step"]), float(state["elapsed"])
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as e:
            raise SfumatoError(f"cannot go on: {path} is no checkpoint ({e!r}); take another place") from e
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
        return cls(parts, step, elapsed)


def _unlike(before: str, now: str) -> str:
    """What of a run's description is another than it was."""
    was, wanted = ([part.strip() for part in text.split(",")] for text in (before, now))
    gone, new = [p for p in was if p not in wanted], [p for p in wanted if p not in was]
    return f"it has {', '.join(gone) or 'less'}, and this run {', '.join(new) or 'less'}"


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file.

    Raises ``SfumatoError`` where it cannot be read, and for values that are not finite, by their name.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
            found, header = {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise SfumatoError(unread(path, e)) from e
    for name, values in found.items():
        finite(values, f"{name} of {path}", "the file is damaged; take another")
    return found, header


def header_of(path: str | Path) -> dict[str, str]:
    """The header of a safetensors file alone. Raises ``SfumatoError`` where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
            return file.metadata() or {}
    except (OSError, SafetensorError) as e:
        raise SfumatoError(unread(path, e)) from e


def reached(path: str | Path) -> tuple[int, float]:
    """Step and seconds of a checkpoint, from its header alone and without torch; zeros where there is none."""
    try:
        with Path(path).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            state = from_json(from_json(file.read(length), dict)["__metadata__"]["state"], dict)
        return int(state["step"]), float(state["elapsed"])
    except FileNotFoundError:
        return 0, 0.0
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError, OverflowError) as e:
        raise SfumatoError(f"cannot go on from {path}: damaged ({e}); remove it") from e


def _renamed(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], learned: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Older files: keypoints', of one tensor and Adam's moments, and distillations', whose moments were counted."""
    import torch

    names = {k: f"live.{k}" for k in tensors if k.startswith("generator.")}
    names |= {k: k for k in tensors if k.startswith(("memory.", "learner."))}
    for key in tensors:
        if key.startswith("optimiser."):
            _, number, moment = key.split(".")
            names[key] = f"moments.{learned[int(number)]}.{moment}"
    found = {names[k]: v for k, v in tensors.items() if k in names}
    if "value" in tensors:
        (name,) = learned
        places = {"value": f"live.{name}", "first": f"moments.{name}.exp_avg", "second": f"moments.{name}.exp_avg_sq"}
        found |= {place: tensors[k] for k, place in places.items()}
        found[f"moments.{name}.step"] = torch.tensor(float(header["steps"]))
    step = header["steps"] if "value" in tensors else header["step"]
    return found, {"state": json.dumps({"step": int(step), "elapsed": 0.0})}
