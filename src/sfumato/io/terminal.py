"""What a person reads of a command: notes on stderr, results on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sfumato.io.files import as_json
from sfumato.io.progress import waiting
from sfumato.io.sparing import sparing

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 100_000  # columns


def note(text: str) -> None:
    """A remark beside the result: one line on stderr."""
    print(f"note: {text}", file=sys.stderr)


def print_json(value: Any) -> None:
    """One JSON document on stdout, strict: ``SfumatoError`` names what is not finite."""
    print(as_json(value, indent=2, ensure_ascii=False), flush=True)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Records as a table on stdout, a column a key, lists with commas."""
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        cells = [row.get(key, "") for key in columns]
        table.add_row(*(", ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in cells))
    print_whole(table)


def print_whole(table: Table) -> None:
    """A table with all that its cells hold: they are folded at a terminal's width, and in a pipe it is as wide as it
    is."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console(width=None if sys.stdout.isatty() else _WIDE, markup=False, emoji=False)
    with console.capture() as lines:
        console.print(table)
    print("\n".join(line.rstrip() for line in lines.get().splitlines()))


@contextmanager
def without(logger: str, words: str) -> Iterator[None]:
    """Keep one remark of a library, known by some of its words, from being logged while the block runs."""

    def other(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logging.getLogger(logger).addFilter(other)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(other)


def quiet() -> None:
    """Keep the remarks and bars of the libraries underneath off the terminal; a command has its own."""
    with waiting("starting"), sparing():
        from diffusers.utils import logging as diffusers
        from transformers.utils import logging as transformers

    for library in (diffusers, transformers):
        library.set_verbosity_error()
        library.disable_progress_bar()
