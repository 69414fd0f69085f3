"""Clusters of codes, by their centroids: begun by k-means, and moved by mini-batches."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.ops.regions import k_means


def begun(points: Float[Tensor, "n d"], k: int, seed: int, tries: int = 5) -> Float[Tensor, "k d"]:
    """Centroids by the best of several k-means; of a cluster that has lost all its points one of all.

    Raises ``SfumatoError`` for fewer points than clusters.
    """
    if len(points) < k:
        raise SfumatoError(f"{k} clusters are made of as many cells or more, and there are {len(points)}")
    labels = k_means(points.double().cpu().numpy(), k, seed % 2**31, tries).to(points.device)
    start = points[:: max(1, len(points) // k)][:k].clone()
    return updated(start, torch.zeros(k, device=points.device), points, labels)[0]


def members(points: Float[Tensor, "n d"], centroids: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    """How many points are nearest to each."""
    return torch.bincount(torch.cdist(points, centroids).argmin(1), minlength=len(centroids)).float()


def updated(
    centroids: Float[Tensor, "k d"],
    counts: Float[Tensor, " k"],
    points: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """A step of mini-batch k-means (Sculley 2010): each centroid the mean of all points that ever came to it."""
    labels = torch.cdist(points, centroids).argmin(1) if labels is None else labels
    new = torch.bincount(labels, minlength=len(centroids)).to(points)
    sums = torch.zeros_like(centroids).index_add_(0, labels, points)
    total = counts + new
    moved = centroids + (sums - new[:, None] * centroids) / total.clamp_min(1)[:, None]
    return torch.where(new[:, None] > 0, moved, centroids), total
