"""Cameras: rays and what is seen are inverses; OpenCV's and Still Life's conventions by formulas of their own."""

from __future__ import annotations

import math

import numpy as np
import posed
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.scene.cameras import Pinholes, as_raster, looking, orbit, towards
from sfumato.stilllife.scene import Camera


def odd(n: int = 4) -> Pinholes:
    """Cameras in float64 of which nothing is square, even or centred, each with its own lens."""
    rng = torch.Generator().manual_seed(3)
    eyes = 3 * torch.randn(n, 3, generator=rng, dtype=torch.float64)
    target = 0.3 * torch.randn(n, 3, generator=rng, dtype=torch.float64)
    up = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    focal = 40 + 30 * torch.rand(n, 2, generator=rng, dtype=torch.float64)
    centre = torch.tensor([20.0, 30.0]).double() + 9 * torch.rand(n, 2, generator=rng, dtype=torch.float64)
    return Pinholes(towards(eyes, target, up), focal, centre, (37, 52))


def test_what_is_seen_is_the_inverse_of_rays():
    cameras = odd()
    rays = cameras.rays()
    assert rays.origins.shape == (4, 37, 52, 3)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(4, 37, 52).double())
    y, x = torch.meshgrid(torch.arange(37).double() + 0.5, torch.arange(52).double() + 0.5, indexing="ij")
    for i in range(4):
        seen = cameras[[i]].seen((rays.origins[i] + 2.5 * rays.directions[i]).flatten(0, 1))[0].view(37, 52, 3)
        torch.testing.assert_close(seen[..., 0], x, atol=1e-10, rtol=0)
        torch.testing.assert_close(seen[..., 1], y, atol=1e-10, rtol=0)
        torch.testing.assert_close(seen[..., 2] * cameras.slant()[i], torch.full_like(x, 2.5))


def test_the_ray_through_the_axis_meets_what_is_looked_at():
    eyes = torch.tensor([[3.0, 1.0, 2.0], [-1.0, 2.5, 0.5]]).double()
    targets = torch.tensor([[0.2, 0.4, -0.3], [0.5, 0.0, 1.0]]).double()
    cameras = Pinholes(towards(eyes, targets), torch.tensor([[50.0, 40], [60, 70]]).double(),
                       torch.tensor([[11.5, 7.25], [9.0, 4.5]]).double(), (15, 23))  # fmt: skip
    rays = cameras.through(torch.arange(2), cameras.centre)
    away = (targets - eyes).norm(dim=-1)
    torch.testing.assert_close(rays.at(away[:, None])[:, 0], targets)
    up = cameras.through(torch.arange(2), cameras.centre - torch.tensor([0.0, 1.0]))
    assert bool((up.directions[:, 1] > rays.directions[:, 1]).all()), "rows go down"
    right = cameras.through(torch.arange(2), cameras.centre + torch.tensor([1.0, 0.0])).directions
    aside = torch.linalg.cross(targets - eyes, torch.tensor([0.0, 1.0, 0.0]).double().expand(2, 3))
    assert bool(((right * aside).sum(-1) > 0).all()), "columns go to the right"


def test_opencv_sees_points_where_its_own_formula_has_them():
    cameras = odd()
    views, matrices = cameras.opencv()
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = cameras.seen(points)
    for view, k, each in zip(views.numpy(), matrices.numpy(), seen.numpy(), strict=True):
        p = points.numpy() @ view[:3, :3].T + view[:3, 3]
        u = k @ p.T
        ahead = p[:, 2] > 0.1
        assert ahead.sum() > 5
        np.testing.assert_allclose(each[ahead, 2], p[ahead, 2], rtol=1e-12)
        np.testing.assert_allclose(each[ahead, :2], (u[:2] / u[2]).T[ahead], rtol=1e-10)


def test_there_and_back_by_opencv():
    cameras = odd()
    again = Pinholes.of_opencv(*cameras.opencv(), cameras.size)
    for name in ("poses", "focal", "centre"):
        torch.testing.assert_close(getattr(again, name), getattr(cameras, name), atol=1e-12, rtol=0)
    assert again.size == cameras.size


def test_a_pose_of_opencv_by_hand():
    """A camera at (0, 0, 5) that looks at 0, upright: OpenCV's y is down and z ahead."""
    pose = towards(torch.tensor([[0.0, 0.0, 5.0]]), torch.zeros(1, 3))
    view = looking(pose, 60.0, (10, 10)).opencv()[0][0]
    assert view.tolist() == [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]]


def test_fewer_pixels_see_the_same():
    cameras, points = odd(), torch.randn(9, 3, generator=torch.Generator().manual_seed(1)).double()
    seen, small = cameras.seen(points), cameras.resized(74, 26).seen(points)
    torch.testing.assert_close(small[..., 0], seen[..., 0] / 2)
    torch.testing.assert_close(small[..., 1], seen[..., 1] * 2)


@pytest.mark.parametrize("azimuth,elevation", [(0.0, 20.0), (90.0, 5.0), (213.0, 71.0)])
def test_still_lifes_cameras_are_the_same(azimuth, elevation):
    camera = Camera(azimuth, elevation, 2.9, (0.3, 0.2, -0.4), 37.0)
    mine = orbit(1, (64, 64), elevation=elevation, distance=2.9, fov=37.0, target=camera.target, first=azimuth)
    np.testing.assert_allclose(mine.poses[0].numpy(), camera.to_world(), atol=1e-6)
    k = camera.intrinsics(64)
    np.testing.assert_allclose(mine.focal[0].numpy(), (k[0, 0], k[1, 1]), rtol=1e-6)
    np.testing.assert_allclose(mine.centre[0].numpy(), k[:2, 2])


def test_a_circle_begins_in_front_and_goes_by_the_right():
    eyes = orbit(4, (8, 8), elevation=0.0, distance=2.0).eyes
    torch.testing.assert_close(eyes, torch.tensor([[0.0, 0, 2], [2, 0, 0], [0, 0, -2], [-2, 0, 0]]), atol=1e-6, rtol=0)


def test_the_field_of_view_is_vertical():
    cameras = looking(torch.eye(4)[None], 90.0, (20, 60))
    top = cameras.through(torch.tensor([0]), torch.tensor([[30.0, 0.0]])).directions[0]
    torch.testing.assert_close(top, torch.tensor([0.0, 1, -1]) / math.sqrt(2))


def test_what_is_no_camera_is_refused():
    pose, two = torch.eye(4)[None], torch.full((1, 2), 9.0)
    for bad in (
        lambda: Pinholes(torch.eye(3)[None], two, two, (4, 4)),
        lambda: Pinholes(pose, -two, two, (4, 4)),
        lambda: Pinholes(pose, two * math.nan, two, (4, 4)),
        lambda: Pinholes(pose, two, two, (0, 4)),
        lambda: towards(torch.tensor([[0.0, 2, 0]]), torch.zeros(1, 3)),
        lambda: towards(torch.zeros(1, 3), torch.zeros(1, 3)),
        lambda: orbit(0, (8, 8)),
        lambda: orbit(3, (8, 8), elevation=90.0),
        lambda: as_raster(odd()),
    ):
        with pytest.raises(SfumatoError):
            bad()


def test_as_meshes_are_drawn():
    from sfumato.ops import raster

    cameras = orbit(3, (40, 40), fov=50.0)
    drawn = as_raster(cameras)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    seen = cameras.seen(points)
    assert isinstance(drawn, raster.Cameras) and drawn.poses is cameras.poses
    local = points - cameras.poses[0, :3, 3]
    local = local @ cameras.poses[0, :3, :3]
    ndc = local[:, :2] / -local[:, 2:] / drawn.half
    torch.testing.assert_close((ndc[:, 0] + 1) * 20, seen[0, :, 0], atol=1e-3, rtol=0)


def test_a_capture_painted_by_its_own_formulas_is_what_its_cameras_see():
    """The painter of these tests and ``Pinholes`` agree on every pixel, though neither knows the other."""
    pose = posed.ring(1)[0]
    lens = posed.LENS
    cameras = Pinholes(torch.from_numpy(pose)[None], torch.tensor([[lens["fl_x"], lens["fl_y"]]]).double(),
                       torch.tensor([[lens["cx"], lens["cy"]]]).double(), (lens["h"], lens["w"]))  # fmt: skip
    rays = cameras.rays()
    np.testing.assert_allclose(
        posed.colour(rays.origins.numpy(), rays.directions.numpy())[0], posed.photograph(pose, lens), atol=1e-12
    )
