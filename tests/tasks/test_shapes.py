"""Shapes matched and parted: colours, pictures, and what the command writes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from solids import cube, sphere

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh, read_mesh, write_mesh
from sfumato.methods.perceive.diff3f import Diff3F, VertexFeatures
from sfumato.methods.perceive.dift import DIFT
from sfumato.tasks import shapes

FEW = ("diff3f", "--preset", "defaults")
FEW += ("--azimuths", "0", "120", "--elevations", "20", "--look", "shaded", "--size", "32")


def egg(seed: int = 0) -> Mesh:
    vertices, faces = sphere(2)
    return Mesh(vertices * torch.tensor([1.0, 1.4 + seed, 0.8]), faces)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "DETAIL", 1)
    return [write_mesh(tmp_path / f"{i}.ply", egg(i), torch.zeros(162, 3)) for i in range(2)]


def test_colours_are_those_of_the_places_that_were_matched():
    mesh = egg()
    one = VertexFeatures(mesh, torch.eye(162), torch.ones(162).bool())
    order = torch.randperm(162, generator=torch.Generator().manual_seed(0))
    done = shapes.MatchedShapes(one, one, order, torch.ones(162))
    first, second = done.colours
    assert torch.equal(first, second[order])
    right, low = mesh.vertices[:, 0].argmax(), mesh.vertices[:, 1].argmin()
    torch.testing.assert_close(second[right, 0], torch.tensor(0.9))
    torch.testing.assert_close(second[low, 1], torch.tensor(0.1))
    assert second.min() > 0.09 and second.max() < 0.91
    assert len(shapes.by_part(order % 4).unique(dim=0)) == 4


def test_a_sheet_shows_every_shape_from_four_sides():
    vertices, faces = cube()
    red = torch.tensor([[1.0, 0, 0]]).expand(8, 3)
    picture = np.asarray(shapes.sheet([(Mesh(vertices, faces), red), (Mesh(vertices * 9 + 4, faces), red)], 32))
    assert picture.shape == (2 * 32 + 2, 4 * 32 + 6, 3)
    assert (picture[1] == 255).all()  # nothing is cut off
    rows = picture[:32], picture[34:]
    assert np.array_equal(*rows)  # whatever its size and place
    for i in range(4):
        middle = rows[0][16, i * 34 + 16]
        assert middle[0] > 100 and middle[1] == middle[2] == 0


def test_pictures_are_not_shapes(sd):
    with pytest.raises(SfumatoError, match="read by diff3f, not by DIFT"):
        shapes.match_shapes(sd, egg(), egg(), DIFT())  # pyright: ignore[reportArgumentType]


def test_progress_is_heard(sd):
    heard = []
    method = Diff3F((0,), (20, 40), look="shaded", size=32)
    found, labels = shapes.part_shape(sd, egg(), method, 3, on_progress=heard.append)
    assert heard[0].of == 2 and labels.shape == (162,) and labels.max() == 2 and found.seen.any()


def test_the_command_matches_two_shapes(run, here, files, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run("shapes", *map(str, files), "--out", str(out), "--json", *FEW)
    assert code == 0, err
    found = json.loads(printed)
    assert len(found["matches"]) == len(found["scores"]) == 162 and max(found["matches"]) < 162
    assert sorted(p.name for p in out.glob("[!.]*")) == [
        "0-to-1-first.glb", "0-to-1-second.glb", "0-to-1.json", "0-to-1.png",
    ]  # fmt: skip
    torch.testing.assert_close(read_mesh(out / "0-to-1-first.glb").vertices, egg().vertices)
    assert json.loads((out / "0-to-1.json").read_text())["matches"] == found["matches"]


def test_the_command_parts_a_shape(run, here, files, tmp_path):
    code, printed, err = run(
        "shapes", str(files[0]), "--parts", "3", "--format", "ply", "--out", str(tmp_path / "out"), *FEW
    )
    assert code == 0, err
    assert [line.rpartition(".")[2] for line in printed.split()] == ["png", "ply", "json"]
    assert set(json.loads((tmp_path / "out" / "0.json").read_text())["parts"]) == {0, 1, 2}


def test_the_command_paints_by_a_controlnet(run, here, files, tmp_path):
    painted = [*FEW[:6], "--steps", "1", "--size", "16"]
    code, _, err = run(
        "shapes", str(files[0]), "--controlnet", "stilllife-depth", "--out", str(tmp_path / "out"), *painted
    )
    assert code == 0, err
    code, _, err = run("shapes", str(files[0]), "--out", str(tmp_path / "out"), *painted)
    assert code == 2 and "painted by a ControlNet" in err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("shapes", "none.obj"), "there is no file none.obj"),
        (("shapes", "FILE", "none.obj"), "there is no file none.obj"),
        (("shapes", "FILE", "dift"), "read by diff3f"),
        (("shapes", "FILE", "FILE", "FILE"), "takes one mesh, .* or two"),
        (("shapes",), "takes one mesh|required|no picture"),
        (("shapes", "FILE", "--parts", "1"), "--parts lies between 2"),
        (("match", "FILE", "FILE"), "is a mesh, which sfumato shapes reads"),
        (("segment", "FILE"), "is a mesh, which sfumato shapes reads"),
        (("match", "picture.png", "other.png", "diff3f"), "diff3f does not match; it is a method of sfumato shapes"),
    ],
)
def test_what_the_command_refuses(run, here, files, tmp_path, monkeypatch, args, reason):
    monkeypatch.chdir(tmp_path)
    for name in ("picture.png", "other.png"):
        Image.new("RGB", (8, 8)).save(name)
    args = [str(files[0]) if a == "FILE" else a for a in args]
    code, _, err = run(*args, "--out", str(tmp_path / "out"))
    assert code == 2 and re.search(reason, err), err
