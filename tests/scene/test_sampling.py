"""Where samples go."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.seeds import generator
from sfumato.scene.cameras import Rays
from sfumato.scene.fields import Voxels
from sfumato.scene.regions import Box, Space
from sfumato.scene.render import FieldScene
from sfumato.scene.sampling import Occupancy, Sampling, edges, resampled, widened


def slab(gain: float = 50.0) -> Voxels:
    """Matter in the layers of z from 0.25 to 0.5 alone."""
    field = Voxels(16, shift=0.0, gain=gain)
    z = torch.full((16,), -30.0)
    z[10:12] = 30.0
    field.grid.data[0, 0] = z[:, None, None]
    field.grid.data[0, 1:] = 2.0
    return field


def down(n: int = 5) -> Rays:
    across = torch.linspace(-0.5, 0.5, n)
    origins = torch.stack([across, torch.zeros(n), torch.full((n,), 3.0)], -1)
    return Rays(origins, torch.tensor([0.0, 0.0, -1.0]).expand(n, 3))


def test_samples_go_where_weights_are_in_their_parts():
    w = torch.tensor([[0.0, 3.0, 0.0, 1.0]])
    between = torch.tensor([[0.0, 1.0, 3.0, 4.0, 5.0]])
    found = resampled(w, between, torch.tensor([[0.0, 0.375, 0.7499, 0.7501, 0.875, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0, 3.0, 4.0, 4.5, 5.0]]), atol=2e-3, rtol=0)


def test_widened_weights_reach_their_neighbours_and_everywhere_a_little():
    found = widened(torch.tensor([[0.0, 0.0, 0.8, 0.0, 0.0]]), rest=0.05)
    torch.testing.assert_close(found, torch.tensor([[0.01, 0.41, 0.81, 0.41, 0.01]]))


def test_an_occupancy_has_the_fields_densities_in_their_cells():
    field, occupancy = slab(), Occupancy(8)
    assert not occupancy.known
    occupancy.update(field, generator(0, 0))
    local = torch.tensor([[0.1, 0.1, 0.37], [0.1, 0.1, -0.6], [0.9, -0.9, 0.4]])  # x, y, z
    found = occupancy.at(local)
    assert occupancy.known and float(found[0]) > 50 and float(found[2]) > 50 and float(found[1]) < 1e-6
    before = occupancy.density.clone()
    field.grid.data[0, 0] = -30.0
    occupancy.update(field, generator(0, 1))
    torch.testing.assert_close(occupancy.density, before * 0.95, atol=1e-6, rtol=1e-6)


def test_later_updates_take_a_quarter_of_the_cells():
    field, occupancy = slab(), Occupancy(8)
    occupancy.updates += Occupancy.warm
    occupancy.update(field, generator(0, 0))
    part = float(
        (occupancy.at(torch.rand(4000, 3) * torch.tensor([2.0, 2.0, 0.2]) - torch.tensor([1, 1, -0.3])) > 0)
        .float()
        .mean()
    )
    assert 0.15 < part < 0.3  # 1 - exp(-1/4)


def test_few_guided_samples_see_what_many_even_ones_do():
    field = slab(20.0)
    many = FieldScene(field, sampling=Sampling(2048)).trace(down())
    few = FieldScene(field, sampling=Sampling(24, coarse=64, skip=1e-5, cells=16))
    with pytest.raises(AssertionError):  # before the occupancy is known
        torch.testing.assert_close(few.trace(down()).depth, many.depth, atol=0.01, rtol=0)
    few.occupancy.update(field, generator(0, 0))
    seen = few.trace(down())
    torch.testing.assert_close(seen.values, many.values, atol=0.01, rtol=0)
    torch.testing.assert_close(seen.depth, many.depth, atol=0.01, rtol=0)
    middle = (seen.edges[:, 1:] + seen.edges[:, :-1]) / 2
    inside = ((middle > 2.4) & (middle < 2.85)).float().mean()
    assert float(inside) > 0.9 and bool((seen.edges.diff(dim=-1) >= 0).all())


def test_what_is_skipped_is_not_asked_and_changes_little():
    field = slab(20.0)
    whole = FieldScene(field, sampling=Sampling(256, cells=16))
    some = FieldScene(field, sampling=Sampling(256, skip=1e-4, cells=16))
    some.occupancy.update(field, generator(0, 0))
    asked = []
    forward = field.forward
    field.forward = lambda p, d=None: (asked.append(len(p)), forward(p, d))[1]
    one, two = whole.trace(down()), some.trace(down())
    assert asked[1] < 0.3 * asked[0] == 0.3 * 5 * 256
    torch.testing.assert_close(one.values, two.values, atol=1e-3, rtol=0)
    torch.testing.assert_close(one.depth, two.depth, atol=1e-3, rtol=0)
    two.values.sum().backward()
    assert bool(field.grid.grad.isfinite().all()) and float(field.grid.grad.abs().max()) > 0


@pytest.mark.parametrize("region", [Box(), Space()], ids=["box", "space"])
def test_drawn_samples_are_of_their_generator_alone(region):
    sampling = Sampling(8, coarse=16)
    occupancy = Occupancy(4)
    occupancy.update(Voxels(4, region=region), generator(0, 0))
    one, two, other = (edges(region, down(), sampling, occupancy, generator(seed, 0))[0] for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("bad", [{"samples": 0}, {"near": -1.0}, {"skip": 1.0}, {"cells": 1}, {"reach": 0.0}])
def test_a_sampling_that_is_none_is_refused(bad):
    with pytest.raises(SfumatoError, match="a ray has samples"):
        Sampling(**bad)
