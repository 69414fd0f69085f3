"""Crops, rotations, scalings and blurs of images and latents alike, bilinear, about the middle."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def warp(
    x: Float[Tensor, "b c h w"], angle: float = 0.0, zoom: float = 1.0, padding: str = "reflection"
) -> Float[Tensor, "b c h w"]:
    """Turned by ``angle`` degrees (counter-clockwise) and ``zoom`` times as large, at the same size."""
    h, w = x.shape[-2:]
    cos, sin = math.cos(math.radians(angle)) / zoom, math.sin(math.radians(angle)) / zoom
    theta = torch.tensor([[cos, -sin * h / w, 0.0], [sin * w / h, cos, 0.0]]).to(x)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def inside(size: tuple[int, int], angle: float = 0.0, zoom: float = 1.0, rim: int = 0) -> Bool[Tensor, "h w"]:
    """Which pixels of a warped image come from inside it, at least ``rim`` pixels away from its border."""
    ones = torch.zeros(1, 1, *size)
    ones[..., rim : size[0] - rim, rim : size[1] - rim] = 1.0
    return warp(ones, angle, zoom, "zeros")[0, 0] > 0.999


def blur(x: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """A Gaussian of ``sigma`` pixels, cut at three of them, borders repeated."""
    if sigma <= 0:
        return x
    radius = max(1, math.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1).to(x)
    kernel = (-(at**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel[..., None], groups=x.shape[1])
