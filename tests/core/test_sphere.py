"""A sphere's windows: all is seen, what is split is merged, noise stays noise, and the seam is nowhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.commands.sampling import Sampling
from sfumato.core.denoising import denoise
from sfumato.core.fusing import Canvas
from sfumato.core.sphere import Sphere, axes, directions
from sfumato.errors import SfumatoError

CUBE = Sphere(90, 90)
KINDS = pytest.mark.parametrize("views", [Sphere(), CUBE, Sphere(100, 60)], ids=["windows", "cube", "wide"])


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ways(height: int) -> Tensor:
    """A canvas that shows where each of its cells lies: to the right, up, ahead."""
    return directions((height, 2 * height)).permute(2, 0, 1)[None].float()


@KINDS
def test_every_cell_is_seen_at_the_poles_and_the_seam_too(views):
    for height in (16, 33):
        weight = views.coverage(height, 2 * height, (16, 16))
        assert weight.min() > 0.1 and weight.shape == (height, 2 * height)


def test_windows_look_to_the_horizon_above_and_below_and_to_the_poles():
    assert Sphere().places[:1] + Sphere().places[-1:] == ((0.0, -90.0), (0.0, 90.0))
    assert [sum(up == e for _, up in Sphere().places) for e in (-90, -45, 0, 45, 90)] == [1, 6, 8, 6, 1]
    assert CUBE.places == ((0, -90), (0, 0), (90, 0), (180, 0), (270, 0), (0, 90))


@KINDS
def test_what_is_split_is_merged(views):
    x = ways(64)
    parts = views.split(x, (32, 32))
    assert parts.shape == (len(views.places), 3, 32, 32)
    assert (views.merge(parts, x) - x).abs().max() < 0.03


@KINDS
def test_a_window_is_what_a_camera_sees(views):
    half, n = math.tan(math.radians(views.fov / 2)), 15
    for place, part in zip(views.places, views.split(ways(256), (n, n)), strict=True):
        right, up, ahead = axes(*place).float()
        assert torch.allclose(part[:, n // 2, n // 2], ahead, atol=0.02)
        last = half * (1 - 1 / n)
        for row, column, wanted in ((n // 2, -1, ahead + last * right), (0, n // 2, ahead + last * up)):
            assert torch.allclose(part[:, row, column], wanted / wanted.norm(), atol=0.02), place


def test_a_cell_counts_by_its_solid_angle():
    """Of two windows that show it, each 45 degrees: the one nearer to it by the cube of the cosine."""
    views = Sphere(150, 90)
    canvas, one = (32, 64), views.places.index((0, 0))
    weights = torch.stack([view.weight for view in views.of(canvas, (16, 16))])  # pyright: ignore
    ahead = directions(canvas)[..., 2]
    seen = weights[one] > 0
    assert torch.allclose(weights[one][seen], (ahead[seen] ** 3).float()) and 0.2 < seen.float().mean() < 0.5


def test_noise_of_windows_is_unit_and_one_noise():
    views, x = Sphere(), noise(24, 4, 64, 128)
    parts = views.split_noise(x, (16, 16)).unflatten(0, (24, -1))
    each = parts.transpose(0, 1).flatten(1)
    assert (each.std(1) - 1).abs().max() < 0.03 and each.mean(1).abs().max() < 0.03
    for side in (-1, -2):
        n = parts.shape[side]
        beside = (parts.narrow(side, 0, n - 1) * parts.narrow(side, 1, n - 1)).mean()
        assert abs(beside) < 0.02
    assert views.split(x, (16, 16)).std() < 0.75  # what bilinear windows would make of it
    known = set(x[0, 0].flatten().tolist())
    assert set(parts[0, :, 0].flatten().tolist()) <= known
    horizon = [i for i, (_, up) in enumerate(views.places) if up == 0]
    first, second = (set(parts[0, i, 0].flatten().tolist()) for i in horizon[:2])
    assert len(first) == 256 and len(first & second) > 20


def test_a_sphere_has_no_seam():
    """Turned by a window's step it is the same windows in another order, wherever the border of the canvas lies."""
    views, x = Sphere(), noise(1, 2, 32, 64)
    horizon = [i for i, (_, up) in enumerate(views.places) if up == 0]
    for split in (views.split, views.split_noise):
        parts, moved = split(x, (16, 16))[horizon], split(x.roll(8, -1), (16, 16))[horizon]
        close = (moved - parts.roll(1, 0)).abs() < 1e-3
        assert close.float().mean() > 0.99


def test_a_sphere_turned_is_painted_turned(sd):
    """But for where the poles' windows look, which are the same ways in both."""
    views, start = Sphere(90, 90, "x0"), noise(1, 4, 16, 32)
    options: dict[str, Any] = {"steps": 2, "guide": 1.0, "views": views}
    out = denoise(sd, "a red cube", start=start, **options).latents
    moved = denoise(sd, "a red cube", start=start.roll(8, -1), **options).latents
    assert out.shape == (1, 4, 16, 32) and out[..., 6:10, :].std() > 0.1
    torch.testing.assert_close(moved[..., 6:10, :], out.roll(8, -1)[..., 6:10, :], atol=1e-2, rtol=0)


def test_what_agrees_on_pictures_is_encoded_without_a_seam(sd):
    canvas = Canvas(sd, CUBE, (16, 32))
    images = torch.rand(1, 3, 128, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out, moved = canvas._encoded(images), canvas._encoded(images.roll(64, -1))
        plain, off = sd.encode(images), sd.encode(images.roll(64, -1))
    assert out.shape == plain.shape
    apart, seam = (moved - out.roll(8, -1)).abs(), (off - plain.roll(8, -1)).abs()
    assert apart[..., [0, 7, 8, 31]].max() < 0.2 * seam[..., [0, 7, 8, 31]].max()


def test_windows_that_agree_on_pictures_are_painted(sd):
    options: dict[str, Any] = {"steps": 1, "guide": 1.0, "size": (128, 256)}
    out = denoise(sd, "a red cube", views=CUBE, **options)
    assert out.images.shape == (1, 3, 128, 256) and out.latents.isfinite().all()


def test_what_does_not_fit_is_said(sd):
    with pytest.raises(SfumatoError, match="twice as wide as it is high, got 16 x 16 cells; take 16 x 32"):
        denoise(sd, "a red cube", steps=1, size=128, views=Sphere())
    for fov, step in ((72, 0), (180, 45), (40, 45), (120, 100)):
        with pytest.raises(SfumatoError, match="windows of a sphere are less than 180 degrees"):
            Sphere(fov, step)
    options: dict[str, Any] = Sampling(canvas=(512, 256), views="sphere").options((128, 128))
    assert options == {"size": (256, 512), "views": Sphere()}
    with pytest.raises(SfumatoError, match="--stride is of windows on a plane"):
        Sampling(canvas=(512, 256), views="sphere", stride=4)
