"""Which images of a run each image reads: a small language, and edits that share keys and values accordingly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.groups import turns
from sfumato.core.method import Edit, Run, Span, Where
from sfumato.core.rows import Pattern
from sfumato.errors import SfumatoError, unknown

PAIR = "image->image"
WORDS: dict[str, Callable[[int, int], Sequence[int]]] = {
    "self": lambda i, n: (i,),
    "first": lambda i, n: (0,),
    "previous": lambda i, n: (max(i - 1, 0),),
    "next": lambda i, n: (min(i + 1, n - 1),),
    "middle": lambda i, n: ((n - 1) // 2,),
    "all": lambda i, n: range(n),
}
"""What image i of n reads. Before the first is the first, behind the last the last; the middle of 8 is the fourth."""


def read(sources: str, images: int) -> tuple[tuple[int, ...], ...]:
    """For each of so many images, those that it reads, each once: ``first+previous``, ``self+3``, ``all``.

    Images are counted from 0. Raises ``SfumatoError`` for a word that is none and for an image that is not there.
    """
    found: list[Callable[[int, int], Sequence[int]]] = []
    for word in (part.strip() for part in sources.split("+")):
        if word.isdecimal():
            if int(word) >= images:
                raise SfumatoError(f"there is no image {word} to read: the set has {images}, counted from 0")
            found.append(lambda i, n, at=int(word): (at,))
        elif word in WORDS:
            found.append(WORDS[word])
        else:
            raise unknown("source of keys and values", word, (*WORDS, "a number", "several joined by +"))
    return tuple(tuple(dict.fromkeys(at for f in found for at in f(i, images))) for i in range(images))


def rows(found: Sequence[Sequence[int]], views: int = 1) -> tuple[Int[Tensor, "each m"], Float[Tensor, "each m"]]:
    """Images as rows of a group, each view of an image reading the same view of others; and what makes each count once.

    Images that read fewer than others read some of them several times, and those weigh as much less: logarithms.
    """
    most = max(map(len, found))
    filled = torch.tensor([[some[k % len(some)] for k in range(most)] for some in found])
    times = (filled[:, :, None] == filled[:, None, :]).sum(-1).float()
    weight = -times.log()
    each = torch.arange(views)
    at = (filled[:, None] * views + each[:, None]).flatten(0, 1)
    return at, weight.repeat_interleave(views, 0)


def shared(
    run: Run,
    found: Sequence[Sequence[int]],
    steps: Span = (0, None),
    sites: Callable[[Any], bool] | None = None,
    rows_of: Pattern = None,
    of_others: tuple[float, float] = (1.0, 0.0),
) -> tuple[Edit, ...]:
    """Edits with which image i of each stream and condition reads ``found[i]``; none where each reads itself.

    ``of_others``: what logits of other images' keys are multiplied by, and what is added to them.
    """
    if all(tuple(some) == (i,) for i, some in enumerate(found)):
        return ()
    if run.group:  # who cannot go in groups is refused before anything of all that is read is made
        turns([found], len(found), run.group)
    at, weight = rows(found, run.rows.views)
    others = at != torch.arange(len(at))[:, None]
    found = tuple(map(tuple, found))
    weight = weight + of_others[1] * others
    scale = None if of_others[0] == 1 else torch.where(others, of_others[0], 1.0)
    names = run.rows.match(rows_of)

    def share(call: Call) -> None:
        own = call.rows.own
        bias, by = weighed(call, own(weight)), None if scale is None else own(scale)
        for name in names:
            call.share(name, own(at), bias, by)

    where = Where(PAIR, steps=steps, rows=rows_of, sites=sites)
    return (Edit(where, "sources", share, reads=lambda step: found),)


def weighed(call: Call, weight: Float[Tensor, "each m"]) -> Float[Tensor, "each keys"] | None:
    """What is added to the logits of each key, by its source's weight; None for nothing."""
    if call.site.key == ("image",):  # beside no words what is alike for all that is read is nothing
        weight = weight - weight[:, :1]
    return weight.repeat_interleave(call.grid[0] * call.grid[1], 1) if weight.any() else None
