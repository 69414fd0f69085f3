"""Smoothed energy guidance (Hong 2024, arXiv 2408.00760): away from images of blurred attention.

Self-attention goes down an energy, whose curvature a blur of the attention weights takes away; blurring the queries
does the same and costs nothing. A further row of each prediction has them blurred in one block, and guidance adds
s (c - c') to whatever guidance there is. With an infinite blur all queries are their mean.

Defaults: the authors' code, scale 3 in the middle block with an infinite blur; their examples have sigma 100, which on
a middle block's grid is nearly the same. Their kernel ends at the image's side and is reflected there; here each side
has its own, so that images need not be square. In diffusers' guider (0.42) the two cases are swapped: a finite sigma
gives the mean, one above the threshold (the default) a blur; as the blur's kernel is then flat and as wide as the
image, its default still comes near to the authors', but no smaller sigma has any effect.

Needs: image->image queries in the chosen block, still fused; a row more for each image, so half as much again beside
classifier-free guidance, twice without.

Families: all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sfumato.core.attention import Call
from sfumato.core.settings import Positive
from sfumato.methods.control.perturbations import Perturbing
from sfumato.ops.blur import blur


@dataclass(frozen=True)
class SmoothedEnergy(Perturbing):
    """Guides away from the network with blurred queries."""

    sigma: Positive = math.inf
    """Of the blur, in tokens; inf for the mean of all."""

    rows: ClassVar = "smoothed"
    field: ClassVar = "qkv"
    parts: ClassVar = "q"

    def disturb(self, call: Call) -> None:
        for name in call.rows.match(self.rows):
            q = call.get("q", name, "image")
            if math.isinf(self.sigma):
                smooth = q.mean(-2, keepdim=True).expand_as(q)
            else:
                on_grid = q.transpose(-1, -2).unflatten(-1, call.grid)
                smooth = blur(on_grid, self.sigma, math.ceil(6 * self.sigma) // 2, "reflect")
                smooth = smooth.flatten(-2).transpose(-1, -2)
            call.set("q", name, smooth, "image")
