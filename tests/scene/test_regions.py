"""Boxes and all of space."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.scene.cameras import Rays
from sfumato.scene.regions import FAR, Box, Space, parts_of, spaced

BOX, SPACE = Box((0.3, -0.2, 1.0), 0.7), Space((0.3, -0.2, 1.0), 0.7)


def rays(n: int) -> Rays:
    rng = torch.Generator().manual_seed(4)
    origins = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    return Rays(origins, torch.nn.functional.normalize(torch.randn(n, 3, generator=rng, dtype=torch.float64), dim=-1))


def test_a_box_is_where_walking_along_a_ray_finds_it():
    some = rays(200)
    start, end = BOX.span(some)
    walk = torch.linspace(0, 8, 2001, dtype=torch.float64)
    inside = (BOX.local(some.at(walk.expand(200, -1))).abs() < 1).all(-1)
    assert 20 < int(inside.any(-1).sum()) < 180
    far = torch.where(inside, walk, -1.0).amax(-1)
    near = torch.where(inside, walk, 99.0).amin(-1)
    hit = inside.any(-1)
    torch.testing.assert_close(start[hit], near[hit], atol=5e-3, rtol=0)
    torch.testing.assert_close(end[hit], far[hit], atol=5e-3, rtol=0)
    assert bool((end[~hit] - start[~hit] < 5e-3).all()) and bool((end >= start).all())


def test_a_ray_along_an_axis_and_from_within_are_right():
    origins = torch.tensor([[0.3, -0.2, 5.0], [0.3, -0.2, 1.0], [2.0, -0.2, 5.0], [0.3, -0.2, -5.0]])
    some = Rays(origins, torch.tensor([0.0, 0.0, -1.0]).expand(4, 3))
    start, end = BOX.span(some, 0.1)
    torch.testing.assert_close(start, torch.tensor([3.3, 0.1, start[2].item(), 0.1]))
    torch.testing.assert_close(end, torch.tensor([4.7, 0.7, start[2].item(), 0.1]))


@pytest.mark.parametrize("region", [BOX, SPACE], ids=["box", "space"])
def test_a_place_is_found_again_from_where_it_is_drawn(region):
    points = rays(100).origins * 3
    torch.testing.assert_close(region.world(region.local(points)), points)
    assert isinstance(region, Box) or bool((region.local(points * 1e5).abs() < 1 + 1e-9).all())


def test_space_is_drawn_without_a_jump_and_in_the_published_way():
    middle = torch.tensor(SPACE.centre, dtype=torch.float64)
    some = rays(50).directions
    face = middle + 0.7 * some / some.abs().amax(-1, keepdim=True)
    for step in (1 - 1e-7, 1 + 1e-7):
        local = SPACE.local(middle + step * (face - middle))
        torch.testing.assert_close(local.abs().amax(-1), torch.full((50,), 0.5, dtype=torch.float64), atol=1e-6, rtol=0)
    x = 4 * (face - middle) / 0.7  # eq. 10 in the greatest coordinate, brought to [-1, 1]
    size = x.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(SPACE.local(middle + 0.7 * x), (2 - 1 / size) * x / size / 2)


@pytest.mark.parametrize("reach", [1.0, 3.0])
@pytest.mark.parametrize("region", [BOX, SPACE], ids=["box", "space"])
def test_parts_of_a_way_are_found_again_and_rise(region, reach):
    start, end = torch.tensor([0.05, 0.2], dtype=torch.float64), torch.tensor([3.0, 700.0], dtype=torch.float64)
    parts = torch.linspace(0, 1, 33, dtype=torch.float64).expand(2, -1)
    at = spaced(region, start, end, parts, reach)
    torch.testing.assert_close(at[:, 0], start)
    torch.testing.assert_close(at[:, -1], end)
    assert bool((at.diff(dim=-1) > 0).all())
    torch.testing.assert_close(parts_of(region, start, end, at, reach), parts)


def test_space_is_sampled_evenly_near_and_in_disparity_far():
    start, end = SPACE.span(Rays(torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:1]))
    at = spaced(SPACE, start, end, torch.linspace(0, 1, 101, dtype=torch.float64)[None])[0]
    near, far = at[at < 0.69], at[at > 0.71]
    torch.testing.assert_close(near.diff(), near.diff()[:1].expand(len(near) - 1))
    torch.testing.assert_close((1 / far).diff(), (1 / far).diff()[:1].expand(len(far) - 1))
    torch.testing.assert_close(at[-1], torch.tensor(FAR * 0.7, dtype=torch.float64))


@pytest.mark.parametrize("bad", [{"half": 0.0}, {"half": float("nan")}, {"centre": (0.0, float("inf"), 0.0)}])
def test_a_region_that_is_none_is_refused(bad):
    with pytest.raises(SfumatoError, match="a region has a middle"):
        Box(**bad)
