"""Scenes edited by words: laws of the loops around the methods, on tiny random networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, instruct, randomised, seeded

from sfumato.backbones.load import family
from sfumato.distill.loop import Now
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct
from sfumato.learning.seeds import Draws
from sfumato.methods.distill.delta_score import DeltaScore
from sfumato.methods.edit.collaborative_editing import CollaborativeEditing
from sfumato.methods.edit.delta_denoising import DeltaDenoising
from sfumato.methods.edit.instruct_pix2pix import InstructPix2Pix
from sfumato.scene import gaussians_fit
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture
from sfumato.scene.fields import Voxels
from sfumato.scene.gaussians import KERBL, Gaussians
from sfumato.scene.render import FieldScene, Sampling
from sfumato.scene.updating import Turns
from sfumato.tasks import edit_scene as task
from sfumato.tasks.edit_scene import Noised, Pictures, SceneEdit, edit_scene, scene_edit

SIDE, VIEWS = 32, 3
SAME, OTHER = "a red cube on grass", "a blue duck"


@pytest.fixture(scope="module")
def model():
    pipe = seeded(FAMILIES["sd"])
    randomised(*pipe.components.values())
    return family("tiny", pipe)


@pytest.fixture(scope="module")
def instructed():
    pipe = seeded(instruct)
    randomised(*pipe.components.values())
    return family("tiny", pipe)


class Model:
    """What an edit that asks no model asks of one."""

    name, size, multiple = "none", SIDE, 8


def capture() -> Capture:
    images = torch.rand(VIEWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return Capture(images, orbit(VIEWS, (SIDE, SIDE)), tuple("abc"))


def scene() -> FieldScene:
    torch.manual_seed(0)
    return FieldScene(Voxels(4), sampling=Sampling(4))


def splats() -> Gaussians:
    """As they are read from a file: by the published recipe, which is for much longer runs."""
    rng = torch.Generator().manual_seed(2)
    means, colours = torch.rand(20, 3, generator=rng) - 0.5, torch.rand(20, 3, generator=rng)
    return Gaussians(means, colours, opacity=0.8, recipe=KERBL)


def images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))


def test_the_same_words_move_nothing_downhill(model):
    """DDS and CSD-Edit by prompts, of a scene that is as its photographs; CSD-Edit but for what keeps views apart."""
    photos = images()
    with torch.no_grad():
        kept = model.decode(model.encode(photos))
    for how in (DeltaDenoising(steps=2), CollaborativeEditing(steps=2, repulsion=0.0)):
        new = Pictures(SAME, how, SAME)(model, photos, photos, 5)
        torch.testing.assert_close(new, kept, atol=1e-4, rtol=0)
        assert (Pictures(OTHER, how, SAME)(model, photos, photos, 5) - kept).abs().max() > 1e-3


def test_what_goes_downhill_goes_on_from_the_scene_as_it_is(model):
    photos, seen = images(), images().flip(-1)
    new = Pictures(SAME, replace(DeltaDenoising(steps=2), rate=0.0), SAME)(model, photos, seen, 5)
    with torch.no_grad():
        torch.testing.assert_close(new, model.decode(model.encode(seen)), atol=1e-4, rtol=0)


def test_a_view_is_edited_from_the_scene_beside_its_photograph(instructed):
    """Of hardly any noise the scene comes back, of much noise hardly; the photograph is read in either case."""
    photos, seen = images(1), images(1).flip(-1)
    edit = Noised(OTHER, InstructPix2Pix(steps=2), least=0.001, most=0.001)
    with torch.no_grad():
        kept = instructed.decode(instructed.encode(seen))
    little = edit(instructed, photos, seen, 1)
    much = replace(edit, least=0.9, most=0.9)(instructed, photos, seen, 1)
    assert (little - kept).abs().mean() < 0.25 * (much - kept).abs().mean()
    assert not torch.equal(much, replace(edit, least=0.9, most=0.9)(instructed, photos.flip(-2), seen, 1))
    assert not torch.equal(much, replace(edit, least=0.9, most=0.9)(instructed, photos, seen, 2))


def test_levels_go_evenly_down_from_where_a_view_is_noised(instructed):
    levels = task.below(instructed.schedule, 0.5, 4)
    assert [round(float(level.t)) for level in levels] == [500, 375, 250, 125, 0]
    assert float(levels[4].sigma) == 0 and len(task.below(instructed.schedule, 0.002, 20)) == 2


def test_a_delta_score_of_a_scene_like_its_photographs_is_none(model):
    """The source of each drawn view is its own photograph."""
    views = capture()
    method = task._OfViews(DeltaScore(source=SAME), model, views, 2)

    def strength(images: torch.Tensor, prompt: str) -> float:
        draws = Draws(1, 4)
        at = method.views.draw(draws).at
        with torch.no_grad():
            x = model.encode(images[list(at)])
            now = Now(model, x, (prompt,) * 2, 4, 9, draws)
            return float(method.gradient(now).abs().max())

    assert strength(views.images, SAME) < 1e-5
    assert strength(views.images.flip(0), SAME) > 1e-2 and strength(views.images, OTHER) > 1e-2


@pytest.mark.parametrize(
    ("word", "scene"),
    [("csd-edit", scene), ("dds", scene), ("sdi", scene), ("csd-edit", splats), ("dds", splats)],
)
def test_a_run_that_was_ended_goes_on_to_the_same_scene(model, tmp_path, word, scene):
    edit = scene_edit(word, source=SAME, target=OTHER, together=2, every=2, steps=4, edit_steps=1)
    whole = edit_scene(model, capture(), scene(), edit, seed=2, frame_every=2)
    assert len(whole.frames) == 2 and whole.views.shape == (VIEWS, 3, SIDE, SIDE)

    def stop(event):
        if event.depth == 0 and event.done >= 2:
            raise KeyboardInterrupt

    keep = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        edit_scene(model, capture(), scene(), edit, seed=2, keep=keep, on_progress=stop)
    rest = edit_scene(model, capture(), scene(), edit, seed=2, keep=keep)
    assert torch.equal(rest.views, whole.views) and rest.edited == whole.edited
    state = whole.scene.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in rest.scene.state_dict().items())
    other = scene_edit(word, source=SAME, target=SAME, together=2, every=2, steps=4, edit_steps=1)
    with pytest.raises(SfumatoError, match="another run"):
        edit_scene(model, capture(), scene(), other, seed=2, keep=keep)


def test_gaussians_follow_an_edit_by_a_recipe_of_its_length():
    """Colours go farther than in a fit, slower in the end; no Gaussians are added or dropped."""
    white = SceneEdit(lambda model, photos, seen, seed: torch.ones_like(photos), Turns(VIEWS, 1, 1), steps=60)
    dark = splats()
    with torch.no_grad():
        dark.base.fill_(-1.0)

    done = edit_scene(Model(), capture(), dark, white, seed=1)  # type: ignore[arg-type]
    moved = done.scene.base.amax() + 1
    assert 1 < moved < 2, "60 steps of 0.01 are 0.6 at most; 60 of 0.05 are 3, and their rate falls"
    assert len(done.scene) == 20 and done.scene.recipe == task.following(60)


def test_a_capture_is_swept_once_and_edits_are_not_swept(monkeypatch):
    """A sweep takes seconds: a fit begins with it and is held to the same, and each edited view would take another."""
    swept, real = [], gaussians_fit.sweep
    monkeypatch.setattr(gaussians_fit, "sweep", lambda shots: swept.append(len(shots)) or real(shots))
    first = task.first_gaussians(capture(), 12, steps=3)
    assert swept == [VIEWS]
    white = SceneEdit(lambda model, photos, seen, seed: torch.ones_like(photos), Turns(VIEWS, 1, 1), steps=2)
    edit_scene(Model(), capture(), first, white)  # type: ignore[arg-type]
    assert swept == [VIEWS]


def test_a_loss_of_patches_is_part_of_the_run(model, here):
    edit = scene_edit("csd-edit", source=SAME, target=OTHER, together=2, every=2, steps=2, edit_steps=1)
    without, with_it = scene(), scene()
    edit_scene(model, capture(), without, edit, seed=2)
    edit_scene(model, capture(), with_it, replace(edit, looks=5.0), seed=2)
    assert not torch.equal(without.field.grid, with_it.field.grid)  # type: ignore[union-attr]


def test_what_looks_alike_is_no_distance_apart(here):
    compare, a, b = task.unlike(), images(), images().flip(-1)
    a.requires_grad_()
    assert compare(a, a.detach()).abs().max() < 1e-5 < 1e-2 < compare(a, b).min()
    (pull,) = torch.autograd.grad(compare(a, b).sum(), a)
    assert pull.isfinite().all() and pull.abs().amax((1, 2, 3)).min() > 0
    moved = a.detach() - 1e-4 * pull / pull.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (compare(moved, b) < compare(a, b)).all()


def test_each_view_is_edited_once_where_it_is_edited_alone(instructed):
    edit = scene_edit("per-view", instruction=OTHER, steps=3, edit_steps=2)
    done = edit_scene(instructed, capture(), scene(), edit, seed=2)
    assert done.edited == VIEWS and (done.views - capture().images).abs().amax((1, 2, 3)).min() > 0
    nerf = scene_edit("instruct-nerf2nerf", instruction=OTHER, steps=3, edit_steps=2)
    assert isinstance(nerf.editor, Noised) and nerf.turns == Turns(1, 10)
    assert task.within(nerf.turns, VIEWS, 20) == Turns(1, 3) and task.within(nerf.turns, VIEWS, 30) == nerf.turns


def test_what_is_missing_is_said():
    for word, options, match in (
        ("nerf", {"instruction": OTHER}, "unknown way to edit a scene"),
        ("dds", {"instruction": OTHER}, "needs --from and --to"),
        ("csd-edit", {}, "needs what to do"),
        ("instruct-nerf2nerf", {"source": SAME, "target": OTHER}, "does what an instruction says"),
    ):
        with pytest.raises(SfumatoError, match=match):
            scene_edit(word, **options)


def test_recipes_suit_the_model_and_papers_the_others():
    own = scene_edit("instruct-nerf2nerf", instruction=OTHER, model="stilllife-instruct").editor
    assert (own.method.image_scale, own.guidance, own.method.steps) == (2.0, 5.0, 20)
    paper = scene_edit("instruct-nerf2nerf", instruction=OTHER).editor
    assert (paper.method.image_scale, paper.guidance, paper.least, paper.most) == (1.5, None, 0.02, 0.98)
    csd = scene_edit("csd-edit", instruction=OTHER)
    assert csd.editor.how == CollaborativeEditing() and csd.turns == Turns(16, 2000)


def test_views_of_another_size_are_edited_at_the_models(model):
    assert task.fitted(model, torch.rand(1, 3, 40, 60)).shape[-2] == model.size
    photos = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    views = Capture(photos, orbit(2, (24, 40)), ("a", "b"))
    edit = SceneEdit(Pictures(OTHER, Direct(steps=1), SAME), Turns(2, 1, 1), steps=1)
    assert edit_scene(model, views, scene(), edit).views.shape == photos.shape
