"""Heads that take words, and landmarks, from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.methods import heads
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.scene import GROUNDS
from sfumato.tasks import train_head as task

DIFT = ("+", "dift", "--layers", "up_blocks.0.resnets.0", "--ensemble", 1)


@pytest.fixture
def photos(tmp_path):
    """Two pictures with captions and landmarks."""
    place = tmp_path / "photos"
    place.mkdir()
    for name, colour in (("a", "red"), ("b", "green")):
        Image.new("RGB", (40, 30), colour).save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"a {colour} cube")
    (place / "a-points.json").write_text(json.dumps({"nose": [20, 15], "tail": [5, 30], "ear": [2, 2]}))
    (place / "b-points.json").write_text(json.dumps({"tail": None, "nose": [5, 0]}))
    return place


def test_a_head_names_patches_by_words_that_are_given_when_it_reads(here, run, photos, tmp_path):
    file, common = tmp_path / "pacl.safetensors", ("--steps", 2, "--side", 64)
    code, out, err = run("train-head", photos, *common, "--test", "stilllife:2", "--out", file, "--json", "pacl", *DIFT)
    assert code == 0, err
    assert 0 <= json.loads(out)["test"]["miou"] <= 1
    assert heads.load(file).names == ()
    asked = ("segment", photos / "a.png", "--head", file, "--out", tmp_path / "cut", "--json")
    code, out, err = run(*asked, "--names", "red cube,grass")
    assert code == 0, err
    assert json.loads(out)["images"][0]["names"] == ["red cube", "grass"]
    code, _, err = run(*asked)
    assert code != 0 and "names patches by any words, and there is none; give some: --names" in err


def test_landmarks_are_learned_found_and_measured(here, run, photos, tmp_path):
    """An ear that the crop to the middle square takes away is not among them."""
    file = tmp_path / "points.safetensors"
    asked = ("train-head", photos, "--steps", 2, "--side", 64, "--test", photos, "--out", file, "--json")
    code, out, err = run(*asked, "landmark-regression", "--virtual", 3, *DIFT)
    assert code == 0, err
    assert set(json.loads(out)["test"]) == {"error_per_image", "error_per_point"}
    assert heads.load(file).names == ("nose", "tail")
    code, out, err = run("keypoints", photos / "b.png", "--head", file, "--out", tmp_path / "found", "--json")
    assert code == 0, err
    row = json.loads(out)["images"][0]
    assert row["names"] == ["nose", "tail"] and torch.tensor(row["points"]).shape == (2, 2)
    code, _, err = run("segment", photos / "b.png", "--head", file, "--out", tmp_path / "cut")
    assert code != 0 and "a head of landmark-regression gives no segments" in err


def test_landmarks_of_a_folder_lie_in_parts_of_the_crop(sd, photos):
    seen = task.pictures(photos, sd)
    assert seen.landmarks == ("nose", "tail") and seen.captions == ("a red cube", "a green cube")
    torch.testing.assert_close(seen.points[0], torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
    assert seen.points[1, 0].tolist() == [0, 0] and seen.points[1, 1].isnan().all()
    (photos / "b-points.json").write_text("[1]")
    with pytest.raises(SfumatoError, match="is no landmarks as"):
        task.pictures(photos, sd)


def test_scenes_are_labelled_by_words_of_captions():
    """Each pixel by its kind, or the ground's word, and a backdrop by none."""
    plain, worded = task.still_lifes("2", 32, 3), task.still_lifes("2", 32, 3, worded=True)
    assert worded.names == (*TRAINED, *GROUNDS) and torch.equal(plain.pixels, worded.pixels)
    for a, b, caption in zip(plain.labels, worded.labels, worded.captions, strict=True):
        assert (b[a == 0] == -1).all() and torch.equal(b[a > 1], a[a > 1] - 2)
        assert worded.names[int(b[a == 1].unique())] in caption
