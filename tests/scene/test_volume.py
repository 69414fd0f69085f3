"""What a ray sees: against closed forms, sums over pairs, and differences in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sfumato.scene import render, volume
from sfumato.scene.backgrounds import Horizon
from sfumato.scene.cameras import Rays
from sfumato.scene.fields import Field, Matter, Voxels
from sfumato.scene.regions import Box
from sfumato.scene.render import FieldScene, Sampling, Shading, normals


class Ball(Field):
    """A sphere of one density and colour in the middle."""

    def __init__(self, density: float, radius: float = 0.5, soft: float = 0.0):
        super().__init__()
        self.region, self.thick, self.radius, self.soft = Box(), density, radius, soft
        self.colour = nn.Parameter(torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64))

    def forward(self, points, directions=None):
        outside = points.norm(dim=-1) - self.radius
        part = torch.sigmoid(-outside / self.soft) if self.soft else (outside < 0).to(points)
        return Matter(self.thick * part, self.colour.to(points).expand(len(points), 3))


def across(offsets: torch.Tensor) -> Rays:
    """Rays along -z that pass the middle at distances."""
    origins = torch.stack([offsets, torch.zeros_like(offsets), torch.full_like(offsets, 3.0)], -1)
    return Rays(origins, torch.tensor([0.0, 0.0, -1.0]).to(offsets).expand(len(offsets), 3))


def test_the_light_through_a_ball_is_the_exponential_of_its_chords():
    offsets = torch.tensor([0.0, 0.1, 0.3, 0.45, 0.6, 1.5], dtype=torch.float64)
    chords = 2 * (0.25 - offsets.square()).clamp_min(0).sqrt()
    seen = FieldScene(Ball(2.5), sampling=Sampling(4000)).double().trace(across(offsets))
    torch.testing.assert_close(seen.opacity, 1 - torch.exp(-2.5 * chords), atol=2.5 * 4 / 4000, rtol=0)
    behind = torch.full((6, 3), 0.5, dtype=torch.float64)  # the background begins at grey
    colour = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    shown = seen.opacity[:, None] * colour + (1 - seen.opacity)[:, None] * behind
    torch.testing.assert_close(seen.values, shown)
    first = 3 - chords[:4] / 2  # the mean distance of an exponential that is cut off
    x = 2.5 * chords[:4]
    mean = first + (1 - torch.exp(-x) * (1 + x)) / (1 - torch.exp(-x)) / 2.5
    torch.testing.assert_close(seen.depth[:4], mean, atol=4 / 4000, rtol=0)
    assert seen.depth[5] == 0


def test_weights_are_products_and_sum_to_the_opacity():
    rng = torch.Generator().manual_seed(0)
    density, lengths = (torch.rand(5, 9, generator=rng, dtype=torch.float64) * 4 for _ in range(2))
    w = volume.weights(density, lengths)
    alpha = 1 - torch.exp(-density * lengths)
    light = torch.ones(5, dtype=torch.float64)
    for i in range(9):
        torch.testing.assert_close(w.each[:, i], light * alpha[:, i])
        light = light * (1 - alpha[:, i])
    torch.testing.assert_close(w.opacity, 1 - light)
    torch.testing.assert_close(w.each.sum(-1), w.opacity)


def test_weights_of_very_thick_and_of_no_matter_are_finite():
    density = torch.tensor([[0.0, 1e30, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    w = volume.weights(density, torch.full((2, 3), 1e3))
    assert w.each.tolist() == [[0, 1, 0], [0, 0, 0]] and w.opacity.tolist() == [1, 0]
    w.each.sum().backward()
    assert bool(density.grad.isfinite().all())


def test_distortion_in_linear_time_is_the_sum_over_all_pairs():
    rng = torch.Generator().manual_seed(1)
    w = torch.rand(4, 7, generator=rng, dtype=torch.float64)
    edges = torch.rand(4, 8, generator=rng, dtype=torch.float64).cumsum(-1)
    middle, width = (edges[:, 1:] + edges[:, :-1]) / 2, edges.diff(dim=-1)
    pairs = (w[:, :, None] * w[:, None] * (middle[:, :, None] - middle[:, None]).abs()).sum((1, 2))
    torch.testing.assert_close(volume.distortion(w, edges), pairs + (w.square() * width).sum(-1) / 3)


def test_the_renderer_has_the_gradients_of_differences():
    field = Voxels(3, region=Box(half=1.0), shift=0.5, degree=1).double()
    rng = torch.Generator().manual_seed(2)
    scene = FieldScene(field, sampling=Sampling(6, coarse=8, skip=1e-9)).double()
    scene.occupancy.update(field, rng)
    rays = across(torch.tensor([0.1, -0.35], dtype=torch.float64))

    def shown(grid, turning, value):
        given = {"field.grid": grid, "field.turning": turning, "background.value": value}
        seen = torch.func.functional_call(_Traced(scene), {f"scene.{k}": v for k, v in given.items()}, (rays,))
        return torch.cat([seen.values.flatten(), seen.opacity, seen.depth])

    shapes = (field.grid.shape, field.turning.shape, (3,))
    inputs = tuple(torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes)
    assert torch.autograd.gradcheck(shown, inputs, fast_mode=True)


class _Traced(nn.Module):
    def __init__(self, scene):
        super().__init__()
        self.scene = scene

    def forward(self, rays):
        return self.scene.trace(rays)


@pytest.mark.parametrize("far", [0.0, 9.0], ids=["some miss", "all miss"])
def test_rays_that_miss_the_region_are_left_out_and_nothing_is_changed(far, monkeypatch):
    rng = torch.Generator().manual_seed(4)
    field = Voxels(4, region=Box(half=0.7), shift=1.0, degree=1).double()
    scene = FieldScene(field, Horizon(), sampling=Sampling(6)).double()
    for p in scene.parameters():
        p.data += torch.randn(p.shape, generator=rng, dtype=torch.float64)
    rays = across(torch.linspace(-1.5, 1.5, 7, dtype=torch.float64) + far)
    tilted = rays.directions + torch.tensor([0.0, 0.04, 0.0]) * torch.arange(7)[:, None]  # each before its own sky
    rays = rays._replace(directions=torch.nn.functional.normalize(tilted, dim=-1))
    ways = torch.randn(7, 3, generator=rng, dtype=torch.float64)
    asked, forward = [], Voxels.forward
    monkeypatch.setattr(Voxels, "forward", lambda self, p, d=None: (asked.append(len(p)), forward(self, p, d))[1])

    def found():
        scene.zero_grad()
        seen = scene.trace(
            rays, torch.Generator().manual_seed(1), shading=Shading(ambient=0.3, diffuse=0.7), lights=rays.origins + 1
        )
        ((seen.values * ways).sum() + seen.opacity.sum() + seen.depth.square().sum()).backward()
        return [x for x in seen if isinstance(x, torch.Tensor)], [p.grad.clone() for p in scene.parameters()]

    some = found()
    monkeypatch.setattr(render, "_meet", lambda between: None)
    every = found()
    assert asked == [6 * (1 if far else 3), 6 * 7]
    assert len(some[0]) == 7
    torch.testing.assert_close(some, every, atol=1e-12, rtol=1e-12)


def test_normals_of_a_ball_point_away_from_its_middle():
    rng = torch.Generator().manual_seed(3)
    points = torch.nn.functional.normalize(torch.randn(50, 3, generator=rng, dtype=torch.float64), dim=-1)
    found = normals(Ball(10.0, soft=0.1), points * 0.5)
    torch.testing.assert_close(found, points, atol=1e-3, rtol=0)


def test_a_rendering_has_the_normals_of_what_it_shows():
    from types import SimpleNamespace

    from sfumato.scene.cameras import orbit

    scene = FieldScene(Ball(200.0, soft=0.02), sampling=Sampling(128)).double()
    cameras = orbit(2, (9, 9), distance=3.0, elevation=30.0)
    seen = scene.render(SimpleNamespace(cameras=cameras, normals=True))
    middle = seen.normals[:, :, 4, 4]  # what is in the middle faces the camera
    torch.testing.assert_close(middle, torch.nn.functional.normalize(cameras.eyes.double(), dim=-1), atol=0.02, rtol=0)
    hits = cameras.eyes.double()[..., None, None] + seen.depth * seen.extra["rays"]
    solid = (seen.alpha[:, 0] > 0.999)[:, None].expand_as(hits)
    outward = torch.nn.functional.normalize(hits, dim=1)
    torch.testing.assert_close(seen.normals[solid], outward[solid], atol=0.1, rtol=0)
    assert math.isclose(float(seen.normals[:, :, 0, 0].abs().sum()), 0, abs_tol=1e-6)
