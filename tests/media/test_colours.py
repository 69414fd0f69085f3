"""Colours are what a viewer shows: profiles and gamma become sRGB, and what is written says nothing else."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from sfumato.media import pictures
from sfumato.media.images import open_picture

D65, D50 = (0.3127, 0.3290), (0.9642, 1.0, 0.8249)
PRIMARIES = {
    "sRGB": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def xyz(xy):
    return np.array([xy[0] / xy[1], 1, (1 - sum(xy)) / xy[1]])


def to_xyz(name: str, white=None) -> np.ndarray:
    """Linear RGB to XYZ, by the book; adapted to another white."""
    columns = np.stack([xyz(p) for p in PRIMARIES[name]], 1)
    own = xyz(D65)
    matrix = columns * np.linalg.solve(columns, own)
    if white is None:
        return matrix
    gain = (BRADFORD @ white) / (BRADFORD @ own)
    return np.linalg.inv(BRADFORD) @ np.diag(gain) @ BRADFORD @ matrix


def profile(name: str = "Display P3", gamma: float = 2.2, kind: bytes = b"RGB ") -> bytes:
    """An ICC profile of three primaries and a gamma, or of grey."""

    def fixed(values) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(float(v) * 65536) for v in values))

    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 2) + b"x\0" + bytes(78), b"wtpt": b"XYZ " + bytes(4) + fixed(D50)}
    if kind == b"RGB ":
        for column, letter in zip(to_xyz(name, np.array(D50)).T, b"rgb", strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(column)
            tags[bytes([letter]) + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    body, table, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytes(4) + bytes(4) + struct.pack(">I", 0x02400000) + b"mntr" + kind + b"XYZ " + bytes(12) + b"acsp"
    head += bytes(28) + fixed(D50) + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def as_srgb(values: np.ndarray, name: str, gamma: float = 2.2) -> np.ndarray:
    """What 8-bit values of such a space are in sRGB."""
    linear = (values / 255.0) ** gamma @ (np.linalg.inv(to_xyz("sRGB")) @ to_xyz(name)).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def off(picture: Image.Image, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(picture).astype(float) - expected).max())


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_a_profile_becomes_srgb_and_is_not_written_again(tmp_path, colours, name, kind):
    lossless = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(colours).save(tmp_path / f"x.{kind}", icc_profile=profile(name), **lossless)
    read = open_picture(tmp_path / f"x.{kind}")
    expected = as_srgb(colours, name)
    assert np.abs(expected - colours).max() > 20
    assert off(read, expected) <= 3
    with Image.open(pictures.write(read, tmp_path / "out.png")) as written:
        assert "icc_profile" not in written.info and written.info["srgb"] == 0
        assert off(written, np.asarray(read)) == 0


def test_no_old_profile_is_glued_on_what_is_written(tmp_path, colours):
    picture = Image.fromarray(colours)
    picture.info["icc_profile"] = profile()
    with Image.open(pictures.write(picture, tmp_path / "out.png")) as written:
        assert "icc_profile" not in written.info


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_of_every_mode_with_its_alpha(tmp_path, colours, mode):
    own = Image.fromarray(colours)
    if mode == "RGBA":
        own.putalpha(255)
        own.putpixel((0, 0), (10, 200, 30, 0))
    else:
        own = own.convert("P", palette=Image.Palette.ADAPTIVE)
    own.save(tmp_path / "x.png", icc_profile=profile())
    expected = as_srgb(np.asarray(own.convert("RGB")), "Display P3")
    if mode == "RGBA":
        expected[0, 0] = 255  # what is transparent is over white
    assert off(open_picture(tmp_path / "x.png"), expected) <= 3


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles(tmp_path, mode):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    own = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    own.save(tmp_path / "x.png", icc_profile=profile(kind=b"GRAY", gamma=1.0))
    expected = as_srgb(np.repeat(ramp[..., None], 3, -1), "sRGB", 1.0)
    assert off(open_picture(tmp_path / "x.png"), expected) <= 3


def test_what_is_srgb_keeps_its_bytes(tmp_path, colours):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for more in ({"icc_profile": srgb}, {}):
        Image.fromarray(colours).save(tmp_path / "x.png", **more)
        assert off(open_picture(tmp_path / "x.png"), colours) == 0


@pytest.mark.parametrize("broken", [b"no profile", profile()[:200], profile(kind=b"GRAY")])
def test_a_profile_that_cannot_be_used_is_named(tmp_path, colours, capsys, broken):
    Image.fromarray(colours).save(tmp_path / "x.png", icc_profile=broken)
    assert off(open_picture(tmp_path / "x.png"), colours) == 0
    said = capsys.readouterr().err
    assert "x.png cannot be used" in said and "read as sRGB" in said and said.count("\n") == 1


def test_cmyk_is_read_by_its_profile_or_plainly(tmp_path, capsys):
    own = Image.new("CMYK", (8, 8), (200, 20, 30, 40))
    own.save(tmp_path / "x.jpg", quality=100)
    red, green, blue = open_picture(tmp_path / "x.jpg").getpixel((0, 0))
    assert red < 60 < green and blue > 150
    own.save(tmp_path / "x.jpg", quality=100, icc_profile=profile())
    assert open_picture(tmp_path / "x.jpg").getpixel((0, 0)) == (red, green, blue)
    assert "the pixels are CMYK" in capsys.readouterr().err


def test_lab_is_read(tmp_path, colours):
    smooth = Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC)
    lab = ImageCms.profileToProfile(
        smooth, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lab.save(tmp_path / "x.tif")
    assert np.abs(np.asarray(open_picture(tmp_path / "x.tif")).astype(int) - np.asarray(smooth)).mean() < 3


@pytest.mark.parametrize("primaries", ["sRGB", "Adobe RGB"])
def test_gamma_and_primaries_of_a_png(tmp_path, colours, primaries):
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    points = (D65, *PRIMARIES[primaries])
    info.add(b"cHRM", struct.pack(">8I", *(round(v * 100000) for point in points for v in point)))
    Image.fromarray(colours).save(tmp_path / "x.png", pnginfo=info)
    assert off(open_picture(tmp_path / "x.png"), as_srgb(colours, primaries, 1.0)) <= 1
    info.add(b"sRGB", b"\0")  # which goes before the others
    Image.fromarray(colours).save(tmp_path / "x.png", pnginfo=info)
    assert off(open_picture(tmp_path / "x.png"), colours) == 0


@pytest.mark.parametrize("transfer", [13, 1])
def test_the_code_of_a_pngs_colours_goes_before_the_rest(tmp_path, colours, transfer):
    """As phones and screens write theirs: Display P3 with sRGB's curve, without a profile."""
    info = PngInfo()
    info.add(b"cICP", bytes([12, transfer, 0, 1]))
    info.add(b"gAMA", struct.pack(">I", 100000))
    Image.fromarray(colours).save(tmp_path / "x.png", pnginfo=info, icc_profile=profile("Adobe RGB"))
    linear = np.where(colours / 255 <= 0.04045, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    seen = (linear @ (np.linalg.inv(to_xyz("sRGB")) @ to_xyz("Display P3")).T).clip(0, 1)
    wanted = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055) * 255
    assert off(open_picture(tmp_path / "x.png"), wanted) <= 1 and off(wanted, colours) > 5


@pytest.mark.parametrize(("code", "noted"), [((1, 13), False), ((9, 16), True), ((9, 18), True), ((77, 13), True)])
def test_codes_of_srgb_change_nothing_and_hdr_is_said(tmp_path, colours, code, noted, capsys):
    info = PngInfo()
    info.add(b"cICP", bytes([*code, 0, 1]))
    Image.fromarray(colours).save(tmp_path / "x.png", pnginfo=info)
    assert off(open_picture(tmp_path / "x.png"), colours) == 0
    said = capsys.readouterr().err
    assert ("are HDR or unknown (cICP" in said and "x.png" in said) == noted


@pytest.mark.parametrize("gamma", [45455, 0])
def test_the_gamma_of_srgb_and_none_at_all_change_nothing(tmp_path, colours, gamma):
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", gamma))
    data = BytesIO()
    Image.fromarray(colours).save(data, "PNG", pnginfo=info)
    (tmp_path / "x.png").write_bytes(data.getvalue())
    assert off(open_picture(tmp_path / "x.png"), colours) == 0
