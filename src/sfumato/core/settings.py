"""Settings of methods, as frozen dataclasses, and what none of them may be."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from sfumato.core.described import Described
from sfumato.errors import SfumatoError, shown


class Settings(Described):
    """Of a dataclass whose numbers are finite, but where infinity is the default. It is asked when one is made.

    A subclass with a ``__post_init__`` of its own calls this one first.
    """

    def __post_init__(self) -> None:
        for f in fields(self):  # pyright: ignore[reportArgumentType]
            if what := _other(type(self), str(f.type), getattr(self, f.name)):
                raise SfumatoError(f"{f.name} of {type(self).__name__} is {what}, got {shown(getattr(self, f.name))}")
            if isinstance(f.default, tuple) and isinstance(text := getattr(self, f.name), str):
                raise SfumatoError(f"{f.name} of {type(self).__name__} are several, such as ({text!r},), got {text!r}")
            endless = isinstance(f.default, float) and math.isinf(f.default)
            for value in numbers(getattr(self, f.name)):
                if math.isnan(value) or (math.isinf(value) and not endless):
                    raise SfumatoError(f"{f.name} of {type(self).__name__} is a finite number, got {value}")


def _other(cls: type, annotation: str, value: Any) -> str:
    """What a setting of such a type is, where this value is of quite another one; of other types nothing is known."""
    kinds = annotation.split(" | ")
    number = {*kinds} <= {"int", "float", "bool", "None"}
    if value is None:
        return "a number" if number and "None" not in kinds else ""
    if number and isinstance(value, str | bytes | Mapping | list | tuple | type):
        return "a number"
    name = annotation.removesuffix(" | None")
    modules = (sys.modules.get(kind.__module__) for kind in cls.__mro__)
    named = next(filter(None, (getattr(module, name, None) for module in modules)), None)
    if isinstance(named, type) and is_dataclass(named) and not isinstance(value, named):
        return f"a {name}, such as {name}(...)"
    if annotation == "str" and not isinstance(value, str):
        return "a text"
    if annotation.startswith("Mapping[") and not isinstance(value, Mapping):
        return "a mapping, such as {'cube': 1.0}" if annotation == "Mapping[str, float]" else "a mapping"
    return ""


def numbers(value: Any) -> Iterator[float]:
    """The floats of a setting: itself, or those of a tuple, a list, the values of a mapping."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from numbers(each)
