"""PiCIE: its losses and its mini-batch k-means by hand, views that correspond, epochs that go on, and classes found."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.heads import Examples, train
from sfumato.methods.perceive.picie import (
    Clustering,
    PiCIE,
    clustering_loss,
    cropped,
    jittered,
    views_loss,
    weighted,
)
from sfumato.metrics.segmentation import miou_per_set

SMALL = PiCIE(classes=3, over=6, dim=8, batch=4, epochs=4, rate=5e-3, per_picture=40)
CODES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def entropy(right, *others):
    return math.log(sum(math.exp(x) for x in (right, *others))) - right


@pytest.fixture(scope="module")
def scenes():
    """Views of features of three classes, noisy in each; and the classes."""
    rng = torch.Generator().manual_seed(0)
    labels, kinds = torch.zeros(10, 8, 8).long(), torch.randn(3, 12, generator=rng)
    for each in labels:
        each[int(torch.randint(3, 7, (), generator=rng)) :] = 1
        each[1:5, 2:6] = 2
    features, views = kinds[labels].movedim(-1, 1), []
    for number, each in enumerate(features):
        one, other = each + 0.4 * torch.randn(2, 12, 8, 8, generator=rng)
        views.append(torch.stack([cropped(one[None], SMALL.crops([number], 0))[0], other]))
    return views, features, labels


def same(a, b):
    return all(torch.equal(v, b.network.state_dict()[k]) for k, v in a.network.state_dict().items())


def test_the_loss_is_a_softmax_of_cosine_distances():
    """Codes x and y; centroids 3 x and the diagonal, whatever their lengths: cosines 1 and r, 0 and r."""
    r = 0.5**0.5
    centroids = torch.tensor([[3.0, 0.0], [2.0, 2.0]])
    wanted = entropy(1, r), entropy(r, 0)
    found = clustering_loss(CODES, torch.tensor([0, 1]), centroids)
    torch.testing.assert_close(found.item(), sum(wanted) / 2)
    heavier = clustering_loss(CODES, torch.tensor([0, 1]), centroids, torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(heavier.item(), (3 * wanted[0] + wanted[1]) / 4)


def test_views_are_compared_within_and_across():
    """Each code with its own view's label and centroids and with the other's: the mean of the four."""
    codes, labels = [CODES[:1], CODES[1:]], torch.tensor([[0], [1]])
    centroids = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    within, across = [entropy(1, -1), entropy(0, 1)], [entropy(1, 0), entropy(0, 0)]
    found = views_loss(codes, labels, centroids)
    torch.testing.assert_close(found.item(), (sum(within) + sum(across)) / 4)


def test_clusters_weigh_by_their_share():
    labels = torch.tensor([[0, 0, 0], [1, 0, 0]])
    torch.testing.assert_close(weighted(labels, 3, 1.0), torch.tensor([5 / 6, 1 / 6, 0]))
    torch.testing.assert_close(weighted(labels, 3, -1.0), torch.tensor([1.2, 6.0, 0]))
    assert weighted(labels, 2, 0.0).tolist() == [1, 1]


def test_finer_clusters_weigh_by_the_logarithm_of_the_others():
    assert PiCIE(classes=27).shares == (1.0,) and PiCIE(classes=27).kinds == (27,)
    method = PiCIE(classes=27, over=100)
    both = math.log(27) + math.log(100)
    assert method.kinds == (27, 100) and method.shares == (math.log(100) / both, math.log(27) / both)


def test_crops_show_what_they_say():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    whole = cropped(maps, torch.tensor([[0.0, 0, 1, 0]]))
    torch.testing.assert_close(whole, maps)
    torch.testing.assert_close(cropped(maps, torch.tensor([[0.0, 0, 1, 1]])), maps.flip(-1))
    corner = cropped(maps, torch.tensor([[0.5, 0.25, 0.5, 0]]))
    assert corner[0, 0, 0, 0] == (maps[0, 0, 1, 2] - 0.25 - 1) and corner[0, 0, 3, 3] == maps[0, 0, 2, 3] + 1
    crops = PiCIE(scale=0.25).crops(range(200), 0)
    assert ((crops[:, :2] >= 0) & (crops[:, :2] + crops[:, 2:3] <= 1)).all()
    assert 0.5 <= crops[:, 2].min() < 0.55 and 0.95 < crops[:, 2].max() <= 1 and 0.3 < crops[:, 3].mean() < 0.7
    assert torch.equal(PiCIE(scale=1.0, flip=False).crops([3], 0), torch.tensor([[0.0, 0, 1, 0]]))
    assert not torch.equal(PiCIE().crops([0], 0), PiCIE().crops([0], 1))


def test_colours_change_as_they_say():
    picture = 0.2 + 0.5 * torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(jittered(picture, 0, 0, 0, 0), picture)
    torch.testing.assert_close(jittered(picture, 0.2, 0, 0, 0), 1.2 * picture)
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = torch.einsum("c,chw->hw", weights, picture)
    torch.testing.assert_close(jittered(picture, 0, -1, 0, 0), grey.mean().expand(3, 6, 6))
    torch.testing.assert_close(jittered(picture, 0, 0, -1, 0), grey.expand(3, 6, 6))
    turned = jittered(picture, 0, 0, 0, 0.05)
    torch.testing.assert_close(torch.einsum("c,chw->hw", weights, turned), grey, atol=1e-3, rtol=0)
    torch.testing.assert_close(jittered(turned, 0, 0, 0, -0.05), picture, atol=1e-3, rtol=0)
    red = torch.tensor([0.6, 0.4, 0.4])[:, None, None]
    assert jittered(red, 0, 0, 0, 1 / 3).argmax() == 1, "a third of a turn makes red green"


def test_views_are_a_crop_and_a_whole_of_the_same_picture():
    picture = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    still = PiCIE(jitter=0.0, grey=0.0, blur=0.0, pairs=2)
    views = still.views(picture, 5)
    assert len(views) == 4
    for pair in range(2):
        torch.testing.assert_close(views[2 * pair], cropped(picture[None], still.crops([5], pair))[0])
        torch.testing.assert_close(views[2 * pair + 1], picture)
    changed = PiCIE(pairs=2).views(picture, 5)
    assert all(torch.equal(a, b) for a, b in zip(changed, PiCIE(pairs=2).views(picture, 5), strict=True))
    assert not torch.allclose(changed[1], changed[3]) and all(((v >= 0) & (v <= 1)).all() for v in changed)
    grey = PiCIE(jitter=0.0, grey=1.0, blur=0.0).views(picture, 0)[1]
    torch.testing.assert_close(grey[0], grey[1])


def test_codes_of_both_views_lie_on_each_other(scenes):
    """Without noise the crop of the codes is the codes of the crop, but for what lies between cells."""
    _, features, _ = scenes
    still = replace(SMALL, nonlinear=False)
    views = [torch.stack([cropped(x[None], still.crops([i], 0))[0], x]) for i, x in enumerate(features)]
    problem = still.problem(Examples.given(views), still.network(12))
    one, other = problem.codes([3, 1], 0, 0), problem.codes([3, 1], 0, 1)
    torch.testing.assert_close(one, other, atol=2e-2, rtol=0)


def test_classes_are_found_without_labels(scenes):
    views, features, labels = scenes
    head = train(SMALL, Examples.given(views))
    assert head.about["steps"] == 12, "four epochs of three"
    found = [head.of([x], (8, 8)).labels for x in features]
    assert miou_per_set(found, list(labels), 3)[0] > 0.95
    torch.testing.assert_close(head.network.clusters.norm(dim=1), torch.ones(3), atol=0.2, rtol=0)


def test_a_run_that_is_cut_off_in_an_epoch_goes_on_bit_for_bit(scenes, tmp_path):
    examples = Examples.given(scenes[0])

    def cut(run):
        if run.step == 5:
            raise KeyboardInterrupt

    whole = train(SMALL, examples)
    with suppress(KeyboardInterrupt):
        train(SMALL, examples, keep=tmp_path / "cut", on_progress=cut)
    assert same(train(SMALL, examples, keep=tmp_path / "cut"), whole)


def test_mini_batches_of_pictures_cluster_as_well(scenes, monkeypatch):
    views, features, labels = scenes
    monkeypatch.setattr("sfumato.methods.perceive.picie.CHUNK", 3)
    head = train(replace(SMALL, gathered=3), Examples.given(views))
    assert miou_per_set([head.of([x], (8, 8)).labels for x in features], list(labels), 3)[0] > 0.9


def test_every_epoch_begins_with_clusters_of_its_own(scenes, monkeypatch):
    made, real = [], Clustering.cluster
    monkeypatch.setattr(Clustering, "cluster", lambda self, epoch: made.append(epoch) or real(self, epoch))
    train(replace(SMALL, epochs=3), Examples.given(scenes[0]))
    assert made == [0, 1, 2]


def test_what_cannot_be_is_refused(scenes):
    with pytest.raises(SfumatoError, match="has two clusters or more, or 0 for none; got 1"):
        PiCIE(over=1)
    with pytest.raises(
        SfumatoError, match=r"PiCIE learns from 4 views of each picture, and of these features are of 2"
    ):
        train(replace(SMALL, pairs=2), Examples.given(scenes[0]))
