"""``sfumato learn``, and its concept in other commands."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from sfumato.learning.concepts import Concept
from sfumato.learning.teaching import Teaching


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
        (("{photos}", "--as", "<duck>", "--as", "<cat>"), "textual-inversion learns one word; break-a-scene learns"),
        (("{photos}", "--as", "<duck>", "--as", "<duck>"), "each thing has a word of its own"),
        (("{photos}", "--as", "<duck>", "--kind", "a", "--kind", "b"), "--kind is one for all words or as many"),
        (("{photos}", "--as", "<duck>", "--mask-word", "a", "--mask-word", "b"), "--mask-word is one for each"),
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


def test_several_things_are_one_file_and_concepts_are_kept_apart(here, run, photos, tmp_path):
    for word, box in (("mug", (0, 0, 20, 30)), ("ball", (20, 0, 40, 30))):
        (tmp_path / "masks" / word).mkdir(parents=True)
        for i in range(2):
            mask = Image.new("L", (40, 30))
            mask.paste(255, box)
            mask.save(tmp_path / "masks" / word / f"{i}.png")
    words = ("--as", "<mug>", "--as", "<ball>", "--masks", tmp_path / "masks", "--steps", 2, "--samples", 0)
    method = ("break-a-scene", "--rank", 2, "--rate", 0.1, "--prior-weight", 0)
    code, out, err = run("learn", photos, *words, "--kind", "cube", "--out", tmp_path, "--json", *method)
    assert code == 0, err
    row = json.loads(out)
    assert row["kinds"] == {"<mug>": "cube", "<ball>": "cube"} and row["files"][0].endswith(
        "mug-ball-break-a-scene.safetensors"
    )
    assert Concept.load(row["files"][0]).words == ("<mug>", "<ball>")
    other = tmp_path / "cat.safetensors"
    learned = Concept.load(row["files"][0])
    Concept("<cat>", learned.rows, learned.changes).save(other)
    seen = set()
    for options in ((), ("--compose", "apart"), ("--concept", other), ("--concept", other, "--compose", "apart")):
        place = tmp_path / f"painted-{len(seen)}"
        named = ("--concept", f"{row['files'][0]}:<a>,<b>")
        code, _, err = run("generate", "a <a> and a <cat>", "--n", 1, "--steps", 2, "--out", place, *named, *options)
        assert code == 0, err
        seen.add(Image.open(next(place.glob("*.png"))).tobytes())
    assert len(seen) == 3, "one alone is the same both ways, and two are not"
