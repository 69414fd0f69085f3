"""``sfumato distill2d``: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from sfumato.tasks import distill as task

PROMPT = "a red cube on grass"


@pytest.fixture
def lab(here, run, tmp_path):
    """The command on the tiny model, with two steps, into a folder of its own."""

    def call(*args, steps=2, n=2):
        return run("distill2d", PROMPT, "--steps", steps, "--n", n, "--out", tmp_path, *args)

    return call


@pytest.mark.parametrize("space", ["latent", "pixel", "coordinates"])
def test_every_space_gives_pictures_a_film_and_a_record(lab, tmp_path, space):
    code, out, err = lab("--space", space, "--every", 1, "--json", "score-distillation")
    assert code == 0, err
    (row,) = json.loads(out)["runs"]
    stem = "a-red-cube-on-grass-score-distillation"
    names = [f"{stem}-0.png", f"{stem}-1.png", f"{stem}.png", f"{stem}.gif"]
    assert row["files"] == [str(tmp_path / name) for name in names]
    assert Image.open(tmp_path / names[0]).info["prompt"] == PROMPT
    assert Image.open(tmp_path / names[-1]).n_frames == 3  # two steps and the end
    assert len(row["strength"]) == 2
    assert not list(tmp_path.glob("*.safetensors")), "a run that is over keeps no checkpoint"


def test_a_sweep_is_a_run_each_and_a_sheet(lab, tmp_path):
    code, out, _ = lab("--sweep", "1,30", "--json", "sds")
    assert code == 0
    runs = json.loads(out)["runs"]
    assert [run["guidance"] for run in runs] == [1.0, 30.0]
    assert "guidance=30.0" in runs[1]["method"]
    assert (tmp_path / "a-red-cube-on-grass-sds-sweep.png").exists()


def test_a_run_that_was_cut_off_goes_on_to_the_same_pictures(lab, tmp_path, monkeypatch):
    assert lab("sds", steps=4)[0] == 0
    whole = Image.open(tmp_path / "a-red-cube-on-grass-sds-0.png").tobytes()
    film = task._Film.__call__

    def cut(self, step, images):
        if step == 2:
            raise KeyboardInterrupt
        film(self, step, images)

    with monkeypatch.context() as patch:
        patch.setattr(task._Film, "__call__", cut)
        code, _, err = lab("sds", steps=4)
    assert (code, err.strip()) == (130, "sfumato: stopped")
    (kept,) = tmp_path.glob(".*.safetensors")
    began = []
    monkeypatch.setattr(task._Film, "__call__", lambda self, step, images: began.append(step))
    assert lab("sds", steps=4)[0] == 0
    assert began == [2, 3]
    assert Image.open(tmp_path / "a-red-cube-on-grass-sds-0.png").tobytes() == whole
    assert not kept.exists()


def test_it_starts_from_a_picture_and_follows_regularisers(lab, tmp_path):
    torch.manual_seed(0)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (160, 130), (200, 30, 40)).save(photo)
    for weights in (("--saturation", 1.0), ("--hue", 1.0), ("--histogram", 1.0)):
        assert lab("--init", photo, "--space", "pixel", *weights, "sds", n=1)[0] == 0
    plain = tmp_path / "a-red-cube-on-grass-sds-0.png"
    assert Image.open(plain).size == (160, 128), "the shorter side is the model's, the longer to a multiple of eight"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "distill2d takes one method"),
        (("sds", "+", "sds"), "distill2d takes one method"),
        (("nosuch",), "unknown method 'nosuch'"),
        (("masactrl",), "masactrl is a method of sfumato generate, panorama, "),
        (("--sweep", "1,x", "sds"), "--sweep are different numbers"),
        (("--rate", "0", "sds"), "--rate is a number above 0"),
        (("--turn", "400", "sds"), "--turn lies in 0 to 180"),
        (("--zoom", "2", "1", "sds"), "--zoom in 0.1 to 10"),
        (("--clip", "much", "sds"), "'much' is no ramp"),
        (("--hue", "-1", "sds"), "are numbers from 0"),
        (("--init", "nowhere.png", "sds"), "nowhere.png"),
        (("--size", "100", "sds"), "multiple of 8"),
        (("sds", "--times", "0.2,3"), "parts of the training's, from 0 to 1"),
        (("sds", "--times", "1>2>3"), "is no ramp"),
    ],
)
def test_what_cannot_be_is_one_line(lab, args, said):
    code, out, err = lab(*args)
    assert code == 2
    assert said in err and not out and len(err.strip().splitlines()) == 1


def test_an_empty_prompt_is_refused(here, run):
    assert "the prompt is empty" in run("distill2d", " ", "sds")[2]


def test_a_picture_brings_its_size_and_a_network_takes_none(lab, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (128, 128)).save(photo)
    assert "brings its own size" in lab("--init", photo, "--size", 64, "sds")[2]
    assert "cannot start from an image" in lab("--init", photo, "--space", "coordinates", "sds")[2]
