from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sfumato.errors import SfumatoError
from sfumato.stilllife.kinds import HELD_OUT, KINDS, TRAINED
from sfumato.stilllife.scene import (
    INVERSE,
    RELATIONS,
    STYLES,
    VIEWS,
    Camera,
    Scene,
    Thing,
    Wide,
    redress,
    relation,
    sample_scene,
    view,
)


def scenes(n: int, seed: int = 0, **asked) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, **asked) for _ in range(n)]


def test_json_round_trip():
    for scene in scenes(50):
        assert Scene.from_json(scene.to_json()) == scene


def test_wide_worlds_hold_more():
    things = tuple(Thing("cube", x=2.0 * i) for i in range(5))
    assert Wide.from_json(Wide(things).to_json()) == Wide(things)
    with pytest.raises(SfumatoError, match="one to 3 things, got 5"):
        Scene(things)


def test_the_same_seed_draws_the_same_scene():
    assert scenes(20, seed=5) == scenes(20, seed=5)
    assert scenes(20, seed=5) != scenes(20, seed=6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "unicorn"}, "unknown kind 'unicorn'; known: sphere, cube"),
        ({"kind": "cube", "colour": "pink"}, "unknown colour 'pink'; known: red, green"),
        ({"kind": "cube", "material": "wool"}, "unknown material 'wool'"),
        ({"kind": "cube", "size": "huge"}, "unknown size 'huge'; known: small, medium, large"),
        ({"kind": "cube", "x": math.nan}, "finite number, got nan"),
        ({"kind": "cube", "yaw": "left"}, "finite number, got 'left'"),
        ({"kind": "cube", "x": True}, "finite number, got True"),
        ({"kind": "duck", "shape": (0.0,)}, "3 shape parameters .*got 1"),
        ({"kind": "sphere", "shape": (1.5,)}, r"lie in \[-1, 1\]"),
    ],
)
def test_bad_things_are_refused(fields, says):
    with pytest.raises(SfumatoError, match=says):
        Thing(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"elevation": 95}, "between 0 and 90 degrees, got 95"),
        ({"distance": 0.1}, "lies in"),
        ({"fov": 0}, "field of view"),
        ({"target": (0, 0)}, "three numbers"),
        ({"azimuth": math.inf}, "finite number"),
    ],
)
def test_bad_cameras_are_refused(fields, says):
    with pytest.raises(SfumatoError, match=says):
        Camera(**fields)


@pytest.mark.parametrize(
    ("things", "says"),
    [
        ((), "one to 3 things, got 0"),
        ((Thing("cube"), Thing("duck", x=0.1)), "the cube and the duck are in one another"),
        ((Thing("duck", on=1), Thing("sphere")), "stand on a cube or a cylinder"),
        ((Thing("duck", on=3), Thing("cube")), "not another thing"),
        ((Thing("cube", on=0),), "not another thing"),
        ((Thing("duck", x=5.0, on=1), Thing("cube")), "is beside thing 1"),
        ((Thing("duck", on=2), Thing("car", on=2), Thing("cube")), "in one another"),
        ((Thing("duck", on=1), Thing("cube", on=2), Thing("cube")), "on the ground, not on thing 1"),
    ],
)
def test_bad_arrangements_are_refused(things, says):
    with pytest.raises(SfumatoError, match=says):
        Scene(things)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("ground", "lava", "unknown ground 'lava'; known: grass"),
        ("light", "noon", "unknown light"),
        ("style", "oil", "unknown style"),
        ("sun", None, "finite number"),
        ("seed", -1, "whole number"),
    ],
)
def test_bad_surroundings_are_refused(field, value, says):
    with pytest.raises(SfumatoError, match=says):
        Scene((Thing("cube"),), **{field: value})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        "[]",
        "{}",
        '{"things": 3}',
        '{"things": ["cube"]}',
        '{"things": [{"colour": "red"}]}',
        '{"things": [{"kind": "cube", "weight": 3}]}',
        '{"things": [{"kind": "cube", "shape": ["a", "b"]}]}',
        '{"things": [{"kind": ["cube"]}]}',
        '{"things": [{"kind": "cube"}], "camera": 3}',
        '{"things": [{"kind": "cube"}], "camera": {"target": ["a", 1, 2]}}',
        '{"things": [{"kind": "cube"}], "most": 5}',
    ],
)
def test_what_is_not_a_scene_is_refused(text):
    with pytest.raises(SfumatoError, match="not a scene"):
        Scene.from_json(text)


def test_an_unknown_word_in_json_is_named():
    data = Scene((Thing("cube"),)).to_dict()
    data["things"][0]["colour"] = "pink"
    with pytest.raises(SfumatoError, match="unknown colour 'pink'"):
        Scene.from_json(json.dumps(data))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_count_is_held(count):
    assert {len(s.things) for s in scenes(40, count=count)} == {count}


@pytest.mark.parametrize("count", [None, 2, 3])
@pytest.mark.parametrize("asked", RELATIONS)
def test_relation_is_held(asked, count):
    assert {relation(s, 0, 1) for s in scenes(40, relation=asked, count=count)} == {asked}


@pytest.mark.parametrize("asked", VIEWS)
def test_view_is_held(asked):
    assert {view(s, 0) for s in scenes(40, view=asked)} == {asked}


@pytest.mark.parametrize("asked", STYLES)
def test_style_is_held(asked):
    assert {s.style for s in scenes(10, style=asked)} == {asked}


def test_kinds_are_held_and_held_out_kinds_stay_out():
    assert {t.kind for s in scenes(150) for t in s.things} == set(TRAINED)
    assert {t.kind for s in scenes(150, kinds=HELD_OUT) for t in s.things} == set(HELD_OUT)


@pytest.mark.parametrize("count", [2, 3])
def test_same_is_held(count):
    for scene in scenes(60, same=True, count=count):
        assert len({(t.kind, t.colour) for t in scene.things}) == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"count": 4}, "cannot draw 4 things"),
        ({"count": 0}, "cannot draw 0 things"),
        ({"count": 1, "relation": "behind"}, "one behind the other"),
        ({"kinds": ()}, "0 kinds"),
        ({"kinds": ("unicorn",)}, "unknown kind 'unicorn'"),
        ({"view": "top"}, "unknown view 'top'; known: front"),
        ({"relation": "near"}, "unknown relation 'near'"),
        ({"style": "oil"}, "unknown style 'oil'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(asked, says):
    with pytest.raises(SfumatoError, match=says):
        sample_scene(np.random.default_rng(0), **asked)


def test_relations_are_inverse_and_follow_the_camera():
    for scene in scenes(60, count=2):
        told = relation(scene, 0, 1)
        if told in INVERSE:
            assert relation(scene, 1, 0) == INVERSE[told]
    pair = (Thing("cube", x=-1.0), Thing("duck", x=1.0))
    seen = [relation(Scene(pair, camera=Camera(azimuth=a)), 0, 1) for a in (0, 90, 180, 270)]
    assert seen == ["left of", "behind", "right of", "in front of"]
    assert relation(Scene((Thing("cube", x=-1.0, z=-1.0), Thing("duck"))), 0, 1) is None


def test_views_follow_yaw_and_camera():
    def seen(yaw: float, azimuth: float, elevation: float = 18.0, kind: str = "robot"):
        return view(Scene((Thing(kind, yaw=yaw),), camera=Camera(azimuth, elevation)), 0)

    assert [seen(y, 0) for y in (0, 50, 90, 130, 180, -90, 360)] == [
        "front",
        None,
        "side",
        None,
        "back",
        "side",
        "front",
    ]
    assert seen(90, 90) == seen(-170, 190) == "front"
    assert seen(0, 0, 70) == "overhead"
    assert seen(0, 0, kind="sphere") is None


def test_redress_keeps_the_geometry():
    rng = np.random.default_rng(0)
    changed = 0
    for scene in scenes(20):
        other = redress(scene, rng)
        for a, b in zip(scene.things, other.things, strict=True):
            assert (a.kind, a.size, a.x, a.z, a.yaw, a.shape, a.on) == (b.kind, b.size, b.x, b.z, b.yaw, b.shape, b.on)
        assert (scene.camera, scene.sun) == (other.camera, other.sun)
        changed += other != scene
    assert changed == 20


def test_the_camera_looks_at_its_target():
    camera = Camera(azimuth=30, elevation=20, distance=4, target=(0.1, 0.5, -0.2))
    pose = camera.to_world()
    assert np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3))
    assert np.isclose(np.linalg.det(pose[:3, :3]), 1)
    assert np.allclose(np.linalg.inv(pose) @ (*camera.target, 1), (0, 0, -4, 1))
    assert np.allclose(pose[:3, 3], camera.eye)
    assert pose[1, 1] > 0 and pose[1, 0] == 0  # upright


def test_a_kind_stands_on_the_ground():
    for kind in KINDS.values():
        lowest = min(p.centre[1] for p in kind.reference())
        assert lowest >= 0
        assert 0.5 < kind.height([0.0] * len(kind.shape)) < 2
