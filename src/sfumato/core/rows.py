"""The batch by name. A row group is (stream, condition): the images of one prompt under one of the guidance's words.

``rows["target", "cond"]`` is where they lie. Nothing slices a batch by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sfumato.errors import SfumatoError

Name = tuple[str, str]  # stream, condition
Pattern = str | tuple[str | None, str | None] | None  # all | a condition | (stream, condition), None for any


@dataclass(frozen=True)
class Rows:
    """Groups of ``each`` rows, condition by condition, and in each the streams in order."""

    streams: tuple[str, ...]
    conditions: tuple[str, ...]
    each: int = 1

    @cached_property
    def names(self) -> tuple[Name, ...]:
        return tuple((s, c) for c in self.conditions for s in self.streams)

    def __len__(self) -> int:
        return len(self.names) * self.each

    def __getitem__(self, name: Name) -> slice:
        """Where a group lies in the batch. ``SfumatoError`` for a name that is not there."""
        if name not in self.names:
            raise SfumatoError(f"there are no rows {name!r}; the batch has: {', '.join(map(str, self.names))}")
        at = self.names.index(name) * self.each
        return slice(at, at + self.each)

    def stream(self, name: str) -> slice:
        """Where a stream lies among the images (which have no condition)."""
        if name not in self.streams:
            raise SfumatoError(f"there is no stream {name!r}; this run has: {', '.join(self.streams)}")
        at = self.streams.index(name) * self.each
        return slice(at, at + self.each)

    def match(self, pattern: Pattern) -> tuple[Name, ...]:
        """The groups that a pattern names. ``SfumatoError`` when there are none."""
        stream, condition = (None, pattern) if pattern is None or isinstance(pattern, str) else pattern
        found = tuple(
            (s, c) for s, c in self.names if (stream is None or s == stream) and (condition is None or c == condition)
        )
        if not found:
            raise SfumatoError(f"no rows match {pattern!r}; the batch has: {', '.join(map(str, self.names))}")
        return found


def single(n: int) -> Rows:
    """``n`` rows that belong together: one stream, one condition."""
    return Rows(("main",), ("cond",), n)


def streams_of(names: Sequence[str]) -> tuple[str, ...]:
    """Stream names as given, each once. ``SfumatoError`` for none or for doubles."""
    if not names or len(set(names)) != len(names):
        raise SfumatoError(f"streams have names of their own, got: {', '.join(names) or 'none'}")
    return tuple(names)
