"""How a picture of these pages is written: as WebP, still or moving, in as few bytes as leave nothing to be seen.

python docs/shown.py FILE docs/images/NAME.webp      a picture or a GIF that a command wrote
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Image as Picture

from sfumato.io.files import atomic
from sfumato.media.images import flat

LIKE = 36.0
"""Decibels from which on a picture of these passes for itself, side by side."""
LOSSY = tuple({"quality": quality} for quality in (80, 85, 90, 95))
MOVING = {"quality": 85, "minimize_size": True, "kmin": 1000, "kmax": 2000}
"""Frames are told from those before, and not looked at one by one."""


def write(shown: Picture | Sequence[Picture], path: Path, times: int | Sequence[int] = 80) -> Path:
    """A picture, or frames that last so many milliseconds, over and over."""
    data = _still(flat(shown)) if isinstance(shown, Picture) else _moving([flat(frame) for frame in shown], times)
    with atomic(path) as part:
        part.write_bytes(data)
    return path


def _still(image: Picture) -> bytes:
    """The shortest of those like it: colours at half the size (photographs), 256 colours, or all as it is (plots)."""
    found = [_encoded(image, lossless=True, quality=75)]
    found += [_encoded(image, **options) for options in LOSSY]
    if image.getcolors(256) is None:
        few = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.FLOYDSTEINBERG)
        found.append(_encoded(few.convert("RGB"), lossless=True, quality=75))
    return min((data for data in found if _decibels(image, data) >= LIKE), key=len)


def _moving(frames: Sequence[Picture], times: int | Sequence[int]) -> bytes:
    lasts = times if isinstance(times, int) else list(times)
    return _encoded(frames[0], save_all=True, append_images=frames[1:], duration=lasts, loop=0, **MOVING)


def _encoded(image: Picture, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="WEBP", method=4, **options)
    return file.getvalue()


def _decibels(image: Picture, data: bytes) -> float:
    """How near a file's picture is to the one it was made of."""
    with Image.open(io.BytesIO(data)) as found:
        error = np.square(np.asarray(image, np.float64) - np.asarray(found.convert("RGB"), np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else np.inf


def convert(file: Path, path: Path) -> Path:
    """What a command wrote, a picture or an animated one, as one of these pages."""
    with Image.open(file) as found:
        frames, times = [], []
        for i in range(getattr(found, "n_frames", 1)):
            found.seek(i)
            frames.append(found.convert("RGBA"))
            times.append(int(found.info.get("duration", 80)))
    return write(frames[0] if len(frames) == 1 else frames, path, times)


if __name__ == "__main__":
    print(convert(*map(Path, sys.argv[1:])))
