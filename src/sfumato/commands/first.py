"""What is wrong with a command line and can be found out at once: before torch, methods and models are imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sfumato.commands.argv import OPTION
from sfumato.commands.fields import Grammar
from sfumato.io import device


def check(args: Sequence[str], command: Grammar, words: Collection[str] = ()) -> None:
    """Raise ``SfumatoError`` for a device or a model that is none, and for a picture that is missing or broken.

    Of a line with ``words`` of methods pictures are looked at if nothing else is seen to be wrong: where a method is
    named and no option is missing.
    """
    rest, place, methods = [*args[: args.index("--") if "--" in args else None]], 0, not words
    pictures, given = list[str](), set[str]()
    while rest:
        arg = rest.pop(0)
        if not OPTION.fullmatch(arg):
            behind = words and arg in words and place >= command.positionals[0]
            methods = methods or behind
            if not (words and methods) and place in command.pictures and arg not in words:
                pictures.append(arg)
            place += 1
            continue
        name, equals, value = arg.partition("=")
        name = name.replace("_", "-")
        count = 0 if equals else command.options.get(name) or 0
        values, rest = ([value] if equals else rest[:count]), rest[count:]
        given.add(name)
        if len(values) == 1:
            if name == "--device" and name in command.options:
                device.check(values[0])
            elif name == "--model" and name in command.options:
                known(values[0])
            elif name in command.pictures:
                pictures += values
    if methods and given.issuperset(command.required):
        from sfumato.media import opening

        for picture in pictures:
            opening.checked(picture)


def known(name: str) -> None:
    """Raise ``SfumatoError`` for a model that is none."""
    from sfumato.backbones import hub
    from sfumato.backbones.folder import WEIGHTS
    from sfumato.stilllife.models import MODELS

    file = Path(name).expanduser()
    if name not in MODELS and not file.is_file() and file.suffix not in WEIGHTS:
        hub.check(str(file), tuple(MODELS))
