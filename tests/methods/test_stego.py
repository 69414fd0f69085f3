"""STEGO: its losses by hand, its pairs, and classes that are found without labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.heads import Examples, Head, train
from sfumato.learning.seeds import generator
from sfumato.methods import heads
from sfumato.methods.perceive.stego import (
    STEGO,
    centred,
    cluster_loss,
    correlation_loss,
    cosines,
    labels_at,
    moved,
    nearest,
    placed,
)
from sfumato.metrics.segmentation import miou_per_set

SMALL = STEGO(
    classes=3, dim=8, batch=8, points=5, steps=40, rate=5e-3, probe_rate=0.05, settled=True, shifts=(0.3, 0.3, 0.5)
)
X, Y, DIAGONAL = [1.0, 0.0], [0.0, 2.0], [3.0, 3.0]
HALF = 0.5**0.5


def rows(*of):
    return torch.tensor([list(of)])


def scenes(n=12, grid=10, noise=0.5):
    """Features of three classes: above, below, and a square."""
    rng = torch.Generator().manual_seed(0)
    labels, kinds = torch.zeros(n, grid, grid).long(), torch.randn(3, 12, generator=rng)
    for each in labels:
        each[int(torch.randint(3, 8, (), generator=rng)) :] = 1
        each[2:6, 2:6] = 2
    return kinds[labels].movedim(-1, 1) + noise * torch.randn(n, 12, grid, grid, generator=rng), labels


@pytest.fixture(scope="module")
def taught():
    features, labels = scenes()
    examples = Examples.given(list(features[:, None]), labels=labels, names=("sky", "grass", "box"))
    return train(SMALL, examples), features, labels


def test_how_alike_features_are_and_what_is_taken_off():
    """Of x and y to x and the diagonal: 1, r; 0, r with r = 0.7071; less the means of the rows; the mean put back."""
    alike = cosines(rows(X, Y), rows(X, DIAGONAL))
    torch.testing.assert_close(alike, rows([1.0, HALF], [0.0, HALF]))
    spatial = rows([(1 - HALF) / 2, (HALF - 1) / 2], [-HALF / 2, HALF / 2])
    torch.testing.assert_close(centred(alike, "spatial"), spatial)
    torch.testing.assert_close(centred(alike, "restored"), spatial + (1 + 2 * HALF) / 4)
    assert centred(alike, "none") is alike


def test_the_correlation_loss_is_the_formula():
    """F = [[1, 0]], S = [[-1, r]], shift 0.25: -((0.75)(-1) + (-0.25) r) / 2 without the clamp, 0.25 r / 2 with it."""
    given = rows(X), rows(X, Y), rows(X), rows([-4.0, 0.0], DIAGONAL)
    free = correlation_loss(*given, shift=0.25, centre="none", clamp=False)
    torch.testing.assert_close(free, torch.tensor((0.75 + 0.25 * HALF) / 2))
    torch.testing.assert_close(correlation_loss(*given, 0.25, "none"), torch.tensor(0.25 * HALF / 2))
    centred_ = correlation_loss(*given, 0.25, "spatial")  # F = [[0.5, -0.5]]
    torch.testing.assert_close(centred_, torch.tensor(0.75 * HALF / 2))


def test_codes_move_and_features_do_not():
    given = [rows(X, Y).requires_grad_(), rows(DIAGONAL).requires_grad_(), rows([1.0, 0.5], Y).requires_grad_(),
             rows(DIAGONAL).requires_grad_()]  # fmt: skip
    correlation_loss(*given, 0.1).backward()
    assert given[0].grad is None and given[1].grad is None and given[2].grad.abs().sum() > 0


def test_clusters_descend_the_cosine_to_the_nearest():
    """Codes x and the diagonal, clusters x and minus x: 1 and r to the first."""
    codes, clusters = torch.tensor([X, DIAGONAL]), torch.tensor([[5.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = cluster_loss(codes, clusters)
    torch.testing.assert_close(loss.detach(), torch.tensor(-(1 + HALF) / 2))
    loss.backward()
    assert clusters.grad[0].abs().sum() > 0 and not clusters.grad[1].any()


def test_neighbours_are_others_and_random_pairs_are_too():
    means = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert nearest(means, 1)[:, 0].tolist() == [1, 0, 3, 2] and nearest(means, 9).shape == (4, 3)
    for seed in range(20):
        others = moved(5, generator(seed))
        assert not (others == torch.arange(5)).any() and ((others >= 0) & (others < 5)).all()


def test_places_read_cells_and_the_pixels_they_lie_in():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    at = torch.tensor([[[0.125, 1 / 6], [0.875, 5 / 6], [0.25, 1 / 6]]])
    torch.testing.assert_close(placed(maps, at)[0, :, 0], torch.tensor([0.0, 11.0, 0.5]))
    labels = torch.tensor([[[0, 1], [2, -100]]])
    assert labels_at(labels, torch.tensor([[[0.2, 0.2], [0.9, 0.1], [0.0, 1.0], [1.0, 1.0]]])).tolist() == [
        [0, 1, 2, -1]
    ]


def test_classes_are_found_without_labels_and_named_with_them(taught):
    head, features, labels = taught
    found = [head.of([x, x.flip(-1)], (10, 10)) for x in features]
    assert miou_per_set([one.labels for one in found], list(labels), 3)[0] > 0.9 and found[0].names == ()
    named = replace(head, method=replace(head.method, probe="labels")).of([features[0]], (20, 20))
    assert named.names == ("sky", "grass", "box")
    assert (named.labels == labels[0].repeat_interleave(2, 0).repeat_interleave(2, 1)).float().mean() > 0.9
    torch.testing.assert_close(found[0].scores.sum(0), torch.ones(10, 10))


def test_an_image_and_its_mirror_image_are_read_alike(taught):
    head, features, _ = taught
    x, y = features[:2]
    torch.testing.assert_close(head.of([x, y], (10, 10)).scores, head.of([y.flip(-1), x.flip(-1)], (10, 10)).scores)
    assert not torch.allclose(head.of([x, y], (10, 10)).scores, head.of([x], (10, 10)).scores)


def test_large_images_are_classified_smaller(taught):
    head, features, _ = taught
    found = head.of([features[0]], (600, 1200))
    assert found.scores.shape == (3, 256, 512) and found.labels.shape == (600, 1200)


def test_labels_teach_the_classifier_alone(taught):
    head, features, _ = taught
    alone = train(SMALL, Examples.given(list(features[:, None])))
    for name, value in alone.network.state_dict().items():
        assert torch.equal(value, head.network.state_dict()[name]), name
    learned = train(replace(SMALL, settled=False), Examples.given(list(features[:, None])))
    assert torch.equal(learned.network.head.linear.weight, head.network.head.linear.weight)
    assert not torch.allclose(learned.network.clusters, head.network.clusters), "k-means has the last word"
    assert alone.network.labels is None


def test_clusters_are_settled_on_all_pictures_and_features_are_brought_to_one_scale():
    """Two pictures of a class each: of the first alone there is one place, twice."""
    kinds = torch.eye(2)[:, :, None, None].expand(2, 2, 6, 6)
    method = STEGO(classes=2, dim=2, batch=2, points=3, steps=1, dropout=0.0, settled=True)
    near, far = (
        train(replace(method, standard=on), Examples.given(list(kinds[:, None]))).network for on in (False, True)
    )
    first, second = near.clusters.detach()
    assert float(torch.cosine_similarity(first, second, dim=0)) < 0.99
    assert not near.standard.mean.any() and torch.allclose(far.standard.mean, torch.full((2,), 0.5), atol=1e-3)


def test_a_file_is_read_by_the_index(taught, tmp_path):
    head, features, _ = taught
    head.save(tmp_path / "head.safetensors")
    found = heads.load(tmp_path / "head.safetensors")
    assert isinstance(found, Head) and found.method == SMALL and found.names == head.names
    assert torch.equal(found.of([features[0]], (10, 10)).scores, head.of([features[0]], (10, 10)).scores)
    with pytest.raises(SfumatoError, match=r"unknown method of a head 'Other'; known: .*STEGO"):
        heads.known("Other")


def test_what_cannot_be_is_refused():
    features, _ = scenes(2)
    with pytest.raises(SfumatoError, match="pairs of pictures"):
        train(SMALL, Examples.given([features[:1]]))
    with pytest.raises(SfumatoError, match="these pictures have none; read clusters"):
        train(replace(SMALL, probe="labels"), Examples.given(list(features[:, None])))
