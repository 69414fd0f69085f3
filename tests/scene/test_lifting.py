"""What lies behind a lifted scene, and what it begins with."""

from __future__ import annotations

import math

import torch

from sfumato.scene.backgrounds import Horizon
from sfumato.scene.fields import Voxels
from sfumato.scene.lifting import begun
from sfumato.scene.regions import Box
from sfumato.scene.render import FieldScene


def ways(elevation, azimuths):
    e, a = math.radians(elevation), torch.deg2rad(torch.tensor(azimuths))
    return torch.stack([math.cos(e) * a.sin(), torch.full_like(a, math.sin(e)), math.cos(e) * a.cos()], 1)


def test_a_horizon_is_linear_in_the_elevation_and_the_same_all_around():
    horizon = Horizon(1, latent=True, rows=5)  # at -90, -45, 0, 45, 90 degrees
    horizon.table.data[:, 0] = torch.tensor([0.0, 1.0, 5.0, 2.0, -4.0])
    horizon.value.data.fill_(0.5)
    for elevation, value in ((-90, 0.0), (-45, 1.0), (-30, 1 + 4 / 3), (0, 5.0), (15, 4.0), (90, -4.0)):
        found = horizon(ways(elevation, [0.0, 77.0, 200.0]))
        torch.testing.assert_close(found, torch.full((3, 1), value + 0.5), atol=1e-2, rtol=0)
    seen = Horizon(3)(ways(20, [0.0, 90.0]))
    assert torch.equal(seen, torch.full((2, 3), 0.5))


def test_a_dense_grid_begins_as_a_ball_of_half_the_region():
    scene = begun(FieldScene(Voxels(16, region=Box((1.0, 0.0, 0.0), 0.8))))
    at = torch.tensor([[1.0, 0, 0], [1.3, 0, 0], [1.55, 0, 0], [1.0, 0.75, 0.75]])
    density = scene.field.density(at)
    assert density[0] > density[1] > density[2] > density[3]
    assert density[0] > 3 and density[3] < 1e-3
