"""The rasteriser, against spheres and cubes in closed form and against every ray and every face."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from solids import cube, plane, soup, sphere

from sfumato.errors import SfumatoError
from sfumato.ops import raster
from sfumato.ops.raster import Cameras, around, rasterise, visible
from sfumato.stilllife.scene import Camera

VIEWS = ((0, 30, 200, 90, 310), (0, 25, -40, 90, 130))


def by_rays(vertices, faces, cameras, size):
    """Every ray against every face in double precision (Moeller and Trumbore): faces, depths, weights."""
    origin, ray = cameras.rays(size)
    origin, ray = (r[..., None, :].double() for r in (origin, ray))
    a, b, c = vertices.double()[faces].unbind(1)
    u, v = b - a, c - a
    p = torch.linalg.cross(ray, v.expand(*ray.shape[:-2], len(v), 3))
    scale = (p * u).sum(-1)
    to = origin - a
    one = (to * p).sum(-1) / scale
    q = torch.linalg.cross(to, u.expand_as(to))
    two = (ray * q).sum(-1) / scale
    depth = (v * q).sum(-1) / scale
    hit = (one >= 0) & (two >= 0) & (one + two <= 1) & (depth > 0)
    nearest, face = torch.where(hit, depth, torch.inf).min(-1)
    weights = torch.stack([1 - one - two, one, two], -1)
    own = weights.gather(-2, face[..., None, None].expand(*face.shape, 1, 3))[..., 0, :]
    return torch.where(nearest.isinf(), -1, face), nearest, own


@pytest.mark.parametrize("fov", [None, 50.0])
@pytest.mark.parametrize("shape", [soup(), cube(0.4), sphere(1)], ids=["soup", "cube", "sphere"])
def test_every_pixel_is_what_its_ray_meets_first(shape, fov):
    cameras = around(*VIEWS, distance=2.5, fov=fov)
    seen = rasterise(*shape, cameras, 41)
    face, depth, weights = by_rays(*shape, cameras, 41)
    there = face >= 0
    assert there.any() and torch.equal(seen.there, there)
    torch.testing.assert_close(seen.depth, depth.float())
    one = there & (seen.face == face)  # on an edge either face is right
    assert one.sum() > 0.97 * there.sum()
    torch.testing.assert_close(seen.within[one], weights[one].float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.within.sum(-1), there.float())
    origin, ray = cameras.rays(41)
    met = (origin + ray * depth.nan_to_num(posinf=0)[..., None]).float()
    torch.testing.assert_close(seen.of(*shape)[there], met[there], atol=1e-5, rtol=0)


def test_a_sphere_has_its_depth_and_its_normals():
    cameras = around([0, 72, 190], [0, 35, -80], distance=3.0)
    vertices, faces = sphere(4)
    seen = rasterise(vertices, faces, cameras, 64)
    at = (torch.arange(64).double() + 0.5) / 32 - 1
    square = at.square()[:, None] + at.square()
    sag = 0.0012  # of a chord: edges are 0.069 long at most, so that faces lie 0.069 ** 2 / 4 below the sphere
    inner = square < 0.9
    assert (seen.there[:, inner]).all() and not seen.there[:, square > 1].any()
    deep = 3 - (1 - square[inner]).sqrt()
    below = (seen.depth[:, inner] - deep) * (1 - square[inner]).sqrt()
    assert below.min() > -1e-5 and below.max() < sag
    y, x = torch.meshgrid(-at, at, indexing="ij")
    local = torch.stack([x, y, (1 - square).clamp_min(0).sqrt()], -1)[inner]
    wanted = torch.einsum("nij,pj->npi", cameras.poses[:, :3, :3], local)
    assert (wanted * seen.normal[:, inner]).sum(-1).min() > math.cos(0.06)  # a face turns by half its edge at most


def test_a_cube_has_flat_sides_at_their_depth():
    seen = rasterise(*cube(0.5), around([0, 90, 180, 270, 0, 0], [0, 0, 0, 0, 90, -90], 3.0), 32)
    sides = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]).float()
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[8:24, 8:24] = True
    assert torch.equal(seen.there, inside.expand(6, -1, -1))
    assert (seen.depth[:, inside] == 2.5).all()
    torch.testing.assert_close(seen.normal[:, inside], sides[:, None].expand(-1, 256, -1))


def test_faces_turned_inside_out_look_the_same():
    vertices, faces = sphere(1)
    one, two = (rasterise(vertices, f, around(*VIEWS, distance=2.5, fov=50), 32) for f in (faces, faces.flip(1)))
    for what in ("face", "depth", "normal"):
        torch.testing.assert_close(getattr(one, what), getattr(two, what))


def test_no_ray_slips_between_faces():
    """Pixel centres on edges and corners of a plane of many faces."""
    vertices, faces = plane(16)
    for size in (32, 33, 128):
        assert rasterise(vertices * 2 - torch.tensor([1.0, 1.0, 0.0]), faces, around([0], [0], 2.0), size).there.all()


def test_a_turned_shape_is_a_turned_camera():
    vertices, faces = soup(seed=3)
    one = rasterise(vertices, faces, around([70], [0], 2.5, 50), 48)
    a = math.radians(-70)
    turn = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    two = rasterise(vertices @ turn.T, faces, around([0], [0], 2.5, 50), 48)
    same = one.face == two.face
    assert same.float().mean() > 0.998  # but where an edge passes a pixel's centre by rounding
    torch.testing.assert_close(one.depth[same], two.depth[same])
    torch.testing.assert_close(one.normal[same] @ turn.T, two.normal[same], atol=1e-5, rtol=0)


def test_cameras_stand_where_still_lifes_do():
    angles = ((0, 40, 200), (10, 30, 80))
    poses = around(*angles, distance=3.0, fov=40).poses
    theirs = [Camera(a, e, 3.0, (0, 0, 0), 40).to_world() for a, e in zip(*angles, strict=True)]
    torch.testing.assert_close(poses, torch.from_numpy(np.stack(theirs)))


def test_views_of_a_batch_are_those_alone_and_parts_change_nothing(monkeypatch):
    cameras, shape = around(*VIEWS, distance=2.5, fov=50), soup()
    whole = rasterise(*shape, cameras, 40)
    monkeypatch.setattr(raster, "BUDGET", 16 * 50)
    for i in range(len(cameras)):
        alone = rasterise(*shape, cameras[i : i + 1], 40)
        for what in ("face", "within", "depth", "normal"):
            assert torch.equal(getattr(alone, what)[0], getattr(whole, what)[i])


def test_vertices_are_seen_unless_something_is_before_them():
    vertices, faces = sphere(3)
    cameras = around(*VIEWS, distance=3.0, fov=45)
    at, found = visible(rasterise(vertices, faces, cameras, 96), cameras, vertices)
    eye = cameras.poses[:, None, :3, 3].float()
    facing = ((eye - vertices) * vertices).sum(-1) / (eye - vertices).norm(dim=-1)
    assert found[facing > 0.2].all() and not found[facing < -0.08].any()  # a face turns by so much at most
    points = cameras.seen(vertices, 96)
    torch.testing.assert_close(at, (points[..., :2] / 96).float())


def test_a_vertex_close_behind_a_wall_is_not_seen():
    """Two planes, the second behind the first by three pixels' sides: more than a slope of 1 in a pixel is."""
    vertices, faces = plane(8)
    two = torch.cat([vertices - 0.5, vertices - 0.5 - torch.tensor([0.0, 0.0, 3 * 2 / 64])])
    cameras = around([0, 180, 20], [0, 0, 10], 2.0)
    _, found = visible(rasterise(two, torch.cat([faces, faces + 81]), cameras, 64), cameras, two)
    assert found[0, :81].all() and not found[0, 81:].any()
    assert found[1, 81:].all() and not found[1, :81].any()
    inner = (vertices[:, :2] - 0.5).abs().amax(1) < 0.3
    assert found[2, :81][inner].all() and not found[2, 81:][inner].any()


def test_bad_views_say_what_is_wrong():
    with pytest.raises(SfumatoError, match="inside of the shape"):
        rasterise(*cube(3.0), around([0], [0], 2.0, 60), 16)
    with pytest.raises(SfumatoError, match="each, got 2 and 1"):
        around([0, 1], [0], 2.0)
    with pytest.raises(SfumatoError, match="field of view"):
        around([0], [0], 2.0, 180)
    with pytest.raises(SfumatoError, match="outside of the unit ball"):
        around([0], [0], 1.0)


def test_what_no_camera_sees_is_nowhere():
    cameras = Cameras(around([0], [0], 3.0).poses, 0.1)
    seen = rasterise(*(x + 2 if x.is_floating_point() else x for x in cube(0.2)), cameras, 16)
    assert not seen.there.any() and seen.depth.isinf().all() and (seen.normal == 0).all()


def test_of_faces_at_one_depth_the_first_has_the_pixel():
    vertices, faces = cube()
    seen = rasterise(vertices, faces.repeat(3, 1), around([30], [20], 3.0), 24)
    once = rasterise(vertices, faces, around([30], [20], 3.0), 24)
    assert once.there.sum() > 50 and torch.equal(seen.face, once.face)
    assert torch.equal(seen.within, once.within) and torch.equal(seen.normal, once.normal)
