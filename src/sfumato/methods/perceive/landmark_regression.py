"""Landmark regression (Thewlis et al. 2017, arXiv 1706.02932; DVE, Thewlis et al. 2019, arXiv 1908.06427): annotated
landmarks from frozen features.

For each landmark some filters, 50 as published, are held against the feature of every cell, brought to length one; the
mean place under a softmax over the cells is a virtual keypoint (``soft_argmax``), and a linear layer without bias tells
the landmark from them. Where keypoints were found without labels, that last layer alone is the published way from them
to landmarks, in closed form: ``unsupervised_keypoints.regressor``.

Places are in parts of half the sides, from the middle; cells count at their middles, where the authors' code has the
outermost at the borders. A landmark that an image does not show is not learned from it.

Errors are distances over a size of the thing, such as between the eyes of a face: ``metrics.matching.normalised_error``
in both protocols.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.learning.seeds import generator
from sfumato.ops.correspondence import middles


def soft_argmax(logits: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b 2"]:
    """The mean place (x, y) under a softmax over the cells; (-1, -1) and (1, 1) are the image's corners."""
    h, w = logits.shape[-2:]
    at = 2 * middles((h, w)).to(logits) - 1
    return logits.flatten(-2).softmax(-1) @ at


class Regressor(nn.Module):
    """Features to landmarks: filters, their soft maxima, and a linear layer a landmark."""

    def __init__(self, width: int, landmarks: int, virtual: int = 50, sharpness: float = 50.0, seed: int = 0) -> None:
        super().__init__()
        rng = generator(seed)
        self.sharpness = sharpness
        self.filters = nn.Parameter(torch.randn(landmarks, virtual, width, generator=rng))
        bound = (2 * virtual) ** -0.5  # as torch draws linear layers
        self.weights = nn.Parameter(bound * (2 * torch.rand(landmarks, virtual, 2, 2, generator=rng) - 1))

    def virtual(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b m v 2"]:
        """The virtual keypoints of each landmark, from -1 to 1."""
        found = torch.einsum("bdhw,mvd->bmvhw", F.normalize(features.float(), dim=1), self.filters)
        return soft_argmax(self.sharpness * found)

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b m 2"]:
        """Landmarks (x, y) in parts of the sides."""
        return (torch.einsum("bmvi,mvij->bmj", self.virtual(features), self.weights) + 1) / 2


def missed(
    found: Float[Tensor, "b m 2"], truth: Float[Tensor, "b m 2"], visible: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Mean square distance of what is visible, places being from -1 to 1; zero where nothing is."""
    square = (2 * (found - truth)).square().sum(-1)
    return (square * visible).sum() / visible.sum().clamp_min(1)
