"""``sfumato lift``: what it writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from sfumato.scene.store import load_scene
from sfumato.tasks import lift as task
from sfumato.tasks import lift_recipes

PROMPT = "a red cube on grass"
STEM = "a-red-cube-on-grass-sds"


@pytest.fixture
def lab(here, run, tmp_path, monkeypatch):
    """The command on the tiny model, with few pixels, cells and steps, into a folder of its own."""
    real = lift_recipes.recipe

    def small(word, model):
        row = real(word, "stilllife")
        return replace(row, cells=6, samples=6, cameras=replace(row.cameras, n=1, size=(8, 8)))

    monkeypatch.setattr(lift_recipes, "recipe", small)
    monkeypatch.setattr(task, "GAUSSIANS", 40)

    def call(*args, steps=2, out=tmp_path):
        return run("lift", PROMPT, "--steps", steps, "--out", out, *args)

    return call


def test_it_says_what_it_takes_and_writes_a_scene_views_a_film_and_a_record(lab, tmp_path):
    code, out, err = lab("--json", "--every", 1, "sds")
    assert code == 0, err
    row = json.loads(out)
    assert [name.split("/")[-1] for name in row["files"]] == [f"{STEM}.safetensors", f"{STEM}.png", f"{STEM}.gif"]
    assert "2 steps of sds, about" in err and "MB" in err
    scene, about = load_scene(tmp_path / f"{STEM}.safetensors")
    assert about["prompt"] == PROMPT and type(scene).__name__ == "FieldScene"
    assert Image.open(tmp_path / f"{STEM}.gif").n_frames == 3  # two steps and the end
    assert len(row["strength"]) == 2 and row["expected"]["seconds"] > 0
    assert not list(tmp_path.glob(".*.safetensors")), "a run that is over keeps no checkpoint"


def test_a_run_that_was_cut_off_goes_on_to_the_same_scene(lab, tmp_path, monkeypatch):
    assert lab("sds", steps=4)[0] == 0
    whole = (tmp_path / f"{STEM}.safetensors").read_bytes()
    film = task._Film.__call__

    def cut(self, step, images):
        if step == 2:
            raise KeyboardInterrupt
        film(self, step, images)

    with monkeypatch.context() as patch:
        patch.setattr(task._Film, "__call__", cut)
        code, _, err = lab("sds", steps=4)
    assert code == 130 and "stopped" in err
    began = []
    monkeypatch.setattr(task._Film, "__call__", lambda self, step, images: began.append(step))
    assert lab("sds", steps=4)[0] == 0
    assert began[-2:] == [2, 3] and 1 not in began
    assert (tmp_path / f"{STEM}.safetensors").read_bytes() == whole


def test_settings_of_a_method_count_before_the_recipe(lab):
    code, out, err = lab("--json", "sds", "--guidance", 12)
    assert code == 0, err
    assert "guidance=12.0" in json.loads(out)["method"]
    code, out, _ = lab(
        "--json", "--words", "perp-neg", "--space", "latent", "--loss", "opacity=1>0", "--views", 2, "sds"
    )
    assert code == 0 and "guidance=20.0" in json.loads(out)["method"]


def test_a_picture_is_part_of_it(lab, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (200, 30, 40)).save(photo)
    code, _, err = lab("--image", photo, "--mask", photo, "--seen-from", 90, 20, "sds")
    assert code == 0, err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--steps", 0, "sds"), "--steps"),
        (("--views", 0, "sds"), "--views"),
        (("--loss", "nothing=1", "sds"), "--loss is a name and a weight"),
        (("--loss", "opaque=many", "sds"), "ramp"),
        (("--seen-from", 10, 95, "--image", "photo.png", "sds"), "--seen-from"),
        (("--seen-from", 10, 5, "sds"), "--seen-from is read with --image alone"),
        (("--mask", "photo.png", "sds"), "--mask is read with --image alone"),
        (("delta-score",), "method to lift by"),
        (("--field", "gaussians", "--image", "photo.png", "sds"), "Gaussians have no surface"),
    ],
)
def test_what_cannot_be_lifted_is_said_in_a_line(here, run, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    code, _, err = run("lift", PROMPT, "--out", tmp_path, *args)
    assert code == 2 and words in err and "Traceback" not in err
    assert run("lift", " ", "--out", tmp_path, "sds")[0] == 2


def test_a_mesh_is_written_where_one_is_named(lab, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    code, out, err = lab("--json", "sds", out=tmp_path / "cube.glb")
    assert code == 0, err
    files = [name.split("/")[-1] for name in json.loads(out)["files"]]
    assert files == ["cube.safetensors", "cube.png", "cube.gif", "cube.glb"]
    back = trimesh.load(tmp_path / "cube.glb", force="mesh", process=False)
    assert len(back.faces) > 50 and float(abs(back.vertices).max()) < 2
    low, high = back.bounds
    assert (high - low).min() > 0.2  # the blob that it begins with


def test_a_mesh_of_latents_is_grey_and_that_is_said(lab, tmp_path):
    pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    code, _, err = lab("--space", "latent", "sds", out=tmp_path / "cube.ply")
    assert code == 0 and "so the mesh is grey" in err
    assert (tmp_path / "cube.safetensors").exists() and (tmp_path / "cube.ply").exists()


def test_light_is_asked_for_and_what_cannot_be_lit_is_said(lab, monkeypatch):
    lit = []
    real = task.lift
    monkeypatch.setattr(task, "lift", lambda *args, **of: lit.append(args[2].shading) or real(*args, **of))
    for args, falls in (
        (("--shading", "lit"), True), ((), False), (("--shading", "lit", "--field", "gaussians"), False),
    ):  # fmt: skip
        code, _, err = lab(*args, "--json", "sds", steps=1)
        assert code == 0, err
        assert (lit.pop() is not None) == falls and ("is not shaded" in err) == ("lit" in args and not falls), args
