"""Settings of methods, as frozen dataclasses, and what none of them may be."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, wraps
from inspect import get_annotations, isclass, signature
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from sfumato.core.described import Described
from sfumato.errors import SettingError, SfumatoError, shown, unknown


@dataclass(frozen=True)
class Between:
    """Bounds of a number, in its annotation."""

    low: float
    high: float = math.inf
    counts: bool = False
    """Are whole numbers counts, of which none is below 0, and these bounds of parts?"""
    above: bool = False
    """Is the low one itself out of bounds?"""
    below: bool = False
    """And the high one?"""

    def hold(self, value: Any) -> bool:
        """Is a number within them?"""
        if self.counts and isinstance(value, Integral):
            return int(value) >= 0
        low, high = value == self.low and self.above, value == self.high and self.below
        return self.low <= value <= self.high and not (low or high)

    def __str__(self) -> str:
        low = f"is {'above' if self.above else 'at least'} {self.low}"
        if math.isinf(self.high):
            return low
        if self.above or self.below:
            return f"{low} and {'below' if self.below else 'at most'} {self.high}"
        return f"lies between {self.low} and {self.high}"


Whole = Annotated[int, Between(0)]
"""How many, or none; a seed."""
Count = Annotated[int, Between(1)]
"""How many, at least one."""
Several = Annotated[int, Between(2)]
"""How many, at least two."""
Weight = Annotated[float, Between(0)]
"""What weighs or goes on so much, or not at all."""
Positive = Annotated[float, Between(0, above=True)]
"""What it makes no sense without."""
Time = Annotated[float, Between(0, 1000)]
"""A training step of a thousand, or between two."""
TrainStep = Annotated[int, Between(0, 1000)]
"""A training step of a thousand."""
Part = Annotated[float, Between(0, 1)]
"""A part of a whole, such as of the layers or the latents' side."""
SomePart = Annotated[float, Between(0, 1, above=True)]
"""A part that is not nothing."""
LesserPart = Annotated[float, Between(0, 1, below=True)]
"""A part that is not all."""
PartOfSteps = Annotated[float, Between(0, 1, counts=True)]
"""A part of the steps; a whole number is so many of them."""


class Settings(Described):
    """Of a dataclass whose values are what its annotations say, and whose numbers are finite, but where infinity is the
    default. It is asked when one is made.

    A subclass with a ``__post_init__`` of its own calls this one first. What it calls a ``Reader`` when it is called is
    one.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if call := vars(cls).get("__call__"):
            read = [name for name, kind in get_annotations(call).items() if kind == "Reader"]
            cls.__call__ = _reading(call, read) if read else call  # pyright: ignore[reportAttributeAccessIssue]

    def __post_init__(self) -> None:
        kinds, given = kinds_of(type(self)), [(f, getattr(self, f.name)) for f in fields(self)]  # pyright: ignore[reportArgumentType]
        endless = ((f.name, _endless(value, f.default)) for f, value in given)
        others = ((f.name, amiss(f.name, value, kinds.get(f.name, Any))) for f, value in given)
        if found := next((each for each in chain(endless, others) if each[1]), None):
            raise SettingError(found[0], type(self).__name__, found[1])


def _reading(call: Callable[..., Any], read: Sequence[str]) -> Callable[..., Any]:
    known = signature(call)

    @wraps(call)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        given, kinds = known.bind_partial(self, *args, **kwargs).arguments, kinds_of(call)
        for name in read:
            if name in given and not fits(given[name], kinds[name]):
                who, got = type(self).__name__, shown(given[name])
                raise SfumatoError(f"{who} reads what sfumato.reading.read(model, image) gives, got {got}")
        return call(self, *args, **kwargs)

    return called


def _endless(value: Any, default: Any) -> str:
    """What is wrong with a value that is a text for several, or has no end where its field's default has one."""
    if isinstance(default, tuple) and isinstance(value, str):
        return f"are several, such as ({value!r},), got {value!r}"
    inf = isinstance(default, float) and math.isinf(default)
    bad = (each for each in numbers(value) if math.isnan(each) or (math.isinf(each) and not inf))
    return next((f"is a finite number, got {each}" for each in bad), "")


def numbers(value: Any) -> Iterator[float]:
    """The floats of a setting: itself, or those of a tuple, a list, the values of a mapping."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from numbers(each)


@cache
def kinds_of(what: Any) -> dict[str, Any]:
    """The annotations of a class, with those of its bases, or of a function; those that cannot be worked out are left
    out, as names that only type checkers import are in them."""
    found: dict[str, Any] = {}
    for each in reversed(what.__mro__) if isclass(what) else (what,):
        names = vars(sys.modules[each.__module__]) if each.__module__ in sys.modules else {}
        for name, kind in get_annotations(each).items():
            try:
                found[name] = eval(kind, dict(names)) if isinstance(kind, str) else kind
            except (NameError, TypeError, AttributeError):
                found[name] = Any
    return found


def check(what: str, value: Any, kind: Any) -> None:
    """Raise ``SfumatoError`` for a value that an annotation rules out; of kinds that are not known here nothing is."""
    if wrong := amiss(what, value, kind):
        raise SfumatoError(f"{what} {wrong}")


def amiss(what: str, value: Any, kind: Any) -> str:
    """What of a value its annotation rules out, if anything; raises ``SfumatoError`` for a word that is not known."""
    if not fits(value, kind):
        words = [each for each in _alternatives(kind) if get_origin(each) is Literal]
        if isinstance(value, str) and words:
            raise unknown(what, value, [word for each in words for word in get_args(each) if isinstance(word, str)])
        return f"is {' or '.join(map(_spoken, _alternatives(kind)))}, got {shown(value)}"
    return next((f"{bounds}, got {number!r}" for number, bounds in beyond(value, kind)), "")


def beyond(value: Any, kind: Any) -> Sequence[tuple[float, Between]]:
    """The numbers in a value that lie outside the bounds in its annotation, and these."""
    ways = [[*_beyond(value, each)] for each in _alternatives(kind) if fits(value, each)]
    return next(iter(ways), []) if all(ways) else []


def _beyond(value: Any, kind: Any) -> Iterator[tuple[float, Between]]:
    origin, of = get_origin(kind), get_args(kind)
    inside: Sequence[tuple[Any, Any]] = ()
    if origin is Annotated:
        yield from ((value, each) for each in of[1:] if isinstance(each, Between) and not each.hold(value))
    elif isinstance(value, Mapping) and of:
        inside = [(each, of[-1]) for each in value.values()]
    elif origin is tuple and of[-1] is not Ellipsis:
        inside = [*zip(value, of, strict=True)]
    elif origin in (tuple, list, Sequence, Collection):
        inside = [(each, of[0]) for each in value]
    yield from (found for each in inside for found in beyond(*each) if fits(*each))


def fits(value: Any, kind: Any) -> bool:
    """Is a value of this annotation? Whole numbers may be of numpy, numbers whole, tuples lists."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, of[0])
    if kind is Any or isinstance(kind, str):
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in of)
    if origin is Literal:
        return any(isinstance(value, type(each)) and value == each for each in of)
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ == "bool_"
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return (isinstance(value, Real) or hasattr(value, "__float__")) and not (
            isinstance(value, bool | str) or getattr(value, "ndim", 0)
        )
    if origin is tuple and of and of[-1] is not Ellipsis:
        return isinstance(value, Sequence) and len(value) == len(of) and all(map(fits, value, of))
    if origin in (tuple, list, Sequence, Collection):
        return _several(value) and all(fits(each, of[0]) for each in value)
    if isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(each, of[-1]) for each in value.values())
    if origin is Callable or kind is Callable:
        return callable(value)
    if kind is Path:
        return isinstance(value, str | Path)
    own = isclass(kind) and kind.__module__.partition(".")[0] in ("sfumato", "torch")
    if kind is str or (own and not getattr(kind, "_is_protocol", False)):
        return isinstance(value, kind)
    return True


def _several(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _spoken(kind: Any) -> str:
    origin, of = get_origin(kind), get_args(kind)
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
    if origin is Annotated:
        return _spoken(of[0])
    if kind in plain:
        return plain[kind]
    if origin is Literal:
        return " or ".join(map(repr, of))
    if origin is tuple and of[-1] is not Ellipsis:
        return f"({', '.join(map(_spoken, of))})"
    if origin in (tuple, list, Sequence, Collection):
        return f"several, each {_spoken(of[0])}"
    if isclass(origin) and issubclass(origin, Mapping):
        return f"a mapping, each {_spoken(of[-1])}"
    return {"Mapping": "a mapping", "Callable": "a function"}.get(
        name := getattr(kind, "__name__", str(kind)), f"a {name}"
    )
