"""Captures as a whole: every pixel against the painted ball; sizes, masks, transparency; the world; there and back."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import posed
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from sfumato.errors import SfumatoError
from sfumato.scene.cameras import Pinholes, looking, orbit
from sfumato.scene.capture import Capture, read_capture, write_capture
from sfumato.scene.shots import Z_UP, focus, moved, placed, upwards

ROUNDING = 0.5 / 255 + 1e-4
READING = 2.5 / 255
"""Rounding, and reading between pixels."""


def poses(n=8, seed=0):
    return torch.from_numpy(posed.ring(n, seed))


# the images


def test_every_pixel_is_what_its_camera_sees(tmp_path):
    capture = read_capture(posed.folder(tmp_path))
    assert capture.images.shape == (6, 3, 44, 68) and capture.masks is None and capture.alphas is None
    assert posed.errors(capture).max() < ROUNDING


@pytest.mark.parametrize("kind", ["OPENCV", "OPENCV_FISHEYE"])
def test_a_lens_is_taken_off(tmp_path, kind):
    lens = posed.BENT | {"camera_model": kind}
    place = posed.folder(tmp_path, lens if kind == "OPENCV" else lens | {"p1": 0.0, "p2": 0.0})
    assert posed.errors(read_capture(place)).max() < READING
    posed.rewrite(place, posed.settings(place) | {"camera_model": "PINHOLE"})
    assert posed.errors(read_capture(place)).max() > 5 * READING, "the same images as a pinhole's are wrong"


@pytest.mark.parametrize("turn", [(0, 0, 0), (90, 0, 0), (0, 200, 0), (40, -70, 15)])
def test_a_world_of_any_axes_place_and_scale_comes_to_the_same(tmp_path, turn):
    """Only cameras say what is up, in the middle, in front and how large; the file's world says nothing."""
    by = np.eye(4)
    by[:3, :3], by[:3, 3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix(), (40, -9, 4)
    ours = placed(poses())
    frames = by @ posed.ring(8)
    frames[:, :3, 3] *= 3.7
    there = placed(torch.from_numpy(frames))
    torch.testing.assert_close(moved(torch.from_numpy(frames), there), moved(poses(), ours), atol=1e-9, rtol=0)


def test_images_of_more_pixels_than_said_see_the_same(tmp_path):
    """w and h are of the calibration; the pictures may be smaller, as nerfstudio's images_2 are, or larger."""
    posed.folder(tmp_path, posed.BENT)
    for part in (2, 0.5):
        about = posed.settings(tmp_path) | {k: part * v for k, v in posed.LENS.items()}
        capture = read_capture(posed.rewrite(tmp_path, about))
        assert capture.cameras.size == (44, 68) and posed.errors(capture).max() < READING


def test_more_images_than_memory_are_refused(tmp_path, monkeypatch):
    place = posed.folder(tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**18))
    with pytest.raises(SfumatoError, match=r"6 images of 68 x 44 take .* give a smaller side"):
        read_capture(place)
    assert len(read_capture(place, side=40)) == 6


def test_large_images_are_made_smaller(tmp_path):
    place = posed.folder(tmp_path, posed.BENT | {k: 2 * v for k, v in posed.LENS.items()}, 3)
    whole, small = read_capture(place), read_capture(place, side=60)
    assert whole.cameras.size == (88, 136) and small.cameras.size == (39, 60)
    assert posed.errors(small).max() < 3 * READING
    assert read_capture(place, side=None).cameras.size == (88, 136)
    with pytest.raises(SfumatoError, match="16 pixels a side or more"):
        read_capture(place, side=8)


def test_images_of_several_sizes_and_shapes_are_fitted(tmp_path, capsys):
    place = posed.folder(tmp_path, n=5)
    about = posed.settings(place)
    others = {
        1: {k: 2 * v for k, v in posed.LENS.items()},  # more pixels
        3: {"fl_x": 61.0, "fl_y": 55.0, "cx": 21.0, "cy": 33.0, "w": 44, "h": 68},
    }  # on its side
    for i, lens in others.items():
        posed.save(posed.photograph(posed.ring(5)[i], lens), place / "images" / f"{i:02d}.png")
        about["frames"][i] |= lens
    posed.rewrite(place, about)
    capture = read_capture(place)
    assert "2 of 5 images are not 68 x 44" in capsys.readouterr().err
    assert capture.cameras.size == (44, 68) and capture.alphas is None, "what is left over is not transparent"
    assert bool(capture.masks[[0, 1, 2, 4]].all())
    assert capture.masks[3].sum() == 44 * 28 and bool(capture.masks[3, :, :28].all()), "68 x 44 within a height of 44"
    assert posed.errors(capture).max() < 3 * READING
    assert float(capture.cameras.focal[3, 0]) == pytest.approx(61 * 28 / 44)


def test_pictures_are_read_as_they_lie(tmp_path):
    """Programs that find cameras do not obey the rotation tag, so the tag says nothing about the camera."""
    place = posed.folder(tmp_path, n=3)
    ours = read_capture(place)
    for file in (place / "images").iterdir():
        picture = Image.open(file)
        tag = picture.getexif()
        tag[0x0112] = 6
        picture.save(file, exif=tag)
    assert read_capture(place).images.equal(ours.images)


def test_masks(tmp_path):
    place = posed.folder(tmp_path, posed.BENT)
    ours = read_capture(place).masks
    hole = np.ones((44, 68))
    hole[:, 40:] = 0
    posed.save(hole, place / "masks" / "a.png")
    about = posed.settings(place)
    about["frames"][2]["mask_path"] = "masks/a.png"
    masks = read_capture(posed.rewrite(place, about)).masks
    assert masks[[0, 1, 3, 4, 5]].equal(ours[[0, 1, 3, 4, 5]])
    columns = torch.arange(68) + 0.5
    assert not bool(masks[2][:, columns > 43].any()) and masks[2][:, columns < 37].equal(ours[2][:, columns < 37])
    for frame in about["frames"]:
        frame["mask_path"] = "masks/b.png"
    posed.save(np.zeros((44, 68)), place / "masks" / "b.png")
    with pytest.raises(SfumatoError, match="no pixel that counts"):
        read_capture(posed.rewrite(place, about))
    posed.save(np.zeros((44, 44)), place / "masks" / "b.png")
    with pytest.raises(SfumatoError, match="mask of 44 x 44, and a camera of 68 x 44"):
        read_capture(place)


def test_masks_go_through_the_lens_with_their_images(tmp_path):
    """A mask of where the photograph is red: it is where the straight image is red, but for the very border."""
    place = posed.folder(tmp_path, posed.BENT)
    about = posed.settings(place)
    for i, frame in enumerate(about["frames"]):
        red = posed.photograph(posed.ring()[i], posed.BENT)[..., 0] > 0.5
        posed.save(red.astype(float), place / "masks" / f"{i}.png")
        frame["mask_path"] = f"masks/{i}.png"
    seen = read_capture(place).masks
    capture = read_capture(posed.rewrite(place, about))
    red = capture.images[:, 0]
    clear = seen & ((red - 0.5).abs() > 0.06)  # half a pixel is as much
    assert float(clear.float().mean()) > 0.5 and capture.masks[clear].equal(red[clear] > 0.5)


def test_transparency_becomes_white_and_is_kept(tmp_path):
    place = posed.folder(tmp_path)
    file = place / "images" / "01.png"
    picture = Image.open(file).convert("RGBA")
    clear = np.full((44, 68), 255, np.uint8)
    clear[:22], clear[22:30] = 0, 51
    picture.putalpha(Image.fromarray(clear))
    picture.save(file)
    opaque, capture = posed.photograph(posed.ring()[1], posed.LENS), read_capture(place)
    assert capture.masks is None
    np.testing.assert_allclose(capture.alphas[1].numpy(), clear / 255, atol=1e-6)
    assert bool((capture.alphas[[0, 2, 3, 4, 5]] == 1).all())
    part = clear[..., None] / 255
    np.testing.assert_allclose(capture.images[1].permute(1, 2, 0).numpy(), part * opaque + 1 - part, atol=ROUNDING)
    again = read_capture(write_capture(tmp_path / "again", capture))
    torch.testing.assert_close(again.alphas, capture.alphas)
    torch.testing.assert_close(again.images, capture.images, atol=0.6 / 255, rtol=0)


# the world


def test_the_world_is_upright_centred_and_of_size_1():
    """Cameras held level: up is exactly that of the file; the first stands in front; the farthest at 1."""
    ours = moved(poses(), placed(poses()))
    up = ours[:, :3, :3] @ torch.linalg.inv(poses()[:, :3, :3]) @ torch.tensor([0.0, 0, 1]).double()
    torch.testing.assert_close(up, torch.tensor([0.0, 1, 0]).double().expand(8, 3), atol=1e-9, rtol=0)
    torch.testing.assert_close(focus(ours), torch.zeros(3).double(), atol=1e-9, rtol=0)
    assert float(ours[:, :3, 3].norm(dim=1).max()) == pytest.approx(1)
    assert float(ours[0, 0, 2]) == pytest.approx(0, abs=1e-9) and float(ours[0, 2, 2]) > 0
    axes = ours[:, :3, :3]
    torch.testing.assert_close(axes.mT @ axes, torch.eye(3).double().expand(8, 3, 3), atol=1e-9, rtol=0)
    assert bool((torch.linalg.det(axes) > 0).all())


def test_the_way_back_leads_to_the_file_s_own_world(tmp_path):
    capture = read_capture(posed.folder(tmp_path))
    np.testing.assert_allclose(capture.own(capture.cameras.eyes.double()).numpy(), posed.ring()[:, :3, 3], atol=1e-5)
    ours = moved(capture.cameras.poses.double(), capture.world)
    np.testing.assert_allclose(ours.numpy(), posed.ring(), atol=1e-5)


def test_the_file_s_own_world_may_be_kept(tmp_path):
    capture = read_capture(posed.folder(tmp_path), keep_world=True)
    eyes = posed.ring()[:, :3, 3]
    np.testing.assert_allclose(
        capture.cameras.eyes.numpy(), np.stack([eyes[:, 0], eyes[:, 2], -eyes[:, 1]], 1), atol=1e-6
    )
    np.testing.assert_allclose(capture.own(capture.cameras.eyes).numpy(), eyes, atol=1e-6)
    assert posed.errors(capture).max() < ROUNDING


def test_the_focus_is_the_nearest_point_to_the_axes():
    ours = poses(5, 3)
    point = focus(ours)
    eyes, ways = ours[:, :3, 3], -ours[:, :3, 2]

    def off(x):
        gap = x - eyes
        return float((gap - (gap * ways).sum(-1, keepdim=True) * ways).square().sum())

    for step in torch.eye(3).double() * 1e-3:
        assert off(point) < min(off(point + step), off(point - step))
    assert focus(ours * torch.tensor([1.0, -1, -1, 1])) is None, "it lies behind all"
    assert focus(torch.eye(4).double().repeat(4, 1, 1)) is None, "axes are parallel"


def test_cameras_that_look_outwards_are_about_their_own_mean():
    out = poses() @ torch.tensor([-1.0, 1, -1, 1]).double().diag()  # each turned by half a circle
    ours = moved(out, placed(out))
    torch.testing.assert_close(ours[:, :3, 3].mean(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    assert float(ours[:, :3, 3].norm(dim=1).max()) == pytest.approx(1)


def test_up_of_level_cameras_that_look_down_is_not_tilted():
    """All from one side and from above: the mean of their own up leans, and what none of their right hands does not."""
    at = torch.tensor([-40.0, -20, 0, 25, 45]).double().deg2rad()
    eyes = torch.stack([at.cos(), at.sin(), torch.ones(5).double()], 1)
    ours = torch.from_numpy(np.stack([look(eye) for eye in eyes.numpy()]))
    torch.testing.assert_close(upwards(ours), torch.tensor([0.0, 0, 1]).double(), atol=1e-9, rtol=0)
    assert float(ours[:, 2, 1].mean() / ours[:, :3, 1].mean(0).norm()) < 0.9, "whereas the mean does lean"


def look(eye):
    """A level camera that looks at 0, z up."""
    back = eye / np.linalg.norm(eye)
    right = np.cross([0, 0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(back, right), back], 1), eye
    return pose


def test_up_of_cameras_that_all_look_one_way_is_at_a_right_angle_to_their_right_hands():
    ours = torch.from_numpy(np.stack([look(np.array([1.0, 0, 1]))] * 4))
    ours[:, 1, 3] += torch.arange(4)
    up = upwards(ours)
    torch.testing.assert_close(up, ours[0, :3, 1], atol=1e-9, rtol=0)
    assert bool(placed(ours).isfinite().all())


def test_up_of_cameras_held_any_way_is_the_mean_of_theirs():
    """Half of the photographs upright, half on their side: their right hands say nothing."""
    ours = poses(8)
    roll = torch.from_numpy(Rotation.from_euler("z", 50, degrees=True).as_matrix())
    for i, by in enumerate((roll, roll.T) * 4):
        ours[i, :3, :3] = ours[i, :3, :3] @ by
    assert float(upwards(ours) @ torch.tensor([0.0, 0, 1]).double()) > 0.9


def test_cameras_straight_above_have_a_world_too():
    ours = torch.eye(4).double().repeat(4, 1, 1)
    ours[:, :2, 3] = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]).double()
    ours[:, 2, 3] = 3
    by = placed(ours)
    assert bool(by.isfinite().all()) and float(torch.linalg.det(by[:3, :3])) > 0


# near and far


def test_near_and_far_by_points():
    """Points of a ball that all cameras see; and some above and behind them, which none does."""
    cameras = orbit(6, (40, 60), distance=2.5, fov=60.0, elevation=0.0)[[0, 1, 5]]
    way = torch.nn.functional.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    unseen = torch.tensor([[0.0, 90.0, 0.0], [0.0, 0.0, 60.0]]).repeat_interleave(30, 0)
    capture = Capture(torch.zeros(3, 3, 40, 60), cameras, tuple("abc"), points=torch.cat([0.5 * way, unseen]))
    near, far = capture.span
    away = (0.5 * way - cameras.eyes[:, None]).norm(dim=-1)
    assert near == pytest.approx(float(away.min()) / 1.2, rel=0.01)
    assert far == pytest.approx(float(away.max()) * 1.2, rel=0.01)


def test_near_and_far_by_cameras():
    cameras = orbit(6, (40, 60), distance=2.5, target=(1.0, 0.5, 0.0))
    capture = Capture(torch.zeros(6, 3, 40, 60), cameras, tuple("abcdef"))
    torch.testing.assert_close(capture.middle, torch.tensor([1.0, 0.5, 0.0]), atol=1e-5, rtol=0)
    assert capture.span == pytest.approx((0.25, 7.5), rel=1e-4)


def test_near_is_above_0_where_a_camera_stands_in_the_middle():
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[1, 0, 3], poses[2, 0, 3] = 2.0, -2.0
    capture = Capture(torch.zeros(3, 3, 9, 9), looking(poses, 60.0, (9, 9)), tuple("abc"))
    assert capture.span == pytest.approx((0.02, 6.0))


def test_a_camera_that_stands_far_out_is_doubted(tmp_path, capsys):
    place = posed.folder(tmp_path)
    about = posed.settings(place)
    read_capture(place)
    assert not capsys.readouterr().err
    about["frames"][4]["transform_matrix"][0][3] = 900.0
    read_capture(posed.rewrite(place, about))
    line = capsys.readouterr().err
    assert "images/04.png stands" in line and "is its pose right?" in line and len(line.splitlines()) == 1


SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_lens_any_shape_every_pixel(tmp_path, seed):
    """Of focal lengths, middles, shapes and bends drawn at random, by transforms.json and by COLMAP."""
    rng = np.random.default_rng(seed)
    w, h = (int(n) for n in rng.integers(24, 60, 2))
    lens = {"w": w, "h": h, "fl_x": max(w, h) * rng.uniform(0.8, 2), "fl_y": max(w, h) * rng.uniform(0.8, 2),
            "cx": w * rng.uniform(0.35, 0.65), "cy": h * rng.uniform(0.35, 0.65), "k1": rng.uniform(-0.1, 0.15),
            "k2": rng.uniform(-0.05, 0.05), "p1": rng.uniform(-0.01, 0.01), "p2": rng.uniform(-0.01, 0.01)}  # fmt: skip
    one = read_capture(posed.folder(tmp_path / "a", lens, 3, seed))
    params = [lens[k] for k in ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")]
    two = read_capture(posed.colmap(tmp_path / "b", "OPENCV", params, lens, bool(seed % 2), 3, seed))
    assert posed.errors(one).max() < READING
    assert one.masks is None or float(one.masks.float().mean()) > 0.7
    torch.testing.assert_close(one.images, two.images, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.cameras.poses, two.cameras.poses, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.cameras.focal, two.cameras.focal)


# there and back


def test_written_and_read_it_is_the_same(tmp_path):
    capture = read_capture(posed.folder(tmp_path / "a", posed.BENT))
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    capture = Capture(capture.images, capture.cameras, capture.names, capture.masks, None, points,
                      torch.arange(60).view(20, 3) / 255, capture.world)  # fmt: skip
    again = read_capture(write_capture(tmp_path / "b", capture).parent)
    for name in ("poses", "focal", "centre"):
        assert getattr(again.cameras, name).equal(getattr(capture.cameras, name)), name
    assert again.names == capture.names and again.masks.equal(capture.masks)
    torch.testing.assert_close(again.images, capture.images, atol=0.5001 / 255, rtol=0)
    torch.testing.assert_close(again.points, points, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.colours, capture.colours)
    assert again.world.equal(capture.world)
    assert posed.errors(again).max() < 2 * READING


def test_other_programs_find_the_same_cameras_in_what_is_written(tmp_path):
    """Without our own entry it is any transforms.json: of the world with its z up."""
    capture = read_capture(posed.folder(tmp_path / "a"))
    write_capture(tmp_path / "b", capture)
    about = posed.settings(tmp_path / "b")
    assert about.pop("sfumato")["world"] == capture.world.tolist()
    other = read_capture(posed.rewrite(tmp_path / "b", about))
    torch.testing.assert_close(other.cameras.poses, capture.cameras.poses, atol=1e-5, rtol=0)
    up = torch.tensor(about["frames"][0]["transform_matrix"]).double()
    torch.testing.assert_close(Z_UP.T @ up, capture.cameras.poses[0].double())


def test_resized_it_shows_the_same(tmp_path):
    capture = read_capture(posed.folder(tmp_path, posed.BENT))
    small = capture.resized(22, 34)
    assert small.cameras.size == (22, 34) and small.masks.shape == (6, 22, 34)
    assert posed.errors(small).max() < 3 * READING


def test_parts_of_a_capture(tmp_path):
    capture = read_capture(posed.folder(tmp_path, posed.BENT))
    rest, held = capture.split(4)
    assert held.names == ("images/00.png", "images/04.png") and len(rest) == 4
    assert rest.images.equal(capture.images[[1, 2, 3, 5]]) and rest.masks.equal(capture.masks[[1, 2, 3, 5]])
    assert held.cameras.poses.equal(capture.cameras.poses[[0, 4]]) and held.world is capture.world
    with pytest.raises(SfumatoError, match="none to learn from"):
        capture.split(1)


def test_what_does_not_go_together_is_refused():
    cameras = orbit(2, (4, 6))
    images = torch.zeros(2, 3, 4, 6)
    for bad in (
        lambda: Capture(images, cameras, ("a",)),
        lambda: Capture(torch.zeros(2, 3, 6, 4), cameras, ("a", "b")),
        lambda: Capture(torch.zeros(3, 3, 4, 6), cameras, ("a", "b", "c")),
        lambda: Capture(images, cameras, ("a", "b"), torch.ones(2, 6, 4, dtype=torch.bool)),
        lambda: Capture(images, cameras, ("a", "b"), alphas=torch.ones(1, 4, 6)),
    ):
        with pytest.raises(SfumatoError):
            bad()


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    cameras = orbit(2, (4, 6))
    broken = Pinholes(cameras.poses * math.nan, cameras.focal, cameras.centre, cameras.size)
    with pytest.raises(SfumatoError, match="not finite"):
        write_capture(tmp_path, Capture(torch.zeros(2, 3, 4, 6), broken, ("a", "b")))
