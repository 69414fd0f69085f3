"""Pictures between tensors and files: write PNG and GIF, side by side, labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sfumato.errors import finite
from sfumato.io.files import atomic, shared
from sfumato.media.images import flat

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def picture(pixels: Float[Tensor, "3 h w"]) -> Picture:
    """A tensor in [0, 1] as an RGB picture. Raises ``SfumatoError`` where it is not finite."""
    finite(pixels, "a picture")
    values = (pixels.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def write(image: Picture, path: Path, words: Mapping[str, object] | None = None) -> Path:
    """Write a PNG in sRGB with ``words`` as its text entries, of places on this machine the name alone.

    Raises ``SfumatoError`` where it cannot be written.
    """
    info = PngInfo()
    info.add(b"sRGB", b"\0")  # its byte is the rendering intent: perceptual
    for key, value in (words or {}).items():
        info.add_itxt(key, written(value))
    with atomic(path) as part:
        image.save(part, format="PNG", pnginfo=info, icc_profile=None)
    return path


def written(value: object) -> str:
    """What a file's text entry says of a value: of a place on this machine its name alone."""
    return shared(str(value)).encode(errors="backslashreplace").decode()  # names of files may be no Unicode


def png(image: Picture) -> bytes:
    """A picture as the bytes of a PNG."""
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_film(frames: Sequence[Picture], path: Path) -> Path:
    """Write a GIF that stays a while on its last frame."""
    times = [80] * (len(frames) - 1) + [1500]
    with atomic(path) as part:
        frames[0].save(part, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return path


def grid(images: Sequence[Picture], columns: int | None = None, gap: int = 2) -> Picture:
    """Pictures of one size side by side, row by row, on white; what is transparent in them is white, too."""
    columns = columns or (len(images) if len(images) <= 3 else int(np.ceil(np.sqrt(len(images)))))
    rows = -(-len(images) // columns)
    w, h = images[0].size
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(flat(image), (i % columns * (w + gap), i // columns * (h + gap)))
    return sheet


def labelled(images: Sequence[Picture], labels: Sequence[str], columns: int | None = None) -> Picture:
    """Pictures of one size, each with a line of words above it, or several, row by row."""
    font, high = ImageFont.load_default(11), 16 + 14 * max(label.count("\n") for label in labels)
    out = []
    for image, label in zip(images, labels, strict=True):
        card = Image.new("RGB", (image.width, image.height + high), "white")
        ImageDraw.Draw(card).text((2, 1), label, fill="black", font=font, spacing=2)
        card.paste(flat(image), (0, high))
        out.append(card)
    return grid(out, columns)


def sheet(images: Float[Tensor, "n 3 h w"], columns: int) -> Picture:
    """Tensors in [0, 1] side by side, row by row."""
    return grid([picture(x) for x in images], columns)
