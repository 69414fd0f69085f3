"""Mesh files: what is read is what was written, in its order; what is broken says so in one line."""

from __future__ import annotations

import builtins
import pickle

import pytest
import torch
from solids import cube, sphere

from sfumato.bench.real import real
from sfumato.errors import SfumatoError
from sfumato.media import meshes
from sfumato.media.meshes import Mesh, read_mesh, write_mesh

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def test_obj_keeps_its_vertices_in_their_order_though_its_textures_do_not(tmp_path):
    text = "mtllib none.mtl\nv 9 9 9\n" + SQUARE + "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl a\n"
    (tmp_path / "a.obj").write_text(text + "f 2/1 3/2 4/3\nf 2/4 4/2 5/1\n")
    mesh = read_mesh(tmp_path / "a.obj")
    assert mesh.vertices.tolist() == [[9, 9, 9], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert mesh.faces.tolist() == [[1, 2, 3], [1, 3, 4]] and mesh.parts == 1
    unit = mesh.unit()  # the vertex that no face uses does not count
    torch.testing.assert_close(unit.vertices[1:].norm(dim=1), torch.ones(4))


def test_off_and_polygons_become_triangles(tmp_path):
    (tmp_path / "a.off").write_text("OFF\n4 1 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    (tmp_path / "b.obj").write_text(SQUARE + "f 1 2 3 4\n")
    for name in ("a.off", "b.obj"):
        mesh = read_mesh(tmp_path / name)
        assert len(mesh.faces) == 2 and abs(float(meshes.areas(mesh).sum()) - 1) < 1e-9


@pytest.mark.parametrize("kind", ["ply", "glb"])
def test_what_is_written_is_read_again_with_its_colours(tmp_path, kind):
    import trimesh

    vertices, faces = sphere(1)
    colours = (vertices + 1) / 2
    place = write_mesh(tmp_path / f"a.{kind}", Mesh(vertices, faces), colours)
    again = read_mesh(place)
    torch.testing.assert_close(again.vertices, vertices)
    assert torch.equal(again.faces, faces)
    found = torch.from_numpy(trimesh.load(place, force="mesh", process=False).visual.vertex_colors[:, :3].copy())
    assert (found / 255 - colours).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(SfumatoError, match=r"\.ply or \.glb"):
        write_mesh(tmp_path / "a.obj", again, colours)
    with pytest.raises(SfumatoError, match="a colour each"):
        write_mesh(place, again, colours[:3])
    with pytest.raises(SfumatoError, match="not finite"):
        write_mesh(place, again, colours * torch.nan)


def test_meshes_of_one_file_are_joined_where_they_stand(tmp_path):
    import trimesh

    scene = trimesh.Scene()
    box = trimesh.creation.box((1, 1, 1))
    scene.add_geometry(box)
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([3, 0, 0]))
    mirrored = trimesh.transformations.scale_matrix(-1, [0, 0, 0])
    mirrored[:3, 3] = [0, 5, 0]
    scene.add_geometry(box, transform=mirrored)
    (tmp_path / "a.glb").write_bytes(scene.export(file_type="glb"))
    mesh = read_mesh(tmp_path / "a.glb")
    assert mesh.parts == 3 and len(mesh.faces) == 36
    assert mesh.vertices.amax(0).tolist() == [3.5, 5.5, 0.5]
    a, b, c = mesh.corners.unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum(1).sum() / 6  # a mirrored one keeps its outside
    assert abs(float(volume) - 3) < 1e-5


def test_a_unit_shape_is_a_unit_shape_wherever_it_was():
    vertices, faces = sphere(1)
    one = Mesh(vertices * torch.tensor([1.0, 2.0, 0.5]), faces).unit()
    two = Mesh(vertices * torch.tensor([1.0, 2.0, 0.5]) * 1000 + 5e4, faces).unit()
    torch.testing.assert_close(one.vertices, two.vertices, atol=1e-4, rtol=0)
    assert abs(float(one.vertices.norm(dim=1).max()) - 1) < 1e-6
    with pytest.raises(SfumatoError, match="in one point"):
        Mesh(torch.ones(3, 3), torch.tensor([[0, 1, 2]])).unit()


def test_faces_without_area_are_left_out_and_named(tmp_path, capsys):
    (tmp_path / "a.obj").write_text(SQUARE + "v 2 0 0\nf 1 2 3\nf 1 2 5\nf 2 2 3\n")
    assert read_mesh(tmp_path / "a.obj").faces.tolist() == [[0, 1, 2]]
    assert "2 of 3 faces have no area" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.obj", SQUARE, "no faces|without faces|cannot be read"),
        ("a.obj", "", "no faces|cannot be read"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\nnan 1 0\n3 0 1 2\n", "not finite"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "names vertex 7|cannot be read"),
        ("a.obj", SQUARE + "v 2 0 0\nf 1 2 5\n", "none of its 1 faces"),
        ("a.glb", "not a glb", "cannot be read"),
        ("a.ply", "ply\nformat ascii 1.0\nelement vertex 9\n", "cannot be read"),
        ("a.stl", "solid", "no mesh by its name; read are .obj, .off, .ply, .glb"),
    ],
)
def test_a_broken_file_says_what_is_wrong_in_one_line(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(SfumatoError, match=reason) as found:
        read_mesh(tmp_path / name)
    assert "\n" not in str(found.value)


def test_a_missing_file_and_a_huge_one(tmp_path, monkeypatch):
    with pytest.raises(SfumatoError, match="there is no file"):
        read_mesh(tmp_path / "a.obj")
    (tmp_path / "a.obj").write_text(SQUARE + "f 1 2 3\nf 1 3 4\n")
    with pytest.raises(SfumatoError, match=r"has 2 faces, which takes about .* GiB; at most 1 are read"):
        read_mesh(tmp_path / "a.obj", most=1)
    monkeypatch.setattr(meshes, "LARGEST", 10)
    with pytest.raises(SfumatoError, match="GiB, and at most"):
        read_mesh(tmp_path / "a.obj")


def test_without_trimesh_it_says_what_to_install(tmp_path, monkeypatch):
    plain = builtins.__import__

    def refuse(name, *args, **options):
        if name == "trimesh":
            raise ImportError(name)
        return plain(name, *args, **options)

    (tmp_path / "a.obj").write_text(SQUARE + "f 1 2 3\n")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SfumatoError, match=r"pip install 'sfumato\[3d\]'"):
        read_mesh(tmp_path / "a.obj")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for kind in ("obj", "off", "ply", "glb"):
        (tmp_path / f"a.{kind}").write_bytes(pickle.dumps(Trap()))
        with pytest.raises(SfumatoError):
            read_mesh(tmp_path / f"a.{kind}")
    assert not (tmp_path / "sprung").exists()


def test_meshes_say_what_is_wrong_with_them():
    vertices, faces = cube()
    with pytest.raises(SfumatoError, match=r"\(v, 3\)"):
        Mesh(vertices[:, :2], faces)
    with pytest.raises(SfumatoError, match="without faces"):
        Mesh(vertices, faces[:0])
    with pytest.raises(SfumatoError, match="names vertex 7"):
        Mesh(vertices[:7], faces)


def test_man_and_woman_have_the_same_faces(tmp_path):
    from zipfile import ZipFile

    try:
        ZipFile(real("meshes.zip")).extractall(tmp_path)
    except SfumatoError as e:
        pytest.skip(str(e))
    man, woman = (read_mesh(tmp_path / f"d3f_{who}.obj") for who in ("man", "woman"))
    assert len(man.vertices) == len(woman.vertices) == 6890 and torch.equal(man.faces, woman.faces)
