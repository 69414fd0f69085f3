"""The documents' pictures: few bytes, nothing to be seen of that, and none that no page shows."""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageSequence

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def shown():
    return runpy.run_path(str(DOCS / "shown.py"))


def gradient(at: int = 0):
    """A picture of many colours, grainy, with an edge in it."""
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    grain = np.random.default_rng(0).normal(0, 2, (64, 96, 1))
    image = Image.fromarray((np.stack([2 * x, 3 * y, 255 - x - y], -1) + grain).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((10 + at, 10, 50 + at, 50), fill="red")
    return image


def plot():
    image = Image.new("RGB", (400, 300), "white")
    for i in range(8):
        ImageDraw.Draw(image).line((0, 30 * i, 399, 299 - 20 * i), fill=(30 * i, 0, 255 - 30 * i))
    return image


def as_png(image) -> int:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.tell()


def test_lines_stay_as_they_are_and_a_picture_of_many_colours_passes_for_itself(shown, tmp_path):
    for image, exact in ((plot(), True), (gradient(), False)):
        file = shown["write"](image, tmp_path / "a.webp")
        found = np.asarray(Image.open(file).convert("RGB"), float)
        error = np.square(found - np.asarray(image, float)).mean()
        assert (error == 0) if exact else 0 < error <= 255**2 / 10**3.6
        assert file.stat().st_size < as_png(image) / 2


def test_what_is_transparent_is_white(shown, tmp_path):
    clear = gradient().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    found = Image.open(shown["write"](clear, tmp_path / "a.webp"))
    assert found.mode == "RGB" and found.getpixel((20, 20)) == (255, 255, 255)


def test_an_animation_keeps_its_frames_and_their_times(shown, tmp_path):
    frames, times = [gradient(i) for i in (0, 20, 40)], [900, 100, 300]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=times, loop=0)
    file = shown["convert"](tmp_path / "a.gif", tmp_path / "a.webp")
    with Image.open(file) as found:
        seen = [(f.convert("RGB"), f.info["duration"]) for f in ImageSequence.Iterator(found)]
    assert [t for _, t in seen] == times and found.info["loop"] == 0
    for (image, _), frame in zip(seen, frames, strict=True):
        assert np.abs(np.asarray(image, float) - np.asarray(frame, float)).mean() < 8
    assert file.stat().st_size < (tmp_path / "a.gif").stat().st_size


def test_every_picture_is_shown_on_a_page():
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    text = "\n".join(p.read_text(encoding="utf-8") for p in pages)
    files = [p.relative_to(DOCS / "images").as_posix() for p in (DOCS / "images").rglob("*") if p.is_file()]
    assert files and not [name for name in files if f"images/{name}" not in text and not name.startswith("ducks/")]


def test_every_moving_picture_is_one_that_is_made_and_moves(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    made = runpy.run_path(str(DOCS / "moving.py"))["MADE"]
    files = sorted((DOCS / "images" / "moving").iterdir())
    assert {file.stem for file in files} <= set(made)
    for file in files:
        with Image.open(file) as found:
            assert found.n_frames >= 4 and found.info["loop"] == 0, file.name
