"""Videos frame by frame: MP4 and its like by ``av`` (the extra ``video``), GIF, WebP, folders of frames, sequences.

One frame at a time is in memory. Sound is not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sfumato.errors import SfumatoError, first_line
from sfumato.io.files import atomic, writable
from sfumato.io.terminal import note
from sfumato.media import images, opening, pictures

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

RATE = Fraction(24)
"""Frames a second of what does not say: folders and sequences."""
FILMS = (".mp4", ".m4v", ".mov", ".mkv")
"""Kinds of video that are written by ``av``; it reads others too."""
MOVING = (".gif", ".webp")
"""Kinds of moving picture."""
_NUMBER = re.compile(r"%0?(\d*)d")


@dataclass(frozen=True)
class Video:
    """What is known of a video before its frames are read."""

    path: Path
    rate: Fraction
    """Frames a second; of a variable rate the mean."""
    size: tuple[int, int]
    """Width and height, as a person sees them."""
    count: int
    """Frames, as the file says; some files say it wrong by a few, or are cut off."""
    files: tuple[Path, ...] = ()
    """Of a folder or a sequence, its pictures."""

    def frames(self, start: int = 0, stop: int | None = None, rate: Fraction | None = None) -> Iterator[Picture]:
        """Frames from ``start`` to before ``stop``, in RGB, or as many a second of them as ``rate`` says.

        Raises ``SfumatoError`` for a rate above the video's own, for frames of two sizes, and where one is broken.
        """
        wanted = self.numbers(start, stop, rate)
        at = next(wanted, None)
        for i, frame in enumerate(self._all(start if self.files else 0), start if self.files else 0):
            if at is None:
                return
            if frame.size != self.size:
                sizes = [f"{w} x {h}" for w, h in (self.size, frame.size)]
                who = self.files[i].name if self.files else f"frame {i}"
                raise SfumatoError(f"the frames of {self.path} are of {sizes[0]} pixels, and {who} is of {sizes[1]}")
            if i == at:
                yield frame
                at = next(wanted, None)

    def numbers(self, start: int = 0, stop: int | None = None, rate: Fraction | None = None) -> Iterator[int]:
        """Which frames those are, by the file's account of how many there are."""
        rate = self.rate if rate is None else rate
        if not 0 < rate <= self.rate:
            has = f"{self.path} has {shown(self.rate)} frames a second"
            raise SfumatoError(f"{has}; take that or fewer, not {shown(rate)}")
        end = math.inf if stop is None else stop
        k = 0
        while (at := start + math.floor(k * self.rate / rate)) < end:
            yield at
            k += 1

    def _all(self, start: int = 0) -> Iterator[Picture]:
        if self.files:
            yield from map(images.open_picture, self.files[start:])
        elif self.path.suffix.lower() in images.suffixes():
            yield from _animated(self.path)
        else:
            yield from _decoded(self.path)


def opened(path: str | Path) -> Video:
    """A video file, an animated picture, a folder of pictures, or a sequence (``frames/%04d.png``, ``frames/*.png``).

    Pictures of a folder go by their names, numbers in them by their size. Raises ``SfumatoError`` for what is missing,
    broken, or has no frames.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = [p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
        if left := [f"{p.name} ({why})" for p in sorted(files) if (why := opening.unread(p.name))]:
            note(f"left out of {path}, as not read here: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}")
        return _sequence(path, [p for p in files if p.suffix.lower() in images.suffixes()])
    if not path.exists() and (_NUMBER.search(path.name) or "*" in path.name):
        return _sequence(path, _matching(path))
    if not path.is_file():
        raise SfumatoError(f"there is no file {path}")
    if opening.unread(path.name):
        opening.checked(path)
    return _picture(path) if path.suffix.lower() in images.suffixes() else _film(path)


def write(frames: Iterable[Picture], path: Path, rate: Fraction = RATE) -> Path:
    """Write frames in RGB as their number comes: a film, a GIF or a WebP by the suffix, or PNGs in a folder.

    What is one file is whole or not there. Raises ``SfumatoError`` for no frames, and for frames of two sizes.
    """
    kind = writes(path)
    frames = _alike(frames, path)
    if kind == "folder":
        writable(path)
        for i, frame in enumerate(frames):
            pictures.write(frame, path / f"{i:05d}.png")
        return path
    with atomic(path) as part:
        if kind == "film":
            _write_film(frames, part, path, rate)
        else:
            _write_moving(frames, part, rate, kind)
    return path


def writes(path: Path) -> str:
    """``film``, ``gif``, ``webp`` or ``folder``: what ``write`` makes of a name. ``SfumatoError`` for other names."""
    suffix = path.suffix.lower()
    if suffix in FILMS:
        av()
        return "film"
    if suffix in MOVING:
        return suffix[1:]
    if suffix[1:].isalnum() and not path.is_dir():
        kinds = ", ".join((*FILMS, *MOVING))
        raise SfumatoError(f"videos are written as {kinds} or a folder of frames, not as {path}")
    return "folder"


def av() -> Any:
    """PyAV, where it is installed."""
    try:
        import av
    except ImportError:
        raise SfumatoError(
            'films are read and written by av: pip install "sfumato[video]", or give a folder of frames or a GIF'
        ) from None
    return av


def shown(rate: Fraction) -> str:
    """A rate as a person writes it."""
    return f"{float(rate):.5g}"


def _alike(frames: Iterable[Picture], path: Path) -> Iterator[Picture]:
    size = None
    for i, frame in enumerate(frames):
        if frame.size != (size := size or frame.size):
            sizes = [f"{w} x {h}" for w, h in (size, frame.size)]
            raise SfumatoError(f"frames of {path} are to be of one size, {sizes[0]}, and frame {i} is of {sizes[1]}")
        yield frame
    if size is None:
        raise SfumatoError(f"there are no frames to write as {path}")


def _by_number(file: Path) -> list[tuple[int, int, str]]:
    """A key by which frame-10 comes after frame-9."""
    parts = re.split(r"(\d+)", file.name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def _matching(path: Path) -> list[Path]:
    """The files of a sequence."""
    if not path.parent.is_dir():
        raise SfumatoError(f"there is no folder {path.parent}")
    if _NUMBER.search(path.name):
        start, end = _NUMBER.split(path.name, 1)[::2]
        name = re.compile(re.escape(start) + r"\d+" + re.escape(end))
        return [p for p in path.parent.iterdir() if name.fullmatch(p.name)]
    return list(path.parent.glob(path.name))


def _sequence(path: Path, files: list[Path]) -> Video:
    if not files:
        where = f"in the folder {path}" if path.is_dir() else f"by the name {path}"
        raise SfumatoError(f"there are no pictures {where}")
    files.sort(key=_by_number)
    return Video(path, RATE, images.open_picture(files[0]).size, len(files), tuple(files))


def _picture(path: Path) -> Video:
    """An animated picture, or a still one as a video of a frame."""
    with _told(path), Image.open(path, formats=images.formats()) as found:
        count, lasts = getattr(found, "n_frames", 1), 0.0
        for i in range(min(count, 100)):
            found.seek(i)
            lasts += max(found.info.get("duration", 0), 0)
        rate = Fraction(round(min(count, 100) * 100_000 / lasts), 100) if lasts else RATE
        if abs(rate - round(rate)) < rate / 50:  # a GIF counts hundredths of seconds
            rate = Fraction(round(rate))
        return Video(path, rate, found.size, count)


def _animated(path: Path) -> Iterator[Picture]:
    with _told(path), Image.open(path, formats=images.formats()) as found:
        for i in range(getattr(found, "n_frames", 1)):
            found.seek(i)
            yield images.flat(found.copy())


def _film(path: Path) -> Video:
    with _told(path), av().open(str(path)) as container:
        if not container.streams.video:
            raise SfumatoError(f"{path} has no video in it")
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or RATE
        first = next(container.decode(stream), None)
        if first is None:
            raise SfumatoError(f"{path} has no frames in it")
        whole = Fraction(container.duration or 0, 1_000_000)
        lasts = stream.duration * stream.time_base if stream.duration else whole
        return Video(path, Fraction(rate), _upright(first).size, stream.frames or max(1, round(lasts * rate)))


def _decoded(path: Path) -> Iterator[Picture]:
    with _told(path), av().open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(container.streams.video[0]):
            yield _upright(frame)


def _upright(frame: Any) -> Picture:
    """A frame as the file says that it is to be turned."""
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if getattr(frame, "rotation", 0) else picture


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What reading a file raises as one line."""
    try:
        yield
    except (SfumatoError, GeneratorExit):
        raise
    except Exception as e:  # decoders raise all kinds for broken files
        raise SfumatoError(f"cannot read {path}: {getattr(e, 'strerror', None) or first_line(e)}") from e


def _write_moving(frames: Iterator[Picture], part: Path, rate: Fraction, kind: str) -> None:
    unit = 100 if kind == "gif" else 1000  # hundredths of a second are what GIF has

    def timed() -> Iterator[Picture]:
        for i, frame in enumerate(frames):
            begins, ends = (round(n * unit / rate) for n in (i, i + 1))
            times.append(1000 // unit * max(ends - begins, 1))
            frame = frame.copy()
            frame.info = {"duration": times[-1]}
            yield frame

    times: list[int] = []
    shown = timed()
    if kind == "gif":
        next(shown).save(part, format="GIF", save_all=True, append_images=shown, loop=0)
    else:
        first, *others = shown
        first.save(part, format="WEBP", save_all=True, append_images=others, duration=times, loop=0, quality=85)


def _write_film(frames: Iterator[Picture], part: Path, path: Path, rate: Fraction) -> None:
    first = next(frames)
    with _encoding(path), av().open(str(part), "w") as container:
        codec = next(name for name in ("libx264", "libopenh264", "mpeg4") if name in av().codecs_available)
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = first.size
        odd = any(n % 2 for n in first.size)
        if odd and codec != "libx264":
            raise SfumatoError(f"films have even sides here, and these frames are of {first.width} x {first.height}")
        stream.pix_fmt = "yuv444p" if odd else "yuv420p"  # colours at half the size need even sides
        stream.codec_context.colorspace = av().video.reformatter.Colorspace.ITU709
        if codec == "libx264":
            stream.options = {"crf": "17"}
        for frame in chain([first], frames):
            image = av().VideoFrame.from_ndarray(np.asarray(frame.convert("RGB")), format="rgb24")
            image = image.reformat(format=stream.pix_fmt, dst_colorspace="ITU709")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


@contextmanager
def _encoding(path: Path) -> Iterator[None]:
    """What an encoder raises as one line."""
    try:
        yield
    except av().FFmpegError as e:
        raise SfumatoError(f"cannot write {path}: {e.strerror or first_line(e)}") from e
