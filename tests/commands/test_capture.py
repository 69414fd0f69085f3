"""``sfumato capture``: what is there, and what is wrong, in a line."""

from __future__ import annotations

import json

import numpy as np
import posed
import pytest

from sfumato.scene.capture import read_capture


def test_it_says_what_is_there(run, tmp_path):
    place = posed.folder(tmp_path, posed.BENT)
    code, out, _ = run("capture", place, "--json")
    found = json.loads(out)
    capture = read_capture(place)
    assert code == 0 and found["images"] == 6 and found["size"] == [68, 44] and found["points"] == 0
    assert found["fov"] == [pytest.approx(2 * np.degrees(np.arctan(22 / 55)), abs=0.01)] * 2
    assert found["masked"] == pytest.approx(1 - float(capture.masks.float().mean()), abs=1e-4)
    assert found["transparent"] == 0 and found["file"] is None
    assert (found["near"], found["far"]) == pytest.approx(capture.span, abs=1e-4)
    code, out, err = run("capture", place, "--side", 34)
    assert code == 0 and not err and out.splitlines()[0].startswith("6 images of 34 x 22, 43.6 degrees high")
    assert "% of the pixels are masked" in out and "no sparse points" in out


def test_a_colmap_model_becomes_a_transforms_json(run, tmp_path):
    points = np.random.default_rng(0).normal(size=(30, 3)) * 0.3 + posed.MIDDLE
    lens = posed.LENS | {"k1": 0.11, "k2": -0.07, "p1": 0.006, "p2": -0.009}
    posed.colmap(tmp_path / "a", "OPENCV", (61, 55, 37.5, 22.25, 0.11, -0.07, 0.006, -0.009), lens, True, points=points)
    code, out, _ = run("capture", tmp_path / "a", "--out", tmp_path / "b")
    assert code == 0 and out.splitlines()[-1] == str(tmp_path / "b" / "transforms.json") and "30 sparse points" in out
    one, two = read_capture(tmp_path / "a"), read_capture(tmp_path / "b")
    assert two.cameras.poses.equal(one.cameras.poses) and two.masks.equal(one.masks) and two.names == one.names
    assert posed.errors(two).max() < 3.5 / 255
    kept = json.loads(run("capture", tmp_path / "a", "--keep-world", "--json")[1])
    scale = float(np.linalg.det(one.world[:3, :3].numpy()) ** (1 / 3))
    assert kept["far"] == pytest.approx(one.span[1] * scale, rel=1e-3)


def test_poses_of_opencv(run, tmp_path):
    place = posed.folder(tmp_path / "a")
    about = posed.settings(place)
    for frame in about["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) * [1, -1, -1, 1]).tolist()
    posed.rewrite(place, about)
    assert "OpenCV" in run("capture", place)[2]
    code, _, err = run("capture", place, "--opencv", "--side", 0, "--out", tmp_path / "b")
    assert code == 0 and not err and posed.errors(read_capture(tmp_path / "b")).max() < 1.5 / 255


def test_the_one_capture_below_a_folder_is_named(run, tmp_path):
    """Of two none is, since either may be meant."""
    place = posed.folder(tmp_path / "all" / "a")
    (tmp_path / "all" / "notes").mkdir()
    (tmp_path / "all" / "notes.txt").write_text("none")
    for command in ("capture", "reconstruct"):
        code, _, err = run(command, place.parent)
        assert code == 2 and f"no COLMAP model (sparse/0/cameras.bin, ...); there is one in {place}" in err
    model = tmp_path / "all" / "b" / "sparse" / "0"
    model.mkdir(parents=True)
    for name in ("cameras.txt", "images.txt"):
        (model / name).write_text("")
    err = run("capture", place.parent)[2]
    assert "there is one" not in err and "ns-process-data" in err


def test_what_is_refused(run, tmp_path):
    place = posed.folder(tmp_path / "a")
    for args, words in (
        ((tmp_path / "none",), "there is no capture"),
        ((tmp_path,), "no transforms.json"),
        ((place, "--side", 3), "--side"),
        ((place, "--out", place), "is not empty"),
        ((place, "--out", place / "transforms.json"), "is not empty"),
    ):
        code, _, err = run("capture", *args)
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, args
    assert len(list((place / "images").iterdir())) == 6
