"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys turned by where their tokens lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

THETA = 10000.0


def turned(
    x: Float[Tensor, "*b n d"], by: Float[Tensor, "*b n axes"], widths: Sequence[int]
) -> Float[Tensor, "*b n d"]:
    """Each token moved by so much along each axis, to which so many of its numbers belong, by neighbouring pairs.

    What is turned already is turned further: places add up.
    """
    each = [
        by[..., i, None].double() * THETA ** -(torch.arange(0, width, 2, device=x.device).double() / width)
        for i, width in enumerate(widths)
    ]
    angle = torch.cat(each, -1)
    cos, sin = angle.cos().float(), angle.sin().float()
    one, other = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([one * cos - other * sin, other * cos + one * sin], -1).flatten(-2).to(x)
