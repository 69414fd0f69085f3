"""Fewer faces: the shape that is left, closed where it was closed, and what of it is told."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import pytest
import torch
from balls import Balls
from solids import cube, sphere

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh
from sfumato.scene import mesh_decimate
from sfumato.scene.mesh import check, surface
from sfumato.scene.mesh_decimate import decimated, fewer, kept


@pytest.fixture(scope="module")
def ball():
    return surface(Balls((0.1, 0.0, -0.1, 0.6), soft=0.05), 48, level=30.0)


def replaced(monkeypatch, simplify):
    monkeypatch.setattr(mesh_decimate, "simplification", lambda: SimpleNamespace(simplify=simplify))


def test_a_sphere_of_500_faces_is_closed_and_has_its_volume(ball):
    assert len(ball.mesh.faces) > 7000
    made, left = fewer(ball, 500)
    assert len(made.mesh.faces) == 500 and len(made.mesh.vertices) == 252  # Euler: V = 2 + F / 2
    assert made.checks == check(made.mesh) and made.checks.watertight and made.checks.pieces == 1
    assert made.checks.volume == pytest.approx(ball.checks.volume, rel=0.01)  # above 0: outwards
    assert left.faces_before == len(ball.mesh.faces) and left.area == pytest.approx(1, abs=0.01) and left.iou > 0.99
    (line,) = made.notes
    assert line.startswith(f"{left.faces_before:,} faces became 500, which have ") and line.endswith("is watertight")


def test_what_has_no_more_faces_is_left_as_it_is(ball):
    n = len(ball.mesh.faces)
    for faces in (n, n + 1):
        same, left = fewer(ball, faces)
        assert same.mesh is ball.mesh and same.checks is ball.checks and left is None
        assert same.notes == (f"the surface has {n:,} faces, and all stay",)
    assert decimated(ball.mesh, n) is ball.mesh


def test_what_is_kept_is_measured():
    """A ball three quarters as large: 9/16 of the area, and of the silhouettes nearly as much, seen from afar."""
    whole = Mesh(*sphere(3))
    left = kept(Mesh(whole.vertices * 0.75, whole.faces), whole)
    assert left.area == pytest.approx(9 / 16) and left.iou == pytest.approx(9 / 16, abs=0.03)
    same = kept(whole, whole)
    assert same.area == 1 and same.iou == 1 and same.faces_before == len(whole.faces)


def test_of_what_comes_as_near_the_gentlest_that_is_closed_is_taken(monkeypatch):
    """Ways, gentlest first: too many faces, open, closed, closed again."""
    whole = Mesh(*sphere(2))
    v, f = sphere(1)
    box, triangles = cube()
    ways = {3: (v, f), 4: (box, triangles[1:]), 5: (box, triangles), 6: (box * 2, triangles), 7: (box * 3, triangles)}

    def simplify(points, triangles, target_count, agg):
        assert points.shape == whole.vertices.shape and target_count == len(f) - 1
        return tuple(x.numpy() for x in ways[agg])

    replaced(monkeypatch, simplify)
    made = decimated(whole, len(f) - 1)
    assert torch.equal(made.faces, triangles) and torch.equal(made.vertices, box)
    opened = Mesh(whole.vertices, whole.faces[1:])  # there is nothing to keep closed
    assert torch.equal(decimated(opened, len(f) - 1).faces, triangles[1:])


def test_what_became_open_and_what_is_too_few_is_told(ball, monkeypatch):
    v, f = sphere(1)
    replaced(monkeypatch, lambda points, triangles, target_count, agg: (v.numpy(), f[1:].numpy()))
    made, _ = fewer(ball, 20)
    assert not made.checks.watertight and "the surface is open: " in made.notes[0]
    assert made.notes[1] == f"20 faces are too few for this surface; {len(f) - 1} are as few as can be"


@pytest.mark.parametrize("faces", [3, 0, -1])
def test_fewer_faces_than_a_tetrahedron_are_refused(ball, faces):
    with pytest.raises(SfumatoError, match=f"has 4 faces or more, got {faces}"):
        fewer(ball, faces)


def test_a_tetrahedron_is_not(ball):
    assert len(decimated(ball.mesh, 4).faces) == 4


def test_where_the_library_is_missing_one_line_names_the_extra(ball, monkeypatch):
    known = builtins.__import__

    def missing(name, *args, **options):
        if name == "fast_simplification":
            raise ImportError(name)
        return known(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SfumatoError, match=r"sfumato\[3d\]"):
        decimated(ball.mesh, 500)
    assert decimated(ball.mesh, 10**6) is ball.mesh
