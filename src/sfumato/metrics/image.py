"""Distances between images."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.sound import of_finite


@of_finite
def psnr(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"] | None = None
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB of images in [0, 1], each on its own, over the pixels of ``mask`` only if given.

    inf for identical images, nan where the mask is empty. Raises ``SfumatoError`` when the shapes differ.
    """
    if a.shape != b.shape:
        raise SfumatoError(f"images of one shape can be compared, not of {tuple(a.shape)} and {tuple(b.shape)}")
    error = (a.double() - b.double()).square().mean(1)
    if mask is None:
        mean = error.mean((1, 2))
    else:
        weight = mask.to(error)
        mean = (error * weight).sum((1, 2)) / weight.sum((1, 2))
    return (-10 * mean.log10()).to(a.dtype)
