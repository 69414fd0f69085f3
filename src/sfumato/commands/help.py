"""``--help``: what a command is, how it is called, and each option once, at the terminal's width."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import textwrap
import warnings
from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import getdoc, unwrap
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from sfumato.commands.options import Usage
from sfumato.core.settings import Between, Count

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed)
ASKED = {"--help", "-h"}
SHORT = {"--n": "-n", "--out": "-o", "--seed": "-s"}
"""Options in a letter, where neither the command nor a method has one of that name."""
TAKES = {
    "bench": "110 minutes by lift with --n 10, beside other work; other suites take minutes",
    "distill2d": "110 s of one core for 4 images in 300 steps, and as much for each scale of --sweep",
    "experiment trajectory": "75 s of one core for 5 scales of 100 steps",
    "invert": "75 s of one core by --how null-text in 50 steps",
    "lift": "60 to 110 s of one core for 150 to 200 steps, 220 by variational and entropic score distillation",
    "train-encoder": "150 s of one core",
    "train-head": "30 to 320 s of one core, by method",
}
"""How long the built-in model takes, where that is more than a minute: user time as it was measured, or as so much a
step is of all (README has that of quicker ones)."""
MEANT = {
    "--batch": "Images of a step.",
    "--guidance": "Scale of classifier-free guidance.",
    "--rate": "Learning rate.",
    "--seed": "The same seed gives the same result.",
    "--steps": "How many steps it takes.",
    "--times": "Noise levels, as parts of the training's.",
}
"""Options of methods, where these do not say what theirs mean."""
COLUMN = 24
"""Where what an option means begins."""


@cache
def parser(f: Callable[..., Any]) -> Any:
    """What a function's parameters or a class's fields are on a command line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro has no other way to ask for it
        return tyro.extras.get_parser(unwrap(f), config=CONFIG)


def listed(about: str, prog: str, groups: Mapping[str, Mapping[str, Callable[..., Any]]]) -> str:
    """Commands in groups, a line each."""
    lines = [f"{_bold('usage:')} {prog} COMMAND ...", "", _paragraphs(about)]
    for title, commands in groups.items():
        lines += ["", _bold(title)]
        for name, command in commands.items():
            first = " ".join((getdoc(command) or "").split("\n\n")[0].split())
            lines.append(
                _row(name, first.partition(". ")[0].partition(": ")[0].rstrip(".") if prog == "sfumato" else first)
            )
    return "\n".join(lines)


def command(f: Callable[..., Any], prog: str, methods: Sequence[str] = ()) -> str:
    """Of a command, and the words of methods that it takes."""
    asked = parser(f)
    own = [action for action in asked._actions if action.option_strings or action.nargs is not None]
    places = [_metavar(action) for action in own if not action.option_strings]
    needed = [
        f"{action.option_strings[0]} {_metavar(action)}" for action in own if action.option_strings and action.required
    ]
    own_words = [usage.text for usage in usages(f)]
    chain = ["[METHOD [its options] [+ METHOD ...]]"] if methods else []
    usage = " ".join([prog, *(own_words or places), *needed, "[options]", *chain])
    parts = [_usage(usage), _paragraphs(getdoc(unwrap(f)) or "")]
    if about := TAKES.get(prog.removeprefix("sfumato ")):
        parts.append(_filled(f"Takes: on the built-in model about {about}.", 0, 4))
    if methods:
        more = _filled(f"{prog} {methods[0]} --help has a method's options", 2, 4, "  ")
        parts.append("\n".join([_bold("methods"), _filled(", ".join(methods), 2, 2, "  "), more]))
    return "\n\n".join([*parts, *_options(asked)])


def usages(f: Callable[..., Any]) -> list[Usage]:
    """What a command's parameters say of its usage line."""
    found = get_type_hints(unwrap(f), include_extras=True).values() if not isinstance(f, type) else ()
    return [mark for hint in found for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Usage)]


def method(cls: Any, prog: str, about: str, presets: str) -> str:
    """Of a method, and what there is to say of its presets."""
    more = ["", _row("--preset WORD", presets)] if presets else []
    kinds = {f"--{name.replace('_', '-')}": kind for name, kind in get_type_hints(cls, include_extras=True).items()}
    rows = _options(parser(cls), {name: bounds(kind) for name, kind in kinds.items()})
    return "\n\n".join([_usage(f"{prog} [options]"), _paragraphs(about), *rows]) + "\n".join(more)


def bounds(kind: Any) -> str:
    """What a number lies in, where it is no plain count."""
    of = get_args(kind)
    if get_origin(kind) is not Annotated:
        found = next(filter(None, map(bounds, of)), "")
        return f"parts {found}" if found and Count in of else found
    own = next((each for each in of[1:] if isinstance(each, Between)), None)
    if own is None:
        return bounds(of[0])
    if math.isinf(own.high):
        return "" if of[0] is int else f"{'above' if own.above else 'from'} {own.low:g}"
    return f"{'above ' * own.above}{own.low:g} to {own.high:g}"


def _options(asked: Any, within: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    out = []
    for group in asked._action_groups:
        rows = [_option(action, within) for action in group._group_actions if not ASKED & {*action.option_strings}]
        if rows:
            about = [_filled(group.description, 2, 2, "  ")] if group.description else []
            title = (group.title or "").replace("positional arguments", "what is given").rpartition(".")[2]
            out.append("\n".join([_bold(title), *about, *rows]))
    return out


def _option(action: Action, within: Mapping[str, str]) -> str:
    names = ", ".join([*(SHORT[name] for name in action.option_strings if name in SHORT), *action.option_strings])
    taken = "" if action.nargs == 0 else _metavar(action)
    name, text = next(iter(action.option_strings), ""), _meaning(action.help or "")
    if within and (not text or text.startswith("(default: ")):
        text = f"{MEANT.get(name, '')} {text}".strip()
    if lies := within.get(name):
        text = text.replace("(default: ", f"({lies}; default: ") if "(default: " in text else f"{text} ({lies})"
    return _row(" ".join(filter(None, (names, taken))), text)


def _metavar(action: Action) -> str:
    """What stands for a value, without the word for none, which nobody types."""
    text = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return re.sub(r"\{None\}\||(?<=\{)None,|\|\{None\}", "", text)


def _wrapped(name: str) -> str:
    """Choices over several lines where they are wider than the terminal."""
    if len(name) + 2 <= width():
        return f"  {name}"
    lines = textwrap.wrap(name.replace(",", ", "), width() - 2, subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(f"  {line}".replace(", ", ",") for line in lines)


def _meaning(text: str) -> str:
    """The default once: what the text itself says of it, or else the value; nothing of an empty one."""
    text = re.sub(r" ?\(default: (None|none|''|False|)\)$", "", text.replace("%%", "%"))
    return re.sub(r" \(default: .*\)$", "", text) if "[default: " in text else text


def _row(name: str, text: str) -> str:
    if len(name) + 4 > COLUMN:
        return "\n".join(filter(None, (_wrapped(name), _filled(text, COLUMN, COLUMN).rstrip())))
    return _filled(text, COLUMN, COLUMN, f"  {name}")


def _usage(text: str) -> str:
    return textwrap.fill(
        text, width(), initial_indent=f"{_bold('usage:')} ", subsequent_indent="    ", break_on_hyphens=False
    )


def _paragraphs(text: str) -> str:
    """Filled; an example stays on a line of its own, to be copied."""
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(p if p.startswith(("Example:", "Then:")) else _filled(p, 0, 0) for p in parts)


def _filled(text: str, first: int, rest: int, begun: str = "") -> str:
    options: Any = {"break_on_hyphens": False, "break_long_words": False}
    text = text.replace("`", "")
    return textwrap.fill(text, width(), initial_indent=begun.ljust(first), subsequent_indent=" " * rest, **options)


def width() -> int:
    """At which texts are filled: the terminal's, or what is still easily read."""
    return min(110, shutil.get_terminal_size().columns)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text
