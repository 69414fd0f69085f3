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
from sfumato.methods import index
from sfumato.scene.cameras import orbit
from sfumato.scene.lifting import PATIENCE, Lifting, Ramped, SeenIn
from sfumato.scene.regularisers import Opacity
from sfumato.scene.store import load_scene, save_scene
from sfumato.tasks import lift as task
from sfumato.tasks.lift import Given, blank, cost, lift, seen
from sfumato.tasks.lift_recipes import CELLS, GAUSSIANS, PUBLISHED, STILL_LIFE, recipe

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
    return replace(row, cameras=cameras, kind="voxels", made={}, cells=6, samples=6, settings=settings, **changes)


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


def test_published_recipes_are_as_they_were_published():
    """distances, steps and weights of threestudio 28d9d80 and the papers; see each row's source."""
    rows = {row.word: row for row in PUBLISHED}

    def of(word, *names):
        return tuple(getattr(rows[word], name) for name in names)

    sds, sdi = rows["score-distillation"], rows["score-distillation-via-inversion"]
    assert of("score-distillation", "steps", "rate", "behind_rate", "eps", "half") == (10_000, 0.01, 1e-3, 1e-15, 2.0)
    assert sds.cameras.size == (64, 64) and sds.samples == 512 and sds.method.guidance == 100
    assert sds.losses["orientation"](0) == 10 and sds.losses["orientation"](0.5) == 1000
    assert sds.losses["sparsity"](0.7) == 1
    assert sdi.cameras.size == (512, 512) and sdi.cameras.words.way == "perp-neg" and sdi.method.guidance == 7.5
    assert sdi.losses["convexity"](0.39) == 0.1 and sdi.losses["convexity"](0.41) == 0
    assert sdi.losses["sparsity"](0.1) == 0.15 and sdi.losses["sparsity"](0.31) == 0
    assert (
        sdi.losses["opaque"](0.5) == 0.1 and sdi.losses["z-variance"](0.5) == 1 and sdi.losses["orientation"](1) == 0.1
    )
    for word in ("variational-score-distillation", "entropic-score-distillation"):
        row = rows[word]
        assert (row.steps, row.half, row.networks) == (25_000, 1.0, 1e-3) and row.cameras.distance == (1.0, 1.5)
        assert row.losses["sparsity"](0) == 10 and (row.losses["opaque"](0.39), row.losses["opaque"](0.41)) == (0, 1000)
    hifa = rows["hifa"]
    assert (hifa.steps, hifa.losses["z-variance"](0.5), hifa.losses["sparsity"](0.5)) == (25_000, 100, 1)
    sjc = rows["score-jacobian-chaining"]
    assert (sjc.space, sjc.kind, sjc.cells, sjc.rate, sjc.optimiser) == ("latent", "voxels", 100, 0.05, "adamax")
    assert of("interval-score-matching", "steps", "reduction") == (5000, "sum")
    assert rows["collaborative-score-distillation"].cameras.n == 4
    assert sds.made == sdi.made == {"progressive": (8, 2000 / 10_000, 500 / 10_000)} and not hifa.made
    sir = rows["score-iterative-reconstruction"]
    assert sir.steps == 50 * 15 + 50 and sir.cameras.hold == sir.method.refresh == 15 and sir.cameras.n == 4
    assert sir.method.times.low(0) == 0.8 and sir.method.times.low(1) == 0.5 and sir.method.guidance == 7.5


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
    return replace(row, cameras=cameras, settings={"rank": 1}, losses={})
