"""Volume rendering: what a ray sees of a field (Max 1995; Mildenhall et al. 2020, eq. 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Weights(NamedTuple):
    """What each sample of a ray is to the ray's end."""

    each: Float[Tensor, "*r s"]
    """Part of the light that comes from it."""
    opacity: Float[Tensor, "*r"]
    """Their sum, in [0, 1]: part of the light that comes from the field at all."""


def weights(density: Float[Tensor, "*r s"], lengths: Float[Tensor, "*r s"]) -> Weights:
    """Of densities over lengths: w_i = exp(-sum_{j<i} sigma_j delta_j) (1 - exp(-sigma_i delta_i))."""
    thick = density * lengths
    before = torch.cat([torch.zeros_like(thick[..., :1]), thick.cumsum(-1)], -1)
    each = (-before[..., :-1]).exp() * -torch.expm1(-thick)
    return Weights(each, -torch.expm1(-before[..., -1]))


def composite(w: Weights, values: Float[Tensor, "*r s c"], behind: Float[Tensor, "*r c"] | None = None) -> Tensor:
    """Values of samples as the ray shows them, before what is ``behind``."""
    seen = (w.each[..., None] * values).sum(-2)
    return seen if behind is None else seen + (1 - w.opacity)[..., None] * behind


def distance(w: Weights, at: Float[Tensor, "*r s"]) -> Float[Tensor, "*r"]:
    """Expected distance of what is seen, 0 where nothing is."""
    return (w.each * at).sum(-1) / w.opacity.clamp_min(1e-6)


def distortion(w: Float[Tensor, "*r s"], edges: Float[Tensor, "*r s+1"]) -> Float[Tensor, "*r"]:
    """How spread a ray's weights are (Barron et al. 2022, mip-NeRF 360, eq. 15), by prefix sums in linear time.

    sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 delta_i, of middles m and widths delta between ``edges``, which rise.
    """
    middle, width = (edges[..., 1:] + edges[..., :-1]) / 2, edges[..., 1:] - edges[..., :-1]
    less = w.cumsum(-1) - w  # of samples in front
    moment = (w * middle).cumsum(-1) - w * middle
    return 2 * (w * (middle * less - moment)).sum(-1) + (w.square() * width).sum(-1) / 3
