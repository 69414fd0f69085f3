"""What a result says of itself where a line is read: shapes in the place of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from sfumato.core.described import Described

_LONGEST = 80


class Brief(Described):
    """Of a dataclass with ``repr=False``: its fields in a line, tensors by type and shape."""

    def __repr__(self) -> str:
        own = [f for f in fields(self) if f.repr]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{f.name}={brief(getattr(self, f.name))}' for f in own)})"


def brief(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Sequence) and len(value) and all(isinstance(each, Tensor) for each in value):
        return f"{len(value)} x {brief(value[0])}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
