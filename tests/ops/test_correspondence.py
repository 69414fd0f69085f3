"""Matching of feature maps against plain formulas, and transport against the assignment it tends to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rounding import assert_same_but_for_rounding
from scipy.optimize import linear_sum_assignment

from sfumato.errors import SfumatoError
from sfumato.ops import memory
from sfumato.ops.correspondence import (
    along,
    cosines,
    flow,
    matches,
    middles,
    peak,
    returned,
    sampled,
    sinkhorn,
    soft_argmax,
    spread,
    transferred,
    weights,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth(c: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return F.interpolate(noise(1, c, 4, 4, seed=seed), grid, mode="bicubic", align_corners=True)[0]


def larger(map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(map[None], size, mode="bilinear", align_corners=False)[0]


def test_a_map_sampled_at_pixels_is_the_map_made_larger():
    map = noise(3, 4, 6)
    torch.testing.assert_close(sampled(map, middles((9, 20))).T.unflatten(1, (9, 20)), larger(map, (9, 20)))


def test_cosines_are_those_of_plain_vectors():
    q, map = noise(3, 8), noise(8, 2, 5, seed=1)
    wanted = [[float(F.cosine_similarity(a, map[:, y, x], 0)) for y in range(2) for x in range(5)] for a in q]
    torch.testing.assert_close(cosines(q, map).flatten(1), torch.tensor(wanted))


@pytest.mark.parametrize("many", [2**24, 500])  # at once, and in parts
def test_the_best_pixel_is_the_papers_of_features_made_larger(monkeypatch, many):
    monkeypatch.setattr(memory, "BUDGET", many)
    size, map, q = (21, 35), noise(16, 6, 7), noise(30, 16, seed=1)
    scores = F.normalize(q, dim=1) @ F.normalize(larger(map, size).flatten(1), dim=0)
    at, best = matches(q, map, size, "image")
    x, y = (at * torch.tensor([35, 21])).long().T  # at the borders features are alike, and the best pixel is not one
    torch.testing.assert_close(scores[torch.arange(30), y * 35 + x], scores.amax(1))
    torch.testing.assert_close(best, scores.amax(1))


@pytest.mark.parametrize("many", [2**24, 500])
def test_looking_near_the_best_cell_finds_the_best_pixel_of_smooth_features(monkeypatch, many):
    """What was sampled between cells is found where it was sampled, by both."""
    monkeypatch.setattr(memory, "BUDGET", many)
    map, size = smooth(32, (12, 10)), (96, 80)
    truth = middles(size)[torch.randperm(96 * 80, generator=torch.Generator().manual_seed(1))]
    truth = truth[((truth > 0.06) & (truth < 0.94)).all(1)][:50]  # beyond the outermost middles features are alike
    for how in ("local", "image"):
        at, best = matches(sampled(map, truth), map, size, how)  # pyright: ignore
        assert torch.equal(at, truth), how
        torch.testing.assert_close(best, torch.ones(50))
    coarse, _ = matches(sampled(map, truth), map, size, "none")
    assert ((coarse - truth).abs() * torch.tensor([10, 12]) > 0.2).any()


def test_weights_are_a_softmax_of_the_highest_alone():
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.2]])
    torch.testing.assert_close(weights(scores, 0.2), (scores / 0.2).softmax(1))
    two = weights(scores, 0.2, 2)
    torch.testing.assert_close(two[0, [1, 2]], (scores[0, [1, 2]] / 0.2).softmax(0))
    assert two[0, 0] == two[0, 3] == 0
    with pytest.raises(SfumatoError, match="temperature is above 0"):
        weights(scores, 0)


def test_a_soft_position_is_the_mean_place_and_the_best_cell_when_cold():
    scores = noise(4, 3, 5)
    p = (scores.flatten(1) / 0.5).softmax(1).view(4, 3, 5)
    x, y = (torch.arange(5) + 0.5) / 5, (torch.arange(3) + 0.5) / 3
    torch.testing.assert_close(soft_argmax(scores, 0.5), torch.stack([p.sum(1) @ x, p.sum(2) @ y], 1))
    torch.testing.assert_close(soft_argmax(scores, 1e-4), middles((3, 5))[scores.flatten(1).argmax(1)])


def test_a_peak_lies_between_the_cells_that_share_it():
    scores = torch.zeros(2, 4, 6)
    scores[0, 1, 2], scores[0, 1, 3], scores[0, 3, 5] = 0.6, 0.6, 0.5  # the last is too far to count
    scores[1, 0, 0] = 1
    torch.testing.assert_close(peak(scores), torch.tensor([[3 / 6, 1.5 / 4], [0.5 / 6, 0.5 / 4]]))


def test_what_comes_back_is_measured_by_the_longer_side():
    at = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    back = torch.tensor([[0.6, 0.5], [0.5, 0.6]])  # 20 pixels, 10 pixels of an image of 100 x 200
    assert returned(back, at, (100, 200), 0.051).tolist() == [False, True]


def test_a_plan_has_the_marginals_it_was_given():
    cost, gen = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    a, b = torch.rand(7, generator=gen), torch.rand(5, generator=gen)
    plan = sinkhorn(cost, 0.05, 200, a, b)
    torch.testing.assert_close(plan.sum(0), b / b.sum())
    torch.testing.assert_close(plan.sum(1), a / a.sum(), atol=1e-5, rtol=1e-3)
    uniform = sinkhorn(cost, 0.05, 200)
    torch.testing.assert_close(uniform.sum(1), torch.full((7,), 1 / 7), atol=1e-5, rtol=1e-3)
    scaled = -(uniform.log() + cost / 0.05)  # of the form diag(u) exp(-cost / epsilon) diag(v)
    torch.testing.assert_close(scaled - scaled[:1] - scaled[:, :1] + scaled[0, 0], torch.zeros(7, 5), atol=1e-3, rtol=0)


def test_with_little_entropy_the_plan_is_the_best_assignment():
    gen = torch.Generator().manual_seed(3)
    cost = torch.rand(8, 8, generator=gen, dtype=torch.float64)
    cost[torch.arange(8), torch.randperm(8, generator=gen)] -= 0.2  # so that the second best is not nearly as good
    plan = sinkhorn(cost, 5e-3, 2000) * 8
    rows, columns = linear_sum_assignment(cost.numpy())
    wanted = torch.zeros(8, 8, dtype=torch.float64)
    wanted[rows, columns] = 1
    torch.testing.assert_close(plan, wanted, atol=1e-2, rtol=0)
    much = sinkhorn(cost, 1e3, 10)
    torch.testing.assert_close(much, torch.full((8, 8), 1 / 64, dtype=torch.float64), atol=1e-4, rtol=0)


def test_constant_costs_and_empty_cells_give_numbers():
    torch.testing.assert_close(sinkhorn(torch.zeros(3, 4)), torch.full((3, 4), 1 / 12))
    plan = sinkhorn(torch.ones(2, 3), 1e-4, 50, torch.tensor([0.0, 1.0]))
    assert plan.isfinite().all() and float(plan[0].sum()) < 1e-6
    assert cosines(torch.zeros(2, 4), torch.zeros(4, 3, 3)).isfinite().all()
    for how in ("none", "local", "image"):
        assert all(t.isfinite().all() for t in matches(torch.zeros(2, 4), torch.zeros(4, 3, 3), (9, 9), how))  # pyright: ignore


def test_a_dustbin_takes_what_has_no_match():
    cost = 1 - torch.eye(3)[:, :2]  # the third row is like no column
    plan = sinkhorn(cost, 0.02, 300, dustbin=0.4)
    assert plan.shape == (4, 3)
    assert plan[2, 2] > 0.99 * plan[2].sum()
    assert plan[0, 0] > 0.9 * plan[0].sum()


def test_what_transport_cannot_do_is_said():
    with pytest.raises(SfumatoError, match="epsilon above 0"):
        sinkhorn(torch.ones(2, 2), 0)
    with pytest.raises(SfumatoError, match="marginals are 2 numbers"):
        sinkhorn(torch.ones(2, 2), rows=torch.ones(3))
    with pytest.raises(SfumatoError, match="not all 0"):
        sinkhorn(torch.ones(2, 2), columns=torch.zeros(2))


def test_a_mirrored_image_takes_masks_colours_and_edits_along():
    """Features that tell every cell from the others: each finds its own mirror image, and pixels go with their cell."""
    source = noise(24, 4, 6)
    target = source.flip(2)
    where, scores = flow(target, source)
    assert_same_but_for_rounding(scores, torch.ones(4, 6))
    assert_same_but_for_rounding(where[..., 0], ((torch.arange(6) + 0.5) / 6).flip(0).expand(4, 6))
    blocks = noise(3, 4, 6, seed=2).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert_same_but_for_rounding(along(blocks, where, (32, 48)), blocks.flip(2))
    mask = torch.zeros(32, 48)
    mask[:16, :16] = 1
    canvas = torch.zeros(3, 32, 48)
    out, inside = transferred(blocks, mask, canvas, where)
    assert_same_but_for_rounding(inside, mask.flip(1))
    assert_same_but_for_rounding(out, blocks.flip(2) * mask.flip(1))
    carried = spread(mask[None], target, source, temperature=1e-3)
    assert_same_but_for_rounding(carried[0], mask.flip(1)[4::8, 4::8])
    with pytest.raises(SfumatoError, match="does not lie on"):
        transferred(blocks, mask[:5], canvas, where)


def test_pixels_keep_their_order_inside_a_cell():
    """An image carried by the places of its own cells stays as it is, between the cells' middles too."""
    image, grid = noise(3, 24, 40), (3, 5)
    own = middles(grid).view(*grid, 2)
    torch.testing.assert_close(along(image, own, (24, 40)), image, atol=1e-5, rtol=1e-5)


def test_labels_spread_as_in_videos():
    """Softmax over the most alike cells, written as loops."""
    source, target, masks = noise(6, 3, 3), noise(6, 2, 2, seed=1), torch.rand(2, 3, 3)
    out = spread(masks, target, source, temperature=0.2, topk=4)
    for y, x in np.ndindex(2, 2):
        like = torch.stack([F.cosine_similarity(target[:, y, x], f, 0) for f in source.flatten(1).T])
        best = like.topk(4).indices
        share = (like[best] / 0.2).softmax(0)
        torch.testing.assert_close(out[:, y, x], (masks.flatten(1)[:, best] * share).sum(1))
