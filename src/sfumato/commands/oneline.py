"""What tyro says of a command line in a box, said in one line as every other error."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

from sfumato.errors import SettingError, SfumatoError, unknown
from sfumato.methods import index
from sfumato.methods.about import source_of

_KINDS = {"INT": "a whole number", "FLOAT": "a number"}
_QUOTED = "'([^']*)'"


@contextmanager
def oneline() -> Iterator[None]:
    """While a command line is parsed: what tyro refuses is a ``SfumatoError`` of one line."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as e:
        if not e.code or not (lines := _inside(box.getvalue())):
            raise
        raise SfumatoError(_said(lines)) from None
    finally:
        if not _inside(box.getvalue()):
            sys.stderr.write(box.getvalue())


def worded(error: SfumatoError, options: Collection[str] = (), words: Sequence[str] = ()) -> str:
    """What a command with these ``options``, and methods of these ``words``, says of an error: in their names."""
    if isinstance(error, SettingError):
        error = next(filter(None, (_of_method(error, word) for word in words)), error)
    if isinstance(error, SettingError) and f"--{error.name.replace('_', '-')}" in options:
        error = error.typed()
    called = [e for e in index.METHODS if "-" in e.word or e.head]  # others are published by the name of their class
    names = {home.partition(":")[2]: e.word for e in called for home in (e.home, e.head)}
    return re.sub(r"(?<![\w/\\.'\"<-])([A-Z]\w+)(?![\w/\\.\"(-])", lambda m: names.get(m[1], m[1]), str(error))


def _of_method(error: SettingError, word: str) -> SfumatoError | None:
    """An error of an option of this method, or of what lies in one, such as a blend; None where it is another's."""
    entry = index.find(word)
    if f":{error.owner}" in f"{entry.home} {entry.head}":
        return error.typed(word)
    source = source_of(f"methods.{entry.home.partition(':')[0]}")
    found = re.search(rf"^    (\w+): .*\b{error.owner}\b", source, re.MULTILINE)
    return found and error.typed(word, found[1])


def _inside(text: str) -> list[str]:
    """The lines of a box, which tyro draws without lines where the terminal has none; of what is no box, nothing."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    return [line[2:].rstrip("│ ") for line in lines if line.startswith(("│ ", "  ")) and line.strip()]


def _said(lines: list[str]) -> str:
    what, *more = (_words(part) for part in re.split("[─-]{8,}", " ".join(lines)))
    if lines[0].startswith("Missing from"):
        command = lines[0].removeprefix("Missing from ").partition(":")[0]
        named = re.findall(r"^ {4}(?!sfumato )(\S.*)\n((?: {8}.*\n)*)", "\n".join(lines) + "\n", re.MULTILINE)
        needed = [f"{name} ({_words(about).removesuffix(' (required)').rstrip('.')})" for name, about in named]
        return f"{command} needs {' and '.join(needed)}; see {command} --help"
    if found := re.match(r"Error parsing ([\w-]+): (.*)", what):
        given = found[2].partition("could be instantiated from")[2].partition("Got errors")[0] or found[2]
        taken = next((line for line in lines if line.startswith(f"    {found[1]} ")), "").split(maxsplit=1)[1:]
        names = " ".join(taken).replace("{None}|", "") or "another value"
        return f"{found[1]} takes {_KINDS.get(names, names)}, got {' '.join(re.findall(_QUOTED, given))!r}"
    if found := re.match(r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\) ?\.", what):
        return str(unknown(found[2], found[1].strip("'"), re.findall(_QUOTED, found[3])))
    if found := re.match(r"Missing value for argument '(.*)'", what):
        return f"{found[1]} takes a value, and none follows"
    if found := re.match(r"Unrecognized (?:or misplaced )?options: ([^\s,]+)", what):
        if not found[1].startswith("-"):
            return f"{found[1]!r} is a word too many; a sentence stands in quotes"
        return f"unknown option {found[1]}; see --help"
    return "; ".join(filter(None, (what.rstrip("."), *more[-1:])))


def _words(text: str) -> str:
    return " ".join(text.split())
