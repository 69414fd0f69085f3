"""How far shapes that cameras see are from the true ones: outlines and depths."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.sound import of_finite


@of_finite
def silhouette_iou(
    found: Float[Tensor, "n h w"] | Bool[Tensor, "n h w"], true: Float[Tensor, "n h w"] | Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Where both are more opaque than one half over where any is, a view; 1 where neither is anywhere."""
    _alike(found, true)
    a, b = found > 0.5, true > 0.5
    both, either = (a & b).sum((1, 2)).double(), (a | b).sum((1, 2))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


@of_finite
def depth_error(found: Float[Tensor, "n h w"], true: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Mean difference of depths where both are above 0, which is where both see something, a view, in world units.

    Raises ``SfumatoError`` where they see nothing together in a view: an error of 0 would praise what is empty.
    """
    _alike(found, true)
    where = (found > 0) & (true > 0)
    count = where.sum((1, 2))
    if not bool((count > 0).all()):
        view = int((count == 0).nonzero()[0])
        raise SfumatoError(f"in view {view} no pixel shows both shapes, so their depths cannot be compared")
    return ((found - true).abs().double() * where).sum((1, 2)) / count


def _alike(one: Tensor, two: Tensor) -> None:
    if one.shape != two.shape or one.ndim != 3:
        raise SfumatoError(f"both shapes are seen in the same views (n, h, w), got {[*one.shape]} and {[*two.shape]}")
