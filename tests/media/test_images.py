"""Image files of every kind, fitted to a model and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.media.images import fit, open_picture, read_image


def picture(w: int, h: int) -> Image.Image:
    """Red on the left half, blue on the right."""
    image = Image.new("RGB", (w, h), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, w // 2, h))
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L", "P", "LA", "1", "I;16", "YCbCr"])
def test_every_mode_is_read(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    image = Image.new("I;16", (20, 10), 65535) if mode == "I;16" else Image.new("RGB", (20, 10), "white").convert(mode)
    image.save(path)
    pixels = read_image(path)
    assert pixels.shape == (3, 10, 20) and pixels.min() > 0.98


def test_rotation_tags_are_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(20, 10).save(tmp_path / "x.jpg", exif=exif)
    pixels = read_image(tmp_path / "x.jpg")
    assert pixels.shape == (3, 20, 10)
    assert pixels[0, 2].mean() > 0.8 and pixels[2, -3].mean() > 0.8


@pytest.mark.parametrize(
    ("size", "how", "shape", "box"),
    [
        ((300, 200), "whole", (128, 192), (0, 0, 300, 200)),
        ((200, 300), "whole", (192, 128), (0, 0, 200, 300)),
        ((300, 200), "crop", (128, 128), (50, 0, 250, 200)),
        ((300, 200), "stretch", (128, 128), (0, 0, 300, 200)),
        ((1, 1), "whole", (128, 128), (0, 0, 1, 1)),
        ((130, 127), "whole", (128, 128), (0, 0, 130, 127)),
    ],
)
def test_fits_and_comes_back_at_its_own_size(size, how, shape, box):
    original = picture(*size)
    fitted = fit(original, 128, 8, how)
    assert fitted.pixels.shape == (3, *shape) and fitted.box == box
    green = fitted.restore(Image.new("RGB", shape[::-1], (0, 255, 0)))
    assert green.size == size
    seen = (np.asarray(green) == (0, 255, 0)).all(-1).sum()
    assert seen == (box[2] - box[0]) * (box[3] - box[1])


def test_a_picture_is_read_as_a_model_sees_it(here, tmp_path):
    from sfumato import load

    picture(300, 203).save(tmp_path / "x.png")
    model = load("stilllife", device="cpu")
    assert read_image(tmp_path / "x.png", model).shape == (3, 128, 192)
    assert read_image(tmp_path / "x.png", model, "crop").shape == (3, 128, 128)


def test_what_the_model_does_not_see_stays():
    original = picture(300, 200)
    out = fit(original, 128, 8, "crop").restore(Image.new("RGB", (128, 128)))
    assert out.getpixel((10, 10)) == (255, 0, 0) and out.getpixel((290, 10)) == (0, 0, 255)


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SfumatoError, match="there is no file"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(SfumatoError, match="not an image"):
        open_picture(tmp_path / "text.png")
    with pytest.raises(SfumatoError, match="too long to be seen whole; fit it with crop or stretch"):
        fit(picture(2000, 10), 128)
    assert fit(picture(2000, 10), 128, how="stretch").pixels.shape == (3, 128, 128)
    assert torch.isfinite(fit(picture(2000, 10), 128, how="crop").pixels).all()


def test_what_an_edit_left_alone_keeps_its_own_pixels():
    original = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    fitted = fit(original, 64, 8)
    result = Image.new("RGB", tuple(fitted.pixels.shape[:0:-1]), "red")
    changed = torch.zeros(8, 12, dtype=torch.bool)
    assert np.array_equal(np.array(fitted.restore(result, changed)), np.array(original))
    assert np.array_equal(np.array(fitted.restore(result, ~changed)), np.array(fitted.restore(result)))
    changed[2:6, 4:8] = True
    mixed = np.array(fitted.restore(result, changed))
    assert (mixed[75:125, 125:175] == (255, 0, 0)).all()  # inside
    away = np.ones((200, 300), bool)
    away[25:175, 75:225] = False  # a cell of 25 pixels further out
    assert np.array_equal(mixed[away], np.array(original)[away])
