"""Image files of every kind, fitted to a model and back."""

from __future__ import annotations

import os
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features

from sfumato.errors import SfumatoError
from sfumato.media import images, opening
from sfumato.media.images import coloured, fit, flat, open_picture, opened, pixels, read_image
from sfumato.media.pictures import write
from sfumato.tasks.batch import pictures_in


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
    given = Image.open(tmp_path / "x.png")
    for image in (given, np.array(given.convert("RGB")), read_image(given)):
        assert torch.equal(read_image(image, model), read_image(tmp_path / "x.png", model)), type(image)
        assert torch.equal(read_image(image), read_image(tmp_path / "x.png"))
    with pytest.raises(SfumatoError, match="unknown fit 'fill'; known: crop, whole, stretch"):
        read_image(given, model, "fill")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SfumatoError, match="a file, a picture, a tensor or an array, got a list"):
        read_image([1, 2])  # pyright: ignore[reportArgumentType]


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


DEEP = {
    "16 bits": (np.uint16, 65535, "png"),
    "32 bits of 0 to 255": (np.int32, 255, "tif"),
    "32 bits of 0 to 65535": (np.int32, 65535, "tif"),
    "floats of 0 to 1": (np.float32, 1, "tif"),
    "floats of 0 to 255": (np.float32, 255, "tif"),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_greys_are_as_bright_as_they_are_meant(tmp_path, name):
    kind, top, suffix = DEEP[name]
    share = np.linspace(0, 1, 64).reshape(8, 8)
    Image.fromarray((share * top).astype(kind)).save(tmp_path / f"x.{suffix}")
    assert np.abs(read_image(tmp_path / f"x.{suffix}")[0].numpy() - share).max() < 1 / 200


@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "nan"), (float("inf"), "inf"), (-3.0, "-3"), (7.0, "to 7;")]
)
def test_values_that_are_no_picture_are_named(tmp_path, value, says):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 1] = value
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(SfumatoError, match=r"x.tif holds values from .*0 to 1 or 0 to 255") as e:
        open_picture(tmp_path / "x.tif")
    assert says in str(e.value)


def clear(mode: str) -> Image.Image:
    """A picture that is transparent on the left, half so in the middle."""
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 20:], alpha[:, 40:] = 128, 255
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).convert(mode[:-1])
    picture.putalpha(Image.fromarray(alpha))
    return picture


def of_one_colour(mode: str) -> Image.Image:
    """A picture, one of whose values is transparent."""
    picture = Image.fromarray(np.random.default_rng(0).integers(10, 255, (40, 60, 3), np.uint8)).convert(
        mode.replace("I;16", "L")
    )
    picture.paste((7, 8, 9) if mode == "RGB" else 7, (0, 0, 20, 40))
    return picture if mode != "I;16" else Image.fromarray(np.asarray(picture).astype(np.uint16) * 200)


TRANSPARENT = {
    "RGBA": (clear("RGBA"), {}),
    "LA": (clear("LA"), {}),
    "RGB": (of_one_colour("RGB"), {"transparency": (7, 8, 9)}),
    "L": (of_one_colour("L"), {"transparency": 7}),
    "P": (of_one_colour("P"), {"transparency": 7}),
    "I;16": (of_one_colour("I;16"), {"transparency": 1400}),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_an_edit_keeps_transparency_and_is_seen_over_white(tmp_path, name):
    own, more = TRANSPARENT[name]
    own.save(tmp_path / "x.png", **more)
    fitted = fit(opened(tmp_path / "x.png"), 40, 8, "stretch")
    assert fitted.pixels.shape == (3, 40, 40) and fitted.pixels[:, :, :8].min() > 0.97
    whole = Image.new("RGB", (40, 40), (200, 220, 180))
    out, alpha = fitted.restore(whole), coloured(opened(tmp_path / "x.png")).getchannel("A")
    assert out.mode == "RGBA" and alpha.getextrema()[0] == 0
    assert np.array_equal(np.asarray(out.getchannel("A")), np.asarray(alpha))
    shown = np.asarray(flat(out)).astype(int)[np.asarray(alpha) > 0]
    assert np.abs(shown - (200, 220, 180)).max() <= 1  # as the model painted it
    kept = fitted.restore(whole, torch.zeros(5, 5, dtype=torch.bool))
    assert np.array_equal(np.asarray(kept), np.asarray(fitted.original))


def test_half_a_picture_that_is_seen_keeps_all_of_its_transparency():
    own = clear("RGBA")
    out = fit(own, 40, 8, "crop").restore(Image.new("RGB", (40, 40), "red"))
    assert np.array_equal(np.asarray(out.getchannel("A")), np.asarray(own.getchannel("A")))
    assert np.array_equal(np.asarray(out)[:, :10], np.asarray(own)[:, :10])


def test_a_turned_picture_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "webp", "tif", *(["avif"] if features.check("avif") else [])):
        picture(20, 10).save(tmp_path / f"x.{suffix}", exif=exif)
        read = open_picture(tmp_path / f"x.{suffix}")
        assert read.size == (10, 20) and read.getpixel((5, 2))[0] > 200
        with Image.open(write(read, tmp_path / "out.png")) as again:
            assert not again.getexif() and again.size == (10, 20)
        with Image.open(tmp_path / f"x.{suffix}") as given:  # a picture in hand as its file
            assert torch.equal(pixels(given), pixels(tmp_path / f"x.{suffix}"))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first_is_read_with_a_note(tmp_path, suffix, capsys):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / f"x.{suffix}").getpixel((4, 4))[0] > 240
    assert capsys.readouterr().err == f"note: {tmp_path}/x.{suffix} has 3 frames or pages; the first is read\n"


def test_a_phones_file_of_several_pictures_is_its_first(tmp_path, capsys):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.mpo", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "x.mpo").getpixel((4, 4))[0] > 240
    assert not capsys.readouterr().err


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "zero.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    picture(64, 64).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    for name, says in (
        ("zero.png", "is empty: a file of no bytes"),
        ("", "is a folder"),
        ("pipe.png", "is no plain file"),
        ("half.png", "cannot read .*half.png: "),
        ("phone.jpg", "phone.jpg is a picture in HEIF; pip install pillow-heif"),
    ):
        with pytest.raises(SfumatoError, match=says) as e:
            open_picture(tmp_path / name)
        assert "\n" not in str(e.value)


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    picture(8, 8).save(tmp_path / "x.png")

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(SfumatoError, match=r"cannot read .*x.png: Permission denied"):
        open_picture(tmp_path / "x.png")


def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path):
    head = b"P5 20000 20000 255\n"
    (tmp_path / "x.pgm").write_bytes(head)
    with pytest.raises(SfumatoError, match="more than 100 million"):
        open_picture(tmp_path / "x.pgm")
    (tmp_path / "y.pgm").write_bytes(b"P5 10001 10000 255\n")
    with pytest.raises(SfumatoError, match="10001 x 10000 pixels, more than 100 million"):
        open_picture(tmp_path / "y.pgm")


@pytest.mark.parametrize("seed", range(6))
def test_broken_files_of_any_kind_are_one_line(tmp_path, seed):
    rng, kinds = np.random.default_rng(seed), ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PSD", "ICO", "PPM", "QOI")
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in (kind for kind in kinds if kind in Image.SAVE):
        picture(40, 30).save(
            tmp_path / "x", kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {})
        )
        data = bytearray((tmp_path / "x").read_bytes())
        for at in rng.integers(0, min(len(data), 300), 5):
            data[at] = rng.integers(0, 256)
        (tmp_path / "x").write_bytes(data[: rng.integers(len(data) // 2, len(data) + 1)])
        try:
            open_picture(tmp_path / "x")
        except SfumatoError as e:
            assert "\n" not in str(e) and "x" in str(e)


def test_a_folders_pictures_are_what_pillow_reads(tmp_path, monkeypatch, capsys):
    """Those that another Pillow reads are named with what to do, and sheets of earlier runs are no pictures."""
    can, cannot = dict.fromkeys(["AVIF", "PNG", "JPEG", "QOI"]), {"AVIF", "HEIF", "JPEG XL", "SVG"}
    for reads, plugged in ((opening.formats(), True), (tuple(can), False)):
        monkeypatch.setattr(opening, "formats", lambda reads=reads: reads)
        opening.suffixes.cache_clear()
        known = {end for end, kind in Image.registered_extensions().items() if kind in reads}
        assert opening.suffixes() == known and (".jp2" in known) == plugged
    monkeypatch.undo()
    opening.suffixes.cache_clear()
    assert {*opening.ENDS.values()} == {*opening.ADVICE} == cannot
    names = ["a.png", "b.avif", "d.qoi", "e.JPG", "f.jp2"]
    others = ["g.txt", "h.pdf", "i.mpg", "j.eps", "k.h5"]
    sheets = ["a-labels.png", "a-overlay.png", "a-beside.png"]
    left = [name for name in ("c.heic", "c.jxl", "c.svg") if opening.unread(name)]
    own = ["c.heic", "c.jxl", "c.svg", ".hidden.png", ".a.segment.json", ".a.edit.json", "a-edited.png", "z-labels.png"]
    for name in [*names, *others, *sheets, *own, "b-labels.png"]:
        (tmp_path / name).touch()
    found = [p.name for p in pictures_in(tmp_path)]
    read = [name for name in ("c.heic", "c.jxl") if name not in left]
    assert found == sorted([*names, *read, "a-edited.png", "z-labels.png"])
    err = capsys.readouterr().err
    assert f"as no pictures: {', '.join(others)}\n" in err and f"overlays: {', '.join(sorted(sheets))}\n" in err
    assert "as labels: b-labels.png\n" in err, "which lie beside their picture"
    assert all(f"{name} ({opening.unread(name)})" in err for name in left) and "c.svg (SVG: an image" in err
    for name in [*names, *read, "a-edited.png", "b-labels.png", "z-labels.png"]:
        (tmp_path / name).unlink()
    with pytest.raises(SfumatoError, match=r"there is no picture in .*none is read here: .*c\.svg \(SVG: "):
        pictures_in(tmp_path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path):
    picture(40, 20).save(tmp_path / "x.avif", quality=95)
    assert read_image(tmp_path / "x.avif")[0, :, :15].min() > 0.9


def test_an_opener_that_is_installed_is_used(tmp_path, monkeypatch):
    class Opener(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode, self.tile = (4, 4), "RGB", []
            self.im = Image.core.fill("RGB", (4, 4), (9, 8, 7))

    def register() -> None:
        Image.register_open("HEIF", Opener, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    images.formats.cache_clear()
    try:
        assert open_picture(tmp_path / "x.heic").getpixel((0, 0)) == (9, 8, 7)
    finally:
        Image.OPEN.pop("HEIF", None)
        Image.ID.remove("HEIF")
        images.formats.cache_clear()
