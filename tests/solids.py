"""Shapes of triangles whose every measure is known."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Shape = tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]


def cube(half: float = 0.5) -> Shape:
    """About 0; faces counterclockwise from outside."""
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    return corners.float(), torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])


def sphere(fine: int = 3) -> Shape:
    """Of radius 1, an icosahedron whose faces are parted in four ``fine`` times."""
    import trimesh

    made = trimesh.creation.icosphere(subdivisions=fine)
    return torch.from_numpy(np.array(made.vertices)).float(), torch.from_numpy(np.array(made.faces)).long()


def plane(side: int = 8) -> Shape:
    """The unit square in z = 0, of 2 * side ** 2 faces."""
    at = torch.arange(side + 1) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    i = (torch.arange(side)[:, None] * (side + 1) + torch.arange(side)).flatten()
    j = i + side + 1
    faces = torch.cat([torch.stack([i, i + 1, j + 1], 1), torch.stack([i, j + 1, j], 1)])
    return torch.stack([x, y, torch.zeros_like(x)], -1).view(-1, 3), faces


def soup(many: int = 40, seed: int = 0) -> Shape:
    """Random triangles through each other in the unit ball."""
    draws = torch.Generator().manual_seed(seed)
    middles = torch.rand(many, 1, 3, generator=draws) - 0.5
    points = middles + 0.4 * (torch.rand(many, 3, 3, generator=draws) - 0.5)
    return points.view(-1, 3), torch.arange(3 * many).view(many, 3)
