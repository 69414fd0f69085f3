"""Images, latents, features and maps as they look from elsewhere: turned, scaled, moved, along a flow.

Pure functions of tensors. Places are (x, y) in parts of an image's sides, so grids of any size go together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Mode = Literal["bilinear", "nearest"]
Padding = Literal["border", "reflection", "zeros"]


def warp(
    x: Float[Tensor, "b c H W"], at: Float[Tensor, "#b h w 2"], mode: Mode = "bilinear", padding: Padding = "border"
) -> Float[Tensor, "b c h w"]:
    """What ``x`` shows at places; ``padding`` says what lies beyond its borders."""
    return F.grid_sample(x, (2 * at - 1).to(x).expand(len(x), -1, -1, -1), mode, padding, align_corners=False)


def affine(x: Float[Tensor, "b c h w"], theta: Float[Tensor, "2 3"]) -> Float[Tensor, "b c h w"]:
    """Each place from where ``theta`` puts it, counted from the middle in halves of the sides; zeros from beyond."""
    grid = F.affine_grid(theta[None].to(x), [1, *x.shape[1:]], align_corners=False)
    return warp(x, (grid + 1) / 2, padding="zeros")


def inverse(theta: Float[Tensor, "2 3"]) -> Float[Tensor, "2 3"]:
    """The transformation back."""
    return torch.linalg.inv(torch.cat([theta, theta.new_tensor([[0.0, 0.0, 1.0]])]))[:2]


@dataclass(frozen=True)
class Similarity:
    """A turn and a scale about the middle, then a move. The same for grids of any size and of any sides."""

    right: float = 0.0
    """Part of the width."""
    down: float = 0.0
    """Part of the height."""
    turn: float = 0.0
    """Degrees, counter-clockwise."""
    scale: float = 1.0
    """Above 1 is larger."""

    @property
    def still(self) -> bool:
        """Does it leave everything where it is?"""
        return not self.right and not self.down and not self.turn % 360 and self.scale == 1

    def __call__(
        self, x: Float[Tensor, "b c h w"], mode: Mode = "bilinear", padding: Padding = "border"
    ) -> Float[Tensor, "b c h w"]:
        """``x`` transformed."""
        if self.still:
            return x
        h, w = x.shape[-2:]
        column, row = self._sources(h, w)
        at = torch.stack([(column + 0.5) / w, (row + 0.5) / h], -1)[None]
        return warp(x.float(), at, mode, padding).to(x.dtype)

    def inside(self, h: int, w: int) -> Bool[Tensor, "h w"]:
        """Cells that come from somewhere inside."""
        x, y = self._sources(h, w)
        return (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)

    def whole(self, h: int, w: int, rim: int = 0) -> Bool[Tensor, "h w"]:
        """Cells mixed of nothing but what lies inside, at least ``rim`` cells away from the border."""
        ones = torch.zeros(1, 1, h, w)
        ones[..., rim : h - rim, rim : w - rim] = 1.0
        return self(ones, padding="zeros")[0, 0] > 0.999

    def _sources(self, h: int, w: int) -> Float[Tensor, "2 h w"]:
        """Where each cell comes from: columns and rows, whole numbers at the middles of cells."""
        y, x = torch.arange(h).double()[:, None], torch.arange(w).double()
        middle = (w - 1) / 2, (h - 1) / 2
        x, y = x - middle[0] - self.right * w, y - middle[1] - self.down * h
        sin, cos = (f(math.radians(self.turn % 360)) / self.scale for f in (math.sin, math.cos))
        found = torch.stack([cos * x - sin * y + middle[0], sin * x + cos * y + middle[1]])
        return (found * 1e6).round() / 1e6  # a move by whole cells hits their middles
