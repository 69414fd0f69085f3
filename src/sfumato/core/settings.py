"""Settings of methods, as frozen dataclasses, and what none of them may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from sfumato.core.described import Described
from sfumato.errors import SfumatoError


class Settings(Described):
    """Of a dataclass whose numbers are finite, but where infinity is the default. It is asked when one is made.

    A subclass with a ``__post_init__`` of its own calls this one first.
    """

    def __post_init__(self) -> None:
        for f in fields(self):  # pyright: ignore[reportArgumentType]
            if isinstance(f.default, tuple) and isinstance(text := getattr(self, f.name), str):
                raise SfumatoError(f"{f.name} of {type(self).__name__} are several, such as ({text!r},), got {text!r}")
            endless = isinstance(f.default, float) and math.isinf(f.default)
            for value in numbers(getattr(self, f.name)):
                if math.isnan(value) or (math.isinf(value) and not endless):
                    raise SfumatoError(f"{f.name} of {type(self).__name__} is a finite number, got {value}")


def numbers(value: Any) -> Iterator[float]:
    """The floats of a setting: itself, or those of a tuple, a list, the values of a mapping."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from numbers(each)
