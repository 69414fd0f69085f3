"""Losses on renderings, against closed forms and published formulas written out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from sfumato.distill.generators import Rendering
from sfumato.errors import SfumatoError
from sfumato.scene import regularisers as r
from sfumato.scene.cameras import orbit
from sfumato.scene.fields import Voxels
from sfumato.scene.render import FieldScene, Sampling, Shading

EVERY = (
    r.Orientation, r.Opacity, r.Sparsity, r.Emptiness, r.Opaque, r.ZVariance, r.Distortion, r.NormalSmoothness,
    r.Convexity,
)  # fmt: skip


def rendering(alpha: torch.Tensor, normals: torch.Tensor | None = None, **extra: torch.Tensor) -> Rendering:
    return Rendering(torch.zeros(len(alpha), 3, *alpha.shape[-2:]), alpha, alpha, normals, extra)


def bowl(sign: float, n: int = 24) -> torch.Tensor:
    """Normals of a half ball that bulges towards the camera (1), or of the hollow one (-1); in the camera's axes."""
    at = (torch.arange(n) + 0.5) / n * 1.2 - 0.6
    y, x = torch.meshgrid(-at, at, indexing="ij")
    return torch.stack([sign * x, sign * y, (1 - x.square() - y.square()).sqrt()])[None]


def test_opacities_are_weighed_as_published():
    alpha = torch.tensor([0.0, 0.5, 1.0, 0.25]).view(1, 1, 2, 2)
    seen = rendering(alpha)
    assert float(r.Opacity(2.0)(seen)) == pytest.approx(2 * 0.4375)
    assert float(r.Sparsity()(seen)) == pytest.approx(sum(math.sqrt(o * o + 0.01) for o in (0, 0.5, 1, 0.25)) / 4)
    clipped = (0.001, 0.5, 0.999, 0.25)
    entropy = -sum(o * math.log(o) + (1 - o) * math.log(1 - o) for o in clipped) / 4
    assert float(r.Opaque()(seen)) == pytest.approx(entropy, rel=1e-5)


def test_emptiness_is_of_samples():
    seen = rendering(torch.ones(1, 1, 1, 1), weights=torch.tensor([0.0, 0.1, 0.5, 0.4]).view(1, 1, 1, 4))
    assert float(r.Emptiness()(seen)) == pytest.approx((math.log(2) + math.log(6) + math.log(5)) / 4)


def test_the_variance_of_a_distance_is_that_of_its_weights():
    edges = torch.tensor([1.0, 2, 3, 5]).expand(1, 1, 2, 4)
    w = torch.tensor([[0.2, 0.0, 0.6], [0.1, 0.1, 0.1]]).view(1, 1, 2, 3)
    alpha = w.sum(-1)[:, None]  # the second ray is not opaque enough to count
    mean = 0.25 * 1.5 + 0.75 * 4
    wanted = 0.25 * (1.5 - mean) ** 2 + 0.75 * (4 - mean) ** 2
    assert float(r.ZVariance()(rendering(alpha, weights=w, edges=edges))) == pytest.approx(wanted, rel=1e-5)


def test_distortion_of_two_samples_is_by_hand():
    parts = torch.tensor([0.0, 0.1, 0.5]).view(1, 1, 1, 3)
    w = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    wanted = 2 * 0.5 * 0.25 * 0.25 + (0.25 * 0.1 + 0.0625 * 0.4) / 3
    assert float(r.Distortion()(rendering(w.sum(-1)[:, None], weights=w, parts=parts))) == pytest.approx(wanted)


def test_orientation_counts_what_faces_away_and_moves_no_weight():
    rays = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
    turned = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, -0.8]]).view(1, 1, 1, 2, 3).requires_grad_()
    w = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2).requires_grad_()
    loss = r.Orientation()(rendering(torch.ones(1, 1, 1, 1), weights=w, turned=turned, rays=rays))
    assert float(loss.detach()) == pytest.approx(0.25 * 0.64)
    loss.backward()
    assert w.grad is None and turned.grad[0, 0, 0, 0].tolist() == [0, 0, 0] and float(turned.grad[0, 0, 0, 1, 2]) < 0


def test_convexity_tells_a_bump_from_a_hollow_in_the_cameras_axes():
    alpha = torch.ones(1, 1, 24, 24)
    cameras = orbit(4, (24, 24), elevation=35.0, first=70.0)
    found = {}
    for sign in (1.0, -1.0):
        each = []
        for pose in cameras.poses:
            world = torch.einsum("ij,bjhw->bihw", pose[:3, :3], bowl(sign))
            each.append(float(r.Convexity()(rendering(alpha, world, poses=pose[None]))))
        assert max(each) - min(each) < 1e-5  # wherever the camera stands
        found[sign] = each[0]
    assert found[1.0] == pytest.approx(-found[-1.0], rel=1e-4) and found[1.0] < -0.2
    flat = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 24, 24)
    assert float(r.Convexity()(rendering(alpha, flat, poses=torch.eye(4)[None]))) == 0


def test_convexity_knows_both_directions():
    """A roll that bulges only from top to bottom, or only from left to right, is convex as well."""
    angle = torch.linspace(0.8, -0.8, 8)
    alpha, poses = torch.ones(1, 1, 8, 8), torch.eye(4)[None]
    zero = torch.zeros(8, 8)
    down = torch.stack([zero, angle.sin()[:, None].expand(8, 8), angle.cos()[:, None].expand(8, 8)])[None]
    right = torch.stack([-angle.sin().expand(8, 8), zero, angle.cos().expand(8, 8)])[None]
    step = math.sin(1.6 / 7)
    assert float(r.Convexity()(rendering(alpha, down, poses=poses))) == pytest.approx(-step, rel=1e-4)
    assert float(r.Convexity()(rendering(alpha, right, poses=poses))) == pytest.approx(-step, rel=1e-4)


def test_smoothness_is_of_neighbours_that_are_seen():
    normals = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]).T.view(1, 3, 2, 2)
    alpha = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2)
    assert float(r.NormalSmoothness()(rendering(alpha, normals))) == pytest.approx(2 / 2 + 2 / 2)
    unseen = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]).T.view(1, 3, 2, 2)
    assert float(r.NormalSmoothness()(rendering(alpha, unseen))) == pytest.approx(2 / 2 + 2 / 2)


def test_total_variation_of_a_checkerboard_and_of_a_slope():
    n = torch.arange(4)
    board = ((n[:, None, None] + n[:, None] + n) % 2).float().view(1, 1, 4, 4, 4)
    assert float(r.total_variation(board)) == 3
    slope = (0.5 * n).expand(1, 2, 4, 4, 4)
    assert float(r.total_variation(slope)) == pytest.approx(0.25)


@pytest.mark.parametrize("kind", EVERY, ids=[kind.__name__ for kind in EVERY])
def test_a_scene_gives_each_what_it_reads(kind):
    field = Voxels(6, shift=1.0)
    field.grid.data = torch.randn(field.grid.shape, generator=torch.Generator().manual_seed(8))
    scene = FieldScene(field, sampling=Sampling(8))
    loss = kind()(scene.render(SimpleNamespace(cameras=orbit(2, (9, 9)), normals=True)))
    loss.backward()
    assert bool(loss.isfinite()) and bool(field.grid.grad.isfinite().all()) and float(field.grid.grad.abs().max()) > 0
    if kind in (r.Orientation, r.NormalSmoothness, r.Convexity):
        with pytest.raises(SfumatoError, match="normals=True"):
            kind()(scene.render(orbit(1, (5, 5))))


def test_light_falls_as_lambert_has_it():
    """A thick slab whose front faces the light and the camera: its colour is albedo (ambient + diffuse cosine)."""
    field = Voxels(16, shift=0.0)
    field.grid.data[0, 0] = torch.where(torch.arange(16)[:, None, None] < 8, 600.0, -600.0).expand(16, 16, 16)
    field.grid.data[0, 1:] = 1.0
    albedo = 1 / (1 + math.exp(-1))
    scene = FieldScene(field, sampling=Sampling(256))
    cameras = orbit(1, (3, 3), elevation=0.0, fov=2.0)
    for kind, light, wanted in (
        ("lambert", [0.0, 0.0, 50.0], albedo), ("lambert", [50.0, 0.0, 50.0], albedo * (0.1 + 0.9 * math.sqrt(0.5))),
        ("textureless", [0.0, 0.0, 50.0], 1.0), ("lambert", [0.0, 0.0, -50.0], albedo * 0.1),
        ("albedo", [0.0, 0.0, -50.0], albedo),
    ):  # fmt: skip
        shading = Shading(kind, torch.tensor([light]))
        shown = scene.render(SimpleNamespace(cameras=cameras, shading=shading)).images[0, :, 1, 1]
        torch.testing.assert_close(shown.detach(), torch.full((3,), wanted), atol=0.02, rtol=0)


def test_a_random_background_is_seen_where_nothing_is():
    scene = FieldScene(Voxels(4, shift=-50.0), sampling=Sampling(4))
    scene.random_background = 0.5
    drawn = []
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        drawn.append(scene.render(SimpleNamespace(cameras=orbit(2, (2, 2)), rng=rng)).images.detach())
    plain = [bool((x == 0.5).all()) for x in drawn]
    assert 3 < sum(plain) < 17
    other = next(x for x, p in zip(drawn, plain, strict=True) if not p)
    assert torch.equal(other, other[..., :1, :1].expand_as(other)) and not torch.equal(other[0], other[1])
    assert bool((scene.render(orbit(1, (2, 2))).images == 0.5).all())
