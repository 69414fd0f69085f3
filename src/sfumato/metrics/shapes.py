"""How far matched vertices lie from the true ones, in parts of the shape's diameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh
from sfumato.metrics.sound import of_finite
from sfumato.ops import surfaces

WITHIN = (0.01, 0.02, 0.05, 0.1)
"""Of the diameter: what counts as right."""


@of_finite
def euclidean(shape: Mesh, found: Int[Tensor, " n"], true: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Straight from a vertex of the shape to another, over the largest distance of two."""
    _paired(found, true)
    apart = (shape.vertices[found].double() - shape.vertices[true].double()).norm(dim=1)
    return apart / surfaces.diameter(shape.vertices[shape.faces.flatten().unique()])


@of_finite
def geodesic(
    shape: Mesh, found: Int[Tensor, " n"], true: Int[Tensor, " n"], most: int = 500, seed: int = 0
) -> Float[Tensor, " m"]:
    """The same along the surface, over its largest such length that was met; of ``most`` pairs, drawn by ``seed``.

    What lies on pieces that do not touch is 1 apart.
    """
    _paired(found, true)
    draws = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(true), generator=draws)[:most]
    lengths = surfaces.geodesics(shape.vertices, shape.faces, true[some])
    used = lengths[:, shape.faces.flatten().unique()]
    longest = used[used.isfinite()].max().clamp_min(1e-12)
    return (lengths.gather(1, found[some][:, None])[:, 0] / longest).clamp_max(1)


@of_finite
def within(errors: Float[Tensor, " n"], parts: Sequence[float] = WITHIN) -> list[float]:
    """Which part of the matches is at most so far off."""
    return [float((errors <= part).double().mean()) for part in parts]


def _paired(found: Tensor, true: Tensor) -> None:
    if found.shape != true.shape or not len(true):
        raise SfumatoError(f"a match and the truth are of the same vertices, got {len(found)} and {len(true)}")
