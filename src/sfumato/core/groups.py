"""Images of a run that go through the network some at a time, and what is kept of those that others read.

In each step whoever is read goes before those who read it, and what is read of its layers waits for them; images that
read each other go together. So every image is what it would be if all went at once, and no more is kept than is read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sfumato.errors import SfumatoError

Reads = Callable[[int], Sequence[Sequence[int]]]
"""Of a step, whom each image reads, by their numbers."""


@dataclass(frozen=True)
class Turn:
    """Images that go through the network together."""

    images: tuple[int, ...]
    later: frozenset[int]
    """Images up to here that later turns read."""


@dataclass(eq=False)
class Group:
    """Some images of each stream, while they go through the network."""

    images: tuple[int, ...]
    later: frozenset[int]
    kept: dict[Hashable, dict[int, Tensor]] = field(default_factory=dict)
    """Of each thing that is read, the rows of images."""
    rehearsed: bool = False
    """In a rehearsal what went before is made up."""

    def across(self, key: Hashable, here: Mapping[int, Tensor], wanted: Iterable[int]) -> dict[int, Tensor]:
        """Rows of the images ``wanted``: what those have that are ``here``, of others what was kept under ``key``."""
        kept = self.kept.setdefault(key, {})
        kept.update({image: row.clone() for image, row in here.items() if image in self.later})
        if self.rehearsed and here:
            like = next(iter(here.values()))
            kept = {image: like.new_empty(like.shape) for image in wanted} | kept
        return {image: here[image] if image in here else kept[image] for image in wanted}

    def over(self) -> None:
        """Let go of what no later turn reads."""
        for rows in self.kept.values():
            for image in [image for image in rows if image not in self.later]:
                del rows[image]


def turns(reads: Sequence[Sequence[Sequence[int]]], images: int, size: int) -> tuple[Turn, ...]:
    """So many images in turns of no more than ``size``. Several ``reads`` are of methods that act together.

    Raises ``SfumatoError`` where more read each other.
    """
    sets: list[list[int]] = []
    for ring in _rings(reads, images) if reads else ([image] for image in range(images)):
        if len(ring) > size:
            raise SfumatoError(
                f"{len(ring)} images read each other in every layer, so they go through the network together, and a "
                f"group is of {size}; take groups of {len(ring)} (--chunk), or let fewer be read"
            )
        if not sets or len(sets[-1]) + len(ring) > size:
            sets.append([])
        sets[-1] += ring
    later: set[int] = set()
    out: list[Turn] = []
    for some in reversed(sets):  # what is read behind a turn
        out.append(Turn(tuple(sorted(some)), frozenset(later)))
        later |= {at for found in reads for image in some for at in found[image]}
    seen: set[int] = set()
    cut = []
    for turn in reversed(out):
        seen |= set(turn.images)
        cut.append(Turn(turn.images, turn.later & seen))
    return tuple(cut)


def _rings(reads: Sequence[Sequence[Sequence[int]]], images: int) -> Iterator[list[int]]:
    """Images that read each other, each ring behind those that it reads (Tarjan 1972)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    waiting: list[int] = []
    inside: set[int] = set()
    for first in range(images):
        if first in number:
            continue
        path = [(first, iter([at for found in reads for at in found[first]]))]
        number[first] = low[first] = len(number)
        waiting.append(first)
        inside.add(first)
        while path:
            image, rest = path[-1]
            for at in rest:
                if at not in number:
                    number[at] = low[at] = len(number)
                    waiting.append(at)
                    inside.add(at)
                    path.append((at, iter([to for found in reads for to in found[at]])))
                    break
                if at in inside:
                    low[image] = min(low[image], number[at])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[image])
                if low[image] == number[image]:
                    ring = []
                    while not ring or ring[-1] != image:
                        ring.append(waiting.pop())
                        inside.discard(ring[-1])
                    yield sorted(ring)
