"""What a result says of itself where a line is read: shapes in the place of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sfumato.core.described import Described
from sfumato.media.pictures import grid, png

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_LONGEST = 80


class Brief(Described):
    """Of a dataclass and those that derive from it: its fields in a line, tensors by type and shape."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # ``dataclass`` would give it one that pours numbers
            cls.__repr__ = Brief.__repr__

    def __repr__(self) -> str:
        own = [f for f in fields(self) if f.repr]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{f.name}={brief(getattr(self, f.name))}' for f in own)})"


class Shown(Brief):
    """Of a result with ``pictures``, which a notebook shows."""

    if TYPE_CHECKING:
        pictures: Any  # a field or a property

    @property
    def picture(self) -> Picture:
        """All in one: of several images their grid."""
        return grid(self.pictures)

    def _repr_png_(self) -> bytes:
        return png(self.picture)


def table(rows: Sequence[Mapping[str, Any]], most: int = 50) -> str:
    """Records as a table that a notebook shows, a column a key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    found = [[row.get(key, "") for key in columns] for row in rows[:most]]
    lines = [[", ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in line] for line in found]
    lines += [[f"and {len(rows) - most} more"]] if len(rows) > most else []
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines]
    head = "".join(f"<th>{escape(key)}</th>" for key in columns)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def brief(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        named: Any = value
        return f"{type(value).__name__}({', '.join(f'{k}={brief(v)}' for k, v in named._asdict().items())})"
    if isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values()):
        return f"{{{', '.join(f'{key!r}: {brief(each)}' for key, each in value.items())}}}"
    if isinstance(value, Sequence) and len(value) and all(isinstance(each, Tensor) for each in value):
        return f"{len(value)} x {brief(value[0])}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
