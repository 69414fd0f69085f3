"""Fields learned from views of a scene that is known: a ball on nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.loop import learn
from sfumato.metrics.image import psnr
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture
from sfumato.scene.reconstruct import Recipe, Reconstruction, adam, falling, region_of, scene_for
from sfumato.scene.regions import Box, Space
from sfumato.scene.store import load_scene, save_scene

RECIPE = Recipe(cells=16, stages=(0.3,), rays=256, samples=12, coarse=24, degree=0)


def ball(n: int = 8, size: int = 12) -> Capture:
    """A ball whose colour is where it is, before grey."""
    cameras = orbit(n, (size, size), distance=3.0, fov=40.0)
    rays = cameras.rays()
    along = -(rays.origins * rays.directions).sum(-1)
    off = rays.origins.square().sum(-1) - along.square()
    hit = off < 0.36
    at = rays.at((along - (0.36 - off).clamp_min(0).sqrt())[..., None])[..., 0, :]
    colour = torch.where(hit[..., None], 0.5 + at / 1.5, torch.tensor(0.5))
    return Capture(colour.permute(0, 3, 1, 2), cameras, tuple(map(str, range(n))))


def run(steps: int, recipe: Recipe = RECIPE, capture: Capture | None = None, **options):
    capture = ball() if capture is None else capture
    problem = Reconstruction(capture, scene_for(capture, recipe), recipe, seed=3)
    learn(problem, adam(problem.groups(), recipe.rate), steps=steps, rate=falling(recipe.last), **options)
    return problem


def test_views_that_were_held_out_are_shown():
    views = ball(16)
    train, held = replace(views, alphas=(views.images != 0.5).any(1).float()).split(4)
    problem = run(120, capture=train)
    assert problem.scene.field.resolution == 16
    found = psnr(problem.scene.view(held.cameras).images, held.images)
    colour = train.images.mean((0, 2, 3)).view(1, 3, 1, 1).expand_as(held.images)
    assert float(found.mean()) > float(psnr(colour, held.images).mean()) + 3  # half of the error of one colour


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    keep = tmp_path / "so_far.safetensors"
    recipe = replace(RECIPE, variation=1e-3, skip=1e-4)
    whole = run(40, recipe)

    class Cut(Exception):
        pass

    def stop(now):
        if now.step == 27:  # behind the second stage's beginning and the occupancy's first update
            raise Cut

    with pytest.raises(Cut):
        run(40, recipe, keep=keep, on_progress=stop)
    rest = run(40, recipe, keep=keep)
    state = whole.scene.state_dict()
    assert int(state["occupancy.updates"]) == 2 and whole.scene.field.resolution == 16
    for name, value in rest.scene.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_scene_that_was_learned_is_opened_again(tmp_path):
    problem = run(20)
    again, about = load_scene(save_scene(tmp_path / "scene.safetensors", problem.scene, {"views": 8}))
    cameras = orbit(1, (8, 8))
    assert about == {"views": 8}
    assert torch.equal(again.view(cameras).images, problem.scene.view(cameras).images)


def test_pixels_that_do_not_count_are_not_learned_from():
    capture = ball()
    masks = torch.zeros(8, 12, 12, dtype=torch.bool)
    masks[:, 3:9, 2:] = True
    spoiled = capture.images.clone()
    spoiled[~masks[:, None].expand_as(spoiled)] = 7.0
    one, two = (run(5, capture=replace(capture, images=x, masks=masks)) for x in (capture.images, spoiled))
    for a, b in zip(one.scene.parameters(), two.scene.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_rays_are_drawn_is_of_the_pixels_they_go_through():
    """A scene that is nothing before a background: the loss is the mean square of the chosen pixels' differences."""
    capture = ball()
    problem = Reconstruction(capture, scene_for(capture, RECIPE), replace(RECIPE, distortion=0.0, rays=4096), 0)
    problem.scene.field.shift = -200.0
    rng = torch.Generator().manual_seed(1)
    expected = float((capture.images - 0.5).square().mean())
    assert float(problem.loss(0).detach()) == pytest.approx(expected, rel=0.1)
    assert torch.rand(1, generator=rng) is not None


def test_where_a_capture_is():
    capture = ball()
    cut = replace(capture, alphas=(capture.images != 0.5).any(1).float())
    space, box = region_of(replace(capture, alphas=torch.ones(8, 12, 12))), region_of(cut)
    masks = capture.images.new_zeros(8, 12, 12, dtype=torch.bool)
    masks[:, 4:8, 4:8] = True  # what is transparent is not even looked at
    assert isinstance(region_of(capture), Space) and isinstance(region_of(replace(cut, masks=masks)), Space)
    assert isinstance(space, Space) and space.radius == pytest.approx(1.5, rel=1e-3)
    assert isinstance(box, Box) and max(map(abs, box.centre)) < 1e-4
    assert box.half == pytest.approx(3 * 0.36397, rel=1e-3)  # what the field of view shows at that distance


def test_a_scene_that_comes_to_nothing_says_so():
    capture = ball()
    for spoil, words in (
        (lambda scene: setattr(scene.field, "shift", -200.0), "nothing is left of the scene"),
        (lambda scene: setattr(scene.background, "forward", lambda d: torch.full(d.shape, 9.0)), "than one colour is"),
    ):
        problem = Reconstruction(capture, scene_for(capture, RECIPE), RECIPE, 0)
        spoil(problem.scene)
        if words.startswith("than"):
            problem.scene.field.shift = -6.0
            problem.recipe = replace(RECIPE, rate=1e-6)
        with pytest.raises(SfumatoError, match=words):
            learn(problem, adam(problem.groups(), 1e-6), steps=100)


@pytest.mark.parametrize(("field", "rate"), [("hash", 0.05), ("nerf", 0.01), ("residual", 0.01)])
def test_other_fields_learn_too(field, rate):
    problem = run(15, replace(RECIPE, field=field, rate=rate, stages=(), rays=128))
    first = Reconstruction(problem.capture, scene_for(problem.capture, problem.recipe), problem.recipe, 3)
    first.loss(0)
    problem.loss(0)
    assert problem.error < 0.95 * first.error


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"field": "clouds"}, "voxels, hash"), ({"cells": 2}, "8 cells"), ({"stages": (0.5, 0.2)}, "in their order")],
)
def test_a_recipe_that_is_none_is_refused(bad, words):
    with pytest.raises(SfumatoError, match=words):
        Recipe(**bad)
