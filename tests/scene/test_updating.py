"""A scene that follows views which change: their turns, what is moved to what, exact resume."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.learning.loop import learn
from sfumato.scene.cameras import orbit
from sfumato.scene.fields import Voxels
from sfumato.scene.render import FieldScene, Sampling
from sfumato.scene.updating import Turns, Updating

VIEWS = 5


def made(**options) -> Updating:
    torch.manual_seed(0)
    scene = FieldScene(Voxels(4), sampling=Sampling(4))
    views = torch.rand(VIEWS, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return Updating(scene, orbit(VIEWS, (6, 8)), views, **{"rays": 64, **options})


def run(problem: Updating, steps: int, **options):
    return learn(problem, torch.optim.Adam(problem.groups(), lr=0.1), steps=steps, about="it", **options)


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


def test_a_run_that_was_cut_off_goes_on_bit_for_bit_also_in_the_middle_of_an_edit(tmp_path):
    options = {"edit": brighter, "turns": Turns(2, 2)}
    whole = made(**options)
    run(whole, 6)

    def cut(step, at, seen):
        if step == 4:
            raise KeyboardInterrupt
        return brighter(step, at, seen)

    keep = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(made(**options | {"edit": cut}), 6, keep=keep)
    rest = made(**options)
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
