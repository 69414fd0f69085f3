"""Scenes as files: what was written is read by other programs as what it is; what is wrong is refused or named."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from balls import Balls, coloured_ball
from PIL import Image

from sfumato.distill.generators import Pixels
from sfumato.errors import SfumatoError
from sfumato.media import video
from sfumato.media.meshes import Texture, read_mesh
from sfumato.scene.cameras import orbit
from sfumato.scene.export import export, kind_of, seen, stand, turntable
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.mesh_scene import MeshScene
from sfumato.scene.render import FieldScene
from sfumato.scene.splat_files import read_splats

SMALL = {"resolution": 24, "texture": 64}


@pytest.fixture(scope="module")
def scene():
    return coloured_ball()


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_mesh_with_a_texture_is_read_back_whole_and_in_its_colours(tmp_path, scene, kind):
    import trimesh

    done = export(scene, tmp_path / f"ball.{kind}", **SMALL)
    assert done.files[0] == tmp_path / f"ball.{kind}" and len(done.files) == (1 if kind == "glb" else 3)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in done.files)
    assert done.about["watertight"] and done.about["texture"] == 64 and done.bytes < 300_000
    found = trimesh.load(done.files[0], force="mesh", process=False)
    assert len(found.faces) == done.about["faces"]
    found.merge_vertices(merge_tex=True, merge_norm=True)  # where the texture's seams cut it open
    assert found.is_watertight and found.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.15)
    colours = np.asarray(trimesh.load(done.files[0], force="mesh", process=False).visual.to_color().vertex_colors)
    places = trimesh.load(done.files[0], force="mesh", process=False).vertices
    blue, red = places[:, 0] > 0.2, places[:, 0] < -0.2
    assert (colours[blue, 2] > colours[blue, 0] + 60).mean() > 0.95
    assert (colours[red, 0] > colours[red, 2] + 60).mean() > 0.95


@pytest.mark.parametrize("kind", ["glb", pytest.param("obj", marks=pytest.mark.slow), "ply"])
def test_fewer_faces_are_coloured_after_they_became_fewer(tmp_path, scene, kind):
    """Each pixel of the texture (or vertex) by its own place on the fewer faces, which is where the file has them."""
    import trimesh

    done = export(scene, tmp_path / f"ball.{kind}", faces=300, refine=4, **SMALL)
    found = trimesh.load(done.files[0], force="mesh", process=False)
    assert len(found.faces) == 300 == done.about["faces"] and done.about["vertices"] == 152
    assert done.about["watertight"] and done.about["texture"] == (None if kind == "ply" else 64)
    assert done.about["decimated"]["faces_before"] > 1500 and done.about["decimated"]["iou"] > 0.98
    assert any("faces became 300, which have " in line for line in done.notes)
    colours = np.asarray((found.visual if kind == "ply" else found.visual.to_color()).vertex_colors).astype(int)
    blue, red = found.vertices[:, 0] > 0.2, found.vertices[:, 0] < -0.2
    assert (colours[blue, 2] > colours[blue, 0] + 60).mean() > 0.95
    assert (colours[red, 0] > colours[red, 2] + 60).mean() > 0.95
    found.merge_vertices(merge_tex=True, merge_norm=True)
    assert found.is_watertight and found.volume == pytest.approx(done.about["volume"], rel=1e-3)


def test_more_faces_than_there_are_change_nothing(tmp_path, scene):
    one = export(scene, tmp_path / "a.glb", **SMALL)
    two = export(scene, tmp_path / "b.glb", faces=10**6, **SMALL)
    assert two.about == one.about and one.about["decimated"] is None
    assert two.notes == (*one.notes, f"the surface has {one.about['faces']:,} faces, and all stay")


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_without_a_texture_vertices_have_colours(tmp_path, scene, kind):
    import trimesh

    done = export(scene, tmp_path / f"ball.{kind}", resolution=24, texture=64 if kind == "ply" else None)
    found = trimesh.load(done.files[0], force="mesh", process=False)
    assert found.is_watertight and done.about["texture"] is None
    colours = np.asarray(found.visual.vertex_colors)
    right = found.vertices[:, 0] > 0.2
    assert (colours[right, 2] > colours[right, 0]).all()


def test_refined_colours_are_nearer_to_what_the_scene_shows(tmp_path):
    """Read back from the file, of vertices and in the texture alike."""
    import trimesh

    thin = coloured_ball(7.0)  # in which one sees so deep that the colour at the surface is not what is seen
    views = orbit(2, (32, 32), elevation=30, first=40, **stand(thin))
    true = seen(thin, views)

    def wrong(steps: int, texture: int | None) -> float:
        path = export(thin, tmp_path / "a.glb", resolution=24, texture=texture, refine=steps, level=1.5).files[0]
        found = trimesh.load(path, force="mesh", process=False).visual
        if texture is None:
            colours = torch.tensor(np.asarray(found.vertex_colors)[:, :3] / 255).float()
        else:
            image = np.asarray(found.material.baseColorTexture.convert("RGB")) / 255
            colours = Texture(torch.tensor(found.uv).float(), torch.tensor(image).float().permute(2, 0, 1))
        shown = MeshScene(read_mesh(path), colours).view(views)
        whole = (shown.alpha > 0.999).float()
        return float((whole * (shown.images - true).square()).sum() / whole.sum())

    assert wrong(15, None) < 0.7 * wrong(0, None)
    assert wrong(15, 64) < 0.7 * wrong(0, 64)


def test_gaussians_are_written_as_splats(tmp_path):
    made = Gaussians(
        torch.tensor([[0.0, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), opacity=0.9
    )
    done = export(made, tmp_path / "a.ply")
    assert done.about == {"kind": "splats", "splats": 2}
    torch.testing.assert_close(read_splats(tmp_path / "a.ply").means, made.means)
    with pytest.raises(SfumatoError, match=r"no surface; write its splats as \.ply"):
        export(made, tmp_path / "a.glb")
    place = stand(made)
    assert place["target"] == pytest.approx([0.5, 0.25, 0.0], abs=0.02)


@pytest.mark.parametrize("kind", ["gif", "webp", "mp4"])
def test_films_go_around_from_the_front(tmp_path, scene, kind):
    if kind == "mp4":
        pytest.importorskip("av")
    export(scene, tmp_path / f"a.{kind}", frames=4, size=32)
    found = video.opened(tmp_path / f"a.{kind}")
    frames = [np.asarray(f).astype(int) for f in found.frames()]
    assert len(frames) == 4 and frames[0].shape == (32, 32, 3)
    if kind != "mp4":
        assert found.rate == pytest.approx(24, rel=0.05)

    def blue(frame, half):
        return (frame[10:22, half, 2] - frame[10:22, half, 0]).mean()

    left, right = slice(6, 14), slice(18, 26)
    assert blue(frames[0], right) > 50 > -50 > blue(frames[0], left)  # +x is to the right, seen from +z
    assert blue(frames[1], right) > 50 and blue(frames[1], left) > 50  # from +x
    assert blue(frames[2], right) < -50 < 50 < blue(frames[2], left)


def test_a_sheet_has_eight_views(tmp_path, scene):
    export(scene, tmp_path / "a.png", size=24)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (4 * 26 - 2, 2 * 26 - 2)
    first = next(turntable(scene, 8, 24, elevation=60))
    assert first.size == (24, 24) and not np.array_equal(np.asarray(first), np.asarray(next(turntable(scene, 8, 24))))


def test_latents_are_a_grey_mesh_and_no_film(tmp_path):
    latent = coloured_ball(latent=True)
    done = export(latent, tmp_path / "a.glb", **SMALL)
    assert any("grey" in line for line in done.notes) and done.about["texture"] is None
    with pytest.raises(SfumatoError, match="latents, which are no pictures"):
        export(latent, tmp_path / "a.gif")


def test_what_is_wrong_is_refused_and_leaves_nothing(tmp_path, scene):
    with pytest.raises(SfumatoError, match=r"as \.glb, \.obj, \.ply, .*\.png, not as a\.stl"):
        kind_of(tmp_path / "a.stl")
    with pytest.raises(SfumatoError, match=r"not as a$"):
        kind_of(tmp_path / "a")
    with pytest.raises(SfumatoError, match="Pixels has no density"):
        export(Pixels(torch.zeros(1, 3, 8, 8)), tmp_path / "a.glb")
    with pytest.raises(SfumatoError, match="empty or nearly so"):
        export(FieldScene(Balls((0.0, 0.0, 0.0, 0.5), dense=1e-4)), tmp_path / "a.glb", resolution=16)
    with pytest.raises(SfumatoError, match="OBJ has no colours"):
        export(scene, tmp_path / "a.obj", texture=None)
    with pytest.raises(SfumatoError, match="faces lies between 4 and 2000000, got 3"):
        export(scene, tmp_path / "a.glb", faces=3)
    with pytest.raises(SfumatoError, match=r"a\.gif has no faces that could be fewer"):
        export(scene, tmp_path / "a.gif", faces=500)
    assert list(tmp_path.iterdir()) == []


def test_without_xatlas_vertices_have_colours_and_it_is_named(tmp_path, scene, monkeypatch):
    kept = builtins.__import__

    def missing(name, *args, **options):
        if name == "xatlas":
            raise ImportError(name)
        return kept(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    done = export(scene, tmp_path / "a.glb", **SMALL)
    assert any("xatlas is not installed" in line for line in done.notes) and done.about["texture"] is None
