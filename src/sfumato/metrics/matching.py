"""How well points agree with the truth, in the published protocols: PCK, the percentage of correct keypoints, and
normalised errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import SfumatoError
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


@of_finite
def normalised_error(
    found: Float[Tensor, "n m 2"],
    truth: Float[Tensor, "n m 2"],
    size: Float[Tensor, " n"],
    visible: Bool[Tensor, "n m"] | None = None,
    each: Literal["point", "image"] = "image",
) -> float:
    """Mean distance of landmarks from the truth over a ``size`` of each image's thing, all in pixels.

    Sizes are the distance between the eyes (CelebA, MAFL), a box's side, an image's. ``each``: a mean over the images
    of their own means, or over all points. Only what is ``visible`` counts. ``SfumatoError`` where nothing is, and for
    sizes that are not above 0.
    """
    shown = torch.ones(truth.shape[:2], dtype=torch.bool) if visible is None else visible
    if not shown.any() or not (size > 0).all():
        raise SfumatoError("an error is of at least one landmark that is visible, over sizes above 0")
    error = (found - truth).norm(dim=-1) / size[:, None]
    if each == "image":
        some = shown.any(1)
        return float(((error * shown).sum(1)[some] / shown.sum(1)[some]).mean())
    return float(error[shown].mean())
