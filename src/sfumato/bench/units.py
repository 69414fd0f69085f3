"""Single pictures of a long bench: painted, judged and kept as they come, and not again when the bench is resumed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.files import from_json
from sfumato.io.memory import peaked
from sfumato.media import pictures
from sfumato.media.images import open_picture, tensor
from sfumato.stilllife import weights

Row = dict[str, float | None]


def _weights() -> str:
    """Which weights these are."""
    sums = "".join(row["sha256"] for row in weights.manifest().values())
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


@dataclass
class Units:
    """Rows of figures and pictures by the name of a unit, kept in a file of JSON lines and a folder beside it.

    Lines of other weights are not read: the weights' sums are part of each line. Without a file, nothing is kept.
    """

    file: Path | None
    rows: dict[str, Row] = field(default_factory=dict)
    of: str = field(default_factory=_weights)

    def __post_init__(self) -> None:
        self._read()

    def _read(self) -> None:
        if self.file is not None and self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # a line that was cut off when the bench was stopped
                    found = from_json(line, dict, strict=False)
                    if found["of"] == self.of:
                        self.rows[found["unit"]] = found["row"]

    def get(
        self, unit: str, measure: Callable[[], tuple[Row, Float[Tensor, "3 h w"]]]
    ) -> tuple[Row, Float[Tensor, "3 h w"]]:
        """The unit's row and picture, measured now if either is not there."""
        picture = self._picture(unit)
        if unit not in self.rows:
            self._read()  # another process may have measured it meanwhile
        if picture is not None and unit in self.rows and picture.exists():
            return self.rows[unit], tensor(open_picture(picture))
        row, image = measure()
        if self.file is not None and picture is not None:
            pictures.write(pictures.picture(image), picture)
            try:
                with self.file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"of": self.of, "unit": unit, "row": row}) + "\n")
            except OSError as e:
                raise SfumatoError(f"cannot write {self.file}: {e.strerror or e}") from None
        return row, image

    def beside(self, unit: str, ending: str) -> Path | None:
        """A file of a unit's own, such as what it had when it was stopped; None where nothing is kept."""
        if self.file is None:
            return None
        name = hashlib.sha256(f"{self.of} {unit}".encode()).hexdigest()[:16]
        return self.file.with_suffix("") / f"{name}{ending}"

    def _picture(self, unit: str) -> Path | None:
        return self.beside(unit, ".png")


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, dict[str, float]]:
    """What ``work`` gives, its ``seconds``, and ``peak_mb``: the memory that it took beyond what was there before."""

    def clocked() -> tuple[Any, float]:
        began = time.perf_counter()
        out = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return out, time.perf_counter() - began

    (out, seconds), peak = peaked(clocked, device)
    return out, {"seconds": seconds, "peak_mb": peak}


def columns(rows: Mapping[str, Row], key: str) -> list[float]:
    """One figure of several rows, without those that do not have it."""
    return [value for row in rows.values() if (value := row.get(key)) is not None]
