"""A command line with methods on it: whose each of its words is.

``sfumato edit photo.png --to "a blue cube" p2p --cross 0.5 + sdedit --out d``: a method begins with its word, the next
one behind a ``+``. Options may stand anywhere: each is the nearest method's that knows it and behind whose word it
stands, else the command's. ``--`` ends options and methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, partial
from itertools import takewhile

from sfumato.commands import help
from sfumato.commands.fields import Grammar
from sfumato.errors import SfumatoError
from sfumato.methods import index
from sfumato.methods.about import having_field

OPTION = re.compile(r"--?[a-zA-Z][\w-]*(=.*)?", re.DOTALL)
"""What looks like an option: neither a negative number nor a sentence that begins with a dash."""
LIST = "--list"
"""An option that names what a command is otherwise given first."""
SYNONYMS = {name: (option,) for option, name in help.SHORT.items()} | {
    "--cfg": ("--guidance",),
    "--cfg-scale": ("--guidance",),
    "--guidance-scale": ("--guidance",),
    "--num-inference-steps": ("--steps",),
    "--max-train-steps": ("--steps",),
    "--iterations": ("--steps",),
    "--num-images": ("--n",),
    "--num-images-per-prompt": ("--n",),
    "--num-samples": ("--n",),
    "--batch-size": ("--batch", "--n"),
    "--num-frames": ("--frames",),
    "--negative-prompt": ("--negative",),
    "--learning-rate": ("--rate",),
    "--lr": ("--rate",),
    "--sampler": ("--stepper",),
    "--resolution": ("--size", "--side"),
    "--output": ("--out",),
    "--output-dir": ("--out",),
}
"""What the field calls an option, where neither the command nor a method has one of that name."""
SIDES = {"--width": "--width", "--height": "--height", "--W": "--width", "--H": "--height"}
"""What the field calls the two sides of ``--size``."""


@dataclass
class _Part:
    """Of a command line, what is the command's or a method's."""

    word: str
    of: Callable[[], Grammar]
    """Read when an option is asked for: a method's takes a while."""
    positionals: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    sides: dict[str, str] = field(default_factory=dict)
    """Width and height, where they are said one by one."""

    @cached_property
    def grammar(self) -> Grammar:
        return self.of()

    def knows(self, name: str) -> bool:
        return name in self.grammar.options


def split(
    args: Sequence[str],
    command: Grammar,
    words: Collection[str],
    of: Callable[[str], Grammar],
    known: Collection[str] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """The arguments of a command, and for each method its word and its options; an option of one value as name=value.

    ``words`` are the methods', ``of`` gives a method's grammar; ``known`` are listed where a word is none. The first
    method is the first of their words that is neither an option's value nor the command's own positional argument.
    ``SfumatoError`` for a word that is none, and for an option that neither the command nor a method before it knows.
    """
    end = list(args[args.index("--") :]) if "--" in args else []
    rest = list(args[: len(args) - len(end)])
    least, most = command.positionals
    instead = help.ASKED | {LIST}
    least = 0 if instead & {arg.partition("=")[0] for arg in rest} else least - len(end[1:])
    parts, joined = [own := _Part("", lambda: command)], False
    while rest:
        arg = rest.pop(0)
        if OPTION.fullmatch(arg):
            _give(arg, rest, parts, words, of, known or words)
            if len(own.positionals) >= least:  # files stand together, so that a mistyped method behind is not one
                most = len(own.positionals)
        elif len(own.positionals) < least:
            own.positionals.append(arg)
        elif arg == "+":
            if joined or len(parts) == 1:
                break
            joined = True
        elif arg in words and (joined or len(parts) == 1):
            parts.append(_Part(arg, partial(of, arg)))
            joined = False
        elif len(parts) == 1 and len(own.positionals) < most:
            own.positionals.append(arg)
        elif not words:
            own.positionals.append(arg)  # one too many, as is found out where values are read
        elif joined or len(parts) == 1:
            if own.positionals and rest and rest[0] not in {*words, "+"} and not OPTION.fullmatch(rest[0]):
                raise SfumatoError(
                    f'{arg!r} is no method; a sentence stands in quotes: "{own.positionals[-1]} {arg} ..."'
                )
            raise index.none_of(arg, list(words if known is None else known))
        else:
            raise SfumatoError(f"{arg!r} behind {parts[-1].word} is no value of an option; + joins methods")
    if joined or rest:
        raise SfumatoError("a + joins two methods; one of them is missing")
    if own.sides:
        if len(own.sides) < 2:
            raise SfumatoError(f"{', '.join(own.sides)} alone is no size; give both, or --size WIDTHxHEIGHT")
        own.options.append(f"--size={own.sides['--width']}x{own.sides['--height']}")
    return [*own.positionals, *own.options, *end], [[part.word, *part.options] for part in parts[1:]]


def _give(
    arg: str,
    rest: list[str],
    parts: Sequence[_Part],
    words: Collection[str],
    of: Callable[[str], Grammar],
    listed: Collection[str],
) -> None:
    """An option and its values, which are taken from the rest, to the part that it is of."""
    name, equals, value = arg.partition("=")
    names = _names(name)
    known, part = next(((n, p) for n in names for p in reversed(parts) if p.knows(n)), (names[0], None))
    if known != names[0]:
        arg, name = known + equals + value, known
    if part is None and name in SIDES and parts[0].knows("--size") and (equals or rest):
        parts[0].sides[SIDES[name]] = value if equals else rest.pop(0)
        return
    if part is None:
        raise _unknown(names, parts, {word: of(word) for word in rest if word in words}, listed)
    count = 0 if equals else part.grammar.options[known]
    if count is None:  # as many as follow, of which the first may be any
        more = takewhile(lambda value: value not in words and value != "+", rest[1:])
        count = len([*takewhile(lambda value: not OPTION.fullmatch(value), [*rest[:1], *more])])
    values, rest[:] = rest[:count], rest[count:]
    if count != 1 or not values:
        part.options += [arg, *values]
        return
    (value,) = values
    if any(part.knows(value.partition("=")[0]) for part in parts):
        raise SfumatoError(f"{name} takes a value, but the option {value} follows; if it is meant: {name}={value}")
    part.options.append(f"{name}={value}")


def _names(name: str) -> tuple[str, ...]:
    """An option as it was written, and what it may be here."""
    name = name.replace("_", "-")
    return (name, *SYNONYMS.get(name, ()))


def _unknown(
    names: tuple[str, ...], parts: Sequence[_Part], later: dict[str, Grammar], listed: Collection[str]
) -> SfumatoError:
    name = names[0]
    for word, grammar in later.items():
        for own in (own for own in names if own in grammar.options):
            here = f"; here it is {own}" if own != name else ""
            return SfumatoError(f"{name} is an option of {word}; it stands behind that word{here}")
    if (place := name[2:].upper()) in parts[0].grammar.places:
        return SfumatoError(f"{place} is given as it is, without {name} before it")
    known = {option: part.word for part in parts for option in part.grammar.options}
    near = [f"{o} of {known[o]}" if known[o] else o for o in get_close_matches(name, known, 3, 0.7)]
    if not near and (having := having_field(name[2:].replace("-", "_"), listed)):
        return SfumatoError(f"{name} is an option of {', '.join(having)}; name the method, and it behind that word")
    after = f" and {parts[-1].word} --help" if len(parts) > 1 else ""
    return SfumatoError(
        f"unknown option {name}; " + (f"did you mean {' or '.join(near)}?" if near else f"see --help{after}")
    )
