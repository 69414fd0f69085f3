"""Exports are read back and judged: what is whole is valid, what is open, pale or not all there is not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from balls import coloured_ball
from solids import sphere

from sfumato.bench.scene import exports, run
from sfumato.media.meshes import Mesh, write_mesh
from sfumato.scene import mesh
from sfumato.scene.export import Exported, export


def test_figures_are_there(monkeypatch):
    monkeypatch.setattr(mesh, "chosen_level", cache(mesh.chosen_level))  # a scene is written five times
    monkeypatch.setattr(exports, "CELLS", 20)
    monkeypatch.setattr(exports, "TEXTURE", 48)
    monkeypatch.setattr(exports, "FACES", 300)
    monkeypatch.setattr(exports, "VIEW", 24)
    report = run(1, 0, "cpu", modules=(exports,))
    assert not report.why and report.results["glb_valid"] == 1 and report.results["glb_kb"] < 500
    assert report.results["export_iou"] > 0.6 and report.results["export_depth"] < 0.1
    assert report.results["decimated_kb"] < report.results["glb_kb"] and 0.9 < report.results["decimated_iou"] < 1
    assert set(report.results) == {key for keys, _ in exports.MEASURES for key in keys}


def test_what_is_wrong_is_seen(tmp_path, monkeypatch):
    vertices, faces = sphere(2)
    colours = vertices / 2 + 0.5

    def judged(faces=faces, colours=colours, notes=()):
        path = write_mesh(tmp_path / "a.glb", Mesh(vertices, faces), colours)
        return exports.sound(Exported((path,), notes, {"faces": len(faces)}))

    assert judged()
    assert not judged(faces[1:])  # open, and nobody says so
    assert judged(faces[1:], notes=("the surface is open: it has edges of one face",))
    assert not judged(faces[:, [0, 2, 1]])  # inwards
    assert not judged(colours=torch.full_like(colours, 0.5))
    whole = export(coloured_ball(), tmp_path / "b.obj", resolution=20, texture=48)
    assert exports.sound(whole)
    assert not exports.sound(replace(whole, about={"faces": 1}))
    monkeypatch.setattr(exports, "MOST", 100)
    assert not exports.sound(whole)


@pytest.mark.parametrize("key", ["glb_valid"])
def test_the_target_is_all(key):
    assert exports.TARGETS[key].met(1.0) and not exports.TARGETS[key].met(0.99)
