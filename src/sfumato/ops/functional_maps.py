"""Matches of surfaces made smooth by functional maps: ZoomOut (Melzi et al. 2019, arXiv 1904.07865)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.ops.surfaces import harmonics

Surface = tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]
FIRST = 10
"""Functions that one begins with."""


def zoomed_out(match: Int[Tensor, " v"], source: Surface, target: Surface, most: int, step: int = 5) -> Tensor:
    """A match of each of the source's vertices in the target, made smooth.

    A match carries functions of the target to the source: in the smoothest ``k`` of both that is a matrix, which gives
    a match again, the nearest in those functions; from few functions to ``most``, ``step`` more at a time. What is
    exactly smooth, such as the match of a surface with itself, stays as it is.
    """
    if most < 2 or step < 1:
        raise SfumatoError(f"a functional map is of 2 functions at least, and grows; got {most}, by {step}")
    (here, area), (there, _) = (harmonics(*surface, most) for surface in (source, target))
    sizes = sorted({*range(min(FIRST, most), most + 1, step), most})
    for k in sizes:
        carried = here[:, :k].T @ (area[:, None] * there[match, :k])  # k x k: the target's functions in the source's
        match = torch.from_numpy(cKDTree(there[:, :k].numpy()).query((here[:, :k] @ carried).numpy())[1]).long()
    return match
