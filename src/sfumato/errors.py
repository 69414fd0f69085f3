"""The one family of errors a person may meet: every message says what was asked, what exists and what to do."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import Any


class SfumatoError(Exception):
    """Something the caller can put right; the command line prints it on one line and exits with 2."""


class SettingError(SfumatoError):
    """Of a field of a class; a command line says what was typed instead (``typed``)."""

    def __init__(self, name: str, owner: str, wrong: str) -> None:
        super().__init__(f"{name} of {owner} {wrong}")
        self.name, self.owner, self.wrong = name, owner, wrong

    def typed(self, word: str = "", field: str = "") -> SfumatoError:
        """Of a command's option, or of that of a method's ``word``; where the owner is in its ``field``, of that."""
        option = f"--{(field or self.name).replace('_', '-')}" + f" of {word}" * bool(word)
        return SfumatoError(f"{option}: its {self.name} {self.wrong}" if field else f"{option} {self.wrong}")


def unknown(what: str, asked: object, known: Iterable[str], listed: str = "") -> SfumatoError:
    """The error for a word that is none of ``known``: what may have been meant, and what there is, or ``listed``."""
    names = list(known)
    near = get_close_matches(str(asked).lower(), names, 2)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    listed = listed or f"known: {', '.join(names)}"
    return SfumatoError(f"unknown {what} {shown(asked)}; {meant}{listed}")


def nowhere(place: object, words: Collection[str] = ()) -> SfumatoError:
    """The error for a file or folder that is not there, where a method's word of ``words`` may have been meant."""
    near = get_close_matches(str(place).lower(), words, 2)
    meant = f"; did you mean {' or '.join(near)}?" if near else f": {', '.join(words)}"
    named = words and (near or not re.search(r"[./\\]", str(place)))
    return SfumatoError(f"there is no file or folder {place}" + f", nor a method of that name{meant}" * bool(named))


def kind(what: str, value: Any, of: type | tuple[type, ...]) -> None:
    """Refuse what is of another type: ``what`` says what it is, and how it is written."""
    if not isinstance(value, of) or (isinstance(value, bool) and of is not bool):
        raise SfumatoError(f"{what}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value in an error's line: what is short as it is written, else its kind."""
    text = repr(value)
    return text if len(text) <= 100 and "\n" not in text else f"a {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind, where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def whole(name: str, value: int, low: int, high: int) -> None:
    """Refuse a number outside [low, high], and what is no whole number."""
    value = integer(name, value)
    if not low <= value <= high:
        raise SfumatoError(f"{name} lies between {low} and {high}, got {value}")


def integer(name: str, value: Any) -> int:
    """A whole number of any type (numpy's, a tensor's). ``SfumatoError`` for what is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise SfumatoError(f"{name} is a whole number, got {shown(value)}") from None


def out_of_memory(e: BaseException) -> bool:
    """Did the machine or the accelerator have no memory left? (torch says so on a CPU by a plain ``RuntimeError``.)"""
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(e)


REMEDY = "take --dtype float32 or bfloat16 where it is float16, or weaker settings"


def finite(values: Any, what: str, remedy: str | Callable[[], str] = REMEDY) -> None:
    """Raise ``SfumatoError`` unless a tensor's values, or a number, are finite: ``what`` they are, and what to do.

    A ``remedy`` that has to be looked for is a function, which is called where it is needed alone.
    """
    sound = values.isfinite().all() if hasattr(values, "isfinite") else math.isfinite(values)
    if not sound:
        raise SfumatoError(f"{what} became not finite; {remedy if isinstance(remedy, str) else remedy()}")


def unsound(network: Any) -> str | None:
    """What is wrong with a network (a ``torch.nn.Module``) whose weights are not finite: the first of them."""
    state = ((name, v) for name, v in network.state_dict().items() if not v.is_meta and v.is_floating_point())
    wrong = next((name for name, values in state if not values.isfinite().all()), None)
    kind = type(network).__name__
    return wrong and f"the weights of its {kind} are not finite ({wrong}): the file is damaged; take another"
