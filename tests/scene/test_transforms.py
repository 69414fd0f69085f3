"""``transforms.json``: what its settings mean, and one line for whatever is wrong with it."""

from __future__ import annotations

import json
import math

import numpy as np
import posed
import pytest
import torch
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.scene.capture import read_capture
from sfumato.scene.transforms import read_transforms

TERMS = ("k1", "k2", "p1", "p2")


@pytest.fixture
def place(tmp_path):
    return posed.folder(tmp_path)


def read(place, **changes):
    """Of a folder with other settings; those that are None are taken out."""
    about = {k: v for k, v in (posed.settings(place) | changes).items() if v is not None}
    return read_transforms(posed.rewrite(place, about) / "transforms.json").shots


def test_each_frame_has_its_file_pose_and_lens(place):
    shots = read(place, k1=0.1, k2=0.2, p1=0.3, p2=0.4, k3=0.5)
    assert [shot.name for shot in shots] == [f"images/{i:02d}.png" for i in range(6)]
    np.testing.assert_array_equal(torch.stack([s.pose for s in shots]).numpy(), posed.ring())
    lens = shots[0].lens
    assert (lens.size, lens.focal, lens.centre) == ((44, 68), (61.0, 55.0), (37.5, 22.25))
    assert lens.radial[:3] == (0.1, 0.2, 0.5) and lens.tangential == (0.3, 0.4) and not lens.fisheye


def test_angles_instead_of_focal_lengths(place):
    """tan 45 degrees is 1: half of the side is the focal length. Blender's files have one angle and no size at all."""
    none = dict.fromkeys(("fl_x", "fl_y", "w", "h", "cx", "cy"))
    lens = read(place, **none, camera_angle_x=math.pi / 2)[0].lens
    assert lens.size == (44, 68) and lens.centre == (34.0, 22.0)
    assert lens.focal == pytest.approx((34.0, 34.0))
    lens = read(place, **none, camera_angle_x=math.pi / 2, camera_angle_y=math.pi / 2)[0].lens
    assert lens.focal == pytest.approx((34.0, 22.0))
    lens = read(place, **none | {"fl_x": 50.0}, camera_angle_y=None)[0].lens
    assert lens.focal == (50.0, 50.0), "what is said in pixels comes first"


def test_a_frame_s_own_settings_come_first(place):
    frames = posed.settings(place)["frames"]
    frames[2] |= {"fl_x": 70.0, "cx": 30.0, "k1": 0.5}
    lenses = [shot.lens for shot in read(place, frames=frames, fl_y=None, p1=0.25)]
    assert lenses[2].focal == (70.0, 70.0) and lenses[2].centre == (30.0, 22.25)
    assert (lenses[2].radial[0], lenses[2].tangential[0], lenses[1].radial[0]) == (0.5, 0.25, 0.0)
    assert lenses[1].focal == (61.0, 61.0)
    frames[2] = {k: v for k, v in frames[2].items() if k != "fl_x"} | {"camera_angle_x": math.pi / 2}
    assert read(place, frames=frames, fl_x=61.0)[2].lens.focal == pytest.approx((34.0, 34.0))


def test_names_without_endings_with_backslashes_and_out_of_order(place):
    frames = posed.settings(place)["frames"][::-1]
    for frame in frames:
        frame["file_path"] = ".\\" + frame["file_path"].removesuffix(".png").replace("/", "\\")
    shots = read(place, frames=frames)
    assert [shot.file.name for shot in shots] == [f"{i:02d}.png" for i in range(6)]
    np.testing.assert_array_equal(shots[4].pose.numpy(), posed.ring()[4])


def test_poses_of_three_rows_and_of_opencv(place):
    frames = posed.settings(place)["frames"]
    for frame in frames:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) * [1, -1, -1, 1])[:3].tolist()
    posed.rewrite(place, posed.settings(place) | {"frames": frames})
    shots = read_transforms(place / "transforms.json", flip=True).shots
    np.testing.assert_array_equal(torch.stack([s.pose for s in shots]).numpy(), posed.ring())


def test_poses_of_the_wrong_axes_are_doubted(place, capsys):
    read_capture(place)
    assert not capsys.readouterr().err
    frames = posed.settings(place)["frames"]
    for frame in frames:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) * [1, -1, -1, 1]).tolist()
    posed.rewrite(place, posed.settings(place) | {"frames": frames})
    read_capture(place)
    assert "are its poses OpenCV's" in capsys.readouterr().err
    assert posed.errors(read_capture(place, opencv=True)).max() < 3 / 255


def test_blender_s_files_are_found_by_their_names(place, capsys):
    (place / "transforms.json").rename(place / "transforms_train.json")
    assert len(read_capture(place)) == 6 and not capsys.readouterr().err
    about = json.loads((place / "transforms_train.json").read_text())
    (place / "transforms_test.json").write_text(json.dumps(about | {"frames": about["frames"][2:]}))
    assert len(read_capture(place)) == 6 and "transforms_test.json by name" in capsys.readouterr().err
    rest, whole = (read_capture(place / f"transforms_{n}.json", keep_world=True) for n in ("test", "train"))
    assert len(rest) == 4 and rest.cameras.poses.equal(whole.cameras.poses[2:])


def test_a_scaled_pose_is_the_camera_all_the_same(place):
    frames = posed.settings(place)["frames"]
    matrix = np.array(frames[0]["transform_matrix"])
    matrix[:3, :3] *= 2.5
    frames[0]["transform_matrix"] = matrix.tolist()
    np.testing.assert_allclose(read(place, frames=frames)[0].pose.numpy(), posed.ring()[0], atol=1e-12)


def test_a_pose_that_is_nearly_right_is_put_right(place):
    frames = posed.settings(place)["frames"]
    frames[0]["transform_matrix"] = np.round(frames[0]["transform_matrix"], 3).tolist()
    axes = read(place, frames=frames)[0].pose[:3, :3]
    torch.testing.assert_close(axes.T @ axes, torch.eye(3).double(), atol=1e-12, rtol=0)
    np.testing.assert_allclose(axes.numpy(), posed.ring()[0][:3, :3], atol=2e-3)


def test_missing_images_are_counted_and_the_rest_is_read(place, capsys):
    for i in (1, 4):
        (place / "images" / f"{i:02d}.png").unlink()
    assert [s.name[-6:-4] for s in read(place)] == ["00", "02", "03", "05"]
    line = capsys.readouterr().err
    assert "2 of 6 images" in line and "images/01.png, images/04.png" in line
    for i in (0, 2, 3):
        (place / "images" / f"{i:02d}.png").unlink()
    with pytest.raises(SfumatoError, match=r"^5 of 6 images of .* are not there \(images/00.png, .*\.\.\.\)$"):
        read(place)


def pose(change):
    """Frames whose first pose is changed in place."""

    def changed(about):
        matrix = np.array(about["frames"][0]["transform_matrix"])
        matrix = change(matrix)
        about["frames"][0]["transform_matrix"] = matrix if isinstance(matrix, list | str) else matrix.tolist()

    return changed


def settings(**values):
    return lambda about: about.update(values)


def times(*axes):
    return pose(lambda m: m * np.array([*axes, 1.0]))


def with_row(row):
    return pose(lambda m: np.concatenate([m[:3], [row]]))


def one_place(about):
    for frame in about["frames"]:
        for row, x in zip(frame["transform_matrix"], (5.0, 6.0, 7.0), strict=False):
            row[3] = x


BAD = {
    "mirrored": (times(-1, 1, 1), "left-handed"),
    "skewed": (pose(lambda m: m + 0.2 * np.eye(4, k=1) * (np.arange(4) < 3)[:, None]), "not rigid"),
    "stretched": (times(1, 2, 1), "not rigid"),
    "flat": (times(1, 1, 0), "scale of 0"),
    "zeros": (pose(lambda m: np.zeros((4, 4)) + np.diag([0, 0, 0, 1])), "scale of 0"),
    "nan": (pose(lambda m: m * np.array([1, 1, 1, math.nan])), "NaN is no finite number"),
    "infinite": (pose(lambda m: np.where(np.arange(4) == 3, math.inf, m)), "Infinity is no finite number"),
    "last row": (with_row([0, 0, 0.5, 1]), "last row"),
    "shape": (pose(lambda m: m[:2]), "no matrix"),
    "ragged": (pose(lambda m: [[1, 2], [3]]), "no matrix"),
    "words": (pose(lambda m: "here"), "no matrix"),
    "no pose": (lambda about: about["frames"][1].pop("transform_matrix"), "no matrix"),
    "no path": (lambda about: about["frames"][1].pop("file_path"), "frame 1 of .* has no file_path"),
    "no frames": (settings(frames=[]), "has no frames"),
    "frames of words": (settings(frames="all"), "has no frames"),
    "one view": (lambda about: about.update(frames=about["frames"][:1]), "has 1 image; .* 2 or more"),
    "one place": (one_place, "all 6 cameras stand at one place"),
    "no focal length": (lambda about: (about.pop("fl_x"), about.pop("fl_y")), "no focal length"),
    "focal 0": (settings(fl_x=0.0), "focal length is above 0"),
    "focal nan": (settings(fl_x=math.nan), "is no finite number"),
    "focal word": (settings(fl_x="long"), "fl_x .* is no finite number: 'long'"),
    "wide angle": (settings(fl_x=None, fl_y=None, camera_angle_x=200.0), "between 0 and pi"),
    "camera": (settings(camera_model="EQUIRECTANGULAR"), "kind EQUIRECTANGULAR; known: PINHOLE"),
    "k4": (settings(k4=0.1), "k4 in"),
    "mask": (lambda about: about["frames"][0].update(mask_path="masks/a.png"), "there is no mask .*masks/a.png"),
    "shape of images": (settings(w=90), "68 x 44, and a camera of 90 x 44"),
    "on its side": (settings(w=44, h=68), "it lies on its side"),
    "no size": (settings(w=0), "0 x 44 pixels"),
    "points": (settings(ply_file_path="none.ply"), "there is no file .*none.ply"),
    "world": (settings(sfumato={"world": [[1, 2]]}), "the world under sfumato"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_one_line(place, kind):
    change, words = BAD[kind]
    about = posed.settings(place)
    change(about)
    posed.rewrite(place, json.dumps(about))
    with pytest.raises(SfumatoError, match=words) as caught:
        read_capture(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text,words",
    [("{", "as JSON: .*line 1"), ("[1]", "a list, where an object is meant"), ("", "as JSON"), ("[" * 10**5, "JSON")],
)
def test_broken_json_is_one_line(place, text, words):
    with pytest.raises(SfumatoError, match=words) as caught:
        read_capture(posed.rewrite(place, text))
    assert "\n" not in str(caught.value)


def test_what_is_no_capture_is_one_line(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no picture")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for what, words in (
        ("nowhere", "there is no capture"), ("photo.png", "is no capture; give its folder"), ("bytes.json", "no text"),
        (".", "has no transforms.json and no COLMAP model"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            read_capture(tmp_path / what)


def test_a_picture_that_is_none_is_named(place):
    (place / "images" / "03.png").write_bytes(b"no picture")
    with pytest.raises(SfumatoError, match=r"03\.png"):
        read_capture(place)
    with pytest.raises(SfumatoError, match=r"03\.png"):
        read(place, w=None, h=None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [10500, 14000])
def test_a_picture_that_is_too_large_is_one_line(place, side):
    """PNGs of one bit: a Pillow of its own accord warns of the first, and refuses the second."""
    Image.new("1", (side * 68 // 44, side)).save(place / "images" / "03.png")
    with pytest.raises(SfumatoError, match=r"03\.png has .*more than 100 million"):
        read_capture(place)
