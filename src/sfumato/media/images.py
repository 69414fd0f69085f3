"""A person's image files: read whatever they are as RGB, fit them to what a model sees, and back to their own size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


MOST_PIXELS = 100_000_000
Fit = Literal["crop", "whole", "stretch"]


class Sized(Protocol):
    """What takes images of about one size: a backbone."""

    size: int
    """Side in pixels."""
    multiple: int
    """Of which sides are multiples."""


def open_picture(path: str | Path) -> Picture:
    """An image file in RGB, as a person sees it: see ``opened``.

    Transparency is laid over white, 16-bit greys are scaled (not clipped).
    """
    return flat(opened(path))


def opened(path: str | Path) -> Picture:
    """An image file in its own mode, with its rotation tag obeyed.

    Raises ``SfumatoError`` for what is missing, broken, no image, or larger than 100 million pixels.
    """
    path = Path(path)
    try:
        with Image.open(path) as found:
            if found.width * found.height > MOST_PIXELS:
                raise SfumatoError(
                    f"{path} has {found.width} x {found.height} pixels, more than {MOST_PIXELS // 10**6} million; "
                    "make it smaller first"
                )
            found.load()
            return ImageOps.exif_transpose(found)
    except FileNotFoundError:
        raise SfumatoError(f"there is no file {path}") from None
    except Image.DecompressionBombError:
        raise SfumatoError(
            f"{path} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise SfumatoError(f"{path} is not an image that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF)") from None
    except (OSError, SyntaxError, ValueError) as e:  # what decoders raise for broken files
        raise SfumatoError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e


def flat(picture: Picture) -> Picture:
    """Any mode as RGB."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode != "F" else max(1.0, float(values.max(initial=0)))
        picture = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def tensor(picture: Picture) -> Float[Tensor, "3 h w"]:
    """An RGB picture as a tensor in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def read_image(path: str | Path, model: Sized | None = None, how: Fit = "whole") -> Float[Tensor, "3 H W"]:
    """An image file in [0, 1], at its own size, or as ``model`` sees it; see ``open_picture`` and ``fit``."""
    picture = open_picture(path)
    return tensor(picture) if model is None else fit(picture, model.size, model.multiple, how).pixels


@dataclass(frozen=True)
class Fitted:
    """An image at the size that a model works on, and the way back."""

    pixels: Float[Tensor, "3 h w"]
    original: Picture
    box: tuple[int, int, int, int]
    """What of the original the model sees: left, top, right, bottom."""

    @property
    def part(self) -> tuple[float, float, float, float]:
        """The same in parts of the original's sides."""
        (w, h), (left, top, right, bottom) = self.original.size, self.box
        return left / w, top / h, right / w, bottom / h

    def restore(self, result: Picture, changed: Bool[Tensor, "h w"] | None = None) -> Picture:
        """A result at the original's size; what the model did not see is the original's.

        ``changed``: of the latents' cells, those that an edit changed. The others keep the original's pixels, which the
        autoencoder would blur; from one to the other it takes a cell.
        """
        left, top, right, bottom = self.box
        size, out = (right - left, bottom - top), self.original.copy()
        seen = result.resize(size, Image.Resampling.LANCZOS)
        mask = None
        if changed is not None:
            cells = Image.fromarray((changed.cpu().numpy() * 255).astype(np.uint8))
            mask = cells.resize(size, Image.Resampling.BILINEAR)
        out.paste(seen, (left, top), mask)
        return out


def fit(picture: Picture, size: int, factor: int = 8, how: Fit = "whole") -> Fitted:
    """A picture for a model of images of ``size`` pixels a side.

    ``whole``: all of it, the shorter side ``size``, the longer as the picture's shape says, to multiples of ``factor``;
    ``crop``: its centre square; ``stretch``: all of it, as a square. Raises ``SfumatoError`` for a picture so long that
    its longer side would be over eight times ``size``.
    """
    w, h = picture.size
    if how == "crop":
        side = min(w, h)
        left, top = (w - side) // 2, (h - side) // 2
        box, target = (left, top, left + side, top + side), (size, size)
    else:
        box, target = (0, 0, w, h), (size, size)
        if how == "whole":
            scale = size / min(w, h)
            target = tuple(max(factor, round(n * scale / factor) * factor) for n in (w, h))
    if max(target) > 8 * size:
        raise SfumatoError(f"a picture of {w} x {h} pixels is too long to be seen whole; fit it with crop or stretch")
    seen = picture.crop(box).resize((target[0], target[1]), Image.Resampling.LANCZOS)
    return Fitted(tensor(seen), picture, box)
