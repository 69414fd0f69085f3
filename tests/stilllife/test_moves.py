from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.stilllife.change import Move, Recolour, Turn, apply
from sfumato.stilllife.moves import between, clip, correspond, film, orbit, panorama, project, strip, transforms_json
from sfumato.stilllife.render import keypoints, render
from sfumato.stilllife.scene import Camera, Scene, Thing, Wide, view

SIZE = 64
PAIR = Scene((Thing("robot", "green", x=-0.7), Thing("sphere", "red", x=0.8, z=-0.3)))
CENTRES = torch.stack(torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="xy"), -1)


def sample(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """``values`` (h, w, c) between pixels at places ``at`` (h, w, 2)."""
    grid = at / SIZE * 2 - 1
    return F.grid_sample(values.movedim(-1, 0)[None], grid[None], align_corners=False)[0].movedim(0, -1)


def smooth(*labels: torch.Tensor) -> torch.Tensor:
    """Pixels whose neighbours have the same labels, (h, w)."""
    out = torch.ones(SIZE, SIZE, dtype=torch.bool)
    for label in labels:
        x = label[None, None].float()
        out &= (F.max_pool2d(x, 3, 1, 1) == -F.max_pool2d(-x, 3, 1, 1))[0, 0]
    return out


def test_a_whole_orbit_is_even_and_ends_before_it_begins():
    around = orbit(PAIR, 8, elevation=30)
    assert [s.camera.azimuth for s in around] == [45.0 * i for i in range(8)]
    assert {s.camera.elevation for s in around} == {30}
    assert {s.things for s in around} == {PAIR.things}
    assert [view(s, 0) for s in orbit(PAIR, 4)] == ["front", "side", "back", "side"]


def test_a_part_of_an_orbit_holds_both_ends():
    assert [s.camera.azimuth for s in orbit(PAIR, 3, full=90)] == [0, 45, 90]
    assert orbit(PAIR, 1) == [PAIR]
    with pytest.raises(SfumatoError, match="one camera or more, got 0"):
        orbit(PAIR, 0)


def test_transforms_lead_from_positions_to_pixels():
    scenes = orbit(PAIR, 3, elevation=25)
    data = json.loads(json.dumps(transforms_json(scenes, SIZE)))
    seen = render(scenes, SIZE)
    focal = 0.5 * data["w"] / math.tan(data["camera_angle_x"] / 2)
    assert focal == pytest.approx(data["fl_x"])
    for i, frame in enumerate(data["frames"]):
        met = seen.thing[i] >= 0
        points = torch.cat([seen.position[i][met].double(), torch.ones(int(met.sum()), 1)], -1)
        x, y, z, _ = torch.linalg.inv(torch.tensor(frame["transform_matrix"], dtype=torch.float64)) @ points.T
        at = torch.stack([data["cx"] - focal * x / z, data["cy"] + focal * y / z], -1)
        assert (at - CENTRES[met]).abs().max() < 1e-3
        assert torch.allclose(-z, seen.depth[i][met].double(), atol=1e-4)


def test_transforms_hold_one_field_of_view():
    with pytest.raises(SfumatoError, match="one field of view"):
        transforms_json([PAIR, replace(PAIR, camera=Camera(fov=60))], SIZE)
    with pytest.raises(SfumatoError, match="there are none"):
        transforms_json([], SIZE)


def test_project_gives_pixel_centres_and_depth():
    seen = render(PAIR, SIZE)
    points = torch.cat([seen.position, torch.ones(1, SIZE, SIZE, 1)], -1).double()
    at, depth = project([PAIR], points, SIZE)
    met = ~seen.depth[0].isinf()
    assert (at[0] - CENTRES)[met].abs().max() < 1e-2
    assert torch.allclose(depth[0][met].float(), seen.depth[0][met], rtol=1e-4)


def test_between_is_smooth_and_turns_the_shorter_way():
    end = apply(apply(PAIR, Turn(0, -90)), Move(1, "closer", 0.4))
    way = between(PAIR, end, 5)
    assert way[0] == PAIR and way[-1].things[1] == end.things[1]
    assert [round(s.things[0].yaw, 6) for s in way] == [round(-90 * w, 6) for w in (0, 0.15625, 0.5, 0.84375, 1)]
    crossing = between(
        replace(PAIR, things=(Thing("robot", yaw=170),)), replace(PAIR, things=(Thing("robot", yaw=-170),)), 3
    )
    assert crossing[1].things[0].yaw == 180


def test_between_moves_only_what_can_move():
    with pytest.raises(SfumatoError, match="differ in more than that"):
        between(PAIR, apply(PAIR, Recolour(0, "blue")), 3)
    with pytest.raises(SfumatoError, match="differ in more than that"):
        between(PAIR, replace(PAIR, light="night"), 3)
    with pytest.raises(SfumatoError, match="two frames or more"):
        between(PAIR, PAIR, 1)
    swapped = replace(PAIR, things=(replace(PAIR.things[0], x=0.8, z=-0.3), replace(PAIR.things[1], x=-0.7, z=0.0)))
    with pytest.raises(SfumatoError, match="in one another"):
        between(PAIR, swapped, 9)


def test_what_stands_still_has_no_flow():
    still = film([PAIR, PAIR], SIZE)
    assert still.forward.shape == (1, SIZE, SIZE, 2) and still.frames.shape == (2, 3, SIZE, SIZE)
    assert still.forward.abs().max() < 1e-2
    assert not still.forward_occluded.any() and not still.backward_occluded.any()


def test_flow_of_a_sphere_that_moves_across_is_focal_length_times_step_over_depth():
    camera = Camera(elevation=20)
    here = Scene((Thing("sphere", x=-0.6),), camera=camera)
    moved = film([here, apply(here, Move(0, "to the right", 1.2))], SIZE)
    on = moved.rendering.thing[0] == 0
    focal = camera.intrinsics(SIZE)[0, 0]
    wanted = focal * 1.2 / moved.rendering.depth[0][on]
    assert on.sum() > 100
    assert torch.allclose(moved.forward[0][on][:, 0], wanted, atol=1e-3)
    assert moved.forward[0][on][:, 1].abs().max() < 1e-3
    # of a ball that side is seen that faces the eye; the chord behind the limb is as long as the cosine, its diameter 1
    carried = moved.rendering.position[0][on] + torch.tensor([1.2, 0.0, 0.0])
    towards = F.normalize(torch.tensor(camera.eye, dtype=torch.float32) - carried, dim=-1)
    cosine = (towards * moved.rendering.normal[0][on]).sum(-1)
    hidden = moved.forward_occluded[0][on]
    assert hidden[cosine < -0.03].all() and (cosine < -0.03).any()
    assert not hidden[cosine > 0.01].any()


def test_what_a_mover_covers_is_occluded_and_nothing_else_that_stands_still():
    moved = film([PAIR, apply(PAIR, Move(1, "to the left", 0.6))], SIZE)
    a, b = moved.rendering.thing
    for before, after, flow, hidden in (
        (a, b, moved.forward[0], moved.forward_occluded[0]),
        (b, a, moved.backward[0], moved.backward_occluded[0]),
    ):
        still = before != 1
        assert flow[still].abs().max() < 1e-2
        covered = still & (after == 1)
        assert covered.any() and torch.equal(hidden & still, covered)


def test_the_sky_turns_with_the_camera_and_is_infinitely_far():
    at = PAIR.camera
    level = replace(PAIR, camera=replace(at, elevation=5))
    aside = film([level, replace(level, camera=replace(level.camera, target=(0.5, 0.45, 0.0)))], SIZE)
    sky = aside.rendering.depth[0].isinf()
    assert sky.sum() > 500
    assert aside.forward[0][sky].abs().max() < 1e-3
    turned = film([level, replace(level, camera=replace(level.camera, azimuth=6))], SIZE)
    assert (turned.forward[0][sky][:, 0] > 3).all()  # the camera turns to its left, the sky goes right


def test_what_leaves_the_frame_is_occluded():
    near = replace(PAIR, camera=replace(PAIR.camera, distance=1.8))
    out = film([PAIR, near], SIZE)
    target = CENTRES + out.forward[0]
    outside = ((target < 0) | (target >= SIZE)).any(-1) & ~out.rendering.depth[0].isinf()
    assert outside.any() and out.forward_occluded[0][outside].all()


@pytest.fixture(scope="module")
def moving():
    end = apply(apply(PAIR, Turn(0, 60)), Move(1, "closer", 0.3))
    return clip(PAIR, 4, replace(end, camera=replace(end.camera, azimuth=12, distance=3.4)), SIZE)


def test_a_clip_has_its_frames(moving):
    assert moving.frames.shape == (4, 3, SIZE, SIZE)
    assert moving.forward.shape == moving.backward.shape == (3, SIZE, SIZE, 2)
    assert moving.forward_occluded.dtype == torch.bool
    assert moving.forward.isfinite().all()
    turned = clip(PAIR, 2, size=32)
    assert turned.rendering.scenes[1].camera.azimuth == 30


def test_flow_leads_to_the_same_surface_point(moving):
    seen, pixel = moving.rendering, 2 * math.tan(math.radians(20)) * 3.8 / SIZE
    for i in range(3):
        for a, b, flow, hidden in (
            (i, i + 1, moving.forward[i], moving.forward_occluded[i]),
            (i + 1, i, moving.backward[i], moving.backward_occluded[i]),
        ):
            at = CENTRES + flow
            # where the neighbours in b lie on one part of one thing, its coordinates are nearly linear between them
            whole = sample(smooth(seen.thing[b], seen.part[b]).float()[..., None], at)[..., 0] > 0.999
            on = (seen.thing[a] >= 0) & ~hidden & whole
            assert on.sum() > 150
            there = sample(torch.cat([seen.canonical[b].nan_to_num(), seen.thing[b][..., None].float()], -1), at)
            assert (there[..., 3] - seen.thing[a])[on].abs().max() < 1e-3
            error = (there[..., :3] - seen.canonical[a]).norm(dim=-1)[on]
            assert error.median() < 0.05 * pixel and error.max() < pixel
            ground = seen.ground[a] & ~hidden & (sample(smooth(seen.thing[b]).float()[..., None], at)[..., 0] > 0.999)
            ground &= seen.depth[a] < 6
            off = (sample(seen.position[b], at) - seen.position[a]).norm(dim=-1)[ground]
            assert off.median() < 0.05 * pixel


def test_forward_and_backward_flow_undo_one_another(moving):
    seen = moving.rendering
    for i in range(3):
        at = CENTRES + moving.forward[i]
        back = sample(moving.backward[i], at)
        whole = sample(smooth(seen.thing[i + 1], seen.part[i + 1]).float()[..., None], at)[..., 0] > 0.999
        on = ~moving.forward_occluded[i] & whole & ~seen.depth[i].isinf()
        assert on.sum() > 1000
        assert (moving.forward[i] + back).norm(dim=-1)[on].max() < 0.5


def test_flow_needs_the_same_things():
    with pytest.raises(SfumatoError, match="same things"):
        film([PAIR, replace(PAIR, things=PAIR.things[:1])], SIZE)


def test_a_strip_is_parallel_across_and_shows_all_its_things():
    wide = strip(np.random.default_rng(1), 256, 64)
    world = wide.scenes[0]
    assert isinstance(world, Wide) and wide.images.shape == (1, 3, 64, 256)
    unit = 1.375 * 64 / 3.6
    on = wide.thing[0] >= 0
    across = (torch.arange(256) + 0.5 - 128) / unit
    assert torch.allclose(wide.position[0, ..., 0][on], across.expand(64, 256)[on], atol=1e-4)
    assert torch.allclose(3.6 - wide.position[0, ..., 2][on], wide.depth[0][on], atol=1e-3)
    assert set(wide.thing[0][on].tolist()) == set(range(len(world.things))) == set(range(7))


def test_a_panorama_goes_around_and_closes():
    around = panorama(np.random.default_rng(1), 512, 64)
    world = around.scenes[0]
    x, _, z = around.position[0].movedim(-1, 0)
    on = around.thing[0] >= 0
    heading = torch.atan2(x, -z) % (2 * math.pi)
    column = ((torch.arange(512) + 0.5) * (2 * math.pi / 512)).expand(64, 512)
    assert torch.allclose(heading[on], column[on], atol=1e-3)
    assert torch.allclose(torch.hypot(x, z)[on], around.depth[0][on], atol=1e-3)
    assert set(around.thing[0][on].tolist()) == set(range(len(world.things)))
    # across the seam the ground and sky go on as they do elsewhere
    image = around.images[0]
    step = (image - image.roll(1, -1)).abs().mean((0, 1))
    assert step[0] < 3 * step.mean()


def test_strips_are_the_same_for_the_same_seed():
    first, again, other = (strip(np.random.default_rng(s), 128, 64).images for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("width", [16, 4096])
def test_a_strip_without_room_is_refused(width):
    with pytest.raises(SfumatoError, match="choose a width"):
        strip(np.random.default_rng(0), width, 64)
    with pytest.raises(SfumatoError, match="choose a width"):
        panorama(np.random.default_rng(0), width, 64)


def test_a_thing_corresponds_to_itself_pixel_by_pixel():
    seen = render(PAIR, SIZE)
    match = correspond(seen, seen, (0, 0), (0, 0))
    assert len(match.source) == (seen.thing == 0).sum()
    assert torch.equal(match.source, match.target)
    assert (match.distance == 0).all() and match.visible.all()


def test_a_recoloured_thing_elsewhere_corresponds_closely():
    a = Scene((Thing("duck", "red"),))
    b = Scene((Thing("duck", "blue", x=0.3, z=-0.2),))
    seen = render([a, b], SIZE)
    match = correspond(seen, seen, (0, 0), (1, 0))
    # where a surface faces the eye, pixels of b lie on it more densely than ``within``
    pixel = 2 * math.tan(math.radians(20)) * 4 / SIZE
    u, v = match.source.T
    towards = F.normalize(torch.tensor(a.camera.eye, dtype=torch.float32) - seen.position[0, v, u], dim=-1)
    facing = (towards * seen.normal[0, v, u]).sum(-1) > 0.7
    inner = smooth(seen.thing[0], seen.part[0])[v, u]
    assert pixel * math.hypot(0.5, 0.5 / 0.7) < 0.05
    assert (facing & inner).sum() > 50 and match.visible[facing & inner].all()
    (x, y), (u, v) = match.source[match.visible].T, match.target[match.visible].T
    assert torch.equal(seen.part[0, y, x], seen.part[1, v, u])
    gap = (seen.canonical[0, y, x] - seen.canonical[1, v, u]).norm(dim=-1)
    assert torch.allclose(gap, match.distance[match.visible]) and (gap < 0.05).all()
    # the surface point that a shows, carried along with the duck, lies where b's pixel looks
    carried = seen.position[0, y, x] + torch.tensor([0.3, 0.0, -0.2])
    assert (carried - seen.position[1, v, u]).norm(dim=-1).max() < 0.05 + 1e-3


def test_keypoints_of_different_ducks_correspond():
    a = Scene((Thing("duck", yaw=-40, shape=(-1, 1, -1)),))
    b = Scene((Thing("duck", yaw=-60, shape=(1, -1, 1)),))
    seen = render([a, b], 128)
    match = correspond(seen, seen, (0, 0), (1, 0), within=0.06)
    ours, theirs = (keypoints(s, seen, i)[0] for i, s in enumerate((a, b)))
    named = [k for k in ours if ours[k][2] and theirs[k][2]]
    assert len(named) >= 3
    for k in named:
        near = (match.source + 0.5 - torch.tensor(ours[k][:2])).norm(dim=-1)
        near[~match.visible] = torch.inf
        at = match.target[near.argmin()] + 0.5
        assert (at - torch.tensor(theirs[k][:2])).norm() < 4, k


def test_the_far_side_is_not_visible():
    seen = render([Scene((Thing("robot"),)), Scene((Thing("robot", yaw=180),))], SIZE)
    assert correspond(seen, seen, (0, 0), (1, 0)).visible.float().mean() < 0.3
    face = correspond(seen, seen, (0, 0), (1, 0))
    x, y = face.source.T
    parts = seen.part[0, y, x]
    gone = ~torch.isin(parts, seen.part[1][seen.thing[1] == 0].unique())
    assert gone.any() and face.distance[gone].isinf().all() and not face.visible[gone].any()


def test_kinds_do_not_mix():
    seen = render(PAIR, SIZE)
    with pytest.raises(SfumatoError, match="a robot and a sphere do not correspond"):
        correspond(seen, seen, (0, 0), (0, 1))
