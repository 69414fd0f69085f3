"""``sfumato learn``, and its concept in other commands."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from sfumato.learning import concepts
from sfumato.learning.checkpoint import read
from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson
from sfumato.learning.teaching import Teaching
from sfumato.tasks import learn as task
from sfumato.tasks import recipes


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


def test_it_writes_a_concept_that_other_commands_read(lab, run, tmp_path, monkeypatch):
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
    reads = []
    with monkeypatch.context() as patch:
        patch.setattr(concepts, "read", lambda path: reads.append(path) or read(path))
        assert painted("--concept", row["files"][0])[0] == known
    assert len(reads) == 1, "the file is read again for what is said of prompts"


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


@pytest.mark.parametrize("stage", ["read", "encoded", "painted", "saved"])
def test_stopped_at_any_other_stage_nothing_that_was_learned_is_lost(lab, tmp_path, monkeypatch, stage):
    """While photographs are read or encoded, and, when all steps are done, while samples are painted or it is saved."""

    def stop(*args, **options):
        raise KeyboardInterrupt

    stages = {"read": (task, "read_image"), "encoded": (Lesson, "of"), "painted": (task, "painted")}
    place, name = (stages | {"saved": (concepts, "save_tensors")})[stage]
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
        (
            ("{photos}", "--as", "<duck>", "sds"),
            "sds is a method of sfumato distill2d and lift; those of this command: ",
        ),
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


def test_a_relation_is_learned_from_captions_of_pictures(here, run, photos, tmp_path):
    captions = tmp_path / "text.json"
    captions.write_text(
        json.dumps({"0.png": "a red cube {} a duck", "1.png": ["a mug <by> a ring", "a car {} a tree"]})
    )
    options = ("--as", "<by>", "--steps", 1, "--samples", 2, "--out", tmp_path / "by.safetensors", "--json")
    code, out, err = run("learn", photos, *options, "--captions", captions, "reversion", "--batch", 2)
    assert code == 0, err
    row = json.loads(out)
    assert row["kind"] == "and" and "1 steps of reversion on 2 photographs" in err
    assert Concept.load(tmp_path / "by.safetensors").rows["clip_l"].shape[0] == 1
    for more, says in (
        (("reversion",), "reversion learns from pictures with captions; give them by --captions"),
        (("--captions", captions, "textual-inversion"), "textual-inversion does not learn from captions; leave"),
    ):
        code, _, err = run("learn", photos, *options, *more)
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
    call = ("generate", "a <a> and a <cat>", "--n", 1, "--steps", 2, "--concept", f"{row['files'][0]}:<a>,<b>")
    both = ("--concept", other, "--compose", "apart")
    laid = (*both, "--region", "<cat>", "0,0,0.5,1", "--region", "<a>", "0.5,0,1,1")
    for options in ((), ("--compose", "apart"), ("--concept", other), both, laid):
        place = tmp_path / f"painted-{len(seen)}"
        code, _, err = run(*call, "--out", place, *options)
        assert code == 0, err
        assert ("<a> and <cat> read as the same words" in err) == (other in options and options != laid)
        seen.add(Image.open(next(place.glob("*.png"))).tobytes())
    assert len(seen) == 4, "one alone is the same both ways, and two are not"
    for options, says in (
        (("--concept", other, *laid[4:]), "--region is read with --compose apart alone"),
        ((*laid, "--region", "<b>", "0,0,0.2,0.2"), "the regions of '<cat>' and '<b>' overlap"),
        (("--concept", other, "--compose", "tokens"), "only keys and values of cross-attention"),
        ((*both, "--region", "<dog>", "0,0,1,1"), "unknown word of a region '<dog>'; known: <a>, <b>, <cat>"),
        ((*both, "--region", "<a>", "0,0,40,40"), "outside of the image; boxes are parts"),
        ((*laid, "--canvas", 128, 64), "--region is of images that are seen whole, and a canvas is not"),
    ):
        code, _, err = run(*call, "--out", tmp_path / "no", *options)
        assert code == 2 and says in err.splitlines()[-1], err
    for command in (("panorama", "a <a>", "--size", "128x64"), ("illusion", "a <a>", "a <cat>", "--view", "turn")):
        code, _, err = run(*command, *call[6:], "--out", tmp_path / "no", *laid)
        assert code == 2 and "--region is of images that are seen whole" in err.splitlines()[-1], err


def test_each_word_that_changes_weights_has_a_rare_name_of_its_own(here, run, photos, tmp_path):
    def named(word, *more):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        args = ("--as", word, "--kind", "cube", "--steps", 1, "--samples", 0, "--out", file)
        code, _, err = run("learn", photos, *args, "lora", *more)
        assert code == 0, err
        found = Concept.load(file)
        ranks = {len(change) for key, change in found.changes.items() if key.endswith("lora_A")}
        assert ranks == {4 if more else recipes.find("lora").method.rank}, "what was asked for gave way to a recipe"
        return found.about["identifier"]

    duck = named("<duck>")
    assert duck != "sks" and len(duck) == 3
    assert named("<duck>", "--identifier", "sks", "--rank", 4) == "sks"


def test_an_encoder_that_was_taught_gives_a_concept_its_word(here, run, photos, tmp_path):
    encoder = tmp_path / "things.safetensors"
    code, out, err = run(
        "train-encoder", "--n", 2, "--samples", 1, "--steps", 1, "--batch", 1, "--out", encoder, "--json"
    )
    assert code == 0, err
    row = json.loads(out)
    assert "1 steps of an encoder on 2 pictures" in err and row["pictures"] == 2 and row["files"][0] == str(encoder)
    sheet = Image.open(row["files"][1])
    assert sheet.size[1] > sheet.size[0], "a picture above what is painted by its word"
    assert not list(tmp_path.glob(".things*.safetensors")), "a run that is over keeps no checkpoint"
    args = (
        "learn",
        photos,
        "--as",
        "<duck>",
        "--samples",
        0,
        "--steps",
        1,
        "--out",
        tmp_path / "out",
        "encoder-tuning",
    )
    code, _, err = run(*args)
    assert code == 2 and "sfumato train-encoder makes one (--encoder)" in err
    code, _, err = run(*args[:-1], "--encoder", encoder, "lora")
    assert code == 2 and "lora reads no encoder; leave --encoder out" in err
    code, out, err = run(*args[:-1], "--encoder", encoder, "--json", "encoder-tuning", "--batch", 1)
    assert code == 0, err
    concept = Concept.load(json.loads(out)["files"][0])
    assert concept.rows["clip_l"].shape[0] == 2 and concept.about["kind"] == "cube"
    assert {key.rpartition(".")[2] for key in concept.changes} == {"scale_A", "scale_B"}
    code, _, err = run("train-encoder", "--model", "sd-1.5", "--out", tmp_path / "other")
    assert code == 2 and "give pictures of one domain" in err
    code, _, err = run("train-encoder", photos, "--samples", 2, "--out", tmp_path / "other")
    assert code == 2 and "of 2 pictures 2 are kept to be painted" in err
