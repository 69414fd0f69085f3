"""Cameras drawn around a scene, by the numbers that were published, and the words of what they see."""

from __future__ import annotations

import math
from dataclasses import replace

import families
import pytest
import torch

from sfumato.core.guidance import CFG, PerpNeg
from sfumato.distill.prior import GuidedModel, noises
from sfumato.errors import SfumatoError
from sfumato.learning.seeds import Draws
from sfumato.scene import viewpoints
from sfumato.scene.view_words import DREAMFUSION, PROLIFICDREAMER, STILL_LIFE, Blend, SeenFrom, ViewWords
from sfumato.scene.viewpoints import RandomCameras
from sfumato.stilllife.captions import parse
from sfumato.stilllife.scene import Camera, Scene, Thing, view

PROMPT = "a red duck"
QUIET = {"position": 0.0, "centre": 0.0, "up": 0.0}


def drawn(cameras, steps=400, seed=3):
    return [cameras.draw(Draws(seed, step)) for step in range(steps)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.made(tmp_path_factory.mktemp("families"))("sd")


def test_azimuths_are_stratified_and_uniform_in_their_part():
    views = drawn(RandomCameras(4))
    at = torch.tensor([v.azimuths for v in views])
    part = (at + 180) / 90 - torch.arange(4)
    assert ((part >= 0) & (part < 1)).all()
    counts = torch.histc(part.flatten(), 8, 0, 1) / part.numel()
    torch.testing.assert_close(counts, torch.full((8,), 1 / 8), atol=0.025, rtol=0)
    loose = torch.tensor([v.azimuths for v in drawn(RandomCameras(4, stratified=False))])
    assert ((loose + 180) / 90 - torch.arange(4)).abs().max() > 2


def test_elevations_are_half_even_in_degrees_and_half_on_the_sphere():
    low, high = -60.0, 80.0
    views = drawn(RandomCameras(8, elevation=(low, high), **QUIET))
    found = torch.tensor([v.elevations for v in views]).flatten()
    bottom, top = (math.sin(math.radians(e)) for e in (low, high))
    for e in (-40.0, 0.0, 30.0, 60.0, 75.0):
        even = (e - low) / (high - low)
        sphere = (math.sin(math.radians(e)) - bottom) / (top - bottom)
        assert abs(float((found <= e).float().mean()) - (even + sphere) / 2) < 0.02, e
        assert abs(even - sphere) < 0.05 or abs((even + sphere) / 2 - even) > 0.02  # either alone is told apart


def test_cameras_stand_where_their_angles_say_and_look_at_the_target():
    cameras = RandomCameras(6, target=(0.3, -0.2, 0.5), distance=(2.0, 2.5), fov=(30.0, 50.0), **QUIET)
    for views in drawn(cameras, 3):
        seen = views.cameras.seen(torch.tensor([cameras.target]))[:, 0]
        torch.testing.assert_close(seen[:, :2], torch.full((6, 2), 32.0), atol=1e-3, rtol=0)
        assert ((seen[:, 2] >= 2.0) & (seen[:, 2] <= 2.5)).all()
        half = torch.rad2deg(2 * torch.atan(32 / views.cameras.focal[:, 1]))
        assert ((half >= 29.999) & (half <= 50.001)).all()
        for i in range(6):
            alike = Camera(views.azimuths[i], 10.0, 2.0, cameras.target)
            away = views.cameras.eyes[i] - torch.tensor(cameras.target)
            flat = torch.tensor(alike.eye - alike.target).float()
            across = torch.nn.functional.cosine_similarity(away[[0, 2]], flat[[0, 2]], dim=0)
            assert float(across) > 1 - 1e-6
            assert abs(math.degrees(math.asin(float(away[1] / away.norm()))) - views.elevations[i]) < 1e-3


def test_jitter_moves_places_evenly_and_targets_normally():
    still, moved = RandomCameras(8, **QUIET), RandomCameras(8, position=0.1, centre=0.2, up=0.0)
    off = []
    for a, b in zip(drawn(still, 200), drawn(moved, 200), strict=True):
        assert a.azimuths == b.azimuths and a.elevations == b.elevations
        off.append(b.cameras.eyes - a.cameras.eyes)
    off = torch.cat(off)
    assert off.abs().max() <= 0.1 and abs(float(off.std()) - 0.2 / math.sqrt(12)) < 0.003
    # how far the axis passes from the target, from a place that is known: a normal in two directions
    wide = drawn(RandomCameras(8, position=0.0, centre=0.2, up=0.0), 200)
    passes = []
    for v in wide:
        ahead = -v.cameras.poses[:, :3, 2]
        passes.append(torch.linalg.cross(v.cameras.eyes, ahead).norm(dim=1))
    # a chi of two degrees has a mean of sqrt(pi / 2)
    assert abs(float(torch.cat(passes).mean()) / (0.2 * math.sqrt(math.pi / 2)) - 1) < 0.05
    tilted = drawn(RandomCameras(8, position=0.0, centre=0.0, up=0.02), 50)
    assert torch.cat([v.cameras.poses[:, 1, 0] for v in tilted]).abs().mean() > 1e-3
    assert torch.cat([v.cameras.poses[:, 1, 0] for v in drawn(still, 50)]).abs().max() < 1e-6


def test_a_step_draws_from_its_seed_and_number_alone_and_can_be_held():
    cameras = RandomCameras(3, stratified=False)
    one, again = (cameras.draw(Draws(5, 7)).cameras.poses for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, cameras.draw(Draws(5, 8)).cameras.poses)
    alone = replace(cameras, n=1).draw(Draws(6, 7)).cameras.poses
    assert torch.equal(one[1:2], alone)  # image i of a seed is the first of seed + i
    held = replace(cameras, hold=4)
    poses = [held.draw(Draws(5, step)).cameras.poses for step in range(8)]
    assert all(torch.equal(poses[0], p) for p in poses[:4]) and torch.equal(poses[4], poses[7])
    assert not torch.equal(poses[3], poses[4])
    first, second = (held.draw(Draws(5, step)).rng for step in (0, 1))  # samples along rays are drawn anew
    assert not torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


@pytest.mark.parametrize("broken", [{"azimuth": (1.0, 0.0)}, {"n": 0}, {"fov": (0.0, 10.0)}, {"elevation": (0.0, 90.0)},
                                    {"distance": (0.0, 1.0)}, {"hold": 0}, {"up": -1.0}])  # fmt: skip
def test_ranges_that_make_no_cameras_are_said(broken):
    with pytest.raises(SfumatoError):
        RandomCameras(**broken)


def test_presets_are_as_they_were_published():
    """threestudio 28d9d80 and stable-dreamfusion 5550b91; distances are in units of their scenes."""
    rows = {
        "DREAMFUSION_SD": ((1.5, 2.0), (40.0, 70.0), (-10.0, 45.0), (0.1, 0.2, 0.02), 45.0),
        "PROLIFICDREAMER_SCENE": ((1.0, 1.5), (40.0, 70.0), (-10.0, 45.0), (0.0, 0.0, 0.0), 30.0),
        "MAGIC3D_REFINE": ((1.5, 2.0), (30.0, 45.0), (-10.0, 45.0), (0.1, 0.2, 0.02), 45.0),
        "STABLE_DREAMFUSION": ((3.0, 3.5), (10.0, 30.0), (-15.0, 45.0), (0.0, 0.0, 0.0), 45.0),
    }
    for name, (distance, fov, elevation, jitter, front) in rows.items():
        preset = getattr(viewpoints, name)
        assert (preset.distance, preset.fov, preset.elevation) == (distance, fov, elevation), name
        assert (preset.position, preset.centre, preset.up) == jitter and preset.words.front == front, name
        assert preset.azimuth == (-180.0, 180.0) and preset.stratified and preset.words.overhead == 60.0


# words


def test_words_change_at_the_published_angles():
    at = {0: "front", 44: "front", -44: "front", 46: "side", -90: "side", 134: "side", 136: "back", 180: "back"}
    assert {a: DREAMFUSION.word(a, 0) for a in at} == at
    assert [PROLIFICDREAMER.word(a, 0) for a in (29, 31, 149, 151, 389)] == ["front", "side", "side", "back", "front"]
    assert DREAMFUSION.word(0, 61) == "overhead" and DREAMFUSION.word(0, 59) == "front"
    assert DREAMFUSION.prompt(PROMPT, 90, 0) == "a red duck, side view"
    assert replace(DREAMFUSION, way="off").prompt(PROMPT, 90, 0) == PROMPT
    with pytest.raises(SfumatoError, match="places for"):
        ViewWords("{prompt} alone")


@pytest.mark.parametrize("elevation", [15.0, 70.0])
def test_the_built_in_models_words_are_its_captions(elevation):
    """What is asked of an azimuth is what a caption says of a thing that is seen from there."""
    for azimuth in range(-180, 181, 9):
        scene = Scene((Thing("robot"),), camera=Camera(float(azimuth % 360), elevation))
        word = STILL_LIFE.word(azimuth, elevation)
        if abs(azimuth) not in (36, 144):  # on the border both are right
            assert word == view(scene, 0), azimuth
        assert parse(STILL_LIFE.prompt("a red robot", azimuth, elevation)).things[0].view == word


def test_weights_of_perp_neg_are_as_they_were_published():
    def away(azimuth):
        return DREAMFUSION.blend(PROMPT, azimuth, 0)

    front = away(0)
    assert front.first.endswith("front view") and front.part == 1.0
    # between front and side -(4 exp(-r / 2) - 2.426), between side and back the side's -(exp(-r / 2) - 0.606) and the
    # front's -(exp(-r / 2) + 0.967); r is 1 where a view begins
    for azimuth, words, weights in (
        (0, ("front", "side"), (-(4 * math.exp(-0.5) - 2.426), -1.574)),
        (45, ("front", "side"), (-(4 * math.exp(-0.25) - 2.426),) * 2),
        (-90, ("side", "front"), (-(math.exp(-0.5) - 0.606), -(math.exp(-0.5) + 0.967))),
        (135, ("side", "front"), (-(math.exp(-0.25) - 0.606), -(math.exp(-0.25) + 0.967))),
        (180, ("side", "front"), (-0.394, -1.967)),
    ):
        found = away(azimuth).away
        assert tuple(text.split()[-2] for text, _ in found) == words, azimuth
        assert [w for _, w in found] == pytest.approx(weights, abs=1e-6), azimuth
    assert away(45).part == pytest.approx(0.5) and away(135).part == pytest.approx(0.5)
    assert away(135).first.endswith("side view") and away(135).second.endswith("back view")
    assert [w for _, w in DREAMFUSION.blend(PROMPT, 10, 80).away] == [0.0, 0.0]


def asked(model, azimuths, told, scale=7.5):
    words = replace(DREAMFUSION, way=told, template="{prompt} {view}")
    blends = tuple(words.blend("a red duck on grass", a, 0.0) for a in azimuths)
    blends = tuple(Blend(b.first, b.second, b.part, b.away) for b in blends)
    return GuidedModel(model, ("",) * len(blends), SeenFrom(CFG(scale), blends, told == "perp-neg"))


def noisy(model, n, seed=0):
    side = families.side(model) // model.factor
    x = torch.randn(n, model.channels, side, side, generator=torch.Generator().manual_seed(seed))
    return x, model.schedule.at([100 + 200 * i for i in range(n)])


@pytest.mark.parametrize("told", ["between", "perp-neg"])
def test_a_batch_of_views_is_a_loop_of_single_ones(model, told):
    azimuths = (10.0, 70.0, -150.0)
    x, at = noisy(model, 3)
    with torch.no_grad():
        together = asked(model, azimuths, told)(x, at)
        for i, azimuth in enumerate(azimuths):
            alone = asked(model, (azimuth,), told)(x[i : i + 1], at.rows(slice(i, i + 1)))
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_perp_neg_of_one_view_is_its_formula(model):
    azimuth = 120.0
    x, at = noisy(model, 1)
    prior = asked(model, (azimuth,), "perp-neg", 5.0)
    (blend,) = prior.guide.blends
    texts = [blend.first, blend.second, *(t for t, _ in blend.away)]
    first, second, *others = (model.embed([t]) for t in texts)
    mixed = replace(first, text=blend.part * first.text + (1 - blend.part) * second.text)
    with torch.no_grad():
        conds = {"u": model.embed_negative([""]), "c": mixed, "a": others[0], "b": others[1]}
        u, c, a, b = (v.double() for v in noises(model, x, at, conds).values())
        d, total = c - u, c - u
        for other, (_, weight) in zip((a, b), blend.away, strict=True):
            v = other - u
            total = total + weight * (v - (v * d).sum() / (d * d).sum() * d)
        torch.testing.assert_close(prior(x, at).double(), u + 5.0 * total, atol=1e-4, rtol=1e-4)
        plain = GuidedModel(model, (blend.first,), PerpNeg(blend.away, 5.0))(x, at)  # of one view with its own word
    whole = SeenFrom(CFG(5.0), (blend._replace(part=1.0),))
    with torch.no_grad():
        again = GuidedModel(model, ("",), whole)(x, at)
    torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-4)


def test_guidance_without_an_empty_prompt_has_no_perp_neg(model):
    x, at = noisy(model, 1)
    with pytest.raises(SfumatoError, match="Perp-Neg compares"):
        asked(model, (10.0,), "perp-neg", 1.0)(x, at)
    with torch.no_grad():
        assert asked(model, (10.0,), "between", 1.0)(x, at).isfinite().all()
