"""What an image looks like, in numbers, without knowing what it shows: its saturation, its detail, a set's spread."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.sound import of_finite
from sfumato.ops.blur import blur


@of_finite
def saturation(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean saturation of images in [0, 1], as HSV has it: (max - min) / max of each pixel, 0 where it is black."""
    most, least = images.amax(1), images.amin(1)
    return ((most - least) / most.clamp_min(1e-12)).mean((1, 2))


@of_finite
def detail(images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """High-frequency energy: the mean square of what a Gaussian of one pixel takes away."""
    return (images - blur(images, 1.0)).square().mean((1, 2, 3))


@of_finite
def spread(images: Float[Tensor, "b c h w"]) -> float:
    """How far a set's images are from each other: the root mean square of differences, a mean over all pairs.

    Raises ``SfumatoError`` for fewer than two.
    """
    if len(images) < 2:
        raise SfumatoError(f"a spread is one of two images or more, got {len(images)}")
    # over (0, 1), (0, 2), ..., so that no square matrix with a zero diagonal is averaged
    return float(torch.pdist(images.flatten(1).double()).mean() / images[0].numel() ** 0.5)
