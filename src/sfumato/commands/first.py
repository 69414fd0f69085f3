"""What is wrong with a command line and can be found out at once: before torch, methods and models are imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path

from sfumato.commands.argv import LIST, OPTION
from sfumato.commands.fields import Grammar
from sfumato.errors import SfumatoError
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


def whole(head: Sequence[str], command: Grammar, prog: str, words: Collection[str], listed: Sequence[str]) -> None:
    """Raise ``SfumatoError`` for a command's own part in which something is missing that tyro does not miss, or where a
    single picture cannot be read; ``words`` are methods that may follow, of which some are ``listed``."""
    check(head, command)
    given = {arg.partition("=")[0] for arg in head}
    if LIST in given:
        return
    if missing := [need for need in command.needs if need.partition(" ")[0] not in given]:
        raise SfumatoError(f"{prog} needs {' and '.join(missing)}; see {prog} --help")
    pictures = list(takewhile(lambda arg: not OPTION.fullmatch(arg), head))
    if not command.many or len(pictures) != 1 or (place := Path(pictures[0])).is_dir():
        return
    if not place.exists():
        if pictures[0] in words:
            raise SfumatoError(f"no picture is given: {place} is a method; name files or folders before it")
        nor = f", nor a method of that name: {', '.join(listed)}" if words else ""
        raise SfumatoError(f"there is no file or folder {place}{nor}")
    from sfumato.media import opening

    opening.checked(pictures[0])


def known(name: str) -> None:
    """Raise ``SfumatoError`` for a model that is none."""
    from sfumato.backbones import hub
    from sfumato.backbones.folder import WEIGHTS
    from sfumato.stilllife.models import MODELS

    file = Path(name).expanduser()
    if name not in MODELS and not file.is_file() and file.suffix not in WEIGHTS:
        hub.check(str(file), tuple(MODELS))
