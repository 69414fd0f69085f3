"""Which edits ``sfumato edit`` is asked for: of pictures, of a list of them, and in a grid of settings."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sfumato.commands import argv, grids
from sfumato.commands import fields as options
from sfumato.commands.grids import number
from sfumato.commands.options import guidance_of, seed_of, whole
from sfumato.errors import SfumatoError, unknown
from sfumato.io.files import from_json, read_text
from sfumato.methods import index
from sfumato.tasks.chain import Chain
from sfumato.tasks.starts import How

if TYPE_CHECKING:
    from sfumato.prompts.layout import Layout, Mask

COLUMNS = ("picture", "from", "to", "method", "seed", "guidance", "steps", "negative")


@dataclass(frozen=True)
class Wanted:
    """One edit of one picture."""

    picture: Path
    source: str
    target: str
    chain: Chain
    negative: str = ""
    steps: int | None = None
    guidance: float | None = None
    invert: How | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None:
            whole("--steps", self.steps, 1, 1000)
        seed_of(self.seed)
        guidance_of(self.guidance)

    def settings(self, own: bool = True) -> dict[str, Any]:
        """All by which its result differs from that of others; without what is its ``own``, picture and words."""
        left_out = {"chain"} if own else {"chain", "picture", "source", "target"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out} | {
            "by": self.chain.items
        }

    def given(self, layout: Layout | None, mask: Mask | None) -> Wanted:
        """With a layout and a mask for the methods that have none of their own."""
        return replace(self, chain=self.chain.given(layout=layout, mask=mask))


def listed(file: Path, given: Wanted) -> list[Wanted]:
    """The edits of a CSV or JSONL file, whose columns are ``COLUMNS``; what a row leaves open is as ``given``.

    Pictures lie beside the file, or where their path says from there. A method stands as on a command line:
    ``p2p --cross 0.6 + masactrl``, or with a preset as ``p2p:pie-bench``. Raises ``SfumatoError`` with the row.
    """
    out = []
    for line, row in _rows(file):
        try:
            out.append(_wanted(row, file.parent, given))
        except SfumatoError as e:
            raise SfumatoError(f"{file}, line {line}: {e}") from None
    if not out:
        raise SfumatoError(f"{file} lists no edit")
    return out


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers of lines, and what they say by column."""
    kind, text = file.suffix.lower(), read_text(file)
    if kind == ".jsonl":
        for line, words in enumerate(text.splitlines(), 1):
            if words.strip():
                try:
                    row = from_json(words, dict)
                except ValueError as e:
                    raise SfumatoError(f"{file}, line {line}: {e}") from None
                yield line, row
    elif kind == ".csv":
        reader = csv.DictReader(text.splitlines(), strict=True, skipinitialspace=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise SfumatoError(f"{file}, line {reader.line_num}: it has not as many cells as the first line")
                yield reader.line_num, row
        except csv.Error as e:
            raise SfumatoError(f"{file}, line {reader.line_num}: {e}") from None
    else:
        raise SfumatoError(f"--list is a .csv or .jsonl file with the columns {', '.join(COLUMNS)}; got {file}")


def _wanted(row: Mapping[str, Any], folder: Path, given: Wanted) -> Wanted:
    if wrong := next((name for name in row if name not in COLUMNS), None):
        raise unknown("column", str(wrong), COLUMNS)
    row = {name: value for name, value in row.items() if value is not None and value != ""}
    words = {name: _text(name, row[name]) for name in ("picture", "from", "to", "method", "negative") if name in row}
    if "picture" not in words:
        raise SfumatoError("it names no picture")
    new: dict[str, Any] = {"picture": folder / Path(words["picture"]).expanduser()}
    new |= {of: words[name] for name, of in (("from", "source"), ("to", "target")) if name in words}
    new |= {"negative": words["negative"]} if "negative" in words else {}
    new |= {"chain": _chain(words["method"])} if "method" in words else {}
    new |= {name: number(name, row[name], int) for name in ("seed", "steps") if name in row}
    new |= {name: number(name, row[name], float) for name in ("guidance",) if name in row}
    return replace(given, **new)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SfumatoError(f"{name} is text, got {value!r}")
    return value.strip()


@cache
def _chain(text: str) -> Chain:
    """Methods as they stand on a command line, or with a preset behind a colon."""
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise SfumatoError(f"method {text!r}: {e}") from None
    known, short = index.words(index.PAINTING, aliases=True), []
    for word in words:
        name, colon, preset = word.partition(":")
        short += [name, f"--preset={preset}"] if colon and name in known else [word]
    _, segments = argv.split(short, options.Grammar({}), known, options.of_method, index.words(index.PAINTING))
    return options.methods(segments, "sfumato edit")


def changed(given: Wanted, cell: Sequence[tuple[str, str]]) -> Wanted:
    """An edit with other settings: its methods' own by the names of their options, or the run's. ``SfumatoError`` for
    what is none."""
    for name, text in cell:
        given = _changed(given, name.replace("-", "_"), name, text)
    return given


def _changed(given: Wanted, field: str, name: str, text: str) -> Wanted:
    if (chain := grids.in_methods(given.chain, field, text, "sfumato edit")) is not None:
        return replace(given, chain=chain)
    match field:
        case "seed" | "steps":
            return replace(given, **{field: number(name, text, int)})
        case "guidance":
            return replace(given, guidance=number(name, text, float))
        case "invert":
            if text not in get_args(How):
                raise unknown("--invert", text, get_args(How))
            return replace(given, invert=text)
    raise unknown("setting of --grid", name, [*grids.settings(given.chain), "guidance", "steps", "seed", "invert"])


def default(spec: str, given: Wanted) -> Wanted:
    """By the method of a word, or ``word:preset``."""
    return replace(given, chain=options.default(spec))
