"""Methods on a command line: ``masactrl --start 3 + self-attention-guidance``. A method's fields are its options.

A file of ``sfumato.methods`` that has a class of its name is a word here; nothing else lists them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import tyro

from sfumato.commands.fields import spoken
from sfumato.errors import SfumatoError, unknown
from sfumato.methods import index
from sfumato.tasks import recipes

if TYPE_CHECKING:
    from sfumato.core.method import Method
    from sfumato.inversion import Inversion
    from sfumato.media.images import Fitted

_LONE = {"--json", "--offline", "--show-attention", "--help", "-h"}  # options that no value follows
_PAIRED = {"--box", "--zoom"}
_MANY = {"--points"}  # numbers with commas follow, as many as there are
_FILES = {"--also"}  # files follow, up to the next option or method


@dataclass(frozen=True)
class Chain:
    """Methods as they were asked for, in order."""

    items: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def methods(self) -> list[Method]:
        """Those that take part in each step."""
        from sfumato.core.method import Method
        from sfumato.inversion import Inversion

        return [item for item in self.items if isinstance(item, Method) and not isinstance(item, Inversion)]

    def starter(self, fallback: Inversion) -> Inversion:
        """The one that says where to start. ``SfumatoError`` for two."""
        from sfumato.inversion import Inversion

        found = [(n, item) for n, item in zip(self.names, self.items, strict=True) if isinstance(item, Inversion)]
        if len(found) > 1:
            raise SfumatoError(f"{found[0][0]} and {found[1][0]} both say where to start; use one of them")
        return found[0][1] if found else fallback

    def given(self, **values: Any) -> Chain:
        """With values for the fields of those names, where they have them and nothing was said; ``None`` is left."""

        def filled(item: Any) -> Any:
            own = {f.name: f for f in fields(item)}
            new = {k: v for k, v in values.items() if v is not None and k in own and _unsaid(item, own[k])}
            return replace(item, **new) if new else item

        return replace(self, items=tuple(map(filled, self.items)))

    def seeing(self, fitted: Fitted) -> Chain:
        """With the masks and layouts of a picture as those of what a model sees of it."""
        from sfumato.prompts.layout import Layout, Mask

        height, width = fitted.original.height, fitted.original.width

        def seen(value: Any) -> Any:
            value = value.relative(height, width) if isinstance(value, Layout) else value
            return value.within(fitted.part) if isinstance(value, Layout | Mask) else value

        def shown(item: Any) -> Any:
            return replace(item, **{name: seen(v) for name, v in _values(item).items() if isinstance(v, Layout | Mask)})

        return replace(self, items=tuple(map(shown, self.items)))

    def stepped(self, steps: int | None) -> Chain:
        """With so many steps for the one that says where to start, if it is said."""
        from sfumato.inversion import Inversion

        if steps is None:
            return self
        return replace(self, items=tuple(_stepped(i, steps) if isinstance(i, Inversion) else i for i in self.items))


NONE = Chain()


def _stepped(inversion: Any, steps: int) -> Inversion:
    return replace(inversion, steps=steps)


def _values(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item) if f.init}


def _unsaid(item: Any, field: Any) -> bool:
    return getattr(item, field.name) == field.default


def split(
    args: Sequence[str], positional: bool = True, groups: tuple[str, ...] = index.PAINTING, several: bool = False
) -> tuple[list[str], list[list[str]]]:
    """The arguments of a command, and those of each method behind them.

    The first method is the first of their words that is neither an option's value nor the command's own ``positional``;
    the next follow a ``+``. Boxes are for all of them and may stand anywhere. ``SfumatoError`` for a word that is none,
    unless ``several`` words of the command's own may come, one after the other.
    """
    methods = set(index.words(groups, aliases=True))
    head, at, seen, more_may_come = [], 0, not positional, several
    asks = bool({"--help", "-h"} & set(args))
    while at < len(args):
        arg = args[at]
        if arg.startswith("--"):
            more = 0 if arg in _LONE or "=" in arg else 2 if arg in _PAIRED else 1
            while arg in _MANY and re.fullmatch(r"[-+.,\deE]+", "".join(args[at + 1 + more : at + 2 + more])):
                more += 1
            while arg in _FILES and (behind := args[at + 1 + more : at + 2 + more]):
                if behind[0] in methods or behind[0].startswith("-"):
                    break
                more += 1
            head += args[at : at + 1 + more]
            at += 1 + more
            more_may_come = several and not seen
        elif arg in methods and (seen or asks):
            break
        elif seen and not more_may_come and not arg.startswith("-"):
            raise unknown("method", arg, index.words(groups))
        else:
            head.append(arg)
            seen = seen or not arg.startswith("-")
            at += 1
    segments: list[list[str]] = []
    rest = list(args[at:])
    while "--box" in rest:
        i = rest.index("--box")
        head += rest[i : i + 3]
        del rest[i : i + 3]
    for arg in rest:
        if arg == "+" or not segments:
            segments.append([])
        if arg != "+":
            segments[-1].append(arg)
    return head, segments


def parse(segments: Sequence[Sequence[str]], command: str) -> Chain:
    """The methods that were asked for. ``SfumatoError`` for an unknown one; tyro says what is wrong with options."""
    items, names = [], []
    for segment in segments:
        if not segment:
            raise SfumatoError("a + joins two methods; one of them is missing")
        word, options = segment[0], list(segment[1:])
        entry = index.find(word)
        cls = entry.method
        preset = None
        if "--preset" in options:
            i = options.index("--preset")
            preset = recipes.default(f"{word}:{''.join(options[i + 1 : i + 2])}")
            del options[i : i + 2]
        known = ", ".join(f"--preset {name}" for name in recipes.presets(entry))
        more = f"\n\nPresets, before the other options: {known}" if known else ""
        said = spoken(cls)
        if any(f.default is f.default_factory and "Callable" in str(f.type) for f in fields(cls)):  # both are missing
            raise SfumatoError(f"{word} takes a function, which a command line cannot give; use it from Python")
        item = tyro.cli(
            said,
            prog=f"sfumato {command} ... {word}",
            description=(cls.__doc__ or "") + more,
            args=options,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed),
            **({} if preset is None else {"default": said(**_values(preset))}),
        )
        items.append(cls(**_values(item)))
        names.append(word)
    return Chain(tuple(items), tuple(names))
