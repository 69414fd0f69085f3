"""Clusters of codes: k-means and its mini-batches, by hand."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.clusters import begun, members, updated


def test_mini_batches_make_the_mean_of_all_points():
    """Two centroids; three points come to the first, which two had come to; nothing to the second."""
    centroids, counts = torch.tensor([[1.0, 0.0], [9.0, 9.0]]), torch.tensor([2.0, 5.0])
    points = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 3.0]])
    moved, total = updated(centroids, counts, points)
    torch.testing.assert_close(moved, torch.tensor([[(2 * 1 + 3) / 5, 6 / 5], [9.0, 9.0]]))
    assert total.tolist() == [5, 5]


def test_clusters_begin_by_k_means():
    points = torch.cat([torch.randn(50, 2) * 0.1 + at for at in (torch.tensor([0.0, 5.0]), torch.tensor([5.0, 0.0]))])
    found = begun(points, 2, 0)
    torch.testing.assert_close(found[found[:, 0].argsort()], torch.stack([points[:50].mean(0), points[50:].mean(0)]))
    with pytest.raises(SfumatoError, match="3 clusters are made of as many cells or more, and there are 2"):
        begun(points[:2], 3, 0)
    assert members(points, found).tolist() == [50, 50]
