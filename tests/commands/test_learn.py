"""``sfumato learn``, and its concept in other commands."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson
from sfumato.learning.teaching import Teaching
from sfumato.tasks import learn as task


@pytest.fixture
def photos(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for i, colour in enumerate(("red", "green")):
        Image.new("RGB", (40, 30), colour).save(place / f"{i}.png")
    return place


@pytest.fixture
def lab(here, run, photos, tmp_path):
    def call(*args, steps=2, out=tmp_path / "out"):
        return run("learn", photos, "--as", "<duck>", "--steps", steps, "--samples", 1, "--out", out, *args)

    return call


def test_it_writes_a_concept_that_other_commands_read(lab, run, tmp_path):
    code, out, err = lab("--json", "--kind", "cube", "textual-inversion", "--vectors", 2)
    assert code == 0, err
    row = json.loads(out)
    names = [name.split("/")[-1] for name in row["files"]]
    assert names == ["duck-textual-inversion.safetensors", "duck-textual-inversion.png"]
    assert "2 steps of textual-inversion on 2 photographs" in err and "vectors=2" in row["method"]
    concept = Concept.load(row["files"][0])
    assert concept.word == "<duck>" and concept.about["steps"] == 2 and concept.rows["clip_l"].shape[0] == 2
    assert not list((tmp_path / "out").glob(".*.safetensors")), "a run that is over keeps no checkpoint"
    sheet = Image.open(row["files"][1])
    assert sheet.size[1] > sheet.size[0], "a photograph above what is painted"

    def painted(*options):
        place = tmp_path / f"painted-{len(list(tmp_path.iterdir()))}"
        code, _, err = run("generate", "a <duck> on snow", "--n", 1, "--steps", 2, "--out", place, *options)
        assert code == 0, err
        return Image.open(next(place.glob("*.png"))).tobytes(), err

    known, _ = painted("--concept", row["files"][0])
    plain, _ = painted()
    assert known != plain, "the concept is not read"
    _, err = painted("--concept", f"{row['files'][0]}:<goose>")
    assert "no prompt says '<goose>', the word of --concept" in err


def test_a_run_that_was_stopped_goes_on_to_the_same_concept(lab, tmp_path, monkeypatch):
    assert lab(steps=4, out=tmp_path / "whole.safetensors")[0] == 0
    loss = Teaching.loss

    def cut(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return loss(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Teaching, "loss", cut)
        code, _, err = lab(steps=4, out=tmp_path / "cut" / "whole.safetensors")
        assert code == 130 and list((tmp_path / "cut").glob(".*.safetensors")), err
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(Teaching, "loss", lambda self, step: steps.append(step) or loss(self, step))
        assert lab(steps=4, out=tmp_path / "cut" / "whole.safetensors")[0] == 0
    assert steps == [2, 3]
    whole, again = (Concept.load(tmp_path / place) for place in ("whole.safetensors", "cut/whole.safetensors"))
    assert torch.equal(whole.rows["clip_l"], again.rows["clip_l"])


@pytest.mark.parametrize("stage", ["read", "encoded", "painted"])
def test_stopped_at_any_other_stage_nothing_that_was_learned_is_lost(lab, tmp_path, monkeypatch, stage):
    """While photographs are read or encoded, and while samples are painted, when all steps are done."""

    def stop(*args, **options):
        raise KeyboardInterrupt

    place, name = {"read": (task, "read_image"), "encoded": (Lesson, "of"), "painted": (task, "painted")}[stage]
    out, steps, loss = tmp_path / "duck.safetensors", [], Teaching.loss
    monkeypatch.setattr(Teaching, "loss", lambda self, step: steps.append(step) or loss(self, step))
    with monkeypatch.context() as patch:
        patch.setattr(place, name, stop)
        assert lab(out=out)[0] == 130
    assert not out.exists() and lab(out=out)[0] == 0
    assert steps == [0, 1], "steps are done twice, or not at all"
    assert Concept.load(out).about["steps"] == 2 and not list(tmp_path.glob(".*.safetensors"))


def test_other_settings_leave_the_first_concept_alone(lab, tmp_path):
    out = tmp_path / "duck.safetensors"
    assert lab(out=out)[0] == 0
    before = out.read_bytes()
    assert lab("--seed", 3, out=out)[0] == 0
    assert out.read_bytes() == before and (tmp_path / "duck.2.safetensors").exists()


@pytest.mark.parametrize(
    "args, says",
    [
        (("nowhere", "--as", "<duck>"), "there is no photograph or folder nowhere"),
        (("{photos}", "--as", "cube"), "'cube' is a word that stilllife knows"),
        (("{photos}", "--as", "<duck>", "sds"), "unknown method 'sds'"),
        (("--as", "<duck>"), "there is nothing to learn from"),
        (("{photos}", "--as", "<duck>", "--masks", "nomasks"), "there is no photograph or folder nomasks"),
        (("{photos}", "--as", "<duck>", "--kind", "  "), "reads nothing in"),
        (("{photos}", "--as", "<duck>", "--steps", "0"), "--steps"),
        (("{photos}", "--as", "<duck>", "view-inversion"), "view-inversion learns from pictures with cameras"),
        (("{photos}", "--as", "<duck>", "disentangled-inversion"), "learns from pictures with masks; give them by"),
    ],
)
def test_what_cannot_be_learned_is_one_line(here, run, photos, tmp_path, args, says):
    code, out, err = run("learn", *(a.format(photos=photos) for a in args), "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert code == 2 and not out and len(lines) == 1 and says in lines[0], err
    assert not list((tmp_path / "out").glob("[!.]*")), "something was written"


def test_a_concept_that_is_none_or_of_another_model_is_one_line(here, run, tmp_path):
    Concept("<duck>", {"clip_l": torch.zeros(1, 24)}).save(tmp_path / "wide.safetensors")
    torch.save({"x": 1}, tmp_path / "pickled.pt")
    for file, says in (
        ("wide.safetensors", "24 wide, and stilllife reads words of 16"),
        ("none.safetensors", "there is no concept"),
        ("pickled.pt", "pickled.pt"),
    ):
        code, _, err = run("generate", "a <duck>", "--concept", tmp_path / file, "--out", tmp_path / "out")
        assert code == 2 and says in err and len(err.splitlines()) == 1, err
