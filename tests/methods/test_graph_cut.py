"""Graph cuts against all labellings of small grids: two labels exact, more within the bound, energies never rise."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.methods.perceive.graph_cut import (
    GraphCut,
    borders,
    energy,
    expanded,
    gaussian,
    ising,
    of_scores,
    potts,
)
from sfumato.reading.results import Segments


def problem(k: int, h: int, w: int, seed: int, smooth: float = 1.0, neighbours: Any = 4):
    draw = torch.Generator().manual_seed(seed)
    image = torch.rand(3, h, w, generator=draw)
    return 2 * torch.rand(k, h, w, generator=draw), *borders(image, smooth, 0.3, neighbours)


def cheapest(costs, pairs, weights) -> float:
    """Of all labellings there are."""
    k, h, w = costs.shape
    every = torch.tensor(list(product(range(k), repeat=h * w)))
    own = costs.flatten(1).T[torch.arange(h * w), every].sum(1).double()
    apart = (every[:, pairs[:, 0]] != every[:, pairs[:, 1]]).double() @ weights.double()
    return float((own + apart).min())


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("smooth", [0.0, 0.5, 3.0])
def test_two_labels_are_the_cheapest_there_are(smooth, neighbours):
    for seed in range(5):
        costs, pairs, weights = problem(2, 3, 4, seed, smooth, neighbours)
        found = energy(costs, pairs, weights, ising(costs, pairs, weights))
        assert found == pytest.approx(cheapest(costs, pairs, weights), abs=1e-4)


@pytest.mark.parametrize("smooth", [0.3, 1.0, 3.0])
def test_more_labels_stay_within_twice_the_cheapest(smooth):
    """The bound of alpha-expansion for Potts; mostly it is the cheapest itself."""
    exact = 0
    for seed in range(8):
        costs, pairs, weights = problem(3, 3, 3, seed, smooth)
        found, least = energy(costs, pairs, weights, potts(costs, pairs, weights)), cheapest(costs, pairs, weights)
        assert least - 1e-4 <= found <= 2 * least
        exact += found < least + 1e-4
    assert exact >= 6


def test_an_expansion_is_the_cheapest_of_all_choices_to_take_the_label():
    for seed in range(5):
        costs, pairs, weights = problem(3, 3, 3, seed)
        before = torch.randint(0, 3, (3, 3), generator=torch.Generator().manual_seed(seed))
        for to in range(3):
            choices = (torch.tensor(c).view(3, 3).bool() for c in product((0, 1), repeat=9))
            least = min(energy(costs, pairs, weights, torch.where(c, to, before)) for c in choices)
            found = expanded(costs, pairs, weights, before, to)
            assert energy(costs, pairs, weights, found) == pytest.approx(least, abs=1e-4)
            assert ((found == before) | (found == to)).all()


def test_the_energy_never_rises_from_one_expansion_to_the_next():
    costs, pairs, weights = problem(5, 12, 9, 0, 0.7)
    labels = costs.argmin(0)
    seen = [energy(costs, pairs, weights, labels)]
    for turn in range(15):
        labels = expanded(costs, pairs, weights, labels, turn % 5)
        seen.append(energy(costs, pairs, weights, labels))
    assert all(b <= a + 1e-4 for a, b in pairwise(seen)) and seen[-1] < seen[0] - 1
    assert energy(costs, pairs, weights, potts(costs, pairs, weights)) == pytest.approx(seen[-1], abs=1e-3)


def test_the_pairwise_term_rewards_agreement():
    """One pixel that would rather differ from all others is talked out of it, and only so."""
    costs = torch.stack([torch.zeros(5, 5), torch.ones(5, 5)])
    costs[:, 2, 2] = torch.tensor([1.0, 0.0])
    image = torch.zeros(3, 5, 5)
    assert ising(costs, *borders(image, 0.2, 0.1))[2, 2] == 1  # four borders of 0.2 cost less than 1
    assert not ising(costs, *borders(image, 0.3, 0.1)).any()


def test_a_border_is_cheap_where_colours_differ():
    image = torch.zeros(3, 2, 4)
    image[:, :, 2:] = 0.2
    pairs, weights = borders(image, 2.0, 0.1)
    across = image[0].flatten()[pairs]
    apart = across[:, 0] != across[:, 1]
    torch.testing.assert_close(weights[apart], torch.full((2,), 2 * float(torch.tensor(-3 * 0.04 / 0.02).exp())))
    assert (weights[~apart] == 2).all() and len(pairs) == 10
    pairs, weights = borders(torch.zeros(3, 2, 4), 2.0, 0.1, 8)
    assert len(pairs) == 16 and weights[10:].tolist() == pytest.approx([2 / 2**0.5] * 6)


def test_costs_are_minus_logs_of_shares_and_of_gaussians():
    scores = torch.tensor([[[3.0]], [[1.0]]])
    torch.testing.assert_close(of_scores(scores).exp().flatten(), torch.tensor([4 / 3, 4.0]))
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.rand(2, 4, 5, generator=draw), torch.randint(0, 2, (4, 5), generator=draw)
    found = gaussian(values, labels, 3)
    for k in range(2):
        of = torch.distributions.Normal(values[:, labels == k].mean(1), values[:, labels == k].std(1, correction=0))
        wanted = -of.log_prob(values.permute(1, 2, 0)).mean(-1) - 0.5 * torch.tensor(2 * torch.pi).log()
        torch.testing.assert_close(found[k], wanted)
    assert (found[2] == found.amax()).all()  # a label that nothing has


def scene():
    """A disc on a ground, and its scores at a quarter of the side, wrong in one cell."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    truth = ((y - 15) ** 2 + (x - 18) ** 2 < 90).long()
    image = torch.where(truth.bool(), torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1), torch.tensor(0.4))
    inside = torch.nn.functional.avg_pool2d(truth[None].float(), 4)[0]
    inside[0, 0] = 0.9
    return image, truth, Segments(torch.stack([1 - inside, inside]) * 0.8 + 0.1, (32, 40), ("ground", "disc"))


def test_borders_move_to_the_edges_of_the_image():
    image, truth, segments = scene()
    found = GraphCut(smooth=2).refine(segments, image)
    assert (segments.labels != truth).sum() > 20 and torch.equal(found.labels, truth)
    assert found.names == ("ground", "disc") and found.size == (32, 40)
    alone = GraphCut(smooth=0).refine(segments, image)
    assert torch.equal(alone.labels, segments.labels)


def test_colours_and_features_alone_find_the_disc():
    image, truth, segments = scene()
    for method in (GraphCut(scores=0, colours=1), GraphCut(scores=0, features=1, neighbours=8)):
        assert torch.equal(method.refine(segments, image, image).labels, truth)


def test_a_cut_at_a_coarser_side_comes_back_at_the_images_size():
    image, truth, segments = scene()
    found = GraphCut(smooth=2, side=16).refine(segments, image)
    assert found.scores.shape == (2, 16, 20) and found.labels.shape == (32, 40)
    assert (found.labels == truth).float().mean() > 0.95


def test_one_colour_and_one_segment_stay_what_they_are():
    segments = Segments(torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)), (8, 8))
    found = GraphCut(colours=1).refine(segments, torch.full((3, 8, 8), 0.5))
    assert found.scores.isfinite().all()
    one = GraphCut().refine(Segments(torch.ones(1, 4, 4), (8, 8)), torch.rand(3, 8, 8))
    assert not one.labels.any()


def test_large_costs_do_not_overflow():
    """Capacities are whole numbers of 32 bits: they are scaled to fit."""
    costs, pairs, weights = problem(2, 3, 4, 0)
    big = ising(1e9 * costs, pairs, 1e9 * weights)
    assert torch.equal(big, ising(costs, pairs, weights))


def test_what_it_cannot_do_is_said():
    image, _, segments = scene()
    with pytest.raises(SfumatoError, match="do not fit"):
        GraphCut().refine(segments, image[:, :16])
    with pytest.raises(SfumatoError, match="none are given"):
        GraphCut(features=1).refine(segments, image)
    with pytest.raises(SfumatoError, match="below zero"):
        GraphCut().refine(Segments(segments.scores - 1, (32, 40)), image)
    refused: tuple[dict[str, Any], ...] = ({"sigma": 0}, {"smooth": -1}, {"side": 0}, {"scores": 0}, {"neighbours": 6})
    for options in refused:
        with pytest.raises(SfumatoError):
            GraphCut(**options)
