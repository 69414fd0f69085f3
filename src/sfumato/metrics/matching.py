"""How well matched points agree with the truth: PCK, the percentage of correct keypoints, in both protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sfumato.metrics.sound import of_finite


@dataclass(frozen=True)
class Found:
    """Points of one image, where they were found in another, and what an error is measured against."""

    found: Float[Tensor, "n 2"]
    truth: Float[Tensor, "n 2"]
    box: float
    """Longer side of the thing's box in the target, in pixels."""
    image: float
    """Longer side of the target image."""


@of_finite
def pck(
    pairs: Sequence[Found],
    at: float = 0.1,
    by: Literal["box", "image"] = "box",
    each: Literal["point", "image"] = "point",
) -> float:
    """Share of points within ``at`` times the longer side of the target's box, or of its image.

    ``each``: a mean over all points, or over the images of their own means. Both are published, often unsaid.
    """
    right = [(p.found - p.truth).norm(dim=-1) <= at * getattr(p, by) for p in pairs if len(p.truth)]
    if each == "image":
        return float(np.mean([float(r.float().mean()) for r in right]))
    return sum(int(r.sum()) for r in right) / max(1, sum(len(r) for r in right))
