"""Moving, turning and scaling what lies on a grid: an image, latents, a network's features or maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


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
        self, x: Float[Tensor, "b c h w"], mode: Literal["bilinear", "nearest"] = "bilinear"
    ) -> Float[Tensor, "b c h w"]:
        """``x`` transformed; what comes from outside is the border's."""
        if self.still:
            return x
        h, w = x.shape[-2:]
        at = self._sources(h, w)
        grid = torch.stack([(2 * at[0] + 1) / w - 1, (2 * at[1] + 1) / h - 1], -1).to(x.device, torch.float32)
        grid = grid.expand(len(x), -1, -1, -1)
        return F.grid_sample(x.float(), grid, mode, "border", align_corners=False).to(x.dtype)

    def inside(self, h: int, w: int) -> Bool[Tensor, "h w"]:
        """Cells that come from somewhere inside."""
        x, y = self._sources(h, w)
        return (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)

    def _sources(self, h: int, w: int) -> Float[Tensor, "2 h w"]:
        """Where each cell comes from: columns and rows, whole numbers at the middles of cells."""
        y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
        middle = (w - 1) / 2, (h - 1) / 2
        x, y = x - middle[0] - self.right * w, y - middle[1] - self.down * h
        sin, cos = (f(math.radians(self.turn % 360)) / self.scale for f in (math.sin, math.cos))
        found = torch.stack([cos * x - sin * y + middle[0], sin * x + cos * y + middle[1]])
        return (found * 1e6).round() / 1e6  # a move by whole cells hits their middles
