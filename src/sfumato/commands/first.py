"""What is wrong with a command line and can be found out at once: before torch, methods and models are imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sfumato.commands.argv import LIST, OPTION
from sfumato.commands.fields import Grammar
from sfumato.errors import SfumatoError
from sfumato.io import device
from sfumato.methods import index


def check(args: Sequence[str], command: Grammar, words: Collection[str] = (), listed: Sequence[str] = ()) -> bool:
    """Raise ``SfumatoError`` for a device or a model that is none, and for a picture that is missing or broken.

    Of a line with ``words`` of methods, of which some are ``listed``, pictures are looked at if nothing else is seen to
    be wrong: where a method is named and no option is missing. Were they?
    """
    rest, place, methods = [*args[: args.index("--") if "--" in args else None]], 0, not words
    pictures, several, given = list[str](), list[str](), set[str]()
    while rest:
        arg = rest.pop(0)
        if not OPTION.fullmatch(arg):
            behind = words and arg in words and place >= command.positionals[0]
            methods = methods or behind
            if not (words and methods) and place in command.pictures and arg not in words:
                pictures.append(arg)
            if not (words and methods):
                several.append(arg)
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
    if not methods or not given.issuperset(command.required) or missing(command, given):
        return False
    from sfumato.media import opening

    if command.many and len(several) == 1 and LIST not in given and not Path(several[0]).is_dir():
        _there(several[0], words, listed)
        opening.checked(several[0])
    for picture in pictures:
        opening.checked(picture)
    return True


def missing(command: Grammar, given: Collection[str]) -> list[str]:
    """Options that a command needs unless pictures are listed in a file, which are not given."""
    return [] if LIST in given else [need for need in command.needs if need.partition(" ")[0] not in given]


def whole(
    head: Sequence[str], command: Grammar, prog: str, words: Collection[str], listed: Sequence[str], looked: bool
) -> None:
    """Raise ``SfumatoError`` for a command's own part, in which something may be missing that tyro does not miss.

    ``looked``: ``check`` has looked at the pictures of the whole line.
    """
    if needed := missing(command, {arg.partition("=")[0] for arg in head}):
        raise SfumatoError(f"{prog} needs {' and '.join(needed)}; see {prog} --help")
    if command.many and head and not OPTION.fullmatch(head[0]):
        _there(head[0], words, listed)
    if not looked:
        check(head, command)


def _there(place: str, words: Collection[str], listed: Sequence[str]) -> None:
    """Refuse the first of many pictures or folders where there is none."""
    if not Path(place).exists():
        if place in words:
            raise SfumatoError(f"no picture is given: {place} is a method; name files or folders before it")
        raise index.none_there(place, listed)


def known(name: str) -> None:
    """Raise ``SfumatoError`` for a model that is none."""
    from sfumato.backbones import hub
    from sfumato.backbones.folder import WEIGHTS
    from sfumato.stilllife.models import MODELS

    file = Path(name).expanduser()
    if name not in MODELS and not file.is_file() and file.suffix not in WEIGHTS:
        hub.check(str(file), tuple(MODELS))
