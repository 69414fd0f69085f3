"""Videos: what is written is read again, frame by frame, and what is broken is one line."""

from __future__ import annotations

import builtins
import weakref
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import SfumatoError
from sfumato.media import pictures, video

SIZE = (48, 32)


def flats(n: int, size=SIZE):
    """Frames of one colour each, whose red is their number."""
    return [Image.new("RGB", size, (20 + 10 * i, 90, 200 - 15 * i)) for i in range(n)]


def numbers(frames) -> list[int]:
    """Which they are, however a codec has changed them a little."""
    return [round((float(np.asarray(f)[..., 0].mean()) - 20) / 10) for f in frames]


@pytest.fixture
def film():
    return pytest.importorskip("av")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.gif", "folder"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(10)])
def test_what_is_written_is_read_again(tmp_path, name, rate):
    if name.endswith(video.FILMS):
        pytest.importorskip("av")
    place = video.write(iter(flats(9)), tmp_path / name, rate)
    found = video.opened(place)
    frames = list(found.frames())
    assert found.size == SIZE and found.count == len(frames) == 9
    assert found.rate == rate if name.startswith("a.m") else abs(found.rate - (24 if name == "folder" else rate)) < 0.1
    for shown, wanted in zip(frames, flats(9), strict=True):
        assert shown.mode == "RGB" and np.abs(np.asarray(shown, int) - np.asarray(wanted, int)).max() <= 3
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("size", [(47, 32), (48, 31), (33, 31)])
def test_frames_keep_odd_sides(film, tmp_path, size):
    found = video.opened(video.write(flats(3, size), tmp_path / "a.mp4"))
    assert found.size == size and [f.size for f in found.frames()] == [size] * 3


def test_an_edge_stays_where_it_is(film, tmp_path):
    picture = Image.new("RGB", SIZE, "white")
    picture.paste((0, 0, 0), (0, 0, 13, 32))
    (seen,) = video.opened(video.write([picture], tmp_path / "a.mp4")).frames()
    row = np.asarray(seen.convert("L"), int)[16]
    assert row[:12].max() < 60 and row[14:].min() > 195


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "folder"])
def test_some_of_the_frames_at_another_rate(tmp_path, name):
    if name == "a.mp4":
        pytest.importorskip("av")
    found = video.opened(video.write(flats(12), tmp_path / name, Fraction(24)))
    assert numbers(found.frames(2, 9)) == [2, 3, 4, 5, 6, 7, 8]
    assert numbers(found.frames(1, None, Fraction(8))) == [1, 4, 7, 10]
    assert numbers(found.frames(0, None, Fraction(10))) == [0, 2, 4, 7, 9]
    assert numbers(found.frames(20)) == []
    with pytest.raises(SfumatoError, match="24 frames a second; take that or fewer, not 30"):
        list(found.frames(0, None, Fraction(30)))


def test_a_sequence_goes_by_its_numbers(tmp_path):
    for i, frame in enumerate(flats(12)):
        pictures.write(frame, tmp_path / f"shot-{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    pictures.write(flats(1)[0], tmp_path / "other.png")
    assert numbers(video.opened(tmp_path / "shot-%d.png").frames()) == list(range(12))
    assert numbers(video.opened(tmp_path / "shot-*.png").frames()) == list(range(12))
    assert len(list(video.opened(tmp_path).frames())) == 13


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_picture_is_a_video_of_one_frame(tmp_path, name):
    flats(1)[0].save(tmp_path / name)
    found = video.opened(tmp_path / name)
    assert found.count == 1 and numbers(found.frames()) == [0]


def test_a_film_that_is_to_be_turned_is(film, tmp_path):
    """As telephones write it: the pixels lie, and the file's matrix says how they stand."""
    picture = Image.new("RGB", SIZE, "white")
    picture.paste((0, 0, 0), (0, 0, 48, 8))  # dark at the top
    place = video.write([picture] * 2, tmp_path / "a.mp4")
    data = place.read_bytes()
    one, none, w = ((n).to_bytes(4, "big") for n in (1 << 16, 0, 1 << 30))
    at = data.index(b"tkhd")
    straight = data.index(one + none * 3 + one + none * 3 + w, at)
    clockwise = none + one + none + (2**32 - (1 << 16)).to_bytes(4, "big") + none * 4 + w
    place.write_bytes(data[:straight] + clockwise + data[straight + 36 :])
    found = video.opened(place)
    seen = np.asarray(next(found.frames()).convert("L"), int)
    assert found.size == (32, 48) and seen.shape == (48, 32)
    assert seen[:, 26:].max() < 60 and seen[:, :20].min() > 195  # dark at the right: turned by a quarter, clockwise


@pytest.mark.parametrize("name", ["a.mp4", "b"])
def test_reading_and_writing_hold_a_frame_at_a_time(tmp_path, name):
    if name == "a.mp4":
        pytest.importorskip("av")
    kept = []

    def watched(frames):
        for frame in frames:
            kept.append(weakref.ref(frame))
            assert sum(ref() is not None for ref in kept) <= 3
            yield frame

    video.write(watched(flats(20)[i] for i in range(20)), tmp_path / name)
    video.write(watched(video.opened(tmp_path / name).frames()), tmp_path / "again")
    assert len(kept) == 40


def test_what_cannot_be_read_is_one_line(film, tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = video.write(flats(30, (96, 96)), tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none").mkdir()
    with film.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = film.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for name, words in {
        "text.mp4": "cannot read .*text.mp4: Invalid data",
        "empty.mp4": "cannot read .*empty.mp4: ",
        "cut.mp4": "cannot read .*cut.mp4: ",
        "sound.mp4": "sound.mp4 has no video in it",
        "none": "no pictures in the folder",
        "gone.mp4": "there is no file",
        "f-%03d.png": "no pictures by the name",
        "gone/*.png": "there is no folder",
    }.items():
        with pytest.raises(SfumatoError, match=words) as e:
            list(video.opened(tmp_path / name).frames())
        assert "\n" not in str(e.value)


def test_frames_of_two_sizes_are_refused(tmp_path):
    pictures.write(flats(1)[0], tmp_path / "0.png")
    pictures.write(flats(1, (40, 32))[0], tmp_path / "1.png")
    with pytest.raises(SfumatoError, match=r"are of 48 x 32 pixels, and 1.png is of 40 x 32"):
        list(video.opened(tmp_path).frames())
    for name in ("a.gif", "b"):
        with pytest.raises(SfumatoError, match="to be of one size, 48 x 32, and frame 1 is of 40 x 32"):
            video.write([*flats(1), *flats(1, (40, 32))], tmp_path / name)
    assert not (tmp_path / "a.gif").exists()


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(SfumatoError, match=r"as .mp4, .m4v, .*, .gif, .webp or a folder of frames, not as .*a.avi"):
        video.writes(tmp_path / "a.avi")
    with pytest.raises(SfumatoError, match="there are no frames to write"):
        video.write([], tmp_path / "a.gif")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_film_that_is_stopped_is_not_there(tmp_path, name):
    if name == "a.mp4":
        pytest.importorskip("av")

    def stopped():
        yield from flats(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.write(stopped(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_av_films_are_refused_and_all_else_works(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "a.mp4").write_bytes(b"film")
    for ask in (lambda: video.opened(tmp_path / "a.mp4"), lambda: video.writes(tmp_path / "b.mp4")):
        with pytest.raises(SfumatoError, match=r'pip install "sfumato\[video\]", or give a folder of frames or a GIF'):
            ask()
    assert numbers(video.opened(video.write(flats(3), tmp_path / "c.gif")).frames()) == [0, 1, 2]
