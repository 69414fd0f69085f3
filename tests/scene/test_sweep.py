"""Distances by a sweep: their costs by hand and against all ways there are, and a scene whose depth is known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from sfumato.scene import sweep
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture


def test_costs_hold_together_as_the_cheapest_of_all_ways_does():
    """A line of four pixels with three distances: what each distance of a pixel costs at least, over all 81 ways."""
    rng = torch.Generator().manual_seed(0)
    costs = 0.05 * torch.rand(1, 1, 4, 3, generator=rng).double()
    image = torch.tensor([0.1, 0.12, 0.4, 0.41]).double().expand(1, 3, 1, 4)
    change = image[0, 0, 0].diff().abs()

    def way(labels):
        total = sum(float(costs[0, 0, i, k]) for i, k in enumerate(labels))
        for i, (a, b) in enumerate(itertools.pairwise(labels)):
            much = 0.0 if a == b else sweep.STEP if abs(a - b) == 1 else sweep.LEAP
            total += much / (1 + float(change[i]) / sweep.EDGE)
        return total

    ways = {labels: way(labels) for labels in itertools.product(range(3), repeat=4)}
    least = torch.tensor([[min(v for labels, v in ways.items() if labels[i] == k) for k in range(3)] for i in range(4)])
    for some, seen in ((costs, image), (costs.transpose(1, 2), image.transpose(2, 3))):
        # each way along the line brings the pixel's own cost once, and so do the two across it, which are alone
        found = (sweep.together(some, seen) - 3 * some).reshape(4, 3)
        torch.testing.assert_close(found - found.amin(1, keepdim=True), (least - least.amin(1, keepdim=True)).double())


def test_the_better_half_of_the_cameras_that_see_a_point_counts():
    inf = torch.inf
    each = torch.tensor([[0.5, inf, inf], [0.1, 0.4, inf], [0.2, inf, inf], [0.9, 0.2, inf]]).view(4, 1, 1, 3)
    found = sweep._agreed(each, torch.tensor([0.7, 0.7, 0.3]))
    assert found.flatten().tolist() == pytest.approx([0.15, 0.2, 0.3])


def test_the_lowest_cost_lies_between_two_distances():
    """Of a parabola, exactly; at the ends it stays there."""
    place = torch.arange(6.0)
    costs = torch.stack([(place - 2.3).square(), (place + 1).square(), (place - 9).square()]).view(3, 1, 1, 6)
    assert sweep._lowest(costs).flatten().tolist() == pytest.approx([2.3, 0.0, 5.0])


def room(n=12, size=(40, 40), plain=False):
    """A ball with a pattern on a ground that shows little, under a sky; images and distances by ray casting."""
    cameras = orbit(n, size, elevation=25.0)
    rays = cameras.rays()
    o, d = rays.origins, rays.directions
    along = (o * d).sum(-1)
    inside = along.square() - o.square().sum(-1) + 0.36
    ball = torch.where(inside > 0, -along - inside.clamp_min(0).sqrt(), torch.inf)
    ground = torch.where(d[..., 1] < 0, (-0.6 - o[..., 1]) / d[..., 1], torch.inf)
    away = torch.minimum(ball, ground)
    points = o + away.clamp_max(100)[..., None] * d
    pattern = 0.5 + 0.4 * torch.sin(points * 6 + torch.tensor([0.0, 1, 2]))
    faint = 0.85 + 0.02 * torch.sin(3 * points[..., :1] + 2 * points[..., 2:]).expand_as(points)
    sky = torch.tensor([0.5, 0.7, 0.95]).expand_as(points)
    colour = torch.where((ball < ground)[..., None], pattern, torch.where(ground.isfinite()[..., None], faint, sky))
    return Capture(colour.permute(0, 3, 1, 2), cameras, tuple(map(str, range(n)))), away


def test_what_shows_little_lies_where_it_does():
    """The ball's distances; little is found before where it is, as mist would be; what is sure is right."""
    capture, away = room()
    found = sweep.sweep(capture)
    assert found.away.shape == found.sure.shape == (12, 40, 40)
    assert found.close.tolist() == pytest.approx([1.2] * 12, rel=1e-4)
    ball = (capture.images.std(1) > 0.15) & (away < 3.2)
    off = found.away / away
    assert float((off[ball] - 1).abs().median()) < 0.02
    assert float((off < 0.85)[away < 9].float().mean()) < 0.13
    assert float(found.sure.float().mean()) > 0.4
    assert float(((off - 1).abs()[found.sure] < 0.1).float().mean()) > 0.92


def test_what_two_others_find_is_sure():
    """A wall at a known distance: all sure where three look at it; not if one says another, or none look there."""
    cameras = orbit(3, (8, 8), elevation=0.0)
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 0.01, 0.02])
    side = replace(cameras, poses=poses)
    directions = side.rays().directions
    away = -2 / directions[..., 2]
    beside = [[1, 2], [0, 2], [0, 1]]
    assert bool(sweep._sure(side, away, beside)[:, :, 1:7].all())
    wrong = away.clone()
    wrong[2] *= 1.1
    assert not bool(sweep._sure(side, wrong, beside).any())
    away_from_it = poses.clone()
    away_from_it[1:, 0, 3] += 50
    apart = replace(side, poses=away_from_it)
    assert not bool(sweep._sure(apart, away, beside)[0].any())


def test_what_masks_leave_out_is_compared_with_nothing():
    """Nonsense in a masked half of every image changes no cost of what the others show."""
    capture, _ = room(6, (16, 16))
    masks = torch.ones(6, 16, 16, dtype=torch.bool)
    masks[:, :, :5] = False
    images = torch.where(masks[:, None], capture.images, 0.0)
    nonsense = torch.where(masks[:, None], capture.images, torch.rand(6, 3, 16, 16))
    cameras = capture.cameras
    points = cameras.rays().at(torch.linspace(1.5, 6, 5).expand(6, 16, 16, -1))[0]
    found = []
    for some in (images, nonsense):
        each = Capture(some, cameras, capture.names, masks)
        cost = sweep._apart(each, some, 0, 1, points)
        found.append(cost[:, 5:])
    where = found[0].isfinite()
    assert where.any() and not where.all() and torch.equal(where, found[1].isfinite())
    assert float((found[0] - found[1])[where].abs().max()) < 1e-6


def test_what_no_other_camera_sees_lies_far_rather_than_near():
    """Three cameras side by side that look away from each other see nothing together."""
    capture, _ = room(3, (12, 12))
    turned = capture.cameras.poses.clone()
    turned[:, :3, [0, 2]] *= -1
    lone = replace(capture, cameras=replace(capture.cameras, poses=turned))
    found = sweep.sweep(lone)
    assert float((found.away / lone.span[1] - 1).abs().max()) < 1e-4 and not found.sure.any()
