"""Scenes lifted by every method, on a tiny random network: they run, and go on where they were cut off."""

from __future__ import annotations

import math
from dataclasses import replace

import families
import pytest
import torch

from sfumato.distill import Ramp, constant
from sfumato.errors import SfumatoError
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import Draws
from sfumato.methods import index
from sfumato.scene.cameras import orbit
from sfumato.scene.lifting import PATIENCE, Lifting, Ramped, SeenIn
from sfumato.scene.regularisers import Opacity
from sfumato.scene.store import load_scene, save_scene
from sfumato.scene.viewpoints import RandomShading, Stage
from sfumato.tasks import lift as task
from sfumato.tasks.lift import Given, blank, cost, lift, seen
from sfumato.tasks.lift_recipes import CELLS, GAUSSIANS, IN_LATENTS, PUBLISHED, STILL_LIFE, recipe

ROWS = {f"{row.word}-{row.preset}": row for row in (*PUBLISHED, *STILL_LIFE)}
FEW = (
    "score-distillation",
    "score-jacobian-chaining",
    "score-distillation-via-inversion",
    "score-iterative-reconstruction",
)
"""Whose published recipes are of another kind than those for the built-in model."""
PROMPT = "a red duck on grass"
FAST = {
    "score-distillation-via-inversion": {"per_unit": 1},
    "variational-score-distillation": {"rank": 1},
    "entropic-score-distillation": {"rank": 1},
    "score-iterative-reconstruction": {"per_unit": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.made(tmp_path_factory.mktemp("families"))("sd")


@pytest.fixture(autouse=True)
def small(model, monkeypatch):
    """Few views, of few pixels."""
    monkeypatch.setattr(model, "size", families.side(model))
    monkeypatch.setattr(task, "TURN", 2)


def tiny(row, **changes):
    """The recipe at a size that takes no time: few pixels, cells and samples, and a grid in the place of a hash."""
    held = row.cameras.hold > 1
    # of latents a recipe has as many cells as the model
    cameras = replace(row.cameras, n=min(2, row.cameras.n), size=(8, 8), hold=2 if held else 1)
    settings = {**row.settings, **FAST.get(row.word, {}), **({"refresh": 2} if held else {})}
    stages = tuple(replace(stage, size=None if stage.size is None else (6, 6), n=None) for stage in row.stages)
    small = {"stages": stages, "kind": "voxels", "made": {}, "cells": 6, "samples": 6, "settings": settings}
    return replace(row, cameras=cameras, **{**small, **changes})


class Cut(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            pytest.param(
                k, "voxels", marks=pytest.mark.slow if row.preset == "published" and row.word not in FEW else ()
            )
            for k, row in ROWS.items()
        ),
        ("score-distillation-still-life", "gaussians"),
        ("score-iterative-reconstruction-still-life", "gaussians"),
    ],
)
def test_every_recipe_runs_and_goes_on_where_it_was_cut_off(model, name, kind, tmp_path, monkeypatch):
    row = tiny(ROWS[name]).of(kind)
    monkeypatch.setattr(task, "GAUSSIANS", 40)
    whole = lift(model, PROMPT, row, steps=3, seed=4)
    moved = whole.scene.state_dict()
    before = blank(row, model, 4).state_dict()
    assert any(not torch.equal(moved[k], before[k]) for k in moved)
    assert all(v.isfinite().all() for v in moved.values()) and len(whole.strength) == 3
    keep = tmp_path / "kept.safetensors"
    # a run is kept where it is whole: cut off behind step 2, it goes on at step 2
    with monkeypatch.context() as m:
        m.setattr(Lifting, "render", _until(2, Lifting.render))
        with pytest.raises(Cut):
            lift(model, PROMPT, row, steps=3, seed=4, keep=keep)
    resumed = lift(model, PROMPT, row, steps=3, seed=4, keep=keep)
    assert len(resumed.strength) == 1
    for k, v in resumed.scene.state_dict().items():
        assert torch.equal(v, moved[k]), k
    assert whole.views.shape == (2, 3, model.size, model.size) and whole.views.isfinite().all()


def _until(step, real):
    def render(self, viewpoints=None):
        if self.step == step:
            raise Cut
        return real(self, viewpoints)

    return render


def test_every_method_that_distils_can_lift():
    words = set(index.words(index.DISTILLING))
    assert {row.word for row in STILL_LIFE} == {row.word for row in PUBLISHED} == words - {"delta-score"}
    assert recipe("sds", "stilllife").preset == "still-life" and recipe("sds", "another").preset == "published"
    with pytest.raises(SfumatoError, match="method to lift by"):
        recipe("delta-score", "stilllife")


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_views_stay_for_as_long_as_what_they_are_fitted_to(row):
    assert row.cameras.hold == getattr(row.method, "refresh", 1)
    assert row.steps % row.cameras.hold == 0 or row.preset == "published"


# threestudio 28d9d80's YAMLs, sds-bridge.yaml, csd-if.yaml, LucidDreamer's bagel.yaml, stable-dreamfusion's defaults:
# steps, rate, (beta, beta), of the background, half a side, random background, views at first, sizes, lights
ADAM, OWN = (0.9, 0.99), (0.9, 0.999)
TABLE = {
    "score-distillation": (10_000, 1e-2, ADAM, 1e-3, 2.0, 0.0, (1.5, 2.0), (64,), (0.2001, 0.75, 0.5)),
    "score-jacobian-chaining": (10_000, 0.05, OWN, 1e-4, 1.0, 0.0, (1.5, 1.5), (64,), None),
    "score-distillation-via-inversion": (10_000, 1e-2, ADAM, 1e-3, 2.0, 0.0, (1.5, 2.0), (512,), (0.1, 0.3, 0.75)),
    "variational-score-distillation": (25_000, 1e-2, ADAM, 1e-3, 1.0, 0.5, (1.0, 1.5), (64, 512), None),
    "entropic-score-distillation": (25_000, 1e-2, ADAM, 1e-3, 1.0, 0.5, (1.0, 1.5), (64, 512), None),
    "hifa": (25_000, 1e-2, ADAM, 1e-3, 1.0, 0.5, (1.0, 1.5), (512,), None),
    "interval-score-matching": (5000, 1e-2, ADAM, 1e-3, 2.0, 0.66, (5.2, 5.5), (512,), None),
    "noise-free-score-distillation": (10_000, 1e-2, ADAM, 1e-3, 2.0, 0.0, (1.5, 2.0), (64,), (0.2001, 0.75, 0.5)),
    "score-distillation-bridge": (25_000, 1e-2, ADAM, 1e-3, 1.0, 0.5, (1.0, 1.5), (64, 512), None),
    "classifier-score-distillation": (10_000, 1e-3, OWN, 1e-3, 1.0, 0.5, (1.5, 2.0), (64,), (0.5001, 0.5, 1.0)),
    "collaborative-score-distillation": (10_000, 1e-2, ADAM, 1e-3, 1.0, 0.5, (3.0, 3.5), (64,), (0.0, 1.0, 0.2)),
    "score-iterative-reconstruction": (800, 1e-2, ADAM, 1e-3, 2.0, 0.0, (3.0, 3.5), (128,), None),
}


@pytest.mark.parametrize("word", TABLE)
def test_published_recipes_have_the_numbers_that_were_published(word):
    (row,) = (row for row in PUBLISHED if row.word == word)
    assert len(TABLE) == len(PUBLISHED)
    sizes = [row.cameras.size, *(stage.size for stage in row.stages if stage.size)]
    assert all(h == w for h, w in sizes)
    light = row.shading and (row.shading.after, row.shading.lit, row.shading.textureless)
    found = (
        row.steps, row.rate, row.betas, row.behind_rate, row.half, row.random_background, row.cameras.distance,
        tuple(h for h, _ in sizes), light,
    )  # fmt: skip
    assert found == TABLE[word]


def test_lights_and_stages_are_as_they_were_published():
    rows = {row.word: row for row in PUBLISHED}
    sds, sdi = (rows[w].shading for w in ("score-distillation", "score-distillation-via-inversion"))
    for light in (sds, sdi):  # of the data module, where the YAMLs have dreamfusion's strategy
        assert (light.strategy, light.distance, light.perturb) == ("dreamfusion", (0.8, 1.5), 1.0)
        assert light.ambient == (0.1, 0.1) and light.bare == "textureless"
    classifier, kim = (rows[w] for w in ("classifier-score-distillation", "collaborative-score-distillation"))
    assert (classifier.shading.bare, classifier.shading.distance, classifier.shading.perturb) == (
        "normals", (1.5, 2.0), 0.1)  # fmt: skip
    assert kim.shading.ambient == (0.1, 1.0) and kim.shading.distance[0] > 100
    for word in ("variational-score-distillation", "entropic-score-distillation", "score-distillation-bridge"):
        (stage,) = rows[word].stages
        assert stage.begin * rows[word].steps == 5000 and stage.size == (512, 512) and rows[word].optimiser == "adamw"
    # LucidDreamer: from iteration 500, at every 500, within max_radius_range and max_fovy_range
    ism = rows["interval-score-matching"]
    assert [round(stage.begin * ism.steps) for stage in ism.stages] == list(range(500, 4001, 500))
    near, far, narrow, wide = 5.2, 5.5, 0.32, 0.6
    for stage in ism.stages:
        near, far, narrow = max(3.5, near * 0.95), max(5.0, far * 0.95), max(0.16, narrow * 0.75)
        assert stage.distance == pytest.approx((near, far))
        assert stage.fov == pytest.approx((math.degrees(narrow), math.degrees(wide)))
    assert (near, far, narrow) == (3.5, 5.0, 0.16)
    assert (ism.cameras.position, ism.cameras.centre, ism.cameras.up) == (0.025, 0.05, 0.01)
    # csd-if: front and back alone for 1000 steps, within 30 degrees
    (stage,) = classifier.stages
    assert classifier.cameras.opposite and classifier.cameras.azimuth == (-30.0, 30.0)
    assert (stage.begin * classifier.steps, stage.azimuth, stage.opposite) == (1000, (-180.0, 180.0), False)
    assert classifier.made == {"levels": 12, "growth": 1.3703509847201236}
    assert classifier.cameras.words.way == "perp-neg" and classifier.cameras.words.front == 30
    assert rows["hifa"].cameras.words.front == 45


def test_losses_of_published_recipes_weigh_as_they_were_published():
    """threestudio's [start step, value, value, end step] and the texts; see each row's source."""
    weights = {
        "score-distillation": {"orientation": {0: 10, 0.25: 505, 0.5: 1000, 1: 1000}, "sparsity": {0.7: 1}},
        "score-jacobian-chaining": {"emptiness": {0.49: 1e4, 0.51: 2e5}},
        "score-distillation-via-inversion": {
            "orientation": {1: 0.1}, "sparsity": {0: 0.15, 0.1: 0.1, 0.3: 0}, "opaque": {0.5: 0.1},
            "z-variance": {0: 1}, "convexity": {0.39: 0.1, 0.41: 0}},
        "variational-score-distillation": {"sparsity": {0: 10}, "opaque": {0.39: 0, 0.41: 1000}},
        "entropic-score-distillation": {"sparsity": {0: 10}, "opaque": {0.39: 0, 0.41: 1000}},
        "score-distillation-bridge": {"sparsity": {0: 10}, "opaque": {0.39: 0, 0.41: 1000}},
        "hifa": {"sparsity": {0.5: 1}, "z-variance": {0.5: 100}},
        "noise-free-score-distillation": {"orientation": {0: 10, 0.5: 1000}, "sparsity": {0.7: 1}},
        "classifier-score-distillation": {"orientation": {0: 1, 0.5: 100}, "sparsity": {0: 10, 0.25: 5.5, 0.5: 1}},
        # a thousandth of an entropy in bits, in half of the run
        "collaborative-score-distillation": {"orientation": {0: 0.01}, "opaque": {0: 0, 0.5: 1.4427e-3, 1: 1.4427e-3}},
        "interval-score-matching": {}, "score-iterative-reconstruction": {},
    }  # fmt: skip
    for row in PUBLISHED:
        assert set(row.losses) == set(weights[row.word]), row.word
        for name, points in weights[row.word].items():
            for at, weight in points.items():
                assert row.losses[name](at) == pytest.approx(weight, rel=1e-4), (row.word, name, at)


def test_published_methods_and_fields_are_as_they_were_published():
    rows = {row.word: row for row in PUBLISHED}
    sds, sdi = rows["score-distillation"], rows["score-distillation-via-inversion"]
    assert sds.samples == 512 and sds.method.guidance == 100 and sds.eps == 1e-15
    assert sdi.cameras.words.way == "perp-neg" and sdi.method.guidance == 7.5
    sjc = rows["score-jacobian-chaining"]
    assert (sjc.space, sjc.kind, sjc.cells, sjc.optimiser, sjc.eps) == ("latent", "voxels", 100, "adamax", 1e-8)
    assert (sjc.cameras.position, sjc.cameras.centre, sjc.cameras.up) == (0, 0, 0)
    assert sjc.made == {"shift": -1.0} and sjc.blob == 0
    for word in ("variational-score-distillation", "entropic-score-distillation", "score-distillation-bridge", "hifa"):
        assert rows[word].networks == 1e-3
    ism = rows["interval-score-matching"]
    assert (ism.reduction, ism.cameras.n) == ("sum", 4) and rows["collaborative-score-distillation"].cameras.n == 4
    assert sds.made == sdi.made == {"progressive": (8, 2000 / 10_000, 500 / 10_000)} and not rows["hifa"].made
    sir = rows["score-iterative-reconstruction"]
    assert sir.steps == 50 * 15 + 50 and sir.cameras.hold == sir.method.refresh == 15 and sir.cameras.n == 4
    assert sir.method.times.low(0) == 0.8 and sir.method.times.low(1) == 0.5 and sir.method.guidance == 7.5


def test_a_run_goes_on_across_a_milestone_and_through_light(model, tmp_path, monkeypatch):
    """bit for bit, cut off before, at and behind where the size changes"""
    row = tiny(recipe("score-distillation", "stilllife"), shading=RandomShading(lit=1.0, textureless=0.5))
    row = replace(row, stages=(Stage(0.5, size=(4, 4), n=1),))
    whole = lift(model, PROMPT, row, steps=4, seed=4).scene.state_dict()
    unlit = lift(model, PROMPT, replace(row, shading=None), steps=4, seed=4).scene.state_dict()
    alike = lift(model, PROMPT, replace(row, stages=()), steps=4, seed=4).scene.state_dict()
    for other in (unlit, alike):
        assert any(not torch.equal(whole[k], other[k]) for k in whole)
    sizes = []
    real = Lifting.render

    def seen_at(self, viewpoints=None):
        sizes.append((len(viewpoints), viewpoints.cameras.size[0]))
        return real(self, viewpoints)

    for cut in (1, 2, 3):
        keep = tmp_path / f"{cut}.safetensors"
        with monkeypatch.context() as m:
            m.setattr(Lifting, "render", _until(cut, real))
            with pytest.raises(Cut):
                lift(model, PROMPT, row, steps=4, seed=4, keep=keep)
        sizes.clear()
        with monkeypatch.context() as m:
            m.setattr(Lifting, "render", seen_at)
            resumed = lift(model, PROMPT, row, steps=4, seed=4, keep=keep).scene.state_dict()
        assert sizes == [(2, 8), (2, 8), (1, 4), (1, 4)][cut:]
        for k, v in resumed.items():
            assert torch.equal(v, whole[k]), (cut, k)


def test_light_falls_on_fields_of_colours_alone(model):
    row = tiny(recipe("score-distillation", "stilllife"), shading=RandomShading())
    with pytest.raises(SfumatoError, match="Gaussians have no field's normals"):
        lift(model, PROMPT, replace(row, kind="gaussians"), steps=1)
    with pytest.raises(SfumatoError, match="latents are no colours"):
        lift(model, PROMPT, replace(row, space="latent"), steps=1)
    assert row.of("gaussians").shading is None and row.of("hash").shading == row.shading
    assert IN_LATENTS["shading"] is None and not IN_LATENTS["random_background"]


def test_a_scene_begins_as_its_recipe_has_it(model):
    for row in PUBLISHED:
        row = replace(row, cells=8) if row.kind == "voxels" else replace(row, made={**row.made, "log_size": 6})
        scene = blank(row, model)
        assert scene.random_background == row.random_background and scene.field.region.half == row.half
    sjc = next(replace(row, cells=8) for row in PUBLISHED if row.word == "score-jacobian-chaining")
    density = blank(sjc, model).field.density(torch.rand(20, 3) - 0.5)
    torch.testing.assert_close(density, torch.full((20,), math.log1p(math.exp(-1.0))))
    assert blank(replace(sjc, blob=10.0), model).field.density(torch.zeros(1, 3)) > 5
    gaussians = blank(replace(recipe("sds", "stilllife").of("gaussians"), random_background=0.25), model)
    assert gaussians.random_background == 0.25


def test_what_a_run_takes_is_the_sum_over_its_stages(model, monkeypatch):
    row = replace(tiny(recipe("score-distillation", "stilllife")), stages=(Stage(0.2, size=(6, 6)),))
    clock = [0.0]

    def distil(model, lifting, prompt, method, steps, *, viewpoints, watch, **_):
        for step in range(steps):
            watch(step, None)
            clock[0] += {8: 1.0, 6: 10.0}[viewpoints.draw(Draws(0, step)).cameras.size[0]]

    monkeypatch.setattr(task, "distil", distil)
    monkeypatch.setattr(task.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(task, "peaked", lambda begin, device: (begin(), float(clock[0])))
    taken = cost(model, PROMPT, row, steps=100)
    assert (taken.seconds, taken.megabytes) == (20 * 1.0 + 80 * 10.0, 3 * 1.0 + 3 * 10.0)


def test_a_picture_holds_the_view_that_it_was_taken_from(model):
    row = tiny(recipe("score-distillation", "stilllife"), rate=0.3)
    side = model.size
    picture = torch.zeros(3, side, side)
    picture[0] = 0.9
    middle = torch.zeros(side, side)
    middle[side // 4 : -side // 4, side // 4 : -side // 4] = 1
    held = lift(model, PROMPT, row, steps=15, given=Given(picture, 90.0, 20.0, mask=middle, weight=1e3))
    loose = lift(model, PROMPT, row, steps=15)
    camera = orbit(1, (side, side), elevation=20, distance=3.05, target=(0, 0.45, 0), first=90)

    def away(done):
        images, alpha = seen(done.scene, model, camera)
        return float((images[0] - picture).square().mean()), float((alpha[0, 0] - middle).square().mean())

    assert away(held)[0] < 0.5 * away(loose)[0] and away(held)[1] < away(loose)[1]
    with pytest.raises(SfumatoError, match="one camera of its size"):
        SeenIn(held.scene, picture[:, 1:], camera)
    with pytest.raises(SfumatoError, match="compared in pixels"):
        latent = blank(replace(row, space="latent"), model)
        SeenIn(latent, picture, camera)(Lifting(latent, 3).render(orbit(1, (4, 4))))


def test_a_loss_weighs_as_far_as_the_run_is(model):
    scene = blank(tiny(recipe("score-distillation", "stilllife")), model)
    lifting, loss = Lifting(scene, 10), Ramped(Opacity(), Ramp.read("1>0"))
    cameras = orbit(2, (8, 8), distance=3, target=(0, 0.5, 0))
    values = []
    for step in (0, 5, 10):
        lifting.at = torch.tensor([step, 0])
        values.append(float(loss(lifting.render(cameras)).detach()))
    assert values[0] > 0 and math.isclose(values[1], values[0] / 2, rel_tol=1e-5) and values[2] == 0


@pytest.mark.parametrize(("raw", "word"), [(-30.0, "empty"), (30.0, "full")])
def test_a_scene_that_is_empty_or_full_for_long_is_said(model, raw, word):
    row = tiny(recipe("score-distillation", "stilllife"))
    row = replace(row, cameras=replace(row.cameras, fov=(15.0, 15.0)))  # of nothing but the cube
    scene = blank(row, model)
    scene.field.grid.data[:, 0] = raw
    lifting = Lifting(scene, 100)
    optimisers = Optimisers(dict(lifting.named_parameters()), torch.optim.SGD(lifting.parameters(), lr=0.0))
    cameras = orbit(1, (8, 8), distance=3, fov=10, target=(0, 0.5, 0))
    with pytest.raises(SfumatoError, match=f"the scene has been {word}"):
        for step in range(PATIENCE):
            assert step < PATIENCE
            lifting.render(cameras)
            lifting.after_step(step, optimisers)
    assert step == PATIENCE - 1


def test_what_it_takes_is_told_before(model):
    row = tiny(recipe("score-distillation", "stilllife"))
    short, long = (cost(model, PROMPT, row, steps=steps) for steps in (10, 1000))
    assert 0 < short.seconds < long.seconds and min(short.megabytes, long.megabytes) >= 0
    assert "MB" in str(short)


def test_what_was_lifted_is_opened_again(model, tmp_path):
    row = tiny(recipe("sir", "stilllife"))
    done = lift(model, PROMPT, row, steps=2, frame_every=1)
    assert len(done.frames) == 3
    place = save_scene(tmp_path / "scene.safetensors", done.scene, {"prompt": PROMPT})
    scene, about = load_scene(place)
    assert about == {"prompt": PROMPT}
    torch.testing.assert_close(seen(scene, model, done.cameras)[0], done.views)  # pyright: ignore[reportArgumentType]
    assert constant(1.0)(0) == 1


def test_a_recipe_is_of_gaussians_too(model):
    row = recipe("sir", "stilllife")
    some = row.of("gaussians")
    assert (
        "smooth" in row.losses
        and set(some.losses) == set(row.losses) - {"smooth"}
        and row.of("voxels").cells == row.cells
    )
    assert recipe("sds", "else").of("voxels").cells == CELLS
    begun = blank(some, model, 3)
    away = (begun.means.detach() - torch.tensor(some.centre)).norm(dim=1)
    assert len(begun) == GAUSSIANS and 0.9 * some.half / 2 < float(away.max()) <= some.half / 2
    assert begun.rates["background"] == some.behind_rate and not torch.equal(begun.means, blank(some, model, 4).means)
    with pytest.raises(SfumatoError, match="Gaussians have none"):
        lift(model, PROMPT, tiny(row).of("gaussians"), given=Given(torch.zeros(3, model.size, model.size)), steps=1)


def test_a_published_field_has_its_networks_rate_and_its_levels(model):
    row = replace(recipe("vsd", "another"), made={"levels": 2, "log_size": 6, "base": 2}, samples=4)
    scene = blank(row, model)
    assert scene.rates["field.first"] == scene.rates["field.colour"] == 1e-3 and scene.rates["background"] == 1e-3
    assert "field.table" not in scene.rates or scene.rates["field.table"] == 0.01
    moved = lift(model, PROMPT, tiny_hash(row), steps=2)
    assert all(v.isfinite().all() for v in moved.scene.state_dict().values())


def tiny_hash(row):
    cameras = replace(row.cameras, size=(4, 4))
    return replace(row, cameras=cameras, stages=(), settings={"rank": 1}, losses={})
