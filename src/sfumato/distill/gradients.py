"""From a gradient by images to one by whatever made them; how levels weigh in it, and how it is clipped.

Every gradient here is one to descend: images move against it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.schedule import Level, beside
from sfumato.distill.prior import Images
from sfumato.errors import SfumatoError, unknown

Weighting = Literal["one", "variance", "deviation", "noise-to-signal", "product", "one-minus-alpha"]
"""w(t): 1; sigma^2 (DreamFusion); sigma; sigma / alpha, which makes of noise a difference of clean images (SDI, whose
text calls it sigma; ISM); sigma alpha; and 1 - alpha, which a public code has in place of sigma^2."""
Reduction = Literal["sum", "batch", "mean"]
"""What the loss is: each image gets its gradient as it is; divided by the number of images; by that of all values."""


def weight(kind: Weighting, at: Level, like: Images) -> Float[Tensor, "*b"]:
    """w(t) of the level, or of each image's, (b, 1, 1, 1). ``SfumatoError`` for an unknown weighting."""
    if kind not in get_args(Weighting):
        raise unknown("weighting", kind, get_args(Weighting))

    match kind:
        case "variance":
            values = at.sigma**2
        case "deviation":
            values = at.sigma
        case "noise-to-signal":
            values = at.sigma / at.alpha
        case "product":
            values = at.sigma * at.alpha
        case "one-minus-alpha":
            values = 1 - at.alpha
        case "one":
            values = torch.ones_like(at.sigma)
    return beside(values, like)


def clipped(gradient: Images, most: float) -> Images:
    """Each value at most so large (Hong et al. 2023, debiased score distillation, section 4.1: it grows in a run)."""
    return gradient.clamp(-most, most)


class _Given(torch.autograd.Function):
    """|g|^2 / 2, whose gradient by the images is g whatever they are."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(gradient)
        ctx.dtype = images.dtype
        return gradient.float().square().sum() / 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * grads[0]).to(ctx.dtype), None


def apply_gradient(images: Images, gradient: Images, reduction: Reduction = "sum") -> Float[Tensor, ""]:
    """A loss whose ``backward`` brings ``gradient`` to the images, and by them to what they were rendered from.

    Call ``backward`` on it, alone or in a sum with other losses, scaled (``GradScaler``) or divided (accumulation): the
    gradient is scaled alike, computed in float32 and handed on in the images' own type. Its value, half the squared
    norm, says how strong the gradient is; it is not what is minimised. ``reduction``: see ``Reduction``.

    Raises ``SfumatoError`` when the shapes differ or nothing that made the images can learn.
    """
    if images.shape != gradient.shape:
        raise SfumatoError(f"a gradient of images {tuple(images.shape)} has their shape, got {tuple(gradient.shape)}")
    if not images.requires_grad:
        raise SfumatoError(
            "there is no gradient path from these images to any parameter: render them with gradients on, from "
            "parameters that require them, and do not detach them"
        )
    if reduction not in get_args(Reduction):
        raise unknown("reduction", reduction, get_args(Reduction))
    part = {"sum": 1, "batch": len(images), "mean": images.numel()}[reduction]
    return _Given.apply(images, gradient.detach() / part)  # pyright: ignore[reportReturnType]
