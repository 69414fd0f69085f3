"""Distances between images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


@of_finite
def ssim(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"] | None = None
) -> Float[Tensor, " b"]:
    """Structural similarity of images in [0, 1], each on its own (Wang et al. 2004): in windows of 11 pixels that weigh
    by a Gaussian of 1.5, those that lie in the image whole; a mean over windows and channels.

    With a ``mask``, of windows that are in it whole. 1 for identical images. Raises ``SfumatoError`` when the shapes
    differ, or for images of less than 11 pixels a side.
    """
    if a.shape != b.shape or min(a.shape[-2:]) < WINDOW:
        raise SfumatoError(
            f"images of one shape of {WINDOW} pixels or more can be compared, not {tuple(a.shape)}, {tuple(b.shape)}"
        )
    at = torch.arange(WINDOW, dtype=torch.float64, device=a.device) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * 1.5**2))
    line = line / line.sum()

    def blurred(x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)[:, None]
        rows = F.conv2d(F.conv2d(rows, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
        return rows.view(*x.shape[:2], *rows.shape[-2:])

    x, y = a.double(), b.double()
    mx, my = blurred(x), blurred(y)
    vx, vy, cov = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    one, two = 0.01**2, 0.03**2
    each = (2 * mx * my + one) * (2 * cov + two) / ((mx * mx + my * my + one) * (vx + vy + two))
    each = each.mean(1)
    if mask is None:
        return each.mean((1, 2)).to(a.dtype)
    whole = F.avg_pool2d(mask[:, None].double(), WINDOW, 1)[:, 0] > 1 - 1e-6
    return ((each * whole).sum((1, 2)) / whole.sum((1, 2))).to(a.dtype)


WINDOW = 11
"""Pixels a side of what is compared at a time."""
