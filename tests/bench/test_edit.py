"""The benches of editing and control, on the tiny model: they measure what they say, and go on where they stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.bench import control, edit
from sfumato.bench.units import Units
from sfumato.methods.control.spatio_textual import SpaTextHead
from sfumato.stilllife.captions import SaidThing
from sfumato.stilllife.oracle import Reading, ReadThing

CPU = torch.device("cpu")


@pytest.fixture
def quick(here, monkeypatch):
    monkeypatch.setattr(edit, "STEPS", 4)
    monkeypatch.setattr(control, "STEPS", 2)
    some = ("SDEdit 0.6", "Prompt-to-Prompt", "DiffEdit", "blended latents, told where")
    monkeypatch.setattr(edit, "BASELINES", ("no edit", "reconstruct", "SDEdit 0.6"))
    monkeypatch.setattr(edit, "RUNNERS", {name: edit.RUNNERS[name] for name in some})
    return here


def test_edits_are_judged_by_kind_and_resumed(quick, tmp_path, monkeypatch):
    session = edit.EditSession(7, 0, CPU, tmp_path)
    figures = edit.editing(session)
    assert set(figures) == {"kinds_success", "kinds_truth"}
    assert [case.kind for case in edit.cases(session)] == list(edit.KINDS)
    assert session.methods["no edit"]["background_psnr"] > 40 and session.methods["no edit"]["success"] == 0
    told = session.compared["edit"].rows["blended latents, told where"]
    assert {unit.rsplit(" ", 1)[0] for unit in told} == {"recolour", "reshape", "material", "add", "turn"} | (
        {"ground or light"} if any(u.startswith("ground") for u in told) else set()
    )
    monkeypatch.setattr(edit, "painted", lambda *args: pytest.fail("measured again"))
    assert edit.editing(edit.EditSession(7, 0, CPU, tmp_path)) == figures
    row = session.compared["edit"].table()["SDEdit 0.6"]["psnr_to_truth"]
    assert row["n"] == 7 and row["low"] <= row["mean"] <= row["high"]


def test_units_are_kept_with_their_pictures_and_those_of_other_weights_painted_anew(tmp_path):
    def painted(v, colour):
        return lambda: ({"v": v}, torch.full((3, 8, 8), colour))

    file = tmp_path / "u.jsonl"
    assert Units(file, of="a").get("x", painted(1.0, 1.0))[0] == {"v": 1.0}
    with file.open("a") as lines:
        lines.write('{"of": "a", "unit": "y", "row"')  # stopped while it wrote
    row, image = Units(file, of="a").get("x", painted(2.0, 0.0))
    assert row == {"v": 1.0} and torch.equal(image, torch.ones(3, 8, 8))
    row, image = Units(file, of="b").get("x", painted(2.0, 0.0))
    assert row == {"v": 2.0} and torch.equal(image, torch.zeros(3, 8, 8))
    for picture in (tmp_path / "u").iterdir():
        picture.unlink()
    assert Units(file, of="a").get("x", painted(3.0, 0.0))[0] == {"v": 3.0}
    assert Units(None, of="a").get("x", painted(4.0, 0.0))[0] == {"v": 4.0}


def test_a_thing_is_inside_its_box_if_most_of_it_is():
    mask = np.zeros((128, 128), int)
    mask[32:64, 16:48] = 1
    thing = ReadThing("cube", "red", "plain", (16, 32, 48, 64), (31.5, 47.5), 1024, False)
    reading = Reading((thing,), "grass", "day", "photo", mask)
    said = (SaidThing("cube", "red"),)
    whole, half = ((0.125, 0.25, 0.375, 0.5),), ((0.125, 0.25, 0.25, 0.5),)
    row = control.judged(reading, control.Prompt(said, 0, "grass", whole))
    ones = dict.fromkeys(("present", "bound", "inside", "inside_by_colour"), 1)
    assert row == {**ones, **dict.fromkeys(("layout_iou", "iou_by_colour"), pytest.approx(1.0))}
    assert control.judged(reading, control.Prompt(said, 0, "grass", half))["inside"] == 0
    other = control.judged(reading, control.Prompt((SaidThing("duck", "red"),), 0, "grass", whole))
    assert other["inside"] == 0 and other["inside_by_colour"] == 1
    none = control.judged(reading, control.Prompt((SaidThing("duck", "blue"),), 0, "grass", whole))
    assert none == dict.fromkeys(none, 0)
    assert control.Prompt((SaidThing("cube", "orange"), SaidThing("duck", "red")), 0, "sand").words == (
        "an orange cube and a red duck on sand"
    )


def test_control_measures_plain_and_methods(quick, monkeypatch):
    monkeypatch.setattr(control, "ATTRIBUTES", {k: control.ATTRIBUTES[k] for k in ("plain", "attend and excite")})
    monkeypatch.setattr(control, "LAYOUTS", {k: control.LAYOUTS[k] for k in ("plain", "region prompts")})
    monkeypatch.setattr(control, "SCENES", 2)
    monkeypatch.setattr(control.recipes, "teaching", lambda word, model: SpaTextHead(batch=1, steps=1))
    session = control.ControlSession(3, 0, CPU)
    figures = {**control.attributes(session), **control.placing(session)}
    wanted = set(control.MEANINGS) - {"attend_excite_vs_diffusers_time", "attend_excite_vs_diffusers_present"}
    assert set(figures) == wanted
    noted = session.methods["things: plain"]
    assert {"present", "bound", "seconds", "peak_mb", "frechet_clip", "pair_distance"} <= set(noted)
    assert all(len(p.things) == (3 if i % 3 == 2 else 2) for i, p in enumerate(control.prompts(session)))
    for prompt in control.layouts(session):
        prompt.layout.check()
        assert prompt.layout.tokens  # phrases are the prompt's own
