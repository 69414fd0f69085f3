"""``--grid``: every combination of settings, of an edit's or of a picture's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import tyro

from sfumato.commands import fields as options
from sfumato.commands import help
from sfumato.commands.oneline import oneline
from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError
from sfumato.tasks.chain import Chain, values

CELLS = 100


def option(run: str) -> Any:
    """What the option is on a command line: of methods' settings and those of the ``run``."""
    about = f"All combinations of settings, on a sheet: the method's options, {run}."
    return tyro.conf.arg(name="grid", metavar="NAME=VALUE,VALUE ...", help=about)


def cells(asked: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Of ``--grid NAME=VALUE,VALUE ...`` every cell's values by name, the last name's changing first; without it one
    cell of no name."""
    axes: dict[str, list[str]] = {}
    for text in asked:
        name, equals, some = text.removeprefix("--").partition("=")
        found = [value.strip() for value in some.split(",") if value.strip()]
        if not equals or not found or len({*found}) < len(found):
            raise SfumatoError(
                f"--grid takes NAME=VALUE,VALUE of different values, such as guidance=4,7.5; got {text!r}"
            )
        if name in axes:
            raise SfumatoError(f"--grid has {name} twice")
        axes[name] = found
    every = [list(zip(axes, some, strict=True)) for some in product(*axes.values())]
    if len(every) > CELLS:
        raise SfumatoError(f"--grid has {len(every)} cells, and {CELLS} at most; leave some values out")
    return {", ".join(f"{name} {value}" for name, value in cell): cell for cell in every}


def columns(asked: Sequence[str]) -> int:
    """How many cells stand beside each other: those of the last name."""
    return asked[-1].count(",") + 1


def stem(name: str, label: str) -> str:
    """What a cell's file is called."""
    return "-".join(filter(None, (name, re.sub(r"[^\w.]+", "-", label))))


def in_methods(chain: Chain, field: str, text: str, prog: str) -> Chain | None:
    """With the first method's field of that name as a command line gives it; none where no method has it."""
    items = [*chain.items]
    for i, (word, item) in enumerate(zip(chain.names, items, strict=True)):
        for at, of in _places(item):
            if field in values(of):
                new = _parsed(of, f"{prog} ... {word}", field, text)
                items[i] = new if at is None else replace(item, **{at: new})
                return replace(chain, items=tuple(items))
    return None


def settings(chain: Chain) -> list[str]:
    """What ``in_methods`` knows."""
    every = [one for item in chain.items for _, of in _places(item) for one in values(of)]
    return [one for one in dict.fromkeys(every) if one.islower()]


def _places(item: Any) -> list[tuple[str | None, Any]]:
    """Where an option may lie: in a method, and in what it has for one, such as a blend."""
    inside = [(name, value) for name, value in values(item).items() if isinstance(value, Settings)]
    return [(None, item), *inside]


def _parsed(item: Any, prog: str, field: str, text: str) -> Any:
    """With a field's value as a command line gives it."""
    cls = options.as_written(item)
    args = [f"--{field.replace('_', '-')}={text}"]
    with oneline():
        new = tyro.cli(cls, prog=prog, args=args, default=cls(**values(item)), config=help.CONFIG)
    return type(item)(**values(new))


def number(name: str, value: Any, kind: Callable[[Any], Any]) -> Any:
    """A text as a number. ``SfumatoError``, with the ``name`` of what it is of, where it is none."""
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise SfumatoError(f"{name} is a {'whole ' if kind is int else ''}number, got {value!r}") from None
