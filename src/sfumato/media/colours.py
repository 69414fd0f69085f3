"""Colours of picture files: whatever space a file's pixels are in, as sRGB."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageCms

from sfumato.io.terminal import note

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

GREYS = ("1", "L", "LA", "La")
_SRGB_GAMMA = 0.45455
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""White and the primaries as PNG's cHRM has them: x and y each."""
_PRIMARIES = {
    1: _SRGB,
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
"""By their numbers in H.273."""
_TRANSFERS = (1, 6, 13, 14, 15)
"""Of sRGB, and BT.709's, which viewers show alike."""
_CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
"""Bradford's, in which white is adapted."""


def srgb(picture: Picture) -> Picture:
    """A picture of 8 bits in any mode as RGB in sRGB, without its alpha.

    PNG's cICP goes before a colour profile (perceptual intent), and that before gAMA and cHRM; without any the pixels
    are sRGB. What is sRGB stays as it is. What is broken, of another kind of colours, or HDR is left out with a note.
    """
    profile, gamma = picture.info.get("icc_profile"), picture.info.get("gamma")
    if (code := picture.info.get("cicp")) and picture.mode != "CMYK":
        return _by_code(picture, code)
    if profile:
        try:
            return _by_profile(picture, ImageCms.ImageCmsProfile(BytesIO(profile)))
        except (ImageCms.PyCMSError, OSError, ValueError) as e:
            note(f"the colour profile of {named(picture)} cannot be used ({e}); its colours are read as sRGB")
    elif picture.mode == "LAB":
        return _by_profile(picture, _made("LAB"))
    elif gamma and "srgb" not in picture.info:
        return _by_gamma(picture.convert("RGB"), gamma, picture.info.get("chromaticity", _SRGB))
    return picture.convert("RGB")


def named(picture: Picture) -> str:
    """The file that a picture was read from."""
    return getattr(picture, "filename", "") or "a picture"


def _by_profile(picture: Picture, profile: ImageCms.ImageCmsProfile) -> Picture:
    space = profile.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]
    own = "CMYK" if picture.mode == "CMYK" else "Lab" if picture.mode == "LAB" else "RGB"
    if space != own and not (space == "GRAY" and picture.mode in GREYS):
        raise ValueError(f"it is of {space}, the pixels are {picture.mode}")
    mode = {"GRAY": "L", "Lab": "LAB"}.get(space, space)
    change = _transform(profile, mode)
    probe = Image.frombytes("RGB", (17, 17 * 17), _CUBE) if mode == "RGB" else None
    if probe is not None and _furthest(probe, ImageCms.applyTransform(probe, change)) <= 1:  # it is sRGB
        return picture.convert("RGB")
    changed = ImageCms.applyTransform(picture.convert(mode), change)
    assert changed is not None
    return changed


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    exact = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE  # else dark greys are interpolated
    return ImageCms.buildTransform(profile, _made("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL, exact)


@cache
def _made(space: Literal["sRGB", "LAB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space))


_CUBE = np.stack(np.meshgrid(*[np.linspace(0, 255, 17).round().astype(np.uint8)] * 3), -1).tobytes()
"""Colours by which a profile is compared with sRGB."""


def _furthest(a: Picture, b: Picture | None) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def _by_code(picture: Picture, code: tuple[int, int]) -> Picture:
    """By the numbers of H.273 for primaries and for how light becomes samples."""
    primaries, transfer = code
    if transfer not in _TRANSFERS or primaries not in _PRIMARIES:
        note(
            f"the colours of {named(picture)} are HDR or unknown (cICP {primaries}, {transfer}); they are read as sRGB"
        )
    elif primaries != 1:
        return _converted(picture.convert("RGB"), _light(np.arange(256) / 255), _PRIMARIES[primaries])
    return picture.convert("RGB")


def _by_gamma(picture: Picture, gamma: float, chromaticity: tuple[float, ...]) -> Picture:
    """By PNG's chunks: sample = light ** gamma, and the light's primaries."""
    if abs(gamma - _SRGB_GAMMA) < 0.005 and np.allclose(chromaticity, _SRGB, atol=0.003):
        return picture
    try:
        return _converted(picture, (np.arange(256) / 255) ** (1 / gamma), chromaticity)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        note(f"gAMA or cHRM of {named(picture)} make no sense; its colours are read as sRGB")
        return picture


def _light(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """What sRGB's samples, from 0 to 1, are of light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _converted(picture: Picture, light: Float[np.ndarray, "256"], chromaticity: tuple[float, ...]) -> Picture:
    """From samples of so much light, of other primaries."""
    change = np.linalg.inv(_to_xyz(_SRGB)) @ _to_xyz(chromaticity)
    linear = (light.astype(np.float32)[np.asarray(picture)] @ change.T.astype(np.float32)).clip(0, 1)
    values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray((values * 255).round().astype(np.uint8))


def _to_xyz(chromaticity: tuple[float, ...]) -> Float[np.ndarray, "3 3"]:
    """From linear RGB of these primaries to XYZ, with white adapted to sRGB's."""
    white, primaries = _xyz(chromaticity[:2]), np.stack([_xyz(chromaticity[i : i + 2]) for i in (2, 4, 6)], 1)
    matrix = primaries * np.linalg.solve(primaries, white)
    cones = (_CONES @ _xyz(_SRGB[:2])) / (_CONES @ white)
    return np.linalg.inv(_CONES) @ (cones[:, None] * _CONES) @ matrix


def _xyz(xy: tuple[float, ...]) -> Float[np.ndarray, "3"]:
    x, y = xy
    return np.array([x / y, 1, (1 - x - y) / y])
