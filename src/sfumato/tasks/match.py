"""Find points of one picture in another, and carry a mask or an edit over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener, heard
from sfumato.methods.perceive.dift import DIFT
from sfumato.reading.reader import Image, Reader, check_set, read
from sfumato.reading.results import Matches

GRID = 6  # points a side, where none are given


@dataclass(frozen=True)
class Matched(Brief):
    """What of the first picture was found in the second."""

    matches: Matches
    method: Any
    """As it was asked."""
    mask: Int[Tensor, "h w"] | None = None
    """The mask as the second picture has it: 1 is inside."""
    edited: Float[Tensor, "3 h w"] | None = None
    """The second picture with the first one's edit, in [0, 1]."""


def match(
    model: Backbone,
    first: Image,
    second: Image,
    method: Any,
    *,
    points: Sequence[tuple[float, float]] = (),
    mask: Float[Tensor, "h w"] | None = None,
    edited: Float[Tensor, "3 h w"] | None = None,
    side: int | None = None,
    on_progress: Listener | None = None,
) -> Matched:
    """Where ``points`` (x, y) of the first picture lie in the second; without any, those of a grid.

    Of a grid, points that are not found again from there are not sure. ``mask``: of the first picture; ``edited``: it
    with an edit inside of the mask. Raises ``SfumatoError`` where a mask or an edit is given to what carries none.
    """
    check_set(method, "DIFT")
    if (mask is not None or edited is not None) and not isinstance(method, DIFT):
        raise SfumatoError(f"{type(method).__name__} matches points alone; masks and edits are carried by dift")
    if edited is not None and mask is None:
        raise SfumatoError("an edit needs the mask that says where it is")
    if isinstance(method, DIFT) and method.cycle is None and not points:
        method = replace(method, cycle=0.1)  # a grid has points that the other image does not show
    with heard(on_progress), read(model, first, side) as one, read(model, second, side) as other:
        found = method(one, other, torch.tensor(points) if points else _grid(one))
        if mask is None:
            return Matched(found, method)
        if tuple(mask.shape) != one.size:
            (h, w), size = mask.shape, one.size
            raise SfumatoError(f"the mask is {w} x {h} pixels, its image is {size[1]} x {size[0]}")
        carried = None if edited is None else method.edit(one, edited, other, mask)[0]
        return Matched(found, method, method.masks(one, other, mask[None]).labels, carried)


def _grid(reader: Reader) -> Float[Tensor, "n 2"]:
    h, w = reader.size
    share = (torch.arange(GRID) + 0.5) / GRID
    return torch.cartesian_prod(share * w, share * h)
