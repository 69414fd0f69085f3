"""``sfumato train-head``, its tasks, and its head in ``sfumato segment``."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sfumato.commands import fields
from sfumato.errors import SfumatoError
from sfumato.media.labels import read_labels
from sfumato.methods import heads
from sfumato.methods.perceive.stego import STEGO, Distilling
from sfumato.reading.results import Segments
from sfumato.tasks import recipes
from sfumato.tasks import train_head as task

QUICK = ("stego", "--classes", 3, "--batch", 2, "--points", 2)
SOURCE = ("+", "dift", "--blocks", 0, "--ensemble", 1)  # in place of the layers that suit the model


@pytest.fixture
def photos(tmp_path):
    """Two pictures, one with labels, left and right."""
    place = tmp_path / "photos"
    place.mkdir()
    for name, colour in (("a", "red"), ("b", "green")):
        Image.new("RGB", (40, 30), colour).save(place / f"{name}.png")
    labels = Image.new("L", (40, 30))
    labels.paste(1, (20, 0, 40, 30))
    labels.save(place / "a-labels.png")
    return place


@pytest.fixture
def lab(here, run, photos, tmp_path):
    def call(*args, data=photos, steps=2, out=tmp_path / "out" / "head.safetensors", method=QUICK, source=SOURCE):
        return run("train-head", data, "--steps", steps, "--side", 64, "--out", out, *args, *method, *source)

    return call


def test_a_head_is_trained_measured_and_read(lab, run, photos, tmp_path):
    code, out, err = lab("--names", "left,right", "--test", photos, "--json")
    assert code == 0, err
    row, file = json.loads(out), tmp_path / "out" / "head.safetensors"
    assert row["files"][0] == str(file) and row["pictures"] == 2 and row["steps"] == 2 and "2 pictures" in err
    assert {"miou_per_set", "miou_per_image", "right_per_set", "miou_by_labels"} <= set(row["test"])
    head = heads.load(file)
    assert head.method.classes == 3 and head.names == ("left", "right") and head.side == 64
    assert not list(file.parent.glob(".*.safetensors")), "a run that is over keeps no checkpoint"
    code, out, err = run("segment", photos / "a.png", "--head", file, "--out", tmp_path / "cut", "--json", "graph-cut")
    assert code == 0, err
    assert read_labels(tmp_path / "cut" / "a-labels.png").shape == (30, 40)
    assert "STEGO on stilllife" in (tmp_path / "cut" / "index.html").read_text()


def test_a_run_that_was_stopped_goes_on_to_the_same_head(lab, tmp_path, monkeypatch):
    assert lab(steps=3)[0] == 0
    steps, loss = [], Distilling.loss

    def cut(self, step):
        if step == 2 and 2 not in steps:
            steps.append(step)
            raise KeyboardInterrupt
        steps.append(step)
        return loss(self, step)

    monkeypatch.setattr(Distilling, "loss", cut)
    place = tmp_path / "cut" / "head.safetensors"
    assert lab(steps=3, out=place)[0] == 130 and list(place.parent.glob(".*.safetensors"))
    assert lab(steps=3, out=place)[0] == 0 and steps == [0, 1, 2, 2]
    whole, again = (heads.load(tmp_path / name / "head.safetensors").network for name in ("out", "cut"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())


def test_features_of_ones_own_are_learned_of_and_read(lab, run, photos, tmp_path):
    maps = {name: torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    save_file(maps, tmp_path / "maps.safetensors")
    code, _, err = lab("--given", tmp_path / "maps.safetensors", source=())
    assert code == 0, err
    head = tmp_path / "out" / "head.safetensors"
    call = ("segment", photos / "a.png", "--head", head, "--out", tmp_path / "segments")
    assert run(*call, "--given", tmp_path / "maps.safetensors")[0] == 0
    found = read_labels(tmp_path / "segments" / "a-labels.png")
    assert torch.equal(found, heads.load(head).of([maps["a"]], (30, 40)).labels)
    for args, why in (
        (call, "features that are given, and none are"),
        (("segment", photos / "a-labels.png", *call[2:], "--given", tmp_path / "maps.safetensors"), "no tensor"),
        (("segment", photos / "a.png", "--given", tmp_path / "maps.safetensors"), "name it by --head"),
    ):
        code, _, err = run(*args)
        assert code == 2 and why in err and err.count("\n") <= 2, err


def test_what_sfumato_features_writes_is_given_as_well(tmp_path):
    save_file({"deep": torch.ones(2, 3, 2, 2), "fine": torch.ones(1, 5, 4, 4)}, tmp_path / "a-features.safetensors")
    found = task.given(tmp_path)("a")
    assert found.shape == (3 + 3 + 5, 4, 4)
    for place, stem, why in ((tmp_path, "b", "has no b-features"), (tmp_path / "none", "a", "there are no features")):
        with pytest.raises(SfumatoError, match=why):
            task.given(place)(stem)


def test_what_is_wrong_is_said_in_one_line(lab, photos, tmp_path, run):
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for options, why in (
        ({"data": tmp_path / "none"}, "there is no folder"),
        ({"data": tmp_path / "empty"}, "no picture"),
        ({"data": "stilllife:many"}, "scenes are a number"),
        (
            {"method": ("diff-seg",), "source": ()},
            "diff-seg learns no head; methods that do: spatext, diffews, landmark-regression, pacl, picie, stego",
        ),
        ({"source": ("+", "diff-seg")}, "diff-seg reads no features"),
        ({"method": (), "source": ()}, "train-head takes a method"),
        ({"method": ("picie",), "source": ()}, "know nothing"),
    ):
        more = ("--given", tmp_path / "other.safetensors") if "nothing" in why else ()
        code, _, err = lab(*more, **options)
        assert code == 2 and why in err, err
    segment = ("segment", photos / "a.png", "--out", tmp_path / "x")
    for args, why in (
        (("--head", tmp_path / "none"), "there is no head"),
        (("--head", tmp_path / "other.safetensors"), "is no head that sfumato train-head wrote"),
        (("stego",), "stego learns a head first: sfumato train-head DATA stego"),
    ):
        code, _, err = run(*segment, *args)
        assert code == 2 and why in err, err


def test_scenes_and_folders_know_their_labels(sd, photos):
    scenes = task.still_lifes("2", 32, 3)
    assert scenes.pixels.shape == (2, 3, 32, 32) and scenes.labels.shape == (2, 32, 32)
    assert scenes.names[:2] == ("backdrop", "ground") and (scenes.labels >= 2).any() and all(scenes.captions)
    assert task.still_lifes("2", 32, 3).digest == scenes.digest != task.still_lifes("2", 32, 4).digest
    (photos / "a.txt").write_text("a red field\n")
    seen = task.pictures(photos, sd)
    assert seen.stems == ("a", "b") and seen.captions == (), "not all have one"
    assert seen.labels[0, :, : sd.size // 2].unique().tolist() == [0] and (seen.labels[1] == -1).all()
    assert seen.labels[0, :, sd.size // 2 :].unique().tolist() == [1]


def test_both_protocols_are_measured():
    """Clusters that are matched in each image alone: swapped in the second, so half right once, all right by image."""
    truth = torch.zeros(2, 4, 4).long()
    truth[:, 2:] = 1
    scores = torch.stack([torch.stack([1.0 - truth[0], truth[0]]), torch.stack([truth[1], 1.0 - truth[1]])]).float()
    found = [Segments(each, (4, 4)) for each in scores]
    wanted = {"miou_per_set": 1 / 3, "right_per_set": 0.5, "miou_per_image": 1.0, "right_per_image": 1.0}
    assert task.measured(found, truth) == pytest.approx(wanted)
    named = [replace(each, names=("a", "b")) for each in found]
    assert task.measured(named, truth) == pytest.approx({"miou": 1 / 3})


def test_of_what_was_not_asked_a_recipe_counts():
    suiting = STEGO(dim=32, steps=7)
    assert recipes.filled(STEGO(classes=4), suiting) == STEGO(classes=4, dim=32, steps=7)
    usual = STEGO().dim
    assert recipes.filled(STEGO(classes=4), suiting, {"dim"}) == STEGO(classes=4, dim=usual, steps=7)
    named = fields.methods([["stego", "--steps=3", f"--dim={usual}"]], "sfumato").named
    assert named == (frozenset({"steps", "dim"}),)


def test_a_network_that_looks_for_what_examples_show(lab, run, photos, tmp_path):
    (photos / "b-labels.png").write_bytes((photos / "a-labels.png").read_bytes())
    quick = ("diffews", "--rank", 1, "--batch", 1, "--shots", 1)
    code, out, err = lab("--test", photos, "--json", method=quick, source=(), steps=1)
    assert code == 0, err
    row, file = json.loads(out), tmp_path / "out" / "head.safetensors"
    assert row["features"] == "Latents()" and set(row["test"]) == {"miou_by_1"} and len(row["files"]) == 2
    shown = ("--head", file, "--labelled", photos, "--out", tmp_path / "cut", "--json")
    code, out, err = run("segment", photos / "a.png", *shown)
    assert code == 0 and json.loads(out)["images"][0]["names"] == ["background", "thing"], err
    code, _, err = run("segment", photos / "a.png", "--head", file, "--out", tmp_path / "cut")
    assert code == 2 and "DiffewS learns from examples; give a folder of them: --labelled FOLDER" in err
    code, _, err = lab(method=quick, source=SOURCE)
    assert code == 2 and "diffews reads pictures by itself; leave + dift out" in err
    code, _, err = lab("--given", photos, method=quick, source=())
    assert code == 2 and "leave one out" in err


def test_shots_are_measured_by_class_on_pictures_that_show_it(sd):
    """Of three pictures with 1, 2 and 3 pixels of a class an answer that is the support's mask, of 2, 3 and 1 pixels:
    1 + 2 + 1 are right of 2 + 3 + 3. For five there are too few.
    """
    labels = torch.zeros(3, 8, 8).long()
    for i in range(3):
        labels[i, 0, : i + 1] = 1
    labels[0, 4] = 2

    class Copies:
        side, method = 64, SimpleNamespace(seen=lambda labels, names: {1: [0, 1, 2]})

        def with_support(self, readers, masks):
            assert len(readers) == len(masks) == 1
            score = torch.stack([0.5 + 0 * masks[0], masks[0]])
            return lambda reader: Segments(score, (8, 8))

    seen = task.Pictures(torch.rand(3, 3, 8, 8), labels)
    figures, found = task.measured_by_shots(Copies(), sd, seen)
    assert figures == {"miou_by_1": (1 + 2 + 1) / (2 + 3 + 3)} and sorted(found) == [0, 1, 2]
    assert torch.equal(found[2].labels, (labels[0] == 1).long())
    with pytest.raises(SfumatoError, match="on pictures with labels, of which two or more show a class"):
        task.measured_by_shots(Copies(), sd, replace(seen, labels=None))
