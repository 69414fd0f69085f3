"""The Gaussian blur."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Border = Literal["replicate", "reflect", "symmetric"]
"""Beyond a border lies the outermost cell again, or the image mirrored about that cell's middle or its outer side."""


def blur(
    x: Float[Tensor, "*batch h w"], sigma: float, radius: int | None = None, border: Border = "replicate"
) -> Float[Tensor, "*batch h w"]:
    """Blurred by a Gaussian of ``sigma`` cells, which ends ``radius`` cells away (three sigma), half a side at most."""
    if sigma <= 0:
        return x
    radius = max(1, math.ceil(3 * sigma)) if radius is None else radius
    flat = x.reshape(1, -1, *x.shape[-2:])  # images as channels: the fast way
    for dim in (-1, -2):
        side = x.shape[dim]
        reach = min(radius, side // 2)
        kernel = (-0.5 * (torch.arange(-reach, reach + 1).double() / sigma).square()).exp()
        padded = flat.index_select(dim, _folded(side, reach, border).to(x.device))
        weight = (kernel / kernel.sum()).to(x).view(1, 1, 1, -1).transpose(dim, -1)
        flat = F.conv2d(padded, weight.expand(flat.shape[1], -1, -1, -1), groups=flat.shape[1])
    return flat.view(x.shape)


def _folded(side: int, reach: int, border: Border) -> Int[Tensor, " padded"]:
    """Which cell of a line stands at each place of the padded one."""
    at = torch.arange(-reach, side + reach)
    if border == "replicate":
        return at.clamp(0, side - 1)
    half = 0.5 if border == "symmetric" else 0.0
    last = side - 1 + half
    return (last - (last - ((at + half).abs() - half)).abs()).long()
