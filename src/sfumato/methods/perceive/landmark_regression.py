"""Landmark regression (Thewlis et al. 2017, arXiv 1705.02193; DVE, Thewlis et al. 2019, arXiv 1908.06427): annotated
landmarks from frozen features.

For each landmark some filters, 50 as published, are held against the feature of every cell, brought to length one; the
mean place under a softmax over the cells is a virtual keypoint (``soft_argmax``), and a linear layer without bias tells
the landmark from them. Where keypoints were found without labels, that last layer alone is the published way from them
to landmarks, in closed form: ``unsupervised_keypoints.regressor``.

Layers, 50 filters and the softmax's factor are of the authors' code; the run is ours. Places are in parts of half the
sides, from the middle; cells count at their middles, where there the outermost lie on the borders. A landmark that an
image does not show is not learned from it.

Errors are distances over a size of the thing, such as between the eyes of a face: ``metrics.matching.normalised_error``
in both protocols.

Needs: features of each image, read once; then the head alone runs.

Families: all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.core.settings import Count, Positive, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.learning.heads import Examples, Head, HeadMethod
from sfumato.ops.correspondence import middles


@dataclass(frozen=True)
class LandmarkRegression(HeadMethod):
    """Learns where annotated landmarks are, from images with places."""

    wants = ("points",)

    virtual: Count = 50
    """Virtual keypoints of each landmark."""
    sharpness: Positive = 50.0
    """What a filter's answers are multiplied by before the softmax over the cells."""
    batch: Count = 16
    """Images a step."""
    steps: Count = 500
    rate: Weight = 1e-3
    seed: Whole = 0

    def sizes(self, examples: Examples) -> dict[str, int]:
        assert examples.points is not None
        return {"width": examples.width, "landmarks": examples.points.shape[1]}

    def network(self, width: int, landmarks: int) -> nn.Module:
        return Regressor(width, landmarks, self.virtual, self.sharpness)

    def loss(self, network: Any, examples: Examples, step: int) -> Float[Tensor, ""]:
        assert examples.points is not None
        which = examples.drawn(self.seed, step, min(self.batch, len(examples)))
        truth = examples.points[which].to(examples.device)
        return missed(network(examples.maps(which)), truth.nan_to_num(), truth.isfinite().all(-1))

    def check(self, examples: Examples) -> None:
        super().check(examples)
        assert examples.points is not None
        seen = examples.points.isfinite().all(-1).any(0)
        if not seen.all():
            number = int((~seen).nonzero()[0])
            name = examples.names[number] if examples.names else str(number + 1)
            raise SfumatoError(f"no picture shows the landmark {name}; leave it out, or give one that does")

    def answer(self, head: Head, maps: Sequence[Float[Tensor, "c h w"]], size: tuple[int, int]) -> Float[Tensor, "k 2"]:
        """Each landmark as (x, y) in the image's pixels, centres at halves."""
        return (head.network(maps[0][None])[0] * torch.tensor([size[1], size[0]]).to(maps[0])).cpu()


def soft_argmax(logits: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b 2"]:
    """The mean place (x, y) under a softmax over the cells; (-1, -1) and (1, 1) are the image's corners."""
    h, w = logits.shape[-2:]
    at = 2 * middles((h, w)).to(logits) - 1
    return logits.flatten(-2).softmax(-1) @ at


class Regressor(nn.Module):
    """Features to landmarks: filters, their soft maxima, and a linear layer a landmark."""

    def __init__(self, width: int, landmarks: int, virtual: int = 50, sharpness: float = 50.0) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.filters = nn.Parameter(torch.randn(landmarks, virtual, width))
        bound = (2 * virtual) ** -0.5  # as torch draws linear layers
        self.weights = nn.Parameter(torch.empty(landmarks, virtual, 2, 2).uniform_(-bound, bound))

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
