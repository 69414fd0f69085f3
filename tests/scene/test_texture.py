"""Colours of meshes: a texture lies where it should, the right way up, and does not bleed; files hold what was made."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from balls import coloured_ball
from PIL import Image
from solids import cube, plane, sphere

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh, Texture, read_mesh, write_mesh
from sfumato.scene.cameras import looking, orbit, towards
from sfumato.scene.mesh_scene import MeshScene, around, refined
from sfumato.scene.texture import at_surface, baked, coloured, inwards, spread, texels, unwrap


def placed(points, normals):
    """A colour by which a place is known."""
    return points * 0.4 + 0.5


def front(size=32):
    return looking(towards(torch.tensor([[0.5, 0.5, 3.0]]), torch.tensor([[0.5, 0.5, 0.0]])), 22.0, (size, size))


SQUARE = Mesh(*plane(1))
CORNERS = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
"""Red at the upper left, green at the upper right, blue at the lower left, black at the lower right."""


def test_a_textures_rows_go_down_and_its_places_up():
    shown = MeshScene(SQUARE, Texture(SQUARE.vertices[:, :2], CORNERS)).render(front()).images[0]
    h = shown.shape[-1] // 4
    assert shown[:, h, h].tolist() == pytest.approx([1, 0, 0], abs=0.3)
    assert shown[:, h, -h].tolist() == pytest.approx([0, 1, 0], abs=0.3)
    assert shown[:, -h, h].tolist() == pytest.approx([0, 0, 1], abs=0.3)
    assert shown[:, -h, -h].tolist() == pytest.approx([0, 0, 0], abs=0.3)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_written_texture_lies_as_it_was(tmp_path, kind):
    """Read by trimesh, whose places go up from the lower left whatever the format."""
    import trimesh

    path = write_mesh(tmp_path / f"an a.{kind}", SQUARE, Texture(SQUARE.vertices[:, :2], CORNERS))
    found = trimesh.load(path, force="mesh", process=False)
    assert np.allclose(found.vertices, SQUARE.vertices) and np.array_equal(found.faces, SQUARE.faces)
    assert np.allclose(found.visual.uv, SQUARE.vertices[:, :2])
    material = found.visual.material
    picture = material.baseColorTexture if kind == "glb" else material.image
    assert np.array_equal(np.asarray(picture.convert("RGB")), (CORNERS.permute(1, 2, 0) * 255).byte().numpy())
    if kind == "glb":
        assert material.metallicFactor == 0 and material.roughnessFactor == 1
    else:
        assert sorted(f.name for f in tmp_path.iterdir()) == ["an a.obj", "an_a.mtl", "an_a.png"]
    assert read_mesh(path).faces.tolist() == SQUARE.faces.tolist()


def test_the_glb_itself_has_places_that_go_down_as_gltf_says(tmp_path):
    import json
    import struct

    data = write_mesh(tmp_path / "a.glb", SQUARE, Texture(SQUARE.vertices[:, :2], CORNERS)).read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    head, rest = json.loads(data[20 : 20 + length]), data[28 + length :]
    accessor = head["accessors"][head["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"]]
    view = head["bufferViews"][accessor["bufferView"]]
    start = view.get("byteOffset", 0)
    places = np.frombuffer(rest[start : start + view["byteLength"]], np.float32).reshape(-1, 2)
    assert np.allclose(places, np.stack([SQUARE.vertices[:, 0], 1 - SQUARE.vertices[:, 1]], 1))


def test_all_files_of_an_obj_come_or_none(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(SfumatoError, match=r"a\.png: it is a folder"):
        write_mesh(tmp_path / "a.obj", SQUARE, Texture(SQUARE.vertices[:, :2], CORNERS))
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]


def test_no_space_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SfumatoError, match="No space left"):
        write_mesh(tmp_path / "a.obj", SQUARE, Texture(SQUARE.vertices[:, :2], CORNERS))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_hold_a_texture_is_refused(tmp_path):
    texture = Texture(SQUARE.vertices[:, :2], CORNERS)
    with pytest.raises(SfumatoError, match=r"\.glb or \.obj, not as a\.ply"):
        write_mesh(tmp_path / "a.ply", SQUARE, texture)
    with pytest.raises(SfumatoError, match="place in a texture each"):
        write_mesh(tmp_path / "a.glb", SQUARE, Texture(texture.places[:2], CORNERS))
    with pytest.raises(SfumatoError, match="not finite"):
        write_mesh(tmp_path / "a.glb", SQUARE, Texture(texture.places, CORNERS * torch.nan))


def test_a_baked_texture_has_the_colour_of_each_place():
    mesh = Mesh(*sphere(3))
    opened, texture = baked(mesh, placed, 128)
    scene = MeshScene(opened, texture)
    cameras = orbit(3, (48, 48), elevation=10, distance=4.0, fov=40)
    shown = scene.render(cameras)
    by_vertex = MeshScene(mesh, placed(mesh.vertices, None)).render(cameras)
    whole = (shown.alpha > 0.999).expand_as(shown.images)
    assert (shown.images - by_vertex.images).abs()[whole].max() < 0.03
    assert torch.equal(shown.alpha, by_vertex.alpha)


def test_texels_know_their_normals_across_seams():
    mesh = Mesh(*sphere(3))
    on = texels(unwrap(mesh, 96), mesh, 96)
    assert len(on.points) == int(on.there.sum()) > 0.3 * 96 * 96
    assert (on.normals * torch.nn.functional.normalize(on.points, dim=1)).sum(1).min() > 0.995


def test_seams_do_not_bleed():
    """A shape of one colour has a picture of one colour, between the charts too: whatever is read there is no other."""
    mesh = Mesh(*cube())
    _, texture = baked(mesh, lambda p, n: torch.full_like(p, 0.75), 64)
    assert (texture.image - 0.75).abs().max() < 1e-6
    inside = texels(unwrap(mesh, 64), mesh, 64).there
    assert not bool(inside.all())  # there are pixels to fill


def test_spread_takes_the_nearest():
    there = torch.tensor([[True, False, False, False, True]])
    image = spread(there, torch.tensor([[1.0], [5.0]]))
    assert image[0, 0, [0, 1, 3, 4]].tolist() == [1, 1, 5, 5]
    with pytest.raises(SfumatoError, match="larger texture"):
        spread(there & False, torch.zeros(0, 1))


def test_a_ray_inwards_sees_the_colour_that_cameras_see():
    scene, true = coloured_ball(), torch.tensor([[0.02, 0.02, 0.98], [0.98, 0.02, 0.02]])
    normals = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2, 0.1], [-1.0, 0.3, 0.2]]), dim=1)
    points = 0.6 * normals
    seen = inwards(scene, 0.1)(points, normals)
    assert (seen - true).abs().max() < 0.2
    outer = at_surface(scene)(points * 1.02, normals)  # of the shell that nobody sees
    assert (outer - true).abs().max() > 0.3
    thin = inwards(coloured_ball(10.0), 0.03)(points, normals)  # stops a part of the light alone
    assert (thin - true).abs().max() < 0.35
    nothing = inwards(scene, 0.01)(torch.tensor([[0.95, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert nothing.isfinite().all() and (nothing - 0.5).abs().max() < 0.1  # as it is at the point
    assert coloured(inwards(scene, 0.05), points, normals).shape == (2, 3)


def test_colours_are_learned_from_images_and_only_where_they_are_seen():
    mesh = Mesh(*sphere(2))
    true = MeshScene(mesh, placed(mesh.vertices, None))
    cameras = orbit(1, (40, 40), elevation=1, **around(mesh))
    images = true.view(cameras).images
    scene = refined(MeshScene(mesh, torch.full_like(mesh.vertices, 0.5)), images, cameras, 60, 0.08, smooth=0.0)
    seen, behind = mesh.vertices[:, 2] > 0.6, mesh.vertices[:, 2] < -0.6
    apart = (scene.colours - true.colours).abs().amax(1)
    assert apart[seen].max() < 0.05 and apart[behind].min() > 0.1
    assert bool((scene.colours[behind] == 0.5).all())


def test_vertices_that_no_pixel_sees_go_with_their_neighbours():
    mesh = Mesh(*sphere(4))  # finer than the image
    cameras = orbit(1, (12, 12), elevation=1, **around(mesh))
    blue = torch.tensor([0.0, 0.0, 1.0]).expand_as(mesh.vertices)
    images = MeshScene(mesh, blue).view(cameras).images
    seen = mesh.vertices[:, 2] > 0.7

    def furthest(smooth: float) -> float:
        scene = refined(MeshScene(mesh, torch.full_like(blue, 0.5)), images, cameras, 60, 0.05, smooth=smooth)
        return float((scene.colours - blue).abs()[seen].max())

    assert furthest(1.0) < 0.1 < 0.4 < furthest(0.0)


def test_what_is_added_to_vertices_lies_between_them_in_the_texture():
    mesh = Mesh(*sphere(3))
    _, plain = baked(mesh, placed, 64)
    opened, more = baked(mesh, placed, 64, 0.1 * mesh.vertices)
    on = texels(unwrap(mesh, 64), mesh, 64)
    change = (more.image - plain.image).permute(1, 2, 0)[on.there]
    torch.testing.assert_close(change, 0.1 * on.points, atol=1e-5, rtol=0)
    assert len(opened.vertices) > len(mesh.vertices)


def test_a_mesh_gives_gradients_to_its_colours_alone():
    mesh = Mesh(*sphere(1))
    opened, texture = baked(mesh, placed, 32)
    scene = MeshScene(opened, texture)
    scene.render(None).images.sum().backward()
    assert scene.colours.grad is not None and scene.colours.grad.abs().sum() > 0
    assert [name for name, _ in scene.named_parameters()] == ["colours"]
    torch.testing.assert_close(scene.worn.image, texture.image)


def test_depth_is_along_the_ray_also_where_a_pixel_is_seen_in_part():
    shown = MeshScene(SQUARE, torch.ones(4, 3), background=(0.0, 0.5, 1.0), finer=4).render(front(21))
    rays = front(21).rays()
    true = 3 / -rays.directions[..., 2]
    there = shown.alpha[:, 0] > 0
    assert (shown.depth[:, 0] - true).abs()[there].max() < 0.01 and float(true.max()) > 3.05
    assert bool((shown.depth[:, 0][~there] == 0).all())
    part = shown.alpha[0, 0]
    assert bool(((part > 0) & (part < 1)).any())
    torch.testing.assert_close(shown.images[0, 0], part)  # before a background without red
    torch.testing.assert_close(shown.images[0, 1], 0.5 + 0.5 * part)
    whole = part == 1
    normals = shown.normals[0].permute(1, 2, 0)[whole]
    torch.testing.assert_close(normals, torch.tensor([0.0, 0, 1]).expand_as(normals))


def test_without_xatlas_one_line_names_the_extra_and_the_way_around(monkeypatch):
    kept = builtins.__import__

    def missing(name, *args, **options):
        if name == "xatlas":
            raise ImportError(name)
        return kept(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SfumatoError, match=r"sfumato\[3d\].*--no-texture"):
        unwrap(Mesh(*cube()), 32)
