"""What reading an image takes of memory, found without the image and without the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.method import Run
from sfumato.core.rehearsal import peak
from sfumato.core.rows import single
from sfumato.errors import SfumatoError
from sfumato.reading.reader import Reader


class _Price(Exception):
    """What was asked first, priced in place of an answer."""


def price(model: Backbone, reading: Callable[[Reader], Any], size: tuple[int, int], side: int | None = None) -> int:
    """Bytes that the taps of a reading's first prediction take at most, as ``Plan.bytes``; what it makes of what it
    read is not in it.

    ``size`` is the image's height and width, ``side`` as in ``read``. Raises ``SfumatoError`` for a reading that asks
    the network nothing.
    """
    asked = copy(model)
    asked.maps = _priced(model)
    reader = Reader(asked, torch.zeros(3, *size), side)
    reader.__dict__["latents"] = torch.zeros(1, model.channels, *reader.grid, device=model.device)
    try:
        reading(reader)
    except _Price as found:
        return found.args[0]
    raise SfumatoError(f"{reading} asks the network nothing, so that there is nothing to price")


def _priced(model: Backbone) -> Any:
    """In place of ``Backbone.maps``."""

    def maps(
        x: Float[Tensor, "b c h w"], t: Any, cond: Cond, sites: Sequence[Any], reduce: Callable[[Any], Tensor]
    ) -> dict[Any, Tensor]:
        found: dict[Any, Tensor] = {}

        def keep(seen: Any) -> None:
            found[seen.site] = reduce(seen)

        rows = single(len(x))
        run = Run(model, {}, rows, 1, (x.shape[-2], x.shape[-1]))
        taps = [(site, keep) for site in sorted(sites, key=lambda s: s.index)]
        raise _Price(peak(taps, run, rows, 0, grad=torch.is_grad_enabled(), stop=True))

    return maps
