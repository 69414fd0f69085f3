"""What a model knows of its pipeline's parts: read from them each time, so that what a user puts in counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import reduce
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class OfParts(Generic[T]):
    """An attribute that is worked out of parts of a model, and again when one of them is another object.

    Assigned to a model it is what was assigned, as with any attribute.
    """

    def __init__(self, parts: tuple[str, ...], work: Callable[[Any], T]):
        self._parts, self._work = parts, work
        self.__doc__ = work.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name} of parts"

    def __get__(self, model: Any, owner: type | None = None) -> T:
        if model is None:
            return self  # pyright: ignore[reportReturnType]
        now = [reduce(lambda part, name: getattr(part, name, None), part.split("."), model) for part in self._parts]
        before, value = model.__dict__.get(self._key, ([], None))
        if len(before) != len(now) or any(a is not b for a, b in zip(before, now, strict=True)):
            value = self._work(model)
            model.__dict__[self._key] = now, value
        return value  # pyright: ignore[reportReturnType]


def of_parts(*parts: str) -> Callable[[Callable[[Any], T]], OfParts[T]]:
    """Decorates what works an attribute out of these parts, such as ``vae`` or ``pipe.scheduler.config``."""
    return lambda work: OfParts(parts, work)


def default(function: Any, name: str) -> Any:
    """Of a parameter of a function."""
    return inspect.signature(function).parameters[name].default
