"""A person's image files: read whatever they are in sRGB, fit them to what a model sees, and back to their own size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from sfumato.errors import SfumatoError, shown, unknown
from sfumato.media import colours
from sfumato.media.opening import formats as formats
from sfumato.media.opening import opened as opened
from sfumato.media.opening import size_of as size_of
from sfumato.media.opening import suffixes as suffixes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Fit = Literal["crop", "whole", "stretch"]
AnyImage = Float[Tensor, "3 h w"] | np.ndarray | Image.Image | str | Path
"""What is taken wherever an image is asked for; see ``pixels``."""


class Sized(Protocol):
    """What takes images of about one size: a backbone."""

    size: int
    """Side in pixels."""
    multiple: int
    """Of which sides are multiples."""


def open_picture(path: str | Path) -> Picture:
    """An image file in RGB, as a person sees it: see ``opened`` and ``flat``."""
    return flat(opened(path))


def coloured(picture: Picture) -> Picture:
    """Any mode in sRGB: RGBA where it has transparency, else RGB.

    Greys of more than 8 bits are scaled, not clipped: by 255 or 65535, and floats by 1, whichever holds their values.
    Raises ``SfumatoError`` for values that are below 0, above those or not finite.
    """
    alpha, eight = None, picture
    if is_deep(picture):
        values = np.asarray(picture)
        eight = Image.fromarray(_bytes(values.astype(np.float64), picture))
        eight.info = {k: v for k, v in picture.info.items() if k != "transparency"}
        if "transparency" in picture.info:
            alpha = Image.fromarray(np.uint8(255) * (values != picture.info["transparency"]))
    elif picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
    out = colours.srgb(eight)
    out.info = {}
    if alpha is not None:
        out.putalpha(alpha)
    return out


def flat(picture: Picture) -> Picture:
    """Any mode in RGB: as ``coloured``, with transparency laid over white."""
    picture = coloured(picture)
    if picture.mode == "RGB":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def is_deep(picture: Picture) -> bool:
    """Does it hold greys of more than 8 bits?"""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def _bytes(values: Float[np.ndarray, "h w"], picture: Picture) -> UInt8[np.ndarray, "h w"]:
    """Deep greys as 0 to 255."""
    low, high = (float(f(values)) if values.size else 0.0 for f in (np.min, np.max))
    tops = (1, 255, 65535) if picture.mode == "F" else (255, 65535)
    if picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM"):
        tops = (65535,)  # by their format, however dark
    top = next((top for top in tops if high <= 1.25 * top), None)
    if top is None or not low >= -0.25 * top or (picture.mode == "F" and top > 1 and high < top / 8):
        raise SfumatoError(
            f"{colours.named(picture)} holds values from {low:g} to {high:g}; those of a picture lie in "
            + " or ".join(f"0 to {top}" for top in tops)
        )
    return (values / top * 255).clip(0, 255).round().astype(np.uint8)


def tensor(picture: Picture) -> Float[Tensor, "3 h w"]:
    """An RGB picture as a tensor in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def cropped(picture: Picture, height: int, width: int) -> Float[Tensor, "3 h w"]:
    """The middle of a picture in RGB, of this shape and at this size, in [0, 1]."""
    return tensor(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


def check_range(images: Float[Tensor, "*b H W"], what: str = "an image") -> None:
    """Raise ``SfumatoError`` for values outside [0, 1], such as bytes, or what networks read, in [-1, 1]."""
    low, high = images.min(), images.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise SfumatoError(f"{what} lies in [0, 1], got {float(low):g} to {float(high):g}")


def read_image(image: AnyImage, model: Sized | None = None, how: Fit = "whole") -> Float[Tensor, "3 H W"]:
    """An image in [0, 1], at its own size, or as ``model`` sees it; see ``pixels`` and ``fit``."""
    if not isinstance(how, str) or how not in get_args(Fit):
        raise unknown("fit", how, get_args(Fit))
    if model is None:
        return pixels(image)
    if isinstance(model, type) or not hasattr(model, "multiple"):
        raise SfumatoError(f"read_image takes a model that load gave, not {shown(model)}")
    if isinstance(image, str | Path):
        image = opened(image)
    elif isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
    elif not isinstance(image, Image.Image):
        image = Image.fromarray((pixels(image) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
    return fit(image, model.size, model.multiple, how).pixels


def pixels(image: AnyImage) -> Float[Tensor, "3 h w"]:
    """Any image as a tensor in [0, 1]: a file, a picture, (3, h, w) in [0, 1], or numpy (h, w, 3), bytes or in [0, 1].

    Raises ``SfumatoError`` for another shape, type or range.
    """
    if isinstance(image, str | Path):
        return tensor(open_picture(image))
    if isinstance(image, Image.Image):
        return tensor(flat(ImageOps.exif_transpose(image)))
    if not isinstance(image, np.ndarray | Tensor):
        raise SfumatoError(f"an image is a file, a picture, a tensor or an array, got a {type(image).__name__}")
    shape = tuple(image.shape)
    if isinstance(image, np.ndarray):
        if len(shape) == 2:
            image = np.repeat(image[..., None], 3, 2)
        if image.ndim != 3 or image.shape[2] not in (3, 4):
            raise SfumatoError(f"an image as numpy is (h, w, 3), got {shape}")
        image = image / 255.0 if image.dtype == np.uint8 else image
        if shape[-1] == 4:  # what is transparent is over white
            image = image[..., :3] * image[..., 3:] + (1 - image[..., 3:])
        image = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    elif image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3:
        raise SfumatoError(f"an image as a tensor is (3, h, w), got {shape}")
    image = image.float()
    check_range(image)
    return image.clamp(0, 1)


@dataclass(frozen=True)
class Fitted:
    """An image at the size that a model works on, and the way back."""

    pixels: Float[Tensor, "3 h w"]
    """With what is transparent in the original over white."""
    original: Picture
    """In RGB or RGBA."""
    box: tuple[int, int, int, int]
    """What of the original the model sees: left, top, right, bottom."""

    @property
    def part(self) -> tuple[float, float, float, float]:
        """The same in parts of the original's sides."""
        (w, h), (left, top, right, bottom) = self.original.size, self.box
        return left / w, top / h, right / w, bottom / h

    def restore(self, result: Picture, changed: Bool[Tensor, "h w"] | None = None) -> Picture:
        """A result at the original's size and with its transparency; what the model did not see is the original's.

        ``changed``: of the latents' cells, those that an edit changed. The others keep the original's pixels, which the
        autoencoder would blur; from one to the other it takes a cell.
        """
        left, top, right, bottom = self.box
        size, out = (right - left, bottom - top), self.original.convert("RGB")
        alpha = self.original.getchannel("A") if self.original.mode == "RGBA" else None
        seen = result.resize(size, Image.Resampling.LANCZOS)
        if alpha is not None:
            seen = off_white(seen, alpha.crop(self.box))
        mask = None
        if changed is not None:
            cells = Image.fromarray((changed.cpu().numpy() * 255).astype(np.uint8))
            mask = cells.resize(size, Image.Resampling.BILINEAR)
        out.paste(seen, (left, top), mask)
        if alpha is not None:
            out.putalpha(alpha)
        return out


def off_white(picture: Picture, alpha: Picture) -> Picture:
    """The colours that over white, at this opacity, look like the picture."""
    share = np.asarray(alpha, np.float32)[..., None] / 255
    own = (np.asarray(picture, np.float32) - 255 * (1 - share)) / np.where(share, share, np.inf)
    return Image.fromarray(own.clip(0, 255).round().astype(np.uint8))


def fit(picture: Picture, size: int, factor: int = 8, how: Fit = "whole") -> Fitted:
    """A picture in any mode for a model of images of ``size`` pixels a side.

    ``whole``: all of it, the shorter side ``size``, the longer as the picture's shape says, to multiples of ``factor``;
    ``crop``: its centre square; ``stretch``: all of it, as a square. Raises ``SfumatoError`` for a picture so long that
    its longer side would be over eight times ``size``.
    """
    if not isinstance(how, str) or how not in get_args(Fit):
        raise unknown("fit", how, get_args(Fit))
    picture = coloured(picture)
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
    seen = flat(picture.crop(box)).resize((target[0], target[1]), Image.Resampling.LANCZOS)
    return Fitted(tensor(seen), picture, box)
