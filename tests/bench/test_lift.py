"""What the bench of lifts counts: views read right, faces, and lifts that diverged; each lift made once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.bench import lift as bench
from sfumato.bench.lift import janus, session, success
from sfumato.bench.lift.session import Asked, LiftSession, judged
from sfumato.errors import SfumatoError
from sfumato.scene.cameras import orbit
from sfumato.stilllife.oracle import Oracle, Reading, ReadThing
from sfumato.tasks.lift import Lifted


def thing(kind="robot", colour="red", face=False, pixels=100, box=(1, 1, 9, 9)):
    return ReadThing(kind, colour, "plain", box, (4.0, 4.0), pixels, face)


def reading(*things):
    return Reading(things, "grass", "day", "photo", np.zeros((16, 16), int))


def test_a_view_is_right_by_its_largest_thing():
    small = thing("cube", pixels=30)
    views = [reading(small, thing(face=True))] * 3 + [reading(thing("car"))] + [reading(thing(colour="blue"))]
    views += [reading()] + [reading(thing())] * 2
    assert judged(views, "robot", "red") == {"right": 5 / 8, "whole": 0.0, "faces": 3.0}
    assert judged([reading(thing())] * 8, "robot", "red") == {"right": 1.0, "whole": 1.0, "faces": 0.0}


@pytest.mark.parametrize("box", [(0, 1, 9, 9), (1, 0, 9, 9), (1, 1, 16, 9), (1, 1, 9, 16)])
def test_what_runs_out_of_the_picture_is_no_thing(box):
    """A yellow sky without a thing is read as a yellow cube, as large as the sky."""
    sky = thing("cube", "yellow", pixels=140, box=box)
    assert judged([reading(sky)] * 8, "cube", "yellow")["right"] == 0
    assert judged([reading(sky, thing())] * 8, "robot", "red")["right"] == 1
    assert judged([reading(thing(box=(1, 1, 15, 15)))] * 8, "robot", "red")["right"] == 1


@pytest.fixture
def made(monkeypatch, tmp_path):
    """A session whose lifts are pictures of nothing, which the oracle reads as red robots; how often each was made."""
    counts: list[str] = []

    def lift(model, prompt, recipe, seed=0):
        counts.append(prompt)
        if recipe.word == "score-jacobian-chaining":
            raise SfumatoError("the scene has been empty")
        cameras = orbit(8, (16, 16))
        return Lifted(None, cameras, torch.zeros(8, 3, 16, 16), torch.zeros(8, 1, 4, 4), (), (), ())

    class Reads:
        def read(self, images):
            return [reading(thing(face=i < 3)) for i in range(len(images))]

    class Model:
        size = 16

    monkeypatch.setattr(session, "lift", lift)
    monkeypatch.setattr(LiftSession, "model", Model())
    monkeypatch.setattr(LiftSession, "oracle", Reads())
    return counts


def test_a_lift_is_made_once_and_one_that_diverged_has_nothing_right(made, monkeypatch, tmp_path):
    monkeypatch.setattr(success, "WAYS", ("score-distillation", "score-jacobian-chaining"))
    monkeypatch.setattr(
        LiftSession, "asked", lambda self, *_: [Asked("red", "robot", "sand", 3), Asked("red", "car", "sand", 4)]
    )
    first = bench.run(2, 1, "cpu", tmp_path, modules=(success,))
    assert len(made) == 3, "of a recipe that was not found by measuring there is one"
    assert first.results["lift_success"] == 0.5 and first.results["lift_success_sds"] == 0.5
    assert first.results["diverged"] == pytest.approx(1 / 3)
    assert set(first.results) == set(success.MEANINGS)
    again = bench.run(2, 1, "cpu", tmp_path, modules=(success,))
    assert len(made) == 3, "none is made again"
    assert again.results["lift_success"] == 0.5


def test_the_best_way_has_most_views_right_and_of_equals_is_the_quickest():
    def rows(right, seconds):
        return {"lift 0": {"right": right, "seconds": seconds, "diverged": float(seconds is None)}}

    session = LiftSession(2, 1, torch.device("cpu"), None)
    session.found = {"slow": rows(1.0, 9.0), "quick": rows(1.0, 3.0), "worse": rows(0.5, 1.0), "gone": rows(0.0, None)}
    assert success._best(session) == "quick"


def test_faces_are_counted_by_the_way_that_views_are_told(made, monkeypatch, tmp_path):
    monkeypatch.setattr(janus, "truth", lambda session: 3.0)
    found = bench.run(2, 1, "cpu", tmp_path, modules=(janus,)).results
    assert found == {key: 3.0 for key in janus.MEANINGS}
    assert len(made) == 2 * len(janus.METHODS) * len(janus.WAYS)


@pytest.mark.slow
def test_the_oracle_sees_a_true_robots_face_from_its_front_alone():
    whole = LiftSession(2, 1, torch.device("cpu"))
    assert isinstance(whole.oracle, Oracle)
    assert 3 <= janus.truth(whole) <= 5  # the face shows a little from the sides, too


def test_every_key_has_a_meaning():
    keys = {key for module in bench.MODULES for keys, _ in module.MEASURES for key in keys}
    assert keys == {key for module in bench.MODULES for key in module.MEANINGS}
    assert {key for module in bench.MODULES for key in module.TARGETS} <= keys
