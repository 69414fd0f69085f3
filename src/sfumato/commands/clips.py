"""Clips in a command line's words: what they are written as, and those that go on from a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfumato.errors import SfumatoError, whole
from sfumato.io.terminal import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image as Picture

    from sfumato.core.backbone import Backbone

RATE, MOTION, NOISE, STEPS = 7, 127, 0.02, 25  # Stable Video Diffusion's own


@dataclass(frozen=True)
class Clips:
    """How clips are painted and written."""

    film: Literal["gif", "mp4", "frames"] | None = None
    """What a clip is written as beside the sheet of its frames: a GIF, a film, or a folder of frames [default: gif]."""
    fps: int | None = None
    """Frames a second of a clip, which Stable Video Diffusion is told as well [default: 12, or its own 7]."""
    bucket: int | None = None
    """How much moves, from 1 to 255, in clips of Stable Video Diffusion [default: 127]."""
    augment: float | None = None
    """Noise that Stable Video Diffusion's picture is given; the more, the freer is the clip [default: 0.02]."""

    def __post_init__(self) -> None:
        if self.fps is not None:
            whole("--fps", self.fps, 1, 240)
        if self.bucket is not None:
            whole("--bucket", self.bucket, 1, 255)
        if self.augment is not None and not (math.isfinite(self.augment) and 0 <= self.augment <= 10):
            raise SfumatoError(f"--augment is a number from 0 to 10, got {self.augment:g}")

    def check(self, frames: int, picture: bool) -> None:
        """Refuse what is said of clips where there are none, and of a picture where none is read."""
        given = [f"--{name}" for name in ("film", "fps") if getattr(self, name) is not None]
        if frames == 1 and given:
            raise SfumatoError(
                f"{given[0]} is of clips, and an image is painted; give a model with motion, or leave it out"
            )
        given = [f"--{name}" for name in ("bucket", "augment") if getattr(self, name) is not None]
        if not picture and given:
            raise SfumatoError(f"{given[0]} is of Stable Video Diffusion, which goes on from a picture; leave it out")

    def going_on(self, model: Any, picture: Path, size: tuple[int, int] | None, seed: int) -> tuple[Any, int, int]:
        """The model as it goes on from a picture, and the clip's height and width: of the picture's shape unless said.

        ``SfumatoError`` for what is no picture, and for a size that the model does not paint.
        """
        from sfumato.commands.options import painted_size, written
        from sfumato.media import images

        found = images.opened(picture)
        w, h = found.size
        height, width = painted_size(model, size or shaped(model, h, w))
        if abs(math.log(w * height / (h * width))) > 0.05:
            note(
                f"its middle is read of {picture}, {w} x {h}, as the clip is of another shape, {written(height, width)}"
            )
        options = {"fps": self.fps or RATE, "motion": self.bucket or MOTION, "seed": seed}
        noise = NOISE if self.augment is None else self.augment
        return model.of(images.cropped(found, height, width), noise=noise, **options), height, width

    def write(self, frames: Sequence[Picture], path: Path, rate: int = 12) -> Path:
        """A clip beside its sheet, whose file is ``path``; of so many frames a second, unless it is said."""
        from sfumato.io.files import writable
        from sfumato.media import pictures, video

        if self.film in (None, "gif") and self.fps is None:
            return pictures.write_film(frames, path.with_suffix(".gif"))
        if self.film == "frames":
            return video.write(iter(frames), writable(path.with_suffix("")))
        return video.write(iter(frames), path.with_suffix(f".{self.film or 'gif'}"), Fraction(self.fps or rate))

    def settings(self) -> dict[str, Any]:
        """What was said."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


def goes_on(model: Backbone) -> bool:
    """Does it paint clips that go on from a picture?"""
    return getattr(model, "kind", None) == "Video"


def is_file(prompt: str) -> bool:
    try:
        return Path(prompt).is_file()
    except (OSError, ValueError):  # words may be longer than names
        return False


def named(prompt: str) -> str:
    """What files are named by: the words, or the name of the file that stands for them."""
    return Path(prompt).stem if is_file(prompt) else prompt


def picture_of(model: Backbone, prompt: str) -> Path | None:
    """The picture that a prompt names, for a model that goes on from one.

    ``SfumatoError`` where it names none, and where a model that reads words is given a picture's file.
    """
    from sfumato.media import images

    file, there = Path(prompt), is_file(prompt)
    if goes_on(model) and not there:
        raise SfumatoError(
            f"{model.name} goes on from a picture, whose file stands for the prompt; there is no {prompt!r}"
        )
    if not goes_on(model) and there and file.suffix.lower() in images.suffixes():
        raise SfumatoError(
            f"{model.name} paints from words, and {prompt} is a picture; Stable Video Diffusion goes on from one "
            "(--model), sfumato edit changes one"
        )
    return file if goes_on(model) else None


def shaped(model: Backbone, height: int, width: int) -> tuple[int, int]:
    """Height and width in a picture's shape, of as many pixels as the model's own square has."""
    if max(height, width) > 8 * min(height, width):
        raise SfumatoError(f"a picture of {width} x {height} pixels is too long to be seen whole; give --size")
    scale = model.size / math.sqrt(height * width)
    high, wide = (max(model.multiple, round(n * scale / model.multiple) * model.multiple) for n in (height, width))
    return high, wide
