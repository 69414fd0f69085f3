"""COLMAP's models, text and binary, written by the tests' own formulas; and one line for whatever is wrong with one."""

from __future__ import annotations

import struct

import numpy as np
import posed
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.scene.capture import read_capture
from sfumato.scene.colmap import READ, read_colmap

F, C = (61.0, 55.0), (37.5, 22.25)
KINDS = {
    "SIMPLE_PINHOLE": ((61.0, *C), {"fl_y": 61.0}),
    "PINHOLE": ((*F, *C), {}),
    "SIMPLE_RADIAL": ((61.0, *C, 0.1), {"fl_y": 61.0, "k1": 0.1}),
    "RADIAL": ((61.0, *C, 0.1, -0.06), {"fl_y": 61.0, "k1": 0.1, "k2": -0.06}),
    "OPENCV": ((*F, *C, 0.11, -0.07, 0.006, -0.009), {"k1": 0.11, "k2": -0.07, "p1": 0.006, "p2": -0.009}),
    "FULL_OPENCV": (
        (*F, *C, 0.31, -0.07, 0.006, -0.009, 0.02, 0.25, 0.03, -0.01),
        {"k1": 0.31, "k2": -0.07, "p1": 0.006, "p2": -0.009, "k3": 0.02, "k4": 0.25, "k5": 0.03, "k6": -0.01},
    ),
    "OPENCV_FISHEYE": (
        (*F, *C, 0.08, -0.03, 0.01, -0.004),
        {"k1": 0.08, "k2": -0.03, "k3": 0.01, "k4": -0.004, "camera_model": "OPENCV_FISHEYE"},
    ),
    "SIMPLE_RADIAL_FISHEYE": ((61.0, *C, 0.08), {"fl_y": 61.0, "k1": 0.08, "camera_model": "OPENCV_FISHEYE"}),
    "RADIAL_FISHEYE": (
        (61.0, *C, 0.08, -0.03), {"fl_y": 61.0, "k1": 0.08, "k2": -0.03, "camera_model": "OPENCV_FISHEYE"},
    ),
}  # fmt: skip
"""Parameters in COLMAP's order, and the same by their names."""
POINTS = np.random.default_rng(5).normal(size=(40, 3)) * 0.4 + [3.0, -2.0, 0.5]


def place(tmp_path, kind="OPENCV", binary=True, **options):
    params, named = KINDS[kind]
    return posed.colmap(tmp_path, kind, params, posed.LENS | named, binary, **options)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_is_what_its_camera_sees(tmp_path, kind, binary):
    capture = read_capture(place(tmp_path, kind, binary, n=3))
    assert capture.names == ("photo 00.png", "photo 01.png", "photo 02.png")
    assert posed.errors(capture).max() < 2.5 / 255, "rounding is half of 1/255, the rest is reading between pixels"
    whole = "PINHOLE" in kind or "FISHEYE" in kind  # which sees more than a pinhole
    assert capture.masks is None if whole else 0.7 < capture.masks.float().mean() < 1


def test_all_kinds_that_are_read_are_tried():
    assert set(KINDS) == set(READ)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
def test_points_and_poses_are_those_of_the_file(tmp_path, binary):
    shots = read_colmap(place(tmp_path, binary=binary, points=POINTS) / "sparse" / "0", tmp_path)
    torch.testing.assert_close(shots.points, torch.from_numpy(POINTS), atol=0, rtol=0)
    np.testing.assert_allclose(shots.colours[9], (1, 0.2, 9 / 255), rtol=1e-6)
    np.testing.assert_allclose(torch.stack([s.pose for s in shots.shots]).numpy(), posed.ring(), atol=1e-12)


def test_points_come_into_the_world_with_the_cameras(tmp_path):
    capture = read_capture(place(tmp_path, points=POINTS))
    torch.testing.assert_close(capture.own(capture.points.double()), torch.from_numpy(POINTS), atol=1e-5, rtol=0)
    away = np.linalg.norm(POINTS - [3.0, -2.0, 0.5], axis=1)
    middle = capture.points - capture.middle
    scale = float(torch.linalg.det(capture.world[:3, :3]) ** (1 / 3))
    assert float(middle.norm(dim=1).max()) * scale == pytest.approx(away.max(), rel=0.1)


def test_a_kept_world_has_what_is_down_in_colmap_s_down(tmp_path):
    capture = read_capture(place(tmp_path, "PINHOLE"), keep_world=True)
    eyes = posed.ring()[:, :3, 3]
    np.testing.assert_allclose(capture.cameras.eyes.numpy(), eyes * [1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(capture.own(capture.cameras.eyes).numpy(), eyes, atol=1e-6)


def test_axes_are_known_and_not_to_be_said(tmp_path):
    with pytest.raises(SfumatoError, match="OpenCV's in any case"):
        read_capture(place(tmp_path, "PINHOLE"), opencv=True)


def test_a_model_is_found_where_programs_put_it(tmp_path):
    place(tmp_path, "PINHOLE")
    model = tmp_path / "sparse" / "0"
    ours = read_capture(tmp_path)
    for where in (model, tmp_path / "sparse"):
        assert read_capture(model if where == model else tmp_path).names == ours.names
    for file in model.iterdir():
        file.rename(tmp_path / "sparse" / file.name)
    torch.testing.assert_close(read_capture(tmp_path).cameras.poses, ours.cameras.poses)


def test_masks_beside(tmp_path):
    place(tmp_path, "PINHOLE")
    hole = np.ones((44, 68))
    hole[10:20, 30:50] = 0
    posed.save(hole, tmp_path / "masks" / "photo 01.png.png")
    posed.save(1 - hole, tmp_path / "masks" / "photo 02.png")
    masks = read_capture(tmp_path).masks
    np.testing.assert_array_equal(masks[1].numpy(), hole > 0)
    np.testing.assert_array_equal(masks[2].numpy(), hole == 0)
    assert bool(masks[0].all())


def test_missing_images_are_counted(tmp_path, capsys):
    place(tmp_path, "PINHOLE")
    (tmp_path / "images" / "photo 02.png").unlink()
    assert len(read_capture(tmp_path)) == 5
    assert "1 of 6 images" in capsys.readouterr().err
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(SfumatoError, match="6 of 6 images"):
        read_capture(tmp_path)
    (tmp_path / "images").rmdir()
    with pytest.raises(SfumatoError, match=r"there is no folder .*images"):
        read_capture(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_what_is_cut_short_is_said_wherever_it_ends(tmp_path, name):
    place(tmp_path, "PINHOLE", n=3, points=POINTS[:3])
    file = tmp_path / "sparse" / "0" / f"{name}.bin"
    whole = file.read_bytes()
    for end in (*range(0, len(whole) - 1, 11), len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(SfumatoError, match=f"{name}.bin is cut short: it ends after {end} bytes"):
            read_capture(tmp_path)
    file.write_bytes(whole)
    assert len(read_capture(tmp_path)) == 3


def test_cameras_that_are_not_known_are_named(tmp_path):
    place(tmp_path / "a", "PINHOLE")
    file = tmp_path / "a" / "sparse" / "0" / "cameras.bin"
    whole = file.read_bytes()
    for number, name in ((7, "FOV"), (10, "THIN_PRISM_FISHEYE"), (99, "number 99"), (-1, "number -1")):
        file.write_bytes(whole[:12] + struct.pack("<i", number) + whole[16:])
        with pytest.raises(SfumatoError, match=f"the kind {name}; undistort by COLMAP before, or: SIMPLE_PINHOLE"):
            read_capture(tmp_path / "a")
    text = place(tmp_path / "b", "PINHOLE", False) / "sparse" / "0" / "cameras.txt"
    text.write_text(text.read_text().replace("PINHOLE", "FOV"))
    with pytest.raises(SfumatoError, match="the kind FOV"):
        read_capture(tmp_path / "b")


BROKEN = {
    "camera": ("cameras.txt", lambda t: t.replace("68", "wide"), "line 2 of .*cameras.txt is no camera"),
    "parameters": ("cameras.txt", lambda t: t.rstrip() + " 1.0\n", "line 2 of .*cameras.txt is no PINHOLE camera"),
    "focal": ("cameras.txt", lambda t: t.replace("61.0", "-61.0"), "focal length is above 0"),
    "nan": ("cameras.txt", lambda t: t.replace("22.25", "nan"), "the parameters"),
    "image": ("images.txt", lambda t: t.replace(" 7 photo", " seven photo", 1), "line 2 of .*images.txt is no image"),
    "another camera": ("images.txt", lambda t: t.replace(" 7 photo", " 8 photo"), "of camera 8"),
    "no images": ("images.txt", lambda t: "# none\n", "has 0 images"),
    "point": ("points3D.txt", lambda t: t.replace(" 255 ", " red ", 1), "line 2 of .*points3D.txt is no point"),
    "short point": ("points3D.txt", lambda t: t + "77 1.0 2.0\n", "line 5 of .*points3D.txt is no point"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_in_a_text_is_one_line(tmp_path, kind):
    name, change, words = BROKEN[kind]
    file = place(tmp_path, "PINHOLE", False, n=3, points=POINTS[:3]) / "sparse" / "0" / name
    file.write_text(change(file.read_text()))
    with pytest.raises(SfumatoError, match=words) as caught:
        read_capture(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (float("nan"), 0, 0, 1), (5, 0, 0, 0)])
def test_a_quaternion_that_is_none_is_refused(tmp_path, quaternion):
    file = place(tmp_path, "PINHOLE") / "sparse" / "0" / "images.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:12] + struct.pack("<4d", *quaternion) + whole[44:])
    with pytest.raises(SfumatoError, match="whose length is not 1"):
        read_capture(tmp_path)


def test_a_model_without_points_is_read(tmp_path):
    (place(tmp_path, "PINHOLE") / "sparse" / "0" / "points3D.bin").unlink()
    assert read_capture(tmp_path).points is None
