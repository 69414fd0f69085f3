"""``sfumato export-scene``: what it writes, what it says, and what it refuses in one line."""

from __future__ import annotations

import json

import pytest
import torch
from balls import coloured_ball
from safetensors.torch import save_file

from sfumato.scene.fields import Voxels
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.render import FieldScene
from sfumato.scene.store import save_scene


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    return save_scene(tmp_path_factory.mktemp("scenes") / "ball.safetensors", coloured_ball())


def test_a_scene_becomes_a_glb_and_its_record(run, ball, tmp_path):
    out = tmp_path / "new" / "robot.glb"
    code, said, err = run(
        "export-scene", ball, "--out", out, "--resolution", 24, "--texture-size", 64, "--refine", 2, "--json"
    )
    assert code == 0, err
    record = json.loads(said)
    assert record["files"] == [str(out)] and record["bytes"] == out.stat().st_size
    assert record["watertight"] and record["texture"] == 64 and record["pieces"] == 1
    assert [f.name for f in out.parent.iterdir()] == ["robot.glb"]


def test_a_mesh_of_fewer_faces(run, ball, tmp_path):
    out, few = tmp_path / "small.glb", ("--faces", 200, "--resolution", 24, "--no-texture", "--refine", 0)
    code, said, err = run("export-scene", ball, "--out", out, *few, "--json")
    record = json.loads(said)
    assert code == 0 and record["faces"] == 200 and record["decimated"]["faces_before"] > 1500, err
    assert "faces became 200, which have " in err and err.rstrip().endswith("the surface is watertight")


def test_without_out_it_lies_beside_the_scene(run, tmp_path):
    scene = save_scene(tmp_path / "a.safetensors", coloured_ball())
    code, out, err = run("export-scene", scene, "--resolution", 24, "--no-texture", "--refine", 0)
    assert code == 0 and out.split() == [str(tmp_path / "a.glb")], err
    before = (tmp_path / "a.glb").read_bytes()
    code, out, _ = run("export-scene", scene, "--resolution", 16, "--no-texture", "--refine", 0)
    assert out.split() == [str(tmp_path / "a.2.glb")] and (tmp_path / "a.glb").read_bytes() == before
    splats = Gaussians(torch.rand(4, 3), torch.rand(4, 3))
    scene = save_scene(tmp_path / "b.safetensors", splats)
    code, out, err = run("export-scene", scene)
    assert code == 0 and out.split() == [str(tmp_path / "b.ply")], err


def test_what_a_person_should_know_is_on_stderr(run, tmp_path):
    field = coloured_ball()
    with torch.no_grad():
        field.field.grid[0, 0, 0, :20] = 60.0  # a wall at the back
    scene = save_scene(tmp_path / "a.safetensors", field)
    code, _, err = run("export-scene", scene, "--resolution", 24, "--no-texture", "--refine", 0)
    assert code == 0 and "note: it is cut off and closed at the region's border: " in err and "back (" in err


def test_a_film_and_a_sheet(run, ball, tmp_path):
    for name in ("a.gif", "a.png"):
        code, _, err = run("export-scene", ball, "--out", tmp_path / name, "--frames", 2, "--size", 16)
        assert code == 0 and (tmp_path / name).is_file(), err


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--out", "a.stl"), "a scene is written as .glb, .obj, .ply"),
        (("--resolution", 2), "--resolution lies between 8 and 512, got 2"),
        (("--threshold", -1), "--threshold is a density above 0, got -1"),
        (("--threshold", 1e9, "--out", "a.glb"), "take a lower level or more cells"),
        (("--faces", 3), "--faces lies between 4 and 2000000, got 3"),
        (("--faces", 100, "--out", "a.gif"), "a.gif has no faces that could be fewer"),
        (("--texture-size", 1), "--texture-size lies between 16"),
        (("--elevation", 90), "--elevation lies between -89 and 89"),
        (("--distance", 0), "--distance is a number above 0"),
        (("--frames", 1), "--frames lies between 2"),
        (("--no-texture", "--out", "a.obj"), "an OBJ has no colours of vertices"),
        (("--out", "/proc/nowhere/a.glb"), "cannot write to /proc/nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(run, ball, tmp_path, monkeypatch, args, line):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("export-scene", ball, *args)
    assert code == 2 and out == "" and line in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_scene_are_one_line(run, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    empty = save_scene(tmp_path / "empty.safetensors", FieldScene(Voxels(8, shift=-20.0)))
    lines = {
        other: "is no scene, but other weights", broken: "cannot read", tmp_path / "none": "there is no file",
        empty: "the scene is empty or nearly so",
    }  # fmt: skip
    for file, line in lines.items():
        code, _, err = run("export-scene", file, "--out", tmp_path / "a.glb", "--resolution", 16)
        assert code == 2 and line in err and err.count("\n") == 1, err
    assert not (tmp_path / "a.glb").exists()


def test_export_of_a_scene_names_the_command_for_it(run, ball, tmp_path):
    code, _, err = run("export", ball, tmp_path / "x")
    assert code == 2 and "sfumato export-scene" in err and err.count("\n") == 1
