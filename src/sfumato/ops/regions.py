"""Regions of an image, from attention maps: where a word's map lies, and clusters of what attends alike.

Pure functions of tensors.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.ops.warps import warp


def normalised(map: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Between 0 and 1 (the authors' guard against a flat map included)."""
    return (map - map.min()) / (map.max() - map.min() + 1e-4)


def soft(map: Float[Tensor, "h w"], sharpness: float = 10.0) -> Float[Tensor, "h w"]:
    """The soft threshold, which parts a thing from what is vague (eq. 3)."""
    return normalised((sharpness * (normalised(map) - 0.5)).sigmoid())


def centroid(map: Float[Tensor, "h w"]) -> Float[Tensor, "2"]:
    """Middle of a map, x and y, 0 at the first and 1 at the last column or row."""
    y, x = (torch.linspace(0, 1, n).to(map) for n in map.shape)
    total = map.sum() + 1e-4
    return torch.stack([(map.sum(0) * x).sum() / total, (map.sum(1) * y).sum() / total])


def extent(map: Float[Tensor, "h w"], sharpness: float = 10.0) -> Float[Tensor, ""]:
    """Which part of the image is inside the soft threshold."""
    return soft(map, sharpness).mean()


def carried(
    shape: Float[Tensor, "h w"], middle: Float[Tensor, "2"], to: Float[Tensor, "2"], factor: float
) -> Float[Tensor, "h w"]:
    """A shape moved so that its middle comes to lie at ``to``, and its sides ``factor`` times as long."""
    h, w = shape.shape
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    here = torch.stack([x, y], -1).to(shape)
    sides = torch.tensor([w, h]).to(shape)
    from_where = ((middle + (here - to) / factor) * (sides - 1) + 0.5) / sides
    return warp(shape[None, None], from_where[None], padding="zeros")[0, 0]


def spectral(affinity: Float[Tensor, "n n"], clusters: int, seed: int = 0, tries: int = 10) -> Int[Tensor, " n"]:
    """Clusters of what attends alike, by the normalised Laplacian (Ng et al. 2001; Shi and Malik 2000).

    ``affinity`` is made symmetric. The first ``clusters`` eigenvectors, scaled by the degrees as scikit-learn scales
    them, are parted by k-means, the best of ``tries``. The same seed gives the same labels.
    """
    w = (affinity + affinity.T).double().cpu() / 2
    root = w.sum(1).clamp_min(1e-12).rsqrt()
    vectors = torch.linalg.eigh(torch.eye(len(w)).double() - root[:, None] * w * root).eigenvectors
    return k_means((vectors[:, :clusters] * root[:, None]).numpy(), clusters, seed, tries)


def k_means(points: Float[np.ndarray, "n d"], clusters: int, seed: int = 0, tries: int = 10) -> Int[Tensor, " n"]:
    """Labels of the best of several k-means, begun as k-means++ does."""
    from scipy.cluster.vq import kmeans2

    best, least = np.zeros(len(points), int), np.inf
    for attempt in range(tries):
        centres, labels = kmeans2(points, clusters, minit="++", seed=seed + attempt, missing="warn")
        inertia = np.square(points - centres[labels]).sum()
        if inertia < least:
            best, least = labels, inertia
    return torch.from_numpy(best).long()


def attended_clusters(
    labels: Int[Tensor, "h w"], maps: Float[Tensor, "tokens h w"], threshold: float = 0.3
) -> Float[Tensor, "h w"]:
    """The clusters that a word attends to, 1 inside (Ge et al. 2023, section 3.2).

    Those in which one of its tokens' maps, each normalised to [0, 1], is above ``threshold`` on average; where there is
    none, the one in which it is most.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    inside = labels == torch.arange(int(labels.max()) + 1).view(-1, 1, 1)
    share = inside.to(maps) / inside.sum((1, 2), keepdim=True).clamp_min(1)
    scores = torch.einsum("chw,thw->ct", share, (maps - low) / (high - low).clamp_min(1e-12)).amax(1)
    chosen = (scores > threshold) | ((scores == scores.max()) & (scores.max() <= threshold))
    return inside[chosen.cpu()].any(0).to(maps)
