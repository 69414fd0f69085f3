"""The door of every measure: what is not finite goes into none, as a number would come out that means nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from sfumato.errors import finite

P = ParamSpec("P")
R = TypeVar("R")


def of_finite(measure: Callable[P, R]) -> Callable[P, R]:
    """A measure that raises ``SfumatoError`` where a number, a tensor or an array that it is given is not finite."""

    @wraps(measure)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        _check((args, options), f"what {measure.__name__} measures")
        return measure(*args, **options)

    return checked


def _check(given: Any, what: str) -> None:
    if isinstance(given, np.ndarray):
        given = given[~np.isfinite(given)][:1].tolist() if given.dtype.kind in "fc" else ()
    if isinstance(given, Tensor | float):
        finite(given, what)
    elif isinstance(given, Mapping):
        _check(tuple(given.values()), what)
    elif isinstance(given, list | tuple):
        for each in given:
            _check(each, what)
    elif is_dataclass(given):
        _check([getattr(given, f.name) for f in fields(given)], what)
