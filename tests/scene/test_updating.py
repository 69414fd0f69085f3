"""A scene that follows views which change: their turns, what is moved to what, exact resume."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.loop import learn
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture
from sfumato.scene.fields import Voxels
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.gaussians_fit import ADAM, Fitting, quick
from sfumato.scene.render import FieldScene, Sampling
from sfumato.scene.updating import Looks, Turns, Updating

VIEWS = 5


def field() -> FieldScene:
    torch.manual_seed(0)
    return FieldScene(Voxels(4), sampling=Sampling(4))


def made(scene=None, **options) -> Updating:
    scene = field() if scene is None else scene
    views = torch.rand(VIEWS, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return Updating(scene, orbit(VIEWS, (6, 8)), views, **{"rays": 64, **options})


def splats(steps: int = 6) -> Gaussians:
    rng = torch.Generator().manual_seed(2)
    means, colours = torch.rand(20, 3, generator=rng) - 0.5, torch.rand(20, 3, generator=rng)
    return Gaussians(means, colours, opacity=0.8, recipe=quick(steps))


def run(problem: Updating, steps: int, **options):
    whole = isinstance(problem.scene, Gaussians)
    optimiser = ADAM(problem.groups()) if whole else torch.optim.Adam(problem.groups(), lr=0.1)
    return learn(problem, optimiser, steps=steps, about="it", **options)


def brighter(step, at, seen):
    return seen / 2 + 0.1 * len(at) + step / 100


def test_each_view_has_its_turn_before_one_comes_again():
    turns = Turns(views=2, every=3)
    rounds = [[turns.at(step, VIEWS, 7) for step in range(9 * r, 9 * r + 9)] for r in (0, 1)]
    for one in rounds:
        assert all(not at for i, at in enumerate(one) if i % 3)
        assert sorted(v for at in one for v in at) == list(range(VIEWS))
    assert rounds[0] != rounds[1] and turns.at(0, VIEWS, 7) != turns.at(0, VIEWS, 8)
    once = Turns(2, 3, rounds=1)
    assert [once.at(s, VIEWS, 7) for s in range(9)] == rounds[0] and not any(once.at(s, VIEWS, 7) for s in range(9, 30))


def test_rays_are_those_of_the_pixels_that_they_are_compared_with():
    """A scene that is only background has one colour to learn: that of the pixels that count."""
    counted = torch.zeros(VIEWS, 6, 8, dtype=torch.bool)
    counted[3, 4, 7] = True
    problem = made(counted=counted)
    asked = []
    trace = problem.scene.trace
    problem.scene.trace = lambda rays, rng=None, **of: asked.append(rays) or trace(rays, rng, **of)
    loss = problem.loss(0)
    whole = problem.cameras.rays()
    torch.testing.assert_close(asked[0].directions, whole.directions[3, 4, 7].expand(64, 3))
    torch.testing.assert_close(asked[0].origins, whole.origins[3, 4, 7].expand(64, 3))
    seen = problem.scene.view(problem.cameras[[3]]).images[0, :, 4, 7]
    torch.testing.assert_close(loss, (seen - problem.views[3, :, 4, 7]).abs().mean(), atol=1e-5, rtol=0)


def test_gaussians_follow_whole_views_as_they_are_now():
    """The loss is that of a fit to the edited views, at the part of the run that is over."""
    problem = made(splats(), edit=lambda step, at, seen: torch.full_like(seen, 0.25), turns=Turns(VIEWS, 1))
    problem.fraction = 0.5
    names = tuple("abcde")
    fit = Fitting(problem.scene, Capture(torch.full_like(problem.views, 0.25), problem.cameras, names), seed=0)
    fit.fraction = 0.5
    for step in (0, 3):
        torch.testing.assert_close(problem.loss(step), fit.loss(step))
    other = Fitting(problem.scene, Capture(problem.first, problem.cameras, names), seed=0)
    assert not torch.isclose(problem.loss(0), other.loss(0))


def test_gaussians_move_slower_towards_the_end():
    scene = splats(6)
    problem = made(scene)
    optimiser = ADAM(problem.groups())
    learn(problem, optimiser, steps=6, about="it")
    (rate,) = [g["lr"] for g in optimiser.param_groups if any(p is scene.means for p in g["params"])]
    assert rate == pytest.approx(scene.recipe.rates.of_means(5, scene.extent)) and rate < scene.rates["means"] / 10


@pytest.mark.parametrize("kind", [field, splats])
def test_a_patch_is_compared_with_the_same_place_of_its_view(kind):
    heard, scene = [], kind()
    if isinstance(scene, FieldScene):  # else it is one colour, wherever one looks
        with torch.no_grad():
            scene.field.grid.normal_(std=5.0, generator=torch.Generator().manual_seed(4))  # type: ignore[operator, union-attr]

    def unlike(shown, wanted):
        heard.append((shown.detach(), wanted))
        return (shown - wanted).abs().mean((1, 2, 3))

    problem = made(scene, looks=Looks(unlike, 3.0, 4))
    plain = made(problem.scene)
    for step in range(4):
        more = problem.loss(step) - plain.loss(step)
        shown, wanted = heard[-1]
        torch.testing.assert_close(more, 3 * (shown - wanted).abs().mean())
        patches = problem.views.unfold(2, 4, 1).unfold(3, 4, 1)
        off = (patches - wanted[0, :, None, None]).abs().amax((1, 4, 5))
        i, y, x = (off == 0).nonzero()[0].tolist()
        whole = problem.scene.view(problem.cameras[[i]]).images
        torch.testing.assert_close(shown, whole[..., y : y + 4, x : x + 4], atol=1e-4, rtol=0)
    assert len({tuple(w.flatten()[:3].tolist()) for _, w in heard}) > 1, "another patch in each step"
    counted = torch.zeros(VIEWS, 6, 8, dtype=torch.bool)
    counted[:, 0, 0] = True
    unknown = made(looks=Looks(unlike, 1.0, 4), counted=counted)
    unknown.loss(0)
    shown, wanted = heard[-1]
    assert (shown == wanted).all(1).sum() >= 15, "what is not known is alike"


def test_an_edit_sees_the_scene_and_takes_the_views_place():
    heard = []

    def edit(step, at, seen):
        heard.append((step, at, seen))
        return torch.full_like(seen, 0.25)

    problem = made(edit=edit, turns=Turns(2, 2, 1))
    before, shown = problem.views, problem.scene.view(problem.cameras).images
    run(problem, 1)
    (step, at, seen) = heard[0]
    assert step == 0 and len(at) == 2 and problem.edited == 2
    torch.testing.assert_close(seen, shown[list(at)])
    assert (problem.views[list(at)] == 0.25).all()
    rest = [i for i in range(VIEWS) if i not in at]
    assert torch.equal(problem.views[rest], before[rest])
    again = made(edit=edit, turns=Turns(2, 2, 1))
    run(again, 7)
    assert (again.views == 0.25).all() and again.edited == VIEWS


def test_outside_of_masks_views_stay_as_they_were_at_first():
    masks = torch.zeros(VIEWS, 6, 8, dtype=torch.bool)
    masks[:, :3] = True
    problem = made(edit=brighter, turns=Turns(3, 1), masks=masks)
    first = problem.views
    run(problem, 6)
    assert torch.equal(problem.views[:, :, 3:], first[:, :, 3:])
    assert ((problem.views - first)[:, :, :3].abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("kind", [field, splats])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit_also_in_the_middle_of_an_edit(tmp_path, kind):
    options = {"edit": brighter, "turns": Turns(2, 2)}
    whole = made(kind(), **options)
    run(whole, 6)

    def cut(step, at, seen):
        if step == 4:
            raise KeyboardInterrupt
        return brighter(step, at, seen)

    keep = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(made(kind(), **options | {"edit": cut}), 6, keep=keep)
    rest = made(kind(), **options)
    run(rest, 6, keep=keep)
    assert rest.edited == whole.edited and torch.equal(rest.views, whole.views)
    for a, b in zip(rest.scene.parameters(), whole.scene.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_no_scene_can_follow_is_said():
    with pytest.raises(SfumatoError, match="keeps the size"):
        run(made(edit=lambda s, at, x: x[..., :4], turns=Turns()), 1)
    with pytest.raises(SfumatoError, match="what became of the views"):
        run(made(edit=lambda s, at, x: x * torch.nan, turns=Turns()), 1)
    with pytest.raises(SfumatoError, match="a camera each"):
        Updating(made().scene, orbit(4, (6, 8)), torch.rand(VIEWS, 3, 6, 8))
    with pytest.raises(SfumatoError, match="no pixel"):
        made(counted=torch.zeros(VIEWS, 6, 8, dtype=torch.bool))
    with pytest.raises(SfumatoError, match="one or more at a time"):
        Turns(0)
