"""The batch by name. A row group is (stream, condition): the images of one prompt under one of the guidance's words.

``rows["target", "cond"]`` is where they lie. Nothing slices a batch by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from sfumato.core.groups import Group
from sfumato.errors import SfumatoError

Name = tuple[str, str]  # stream, condition
Pattern = str | tuple[str | None, str | None] | None  # all | a condition | (stream, condition), None for any


@dataclass(frozen=True)
class Rows:
    """Groups of rows, condition by condition, and in each the streams in order.

    A group has a stream's images one after the other, and of each image its views.
    """

    streams: tuple[str, ...]
    conditions: tuple[str, ...]
    of_stream: int = 1
    """Images of a stream."""
    views: int = 1
    """Of an image: the windows in which the network sees a canvas."""
    frames: int = 1
    """How many images one after the other are a clip; 1: each is by itself."""

    group: Group | None = None
    """Where not all images of a run go through the network at once: which ones these are."""
    without: frozenset[Name] = frozenset()
    """Groups that are left out."""
    grids: int | None = None
    """In which the network sees a stream's images put together, a row each; None: it sees them apart."""

    @property
    def each(self) -> int:
        """Rows of a group."""
        return self.of_stream * self.views if self.grids is None else self.grids

    @property
    def whole(self) -> bool:
        """Does the network see each image as it is, neither in windows nor with others?"""
        return self.views == 1 and self.grids is None

    @cached_property
    def names(self) -> tuple[Name, ...]:
        return tuple((s, c) for c in self.conditions for s in self.streams if (s, c) not in self.without)

    def __len__(self) -> int:
        return len(self.names) * self.each

    def __getitem__(self, name: Name) -> slice:
        """Where a group lies in the batch. ``SfumatoError`` for a name that is not there."""
        if name not in self.names:
            raise SfumatoError(f"there are no rows {name!r}; the batch has: {', '.join(map(str, self.names))}")
        at = self.names.index(name) * self.each
        return slice(at, at + self.each)

    def stream(self, name: str) -> slice:
        """Where a stream lies among what the network sees, under one condition."""
        if name not in self.streams:
            raise SfumatoError(f"there is no stream {name!r}; this run has: {', '.join(self.streams)}")
        at = self.streams.index(name) * self.each
        return slice(at, at + self.each)

    def images(self, name: str) -> slice:
        """Where a stream lies among whole images, of which views are parts."""
        at = self.stream(name).start // self.each * self.of_stream
        return slice(at, at + self.of_stream)

    @property
    def numbers(self) -> Sequence[int]:
        """Which images of a stream these are."""
        return range(self.of_stream) if self.group is None else self.group.images

    def own(self, x: Tensor) -> Tensor:
        """Of what belongs to each row of a group of the run, what belongs to the rows that are here."""
        return x if self.group is None else x[list(self.group.images)]

    def places(self, images: Sequence[int]) -> Int[Tensor, " n"]:
        """Where these images of each stream lie in the batch."""
        groups = torch.arange(len(self.names))[:, None] * self.of_stream
        return (groups + torch.tensor(images)).flatten()

    def spread(self, x: Tensor) -> Tensor:
        """What belongs to an image each, given to all of its views.

        ``SfumatoError`` where images that the network sees as one have not the same.
        """
        if self.grids is not None:
            if not bool((x == x[:1]).all()):
                raise SfumatoError("images that are seen as one differ in what a method gives to each; leave one out")
            return x[:1].expand(self.grids, *x.shape[1:])
        return x.repeat_interleave(self.views, 0) if self.views > 1 else x

    def over_time(self, places: int) -> Rows:
        """Rows of attention over time: of each clip its places, so many, in the order of the clips."""
        return replace(self, of_stream=self.each // self.frames * places, views=1, frames=1)

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
