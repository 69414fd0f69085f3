"""Matrices in 8 or 4 bits, so that more networks may ship: whole numbers, and a scale for each 64 of a row.

A group's scale maps its number of largest magnitude near the end of the range that reaches further, -128 or -8, and is
the one of a few that loses least, by the mean square.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

GROUP = 64
TRIED = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72)  # of the scale that cuts nothing off


def coarsen(value: Tensor, bits: int) -> tuple[Integer[Tensor, "r c"], Float[Tensor, "r g"]]:
    """Codes and scales of ``value``, two or more dimensions, its rows along the first. ``bits`` is 8 or 4.

    Codes are int8 (r, n), or uint8 (r, n / 2) with two numbers each; n is rounded up to whole groups of 64. Scales are
    half precision. Raises ``ValueError`` for other ``bits``.
    """
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, not {bits}")
    top = 2 ** (bits - 1)
    rows = value.detach().float().flatten(1)
    groups = F.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    # a group of zeros, or of less than halves can tell, keeps no scale: with one of 0 nothing is better
    scales, codes, lost = torch.zeros_like(extreme), torch.zeros_like(groups), groups.square().sum(-1, keepdim=True)
    for part in TRIED:
        scale = (extreme * (part / -top)).half().float()
        code = (groups / scale).round().clamp(-top, top - 1)
        error = (code * scale - groups).square().sum(-1, keepdim=True)
        better = error < lost
        scales, codes = torch.where(better, scale, scales), torch.where(better, code, codes)
        lost = torch.where(better, error, lost)
    codes = codes.flatten(1).to(torch.int8)
    if bits == 4:
        low, high = (codes + top).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        codes = low + 16 * high
    return codes.contiguous(), scales[..., 0].half().contiguous()


def refine(codes: Integer[Tensor, "r c"], scales: Float[Tensor, "r g"], shape: tuple[int, ...]) -> Tensor:
    """What ``coarsen`` made codes and scales of, as far as they tell it, in float32."""
    if codes.dtype == torch.uint8:
        codes = torch.stack([codes % 16, codes // 16], -1).flatten(1).to(torch.int8) - 8
    rows = codes.unflatten(1, (-1, GROUP)).float() * scales.float()[..., None]
    return rows.flatten(1)[:, : math.prod(shape[1:])].reshape(shape)
