"""Views of a still life as a capture: its rays meet what the renderer met; a folder of them is read back equal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.scene.capture import read_capture
from sfumato.stilllife.captures import UNIT, along_rays, cameras_around, capture, read_views, write_views
from sfumato.stilllife.scene import Camera, Scene, Thing

SCENE = Scene((Thing("cube", "red", x=-0.4, z=0.3, yaw=20), Thing("sphere", "blue", x=0.6)), camera=Camera(30, 25, 3.5))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of five views at 40 pixels, and what it was made of."""
    place = tmp_path_factory.mktemp("views") / "capture"
    cameras = cameras_around(SCENE, 5)
    return write_views(place, SCENE, cameras, 40), cameras


def test_cameras_go_around_evenly_between_two_elevations():
    cameras = cameras_around(SCENE, 24, (12, 40))
    assert [c.azimuth for c in cameras] == [30 + 15 * i for i in range(24)]
    heights = [c.elevation for c in cameras]
    assert min(heights) >= 12 and max(heights) <= 40 and max(heights) - min(heights) > 24
    assert {(c.distance, c.target, c.fov) for c in cameras} == {(3.5, SCENE.camera.target, SCENE.camera.fov)}


def test_rays_meet_what_the_renderer_met():
    """At the depth along its ray every pixel's ray is where the renderer says that the surface is."""
    views, seen = capture(SCENE, cameras_around(SCENE, 3), 32)
    there = seen.depth.isfinite()
    away = along_rays(seen, views)
    assert bool((away >= seen.depth).all()) and float((away / seen.depth)[there].max()) > 1.1
    rays = views.cameras.rays()
    at = rays.origins + away[..., None] * rays.directions
    off = (at - seen.position).norm(dim=-1) / away
    assert float(off[there].max()) < 2e-6, "some roundings of float32, as parts of the way"


def test_what_is_written_is_read_back_equal(made):
    path, cameras = made
    views, scene, again = read_views(path.parent)
    truth, _ = capture(SCENE, cameras, 40)
    assert scene == SCENE and again == cameras and views.names == truth.names
    for name in ("poses", "focal", "centre"):
        assert getattr(views.cameras, name).equal(getattr(truth.cameras, name)), name
    torch.testing.assert_close(views.images, truth.images, atol=0.5001 / 255, rtol=0)
    assert views.masks is None and views.alphas is None
    assert views.world.equal(torch.eye(4).double()), "its world is the scene's own"


def test_truth_lies_beside(made):
    path, cameras = made
    seen = capture(SCENE, cameras, 40)[1]
    frames = json.loads(path.read_text())["frames"]
    for i, frame in enumerate(frames):
        deep = torch.from_numpy(np.array(Image.open(path.parent / frame["depth_file_path"])).astype(np.float32)) * UNIT
        true = torch.where(seen.depth[i] < 65.5355, seen.depth[i], 0)
        torch.testing.assert_close(deep, true, atol=0.51 * UNIT, rtol=0)
        things = torch.from_numpy(np.array(Image.open(path.parent / frame["thing_file_path"])))
        assert things.equal((seen.thing[i] + 1).to(torch.uint8)) and {0, 1, 2} == set(things.unique().tolist())


def test_what_the_folder_lacks_is_said(made, tmp_path):
    path, _ = made
    place = tmp_path / "copy"
    (place / "images").mkdir(parents=True)
    for file in path.parent.glob("images/*"):
        (place / "images" / file.name).write_bytes(file.read_bytes())
    (place / "transforms.json").write_text(path.read_text())
    assert len(read_capture(place)) == 5
    with pytest.raises(SfumatoError, match=r"there is no .*scene\.json"):
        read_views(place)
    for text in ("{", "[]", "{}", '{"scene": {"things": []}, "cameras": [1]}'):
        (place / "scene.json").write_text(text)
        with pytest.raises(SfumatoError, match=r"scene\.json|not a scene|one to 3 things"):
            read_views(place)
    about = json.loads((path.parent / "scene.json").read_text())
    (place / "scene.json").write_text(json.dumps(about | {"cameras": about["cameras"][:3]}))
    with pytest.raises(SfumatoError, match=r"3 cameras, and .* has 5 images"):
        read_views(place)


def test_render_writes_views(run, tmp_path):
    words = ("render", "a red cube on grass", "--views", 3, "--size", 24, "--out", tmp_path)
    code, out, _ = run(*words, "--json")
    found = json.loads(out)
    assert code == 0 and "red cube" in found["caption"]
    views, scene, cameras = read_views(found["files"]["capture"])
    assert len(views) == 3 and scene == Scene.from_dict(found["scene"]) and views.images.shape[-1] == 24
    assert len({camera.azimuth for camera in cameras}) == 3
    assert run(*words)[1].splitlines()[0] == found["files"]["capture"], "the same again is the same folder"
    other = run("render", "a red cube on grass", "--views", 4, "--size", 24, "--out", tmp_path)[1].splitlines()[0]
    assert other != found["files"]["capture"] and len(read_capture(other)) == 4


@pytest.mark.parametrize("more", [("--views", 1), ("--views", 3, "--buffers"), ("--views", 3, "--out", "a.png")])
def test_what_render_refuses_of_views(run, tmp_path, more):
    code, _, err = run("render", "a red cube on grass", "--out", tmp_path, *more)
    assert code == 2 and "--views" in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_capture_that_looks_whole(run, tmp_path, monkeypatch):
    from sfumato.scene import capture as module

    words = ("render", "a red cube on grass", "--views", 3, "--size", 24, "--out", tmp_path)
    stopped = iter([None, None, KeyboardInterrupt])

    def write(*args, whole=module.pictures.write):
        if (error := next(stopped, None)) is not None:
            raise error
        return whole(*args)

    monkeypatch.setattr(module.pictures, "write", write)
    assert run(*words)[0] == 130
    (place,) = (p for p in tmp_path.iterdir() if p.is_dir())
    with pytest.raises(SfumatoError, match=r"no transforms\.json"):
        read_capture(place)
    code, out, _ = run(*words)
    assert code == 0 and out.splitlines()[0] == str(place) and len(read_views(place)[0]) == 3
