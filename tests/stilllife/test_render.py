"""The renderer against geometry that can be worked out on paper."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.stilllife.buffers import sun
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.render import Rendering, keypoints, pinhole, render, shade, trace
from sfumato.stilllife.scene import GROUNDS, LIGHTS, MATERIALS, STYLES, Camera, Scene, Thing, redress, sample_scene

CAMERA = Camera(azimuth=20, elevation=15, distance=4, target=(0, 0.5, 0))


def test_sphere_silhouette_depth_and_normals():
    size = 128
    r = render(Scene((Thing("sphere"),), camera=CAMERA), size)
    on = r.thing[0] == 0
    centre, radius = torch.tensor([0.0, 0.5, 0.0]), 0.5
    # closed form: each ray against the sphere
    origin, ray = pinhole(r.scenes, size)
    to = centre - origin[0]
    along = (to * ray[0]).sum(-1)
    square = ray[0].square().sum(-1)
    gap = to.square().sum(-1) - along.square() / square
    inside = gap < radius**2
    assert (on != inside).float().mean() < 0.002  # only pixels that the contour crosses may differ
    # a cone of half angle asin(r/d) seen on its axis covers an ellipse nearly equal to this circle
    focal = CAMERA.intrinsics(size)[0, 0]
    area = math.pi * (focal * math.tan(math.asin(radius / 4))) ** 2
    assert abs(on.sum().item() / area - 1) < 0.02
    t = (along - ((radius**2 - gap).clamp_min(0) * square).sqrt()) / square
    both = on & inside & (gap < 0.95 * radius**2)
    # rays stop within 1e-3 of the surface, which is farther along a grazing ray than along a facing one
    assert ((r.position[0][both] - centre).norm(dim=-1) - radius).abs().max() < 1e-3
    assert (r.depth[0] - t)[both & (gap < 0.5 * radius**2)].abs().max() < 1e-3
    normal = (origin[0] + ray[0] * t[..., None] - centre) / radius
    cosine = (normal * r.normal[0]).sum(-1)[both]
    assert cosine.min() > 0.999


@pytest.mark.parametrize("name", sorted(KINDS))
def test_positions_lie_on_the_ray_and_canonical_points_on_the_thing(name):
    scene = Scene((Thing(name, size="large", x=0.2, z=-0.1, yaw=35),), camera=CAMERA)
    r = render(scene, 64)
    on = r.thing[0] == 0
    assert on.sum() > 80
    origin, ray = pinhole(r.scenes, 64)
    seen = ~r.depth[0].isinf()
    assert torch.allclose(r.position[0][seen], (origin[0] + ray[0] * r.depth[0][..., None])[seen], atol=1e-4)
    # at the reference shape the canonical point is the world point carried back
    a = math.radians(35)
    turn = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    carried = r.canonical[0][on] @ turn.T * 1.25 + torch.tensor([0.2, 0.0, -0.1])
    assert torch.allclose(carried, r.position[0][on], atol=1e-4)
    assert r.canonical[0][~on].isnan().all()
    assert set(r.part[0][on].unique().tolist()) <= set(range(len(KINDS[name].parts())))
    assert (r.part[0][~on] == -1).all()
    # what is seen faces the eye; on a sharp edge the differences that give the normal straddle two faces
    facing = (r.normal[0] * ray[0]).sum(-1)[on] < 0.05 * ray[0].norm(dim=-1)[on]
    assert facing.float().mean() > 0.98


@pytest.mark.parametrize("name", ["duck", "car", "snowman"])
def test_canonical_coordinates_do_not_depend_on_the_shape(name):
    """A keypoint has the same canonical coordinates in differently shaped things of one kind."""
    found = []
    for s in (-1.0, 1.0):
        thing = Thing(name, size="large", shape=(s,) * 3, yaw=-20)
        r = render(Scene((thing,), camera=Camera(elevation=20, distance=3.2)), 96)
        named = keypoints(r.scenes[0], r)[0]
        parts = {k: KINDS[name].reference()[prim].part for k, (prim, _) in KINDS[name].keypoints.items()}
        at = {k: (0, int(y), int(x)) for k, (x, y, seen) in named.items() if seen}
        # a keypoint on a contour may lie a fraction of a pixel outside its part: compare those inside
        inside = {k: p for k, p in at.items() if r.part[p] >= 0 and KINDS[name].parts()[r.part[p]] == parts[k]}
        found.append({k: r.canonical[p] for k, p in inside.items()})
    shared = found[0].keys() & found[1].keys()
    assert len(shared) >= 2
    for k in shared:
        assert (found[0][k] - found[1][k]).norm() < 0.12, k


def test_shadow_falls_away_from_the_sun():
    for azimuth in (-60.0, 60.0):
        scene = Scene((Thing("cylinder"),), ground="snow", sun=azimuth, camera=Camera(elevation=60, distance=5))
        b = trace([scene], 96)
        dark = (b.grid(b.light)[0] < 0.5) & (b.grid(b.thing)[0] < 0)
        shadow = b.grid(b.position)[:, 0][:, dark].mean(1)
        towards = sun(scene)
        assert shadow[0] * towards[0] + shadow[2] * towards[2] < -0.1


def test_back_of_a_robot_has_no_face():
    face = KINDS["robot"].parts().index("face")
    pixels = [
        int((render(Scene((Thing("robot", yaw=yaw),), camera=Camera()), 96).part == face).sum()) for yaw in (0, 180)
    ]
    assert pixels[0] > 40
    assert pixels[1] == 0


def test_nearer_thing_hides_the_farther():
    front, back = Thing("cube", z=1.2, size="large"), Thing("cube", "blue", z=-1.2, size="small")
    r = render(Scene((back, front), camera=Camera(elevation=5, distance=5)), 64)
    alone = render(Scene((back,), camera=Camera(elevation=5, distance=5)), 64)
    assert (r.thing == 0).sum() < 0.5 * (alone.thing == 0).sum()
    assert (r.thing == 1).sum() > 100


def test_same_scene_same_pixels_alone_or_in_a_batch():
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(6)]
    together = render(scenes, 64)
    again = render(scenes, 64)
    assert torch.equal(together.images, again.images)
    for i, scene in enumerate(scenes):
        alone = render(scene, 64)
        assert torch.equal(alone.thing[0], together.thing[i])
        assert (alone.images[0] - together.images[i]).abs().max() < 2e-3


def test_one_trace_serves_every_appearance():
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng) for _ in range(4)]
    dressed = [redress(s, rng) for s in scenes]
    assert torch.equal(shade(trace(scenes, 64), dressed), render(dressed, 64).images)
    moved = [s.with_thing(0, kind="sphere" if s.things[0].kind != "sphere" else "ring", shape=()) for s in scenes]
    with pytest.raises(SfumatoError, match="more than appearance"):
        shade(trace(scenes, 64), moved)


def test_appearances_differ_where_they_should():
    base = Scene((Thing("cube", yaw=30),), camera=CAMERA)
    variants = [dataclasses.replace(base, ground=g) for g in GROUNDS]
    variants += [dataclasses.replace(base, light=v) for v in LIGHTS[1:]]
    variants += [dataclasses.replace(base, style=v) for v in STYLES[1:]]
    variants += [base.with_thing(0, material=m) for m in MATERIALS[1:]]
    images = render(variants, 64).images.flatten(1)
    apart = torch.cdist(images, images, p=1) / images.shape[1]
    assert (apart + torch.eye(len(images))).min() > 1 / 255


def test_edges_are_smooth():
    """A white sphere before black: pixels on the contour take values between, as its coverage asks."""
    scene = Scene((Thing("sphere", "white"),), ground="water", light="night", camera=CAMERA)
    fine, coarse = render(scene, 256).images, render(scene, 64).images
    down = torch.nn.functional.avg_pool2d(fine, 4)
    on = render(scene, 64).thing[0] == 0
    ring = torch.nn.functional.max_pool2d(on.float()[None], 3, 1, 1)[0].bool() & ~on
    assert (down - coarse).abs().mean(1)[0][ring].mean() < 0.03


def test_rays_can_be_given():
    scene = Scene((Thing("sphere"),), camera=CAMERA)
    given = render(scene, rays=pinhole([scene], 48))
    assert torch.equal(given.images, render(scene, 48).images)
    origin, ray = pinhole([scene], 48)
    wide = render(scene, rays=(origin[:, :, :24], ray[:, :, :24]))
    assert wide.images.shape == (1, 3, 48, 24)


def test_keypoints_are_where_the_surface_is():
    r = render(Scene((Thing("robot", yaw=10, size="large"),), camera=Camera()), 128)
    named = keypoints(r.scenes[0], r)[0]
    assert named["left eye"][2] and named["right eye"][2] and not named["back"][2]
    x, y, _ = named["left eye"]
    assert KINDS["robot"].parts()[r.part[0, int(y), int(x)]] == "face"
    behind = render(Scene((Thing("robot", yaw=190, size="large"),), camera=Camera()), 128)
    named = keypoints(behind.scenes[0], behind)[0]
    assert named["back"][2] and not named["left eye"][2]


def test_nothing_to_render_is_refused():
    with pytest.raises(SfumatoError, match="nothing to render"):
        render([])
    assert isinstance(render(Scene((Thing("cube"),)), 8), Rendering)
