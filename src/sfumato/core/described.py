"""Dataclasses whose ``help()`` tells of their fields: the strings behind these are read when it is asked for."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from typing import Any

_KINDS = {
    "Part": "float in [0, 1]",
    "SomePart": "float in (0, 1]",
    "LesserPart": "float in [0, 1)",
    "PartOfSteps": "float in [0, 1], or int steps",
    "Whole": "int from 0",
    "Count": "int from 1",
    "Several": "int from 2",
    "Weight": "float from 0",
    "Positive": "float above 0",
    "Time": "float in [0, 1000]",
    "TrainStep": "int in [0, 1000]",
}
"""What annotations of ours say."""
_WORDS = re.compile(rf"\b({'|'.join(_KINDS)})\b")
_BOUNDS = re.compile(r"Annotated\[(\w+), Between\((\w+)(?:, ([\w.]+))?(, above=True)?(, below=True)?\)\]")


class Described:
    """Of a dataclass: its docstring has its fields as parameters, with their types and defaults.

    Editors find the strings where they stand; ``help`` and ``?`` know a class by its docstring alone.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if text := vars(cls).get("__doc__"):
            cls.__doc__ = _Lazily(text)  # pyright: ignore[reportAttributeAccessIssue]


class _Lazily:
    """A class's docstring, to which its parameters are added when somebody reads it."""

    def __init__(self, text: str) -> None:
        self.text, self.whole = text, ""

    def __get__(self, instance: object, cls: type) -> str:
        if "__match_args__" not in vars(cls):  # it is being made, and ``dataclass`` looks whether there is any
            return self.text
        self.whole = self.whole or self.text.rstrip() + _parameters(cls)
        return self.whole


def _parameters(cls: Any) -> str:
    try:
        texts = strings(cls)
    except (OSError, TypeError, SyntaxError):  # where there is no source
        return ""
    rows = [
        f"{f.name} : {_kind(str(f.type))}{_default(f)}{_filled(texts.get(f.name, ''))}" for f in fields(cls) if f.init
    ]
    return textwrap.indent("\n".join(["\n", "Parameters", "----------", *rows]), "    ") if rows else ""


def _kind(annotation: str) -> str:
    return _BOUNDS.sub(_bounded, _WORDS.sub(lambda found: _KINDS[found[0]], annotation))


def _bounded(found: re.Match[str]) -> str:
    kind, low, high, above, below = found.groups()
    inside = f"in {'(' if above else '['}{low}, {high}{')' if below else ']'}"
    return f"{kind} {inside if high else f'from {low}'}"


def _default(f: Field[Any]) -> str:
    made = f.default if f.default_factory is MISSING else f.default_factory()
    return "" if made is MISSING else f", default {made!r}"


def _filled(text: str) -> str:
    return "".join(f"\n    {line}" for line in textwrap.wrap(text.replace("``", "`"), 100))


def strings(cls: type) -> dict[str, str]:
    """What stands behind the fields of a class and of those of ours that it derives from, by their names."""
    out: dict[str, str] = {}
    for kind in cls.__mro__[::-1]:
        if kind.__module__.startswith("sfumato."):
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            assert isinstance(node, ast.ClassDef)
            out |= behind(node.body)
    return out


def behind(body: Sequence[ast.stmt]) -> dict[str, str]:
    """Strings that stand behind assignments, by the assigned names."""
    out = {}
    for node, text in pairwise(body):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])
        target = targets[0]
        if isinstance(target, ast.Name) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            out[target.id] = inspect.cleandoc(str(text.value.value))
    return out
