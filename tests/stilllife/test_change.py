from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.stilllife import captions
from sfumato.stilllife.change import (
    DIRECTIONS,
    OPS,
    Add,
    Move,
    Recolour,
    Reground,
    Relight,
    Rematerial,
    Remove,
    Reshape,
    Resize,
    Restyle,
    Turn,
    apply,
    counterfactual,
    instruction,
    masks,
    name,
    render_pairs,
    same_geometry,
    sample_change,
    sample_counterfactual,
)
from sfumato.stilllife.render import render, trace
from sfumato.stilllife.scene import STYLES, Camera, Scene, Thing, relation, sample_scene, view

PAIR = Scene((Thing("cube", "red", x=-0.8), Thing("robot", "green", x=0.8)))
STACK = Scene((Thing("duck", "yellow", on=1, size="small"), Thing("cube", "red"), Thing("cone", x=1.4)))
SIZE = 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Recolour(0, "blue"), "make the cube blue"),
        (Rematerial(0, "striped"), "make the cube striped"),
        (Reshape(0, "sphere"), "replace the cube with a sphere"),
        (Reground("snow"), "put it on snow"),
        (Relight("night"), "make it night"),
        (Relight("fog"), "put it in fog"),
        (Restyle("watercolour"), "make it a watercolour"),
        (Add(Thing("sphere", "red", z=1.5)), "add a red sphere"),
        (Add(Thing("sphere", "orange", "shiny", z=1.5)), "add a shiny orange sphere"),
        (Remove(1), "remove the robot"),
        (Move(0, "to the left"), "move the cube to the left"),
        (Move(0, "further away"), "move the cube further away"),
        (Turn(1), "turn the robot around"),
        (Turn(1, 90), "turn the robot to its left"),
        (Turn(1, 270), "turn the robot to its right"),
        (Resize(0, "large"), "make the cube larger"),
        (Resize(0, "small"), "make the cube smaller"),
    ],
)
def test_instructions(change, says):
    assert instruction(PAIR, change) == says
    assert captions.unknown_words(says) == []
    pair = counterfactual(PAIR, change)
    assert pair.instruction == says and pair.before == PAIR and pair.after == apply(PAIR, change) != PAIR
    assert pair.captions == (captions.plain(PAIR), captions.plain(pair.after))


def test_a_name_means_one_thing():
    def named(*things: Thing) -> list[str]:
        spread = tuple(replace(t, x=1.2 * i - 1.2) for i, t in enumerate(things))
        scene = Scene(spread)
        return [name(scene, i) for i in range(len(things))]

    red = Thing("cube", "red")
    assert named(red, Thing("duck")) == ["the cube", "the duck"]
    assert named(red, Thing("cube", "blue")) == ["the red cube", "the blue cube"]
    assert named(red, Thing("cube", "red", "shiny"), Thing("cube", "blue")) == [
        "the plain red cube",
        "the shiny red cube",
        "the blue cube",
    ]
    assert named(red, Thing("cube", "red", size="small")) == ["the medium cube", "the small cube"]
    assert named(red, red) == ["the left cube", "the right cube"]
    assert named(red, red, red) == ["the left cube", "the cube next to the left one", "the right cube"]
    for said in named(red, red, red):
        assert captions.unknown_words(said) == []
    behind = replace(PAIR, things=(red, replace(red, x=1.2)), camera=Camera(azimuth=180))
    assert name(behind, 0) == "the right cube"  # as the camera sees it


def test_changes_do_what_they_say():
    assert apply(PAIR, Recolour(0, "blue")).things[0] == replace(PAIR.things[0], colour="blue")
    assert apply(PAIR, Reshape(0, "duck")).things[0].kind == "duck"
    assert apply(PAIR, Add(Thing("mug", z=1.5))).things == (*PAIR.things, Thing("mug", z=1.5))
    assert apply(PAIR, Remove(0)).things == PAIR.things[1:]
    assert (view(PAIR, 1), view(apply(PAIR, Turn(1)), 1)) == ("front", "back")
    assert apply(STACK, Remove(2)).things == STACK.things[:2]
    first = replace(STACK, things=(STACK.things[2], replace(STACK.things[0], on=2), STACK.things[1]))
    assert apply(first, Remove(0)).things == STACK.things[:2]  # what the duck stands on has moved up


@pytest.mark.parametrize("azimuth", [0, 90, 200])
def test_moves_are_as_the_camera_sees_them(azimuth):
    here = Scene((Thing("cube"), Thing("cone", x=5.0, z=5.0)), camera=Camera(azimuth=azimuth))
    told = {"to the left": "left of", "to the right": "right of", "closer": "in front of", "further away": "behind"}
    for direction in DIRECTIONS:
        there = apply(here, Move(0, direction, 2.0)).things[0]
        both = replace(here, things=(there, here.things[0]))
        assert relation(both, 0, 1) == told[direction]


def test_what_stands_on_a_thing_goes_with_it():
    moved = apply(STACK, Move(1, "to the left", 0.5)).things
    assert (moved[0].x, moved[1].x, moved[2].x) == (-0.5, -0.5, 1.4)
    assert apply(STACK, Resize(1, "large")).base(0) > STACK.base(0)


@pytest.mark.parametrize(
    ("scene", "change", "says"),
    [
        (Scene((Thing("cube"),)), Remove(0), "the only thing"),
        (STACK, Remove(1), "remove the duck first"),
        (STACK, Move(0, "closer"), "move the cube"),
        (STACK, Reshape(1, "sphere"), "stand on a cube or a cylinder"),
        (PAIR, Move(0, "to the right", 1.5), "in one another"),
        (PAIR, Move(0, "up"), "unknown direction 'up'; known: to the left"),
        (PAIR, Add(Thing("duck", x=0.8)), "in one another"),
        (STACK, Add(Thing("duck", x=-2.0)), "one to 3 things, got 4"),
        (PAIR, Recolour(0, "red"), "changes nothing"),
        (PAIR, Reshape(0, "cube", (1.0, 1.0)), "is a cube already"),
        (PAIR, Turn(1, 360), "changes nothing"),
        (PAIR, Recolour(2, "blue"), "no thing 2 .* 0 to 1"),
        (PAIR, Recolour(-1, "blue"), "no thing -1"),
        (PAIR, Recolour(0, "pink"), "unknown colour 'pink'"),
        (PAIR, Reground("lava"), "unknown ground"),
    ],
)
def test_what_cannot_be_is_refused(scene, change, says):
    with pytest.raises(SfumatoError, match=says):
        counterfactual(scene, change)


def drawn(n: int, ops=None, seed: int = 0, **asked):
    rng = np.random.default_rng(seed)
    out = []
    while len(out) < n:
        scene = sample_scene(rng, **asked)
        try:
            out.append(counterfactual(scene, sample_change(scene, rng, ops)))
        except SfumatoError:
            assert ops is not None  # some scenes cannot take some changes; all can take one of all
    return out


def test_sampled_changes_are_valid_and_of_every_kind():
    pairs = drawn(400)
    assert len({type(p.change) for p in pairs}) == len(OPS) == 11
    for pair in pairs:
        assert pair.before != pair.after
        assert captions.unknown_words(pair.instruction) == []


def test_what_was_asked_is_sampled():
    assert all(isinstance(p.change, Turn) for p in drawn(10, ["turn"]))
    assert {type(p.change) for p in drawn(30, ["add", "remove"])} == {Add, Remove}
    with pytest.raises(SfumatoError, match="unknown change 'melt'; known: recolour"):
        sample_change(PAIR, np.random.default_rng(0), ["melt"])
    with pytest.raises(SfumatoError, match="none of these changes is possible in this scene: remove"):
        sample_change(Scene((Thing("cube"),)), np.random.default_rng(0), ["remove"])
    with pytest.raises(SfumatoError, match="turn"):
        sample_change(Scene((Thing("sphere"),)), np.random.default_rng(0), ["turn"])


@pytest.fixture(scope="module")
def traced():
    """Finds what rays meet once for every style, which paints it only."""
    kept = {}

    def once(scenes, size=128, device=None, rays=None):
        key = (tuple(replace(scene, style="photo") for scene in scenes), size)
        if key not in kept:
            kept[key] = trace(scenes, size)
        return replace(kept[key], scenes=tuple(scenes))

    return once


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("style", STYLES)
def test_nothing_changes_outside_the_mask(op, style, traced, monkeypatch):
    monkeypatch.setattr("sfumato.stilllife.render.trace", traced)
    for pair in drawn(2, [op], seed=OPS.index(op), style=style):
        mask = masks(pair, SIZE)
        before, after = render([pair.before, pair.after], SIZE).images
        differs = (before - after).abs().amax(0)
        assert not (differs[~mask] > 1 / 255).any()
        assert (differs[mask] > 1 / 255).any()  # and the change is seen


@pytest.mark.parametrize(
    "change", [Recolour(0, "blue"), Remove(0), Move(0, "further away"), Turn(1), Resize(1, "large")]
)
def test_a_mask_is_no_larger_than_it_must_be(change):
    pair = counterfactual(PAIR, change)
    mask = masks(pair, SIZE)
    before, after = render([pair.before, pair.after], SIZE).images
    differs = (before - after).abs().amax(0) > 1 / 255
    things = trace([pair.before, pair.after], SIZE)
    covered = (things.grid(things.thing) == change.thing).any(0)
    grown = torch.nn.functional.max_pool2d((differs | covered)[None, None].float(), 5, 1, 2)[0, 0] > 0
    assert (mask & ~grown).float().mean() < 0.01
    assert mask.float().mean() < 0.5


def test_a_recoloured_thing_leaves_the_rest_bit_for_bit():
    pair = counterfactual(PAIR, Recolour(0, "blue"))
    before, after = render_pairs([pair], SIZE)
    mask = masks(pair, SIZE)
    assert torch.equal(before[0][:, ~mask], after[0][:, ~mask])


def test_a_new_ground_leaves_things_in_place():
    pair = counterfactual(PAIR, Reground("snow"))
    mask = masks(pair, SIZE)
    seen = render(PAIR, SIZE)
    inner = -torch.nn.functional.max_pool2d(-(seen.thing >= 0).float(), 5, 1, 2)[0] > 0
    assert inner.any() and not mask[inner].any()
    assert mask[seen.ground[0]].all()


def test_light_and_style_may_touch_everything():
    assert masks(counterfactual(PAIR, Relight("night")), SIZE).all()
    assert masks(counterfactual(PAIR, Restyle("mosaic")), SIZE).all()


def test_pairs_rendered_together_are_those_rendered_apart():
    pairs = drawn(8, seed=3)
    assert len({same_geometry(p.change) for p in pairs}) == 2
    before, after = render_pairs(pairs, 32)
    for i, pair in enumerate(pairs):
        assert torch.allclose(before[i], render(pair.before, 32).images[0], atol=1e-4)
        assert torch.allclose(after[i], render(pair.after, 32).images[0], atol=1e-4)


def test_same_geometry_means_the_same_trace():
    for op in OPS:
        pair = drawn(1, [op], seed=1)[0]
        buffers = trace([pair.before, pair.after], 32)
        t = buffers.grid(buffers.t)
        assert torch.equal(t[0], t[1]) == same_geometry(pair.change)


def test_a_change_is_drawn_with_a_scene_that_can_take_it():
    rng = np.random.default_rng(3)
    for _ in range(60):  # some scenes of two have no place for a third
        edit = sample_counterfactual(rng, "add", 2)
        assert len(edit.before.things) == 2 and len(edit.after.things) == 3
    with pytest.raises(SfumatoError, match="no scene of 1 takes this change: remove"):
        sample_counterfactual(rng, "remove", 1)
    with pytest.raises(SfumatoError, match="unknown change 'melt'"):
        sample_counterfactual(rng, "melt", 1)
