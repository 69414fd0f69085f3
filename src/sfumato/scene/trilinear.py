"""A dense grid read at places between its cells, and back: on a CPU most of what a rendering's gradient costs."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SHARED = 2**14
"""So many places are read by all cores."""
FEW = 2
"""On so many cores, the gradient of a grid is faster by ``Read``, on one, than by torch on all of them."""


def read(grid: Float[Tensor, "1 k d h w"], local: Float[Tensor, "p 3"]) -> Float[Tensor, "k p"]:
    """A dense grid at places in [-1, 1], trilinearly; its axes are z, y, x.

    ``Read`` goes over all cells once for each corner, which pays where there are as many places as cells, or more.
    """
    learned = grid.requires_grad and torch.is_grad_enabled() and not local.requires_grad
    many = len(local) >= grid[0, 0].numel() and local.device.type == "cpu" and torch.get_num_threads() <= FEW
    return Read.apply(grid, local) if learned and many else sampled(grid, local)  # pyright: ignore[reportReturnType]


def sampled(grid: Float[Tensor, "1 k d h w"], local: Float[Tensor, "p 3"]) -> Float[Tensor, "k p"]:
    """By torch, which reads a grid on one core; of many places each core gets its part."""
    p = len(local)
    parts = torch.get_num_threads() if p >= SHARED and local.device.type == "cpu" else 1
    more = -p % parts
    at = F.pad(local, (0, 0, 0, more)) if more else local
    found = F.grid_sample(
        grid.expand(parts, -1, -1, -1, -1), at.view(parts, -1, 1, 1, 3), align_corners=False, padding_mode="border"
    )
    return found[0, :, :, 0, 0] if parts == 1 else found[..., 0, 0].transpose(0, 1).flatten(1)[:, :p]


class Read(torch.autograd.Function):
    """``sampled`` whose gradient goes to the eight cells around each place, all channels at once; places get none.

    Torch's goes there channel by channel, and computes one by places in any case.
    """

    @staticmethod
    def forward(ctx: Any, grid: Tensor, local: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(local)
        ctx.sides = grid.shape[2:]
        return sampled(grid, local)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        from scipy.sparse import csc_array

        (local,), (k, p) = ctx.saved_tensors, grads[0].shape
        given, each = grads[0].new_empty(p, k), torch.arange(p + 1, dtype=torch.int32).numpy()
        for channel in range(k):
            given[:, channel] = grads[0][channel]
        total: Any = 0.0
        for rows, weights in _corners(local, ctx.sides):
            matrix = csc_array((weights.numpy(), rows.numpy(), each), shape=(ctx.sides.numel(), p))
            total = total + matrix @ given.numpy()
        return torch.from_numpy(total).view(*ctx.sides, k).permute(3, 0, 1, 2)[None], None


def _corners(local: Tensor, sides: torch.Size) -> list[tuple[Tensor, Tensor]]:
    """Rows of the eight cells around each place, the last axis fastest, and their parts."""
    base, parts = torch.zeros(len(local), dtype=torch.int32), []
    for axis, side in enumerate(sides):
        at = local[:, 2 - axis].mul(side / 2).add_((side - 1) / 2).clamp_(0, side - 1)
        low = at.to(torch.int32).clamp_(0, side - 2)
        part = at.sub_(low)
        base = base.mul_(side).add_(low)
        parts.append((1 - part, part))
    return [
        (base + ((z * sides[1] + y) * sides[2] + x), (parts[0][z] * parts[1][y]).mul_(parts[2][x]))
        for z, y, x in product((0, 1), repeat=3)
    ]
