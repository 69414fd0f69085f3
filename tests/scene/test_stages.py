"""Cameras that change at milestones, and lights drawn with them, by the numbers that were published."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.learning.seeds import Draws
from sfumato.scene.fields import Voxels
from sfumato.scene.render import FieldScene, Sampling
from sfumato.scene.viewpoints import RandomCameras, RandomShading, Stage, Staged

ALWAYS = RandomShading(lit=1.0)
AWAY = torch.tensor([[0.6, 0.48, 0.64]]).double()


def lights(shading, steps=2000, away=AWAY, seed=3):
    drawn = [shading.draw(seed, step, 0.5, away) for step in range(steps)]
    return torch.cat([one.lights for one in drawn]).double()


def even(values, low, high, off=0.03):
    """Is the histogram flat?"""
    assert float(values.min()) >= low - 1e-6 and float(values.max()) <= high + 1e-6
    counts = torch.histc(values.float(), 10, low, high) / values.numel()
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=off, rtol=0)


@pytest.mark.parametrize("sigma", [1.0, 0.1])
def test_dreamfusions_lights_are_normal_around_the_camera_in_the_published_shell(sigma):
    found = lights(replace(ALWAYS, perturb=sigma))
    even(found.norm(dim=1), 0.8, 1.5)
    ways = F.normalize(found, dim=1)
    for e in ((0.6, 0.48, 0.64), (1.0, 0.0, 0.0), (-0.6, 0.0, 0.8)):
        # (away + sigma N) . e is normal: it is above 0 as often as Phi(away . e / sigma)
        e = torch.tensor(e).double()
        wanted = 0.5 * (1 + math.erf(float((AWAY[0] * e).sum()) / sigma / math.sqrt(2)))
        assert abs(float((ways @ e > 0).double().mean()) - wanted) < 0.025, (sigma, e)


def test_magic3ds_lights_are_up_to_sixty_degrees_from_the_camera_all_around_it():
    found = lights(replace(ALWAYS, strategy="magic3d", distance=(2.0, 3.0)))
    even(found.norm(dim=1), 2.0, 3.0)
    ways = F.normalize(found, dim=1)
    even(torch.rad2deg(torch.acos((ways @ AWAY[0]).clamp(-1, 1))), 0.0, 60.0)
    one = F.normalize(torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]).double(), AWAY[0]), dim=0)
    other = torch.linalg.cross(AWAY[0], one)
    even(torch.atan2(ways @ one, ways @ other), -math.pi, math.pi)


def test_the_first_steps_show_albedo_alone_and_the_others_are_lit_as_often_as_was_published():
    shading = RandomShading(after=0.2001)
    away = AWAY.expand(2, 3)
    drawn = [shading.draw(5, step, step / 10_000, away) for step in range(0, 10_000, 5)]
    assert not any(drawn[:401])  # steps 0 to 2000
    later = [None if one is None else one.kind for one in drawn[401:]]
    lit = [kind for kind in later if kind is not None]
    assert abs(len(lit) / len(later) - 0.75) < 0.04
    assert abs(lit.count("textureless") / len(lit) - 0.5) < 0.05 and set(lit) == {"textureless", "lambert"}
    assert all((one.ambient, one.diffuse) == (pytest.approx(0.1), pytest.approx(0.9)) for one in drawn if one)
    at = next(step for step in range(2001, 3000) if ALWAYS.draw(5, step, 0.0, away))
    assert replace(shading, lit=1.0).draw(5, at, 2000 / 10_000, away) is None
    assert replace(shading, lit=1.0).draw(5, at, 2001 / 10_000, away) is not None


def test_what_is_ambient_and_what_is_bare_are_as_they_are_asked_for():
    soft = replace(ALWAYS, ambient=(0.1, 1.0), textureless=0.2, bare="normals")
    drawn = [soft.draw(1, step, 0.0, AWAY) for step in range(3000)]
    even(torch.tensor([one.ambient for one in drawn]), 0.1, 1.0)
    assert all(one.ambient + one.diffuse == pytest.approx(1.0) for one in drawn)
    kinds = [one.kind for one in drawn]
    assert set(kinds) == {"normals", "lambert"} and abs(kinds.count("normals") / 3000 - 0.2) < 0.03


def test_lights_stand_around_the_target_and_leave_cameras_and_draws_as_they_are():
    target = (5.0, -3.0, 2.0)
    cameras = RandomCameras(3, target=target, distance=(1.5, 2.0), stratified=False)
    far = Staged(cameras, 10, shading=ALWAYS)
    plain, lit = Draws(7, 4), Draws(7, 4)
    one, other = cameras.draw(plain), far.draw(lit)
    assert torch.equal(one.cameras.poses, other.cameras.poses) and one.shading is None
    assert torch.equal(plain.each(3, lambda rng: torch.rand(2, generator=rng)),
                       lit.each(3, lambda rng: torch.rand(2, generator=rng)))  # fmt: skip
    off = (other.shading.lights - torch.tensor(target)).norm(dim=1)
    assert ((off >= 0.8 - 1e-5) & (off <= 1.5 + 1e-5)).all()
    alone = replace(far, cameras=replace(cameras, n=1)).draw(Draws(8, 4))
    assert torch.allclose(other.shading.lights[1:2], alone.shading.lights)  # image i of a seed is the first of seed + i
    # a light is near its camera: by their direction from the target, mostly
    near = Staged(cameras, 10, shading=replace(ALWAYS, perturb=1e-3)).draw(Draws(7, 4))
    at, eyes = near.shading.lights - torch.tensor(target), near.cameras.eyes - torch.tensor(target)
    assert float(F.cosine_similarity(at, eyes).min()) > 0.9999


def test_light_is_held_with_its_camera():
    held = Staged(RandomCameras(2, hold=4), 100, shading=ALWAYS)
    drawn = [held.draw(Draws(5, step)).shading for step in range(8)]
    assert all(torch.equal(drawn[0].lights, one.lights) and drawn[0].kind == one.kind for one in drawn[:4])
    assert not torch.equal(drawn[3].lights, drawn[4].lights) and torch.equal(drawn[4].lights, drawn[7].lights)


def test_size_and_number_change_at_the_milestone_and_stay():
    stages = (Stage(0.5, size=(16, 8), distance=(9.0, 9.0)), Stage(0.8, n=2))
    cameras = RandomCameras(3, size=(4, 4), fov=(40.0, 40.0), position=0.0, centre=0.0)
    run = Staged(cameras, 10, stages)
    views = [run.draw(Draws(0, step)) for step in range(10)]
    assert [(len(v), v.cameras.size) for v in views] == [(3, (4, 4))] * 5 + [(3, (16, 8))] * 3 + [(2, (16, 8))] * 2
    away = torch.stack([v.cameras.eyes.norm(dim=1).max() for v in views])
    assert float(away[:5].max()) <= 2.0 + 1e-5 and torch.allclose(away[5:], torch.tensor(9.0))
    # the field of view is the same whatever the size
    torch.testing.assert_close(views[5].cameras.focal[:, 1] / 16, views[4].cameras.focal[:, 1] / 4)
    published = Staged(cameras, 25_000, (Stage(0.2, size=(512, 512)),))
    assert [published.at(step).size[0] for step in (0, 4999, 5000, 24_999)] == [4, 4, 512, 512]
    held = Staged(replace(cameras, hold=4), 10, stages)
    assert [held.draw(Draws(0, step)).cameras.size[0] for step in range(10)] == [4] * 8 + [16] * 2


def test_parts_of_a_run_that_cost_the_same_are_counted_together():
    cameras = RandomCameras(3, size=(4, 4))
    stages = (Stage(0.25, distance=(1.0, 3.0)), Stage(0.5, size=(8, 8)), Stage(0.9, size=(4, 4)))
    counted = {(p.cameras.n, p.cameras.size): n for n, p in Staged(cameras, 20, stages).parts()}
    assert counted == {(3, (4, 4)): 12, (3, (8, 8)): 8}
    assert [n for n, _ in Staged(cameras, 1, stages).parts()] == [1]
    assert all(p.draw(Draws(0, 19)).cameras.size == p.cameras.size for _, p in Staged(cameras, 20, stages).parts())


def test_half_of_the_azimuths_can_lie_opposite():
    cameras = RandomCameras(1, azimuth=(-30.0, 30.0), opposite=True, stratified=False)
    at = torch.tensor([cameras.draw(Draws(1, step)).azimuths[0] for step in range(900)])
    front = at[at.abs() <= 30.0]
    back = at[(at - 180).abs() <= 30.0] - 180
    assert len(front) + len(back) == 900 and abs(len(back) / 900 - 0.5) < 0.04
    for part in (front, back):
        even(part, -30.0, 30.0, 0.04)
    four = replace(cameras, n=4, stratified=True).draw(Draws(1, 0)).azimuths
    assert [abs(a) > 90 for a in four] == [False, False, True, True]


def slab():
    """Its front faces +z."""
    field = Voxels(16, shift=0.0)
    field.grid.data[0, 0] = torch.where(torch.arange(16)[:, None, None] < 8, 600.0, -600.0).expand(16, 16, 16)
    field.grid.data[0, 1] = 3.0
    return FieldScene(field, sampling=Sampling(128))


def test_textureless_views_show_white_lambert_and_normals_as_colours():
    front = RandomCameras(1, size=(3, 3), azimuth=(0.0, 0.0), elevation=(0.0, 0.0), fov=(2.0, 2.0), position=0.0,
                          centre=0.0, up=0.0)  # fmt: skip
    scene = slab()

    def shown(shading, step):
        views = Staged(front, 10, shading=shading).draw(Draws(0, step))
        return views.shading, scene.render(views).images[0, :, 1, 1].detach()

    bare = replace(ALWAYS, textureless=1.0)
    for step in range(4):
        shading, colour = shown(bare, step)
        to = F.normalize(shading.lights[0], dim=0)  # the surface is at the target, but for half a cell
        assert shading.kind == "textureless" and torch.allclose(colour, colour[:1].expand(3), atol=1e-6)
        assert float(colour[0]) == pytest.approx(0.1 + 0.9 * max(0.0, float(to[2])), abs=0.05)
        lit, coloured = shown(replace(bare, textureless=0.0), step)
        albedo = torch.tensor([3.0, 0.0, 0.0]).sigmoid()
        assert lit.kind == "lambert" and torch.allclose(coloured, albedo * colour, atol=0.02)
    _, colour = shown(replace(bare, bare="normals"), 0)
    torch.testing.assert_close(colour, torch.tensor([0.5, 0.5, 1.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Stage(0.0), "within the run"),
        (lambda: Stage(1.0), "within the run"),
        (lambda: Staged(RandomCameras(), 10, (Stage(0.5), Stage(0.2))), "one behind the other"),
        (lambda: RandomShading(lit=1.5), "from 0 to 1"),
        (lambda: RandomShading(ambient=(0.5, 0.1)), "from 0 to 1"),
        (lambda: RandomShading(distance=(0.0, 1.0)), "distance above 0"),
        (lambda: RandomShading(perturb=-1.0), "distance above 0"),
    ],
)
def test_what_makes_no_stages_and_no_light_is_said(made, words):
    with pytest.raises(SfumatoError, match=words):
        made()
