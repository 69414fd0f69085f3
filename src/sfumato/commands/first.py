"""What is wrong with a command line and can be found out at once: before torch, methods and models are imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sfumato.commands.argv import OPTION
from sfumato.commands.fields import Grammar
from sfumato.io import device


def check(args: Sequence[str], command: Grammar, words: Collection[str]) -> None:
    """Raise ``SfumatoError`` for a device or a model that is none, and for a picture that is missing or broken."""
    rest, place, methods = [*args[: args.index("--") if "--" in args else None]], 0, False
    while rest:
        arg = rest.pop(0)
        if not OPTION.fullmatch(arg):
            methods = methods or (arg in words and place >= command.positionals[0])
            if not methods and place in command.pictures and arg not in words:
                _picture(arg)
            place += not methods
            continue
        name, equals, value = arg.partition("=")
        name = name.replace("_", "-")
        count = 0 if equals else command.options.get(name) or 0
        values, rest = ([value] if equals else rest[:count]), rest[count:]
        if name in command.options and len(values) == 1:
            _option(name, values[0], command)


def _option(name: str, value: str, command: Grammar) -> None:
    if name == "--device":
        device.check(value)
    elif name == "--model":
        known(value)
    elif name in command.pictures:
        _picture(value)


def known(name: str) -> None:
    """Raise ``SfumatoError`` for a model that is none."""
    from sfumato.backbones import hub
    from sfumato.backbones.folder import WEIGHTS
    from sfumato.stilllife.models import MODELS

    file = Path(name).expanduser()
    if name not in MODELS and not file.is_file() and file.suffix not in WEIGHTS:
        hub.check(str(file), tuple(MODELS))


def _picture(file: str) -> None:
    from sfumato.media.opening import checked

    checked(file)
