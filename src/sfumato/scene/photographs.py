"""The pictures of a capture's shots: read, fitted into one size, and seen as by a pinhole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import psutil
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.terminal import note
from sfumato.media.images import coloured, opened, size_of, tensor
from sfumato.scene.lenses import Lens
from sfumato.scene.shots import Shot

SIDE = 1024
"""Pixels of the longer side of images, at most, unless one says otherwise."""
ALIKE = 0.01
"""By how much the shapes (height over width) of a picture and of what its camera is said to see may differ."""


class Photographs(NamedTuple):
    """Images of one size, straight."""

    images: Float[Tensor, "n 3 h w"]
    masks: Bool[Tensor, "n h w"] | None
    """Pixels that count; None for all."""
    alphas: Float[Tensor, "n h w"] | None
    """Opacity; None where all are opaque."""
    lenses: list[Lens]


def read(shots: Sequence[Shot], side: int | None = SIDE) -> Photographs:
    """The pictures of shots, the longer side of ``side`` pixels at most; of several sizes, in the commonest.

    Raises ``SfumatoError`` for pictures that cannot be read, of another shape than their camera sees, or too many for
    the memory, and where masks leave nothing.
    """
    lenses = [_of_picture(shot) for shot in shots]
    sizes = Counter(_limited(lens.size, side) for lens in lenses)
    h, w = frame = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
        note(f"{len(shots) - sizes[frame]} of {len(shots)} images are not {w} x {h} as most are, and are fitted")
    n = len(shots)
    need, there = 20 * n * h * w, psutil.virtual_memory().available
    if need > there:
        raise SfumatoError(
            f"{n} images of {w} x {h} take {need / 2**30:.1f} GiB, {there / 2**30:.1f} are free; give a smaller side"
        )
    images, masks = torch.ones(n, 3, h, w), torch.zeros(n, h, w, dtype=torch.bool)
    alphas = torch.zeros(n, h, w)
    for i, shot in enumerate(shots):
        lens = lenses[i].resized(*_inside(lenses[i].size, frame))
        pixels, clear, counts = _one(shot, lens)
        y, x = lens.size
        images[i, :, :y, :x], alphas[i, :y, :x], masks[i, :y, :x] = pixels, clear, counts
        lenses[i] = Lens(lens.size, lens.focal, lens.centre)
    if not bool(masks.any()):
        raise SfumatoError("the masks leave no pixel that counts; they are white where images are to be read")
    whole = bool((alphas[masks] == 1).all())
    return Photographs(images, None if bool(masks.all()) else masks, None if whole else alphas, lenses)


def _of_picture(shot: Shot) -> Lens:
    """A shot's lens in its picture's own pixels."""
    w, h = size_of(shot.file)
    _check_shape((w, h), shot)
    return shot.lens.resized(h, w)


def _limited(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """Height and width within a limit."""
    part = 1 if side is None else min(1, side / max(size))
    return max(1, round(size[0] * part)), max(1, round(size[1] * part))


def _inside(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the shape of one that fits another."""
    part = min(frame[0] / size[0], frame[1] / size[1])
    return min(frame[0], max(1, round(size[0] * part))), min(frame[1], max(1, round(size[1] * part)))


def _one(shot: Shot, lens: Lens) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """Pixels over white, opacity, and what counts, of a picture as a pinhole of this size sees it."""
    h, w = lens.size
    picture = coloured(opened(shot.file, turned=False))
    picture = picture.resize((w, h), Image.Resampling.LANCZOS) if picture.size != (w, h) else picture
    pixels, clear, counts = tensor(picture.convert("RGB")), torch.ones(1, h, w), torch.ones(1, h, w)
    if picture.mode == "RGBA":
        clear = tensor(picture.getchannel("A").convert("RGB"))[:1]
        pixels = clear * pixels + 1 - clear
    if shot.mask is not None:
        mask = opened(shot.mask, turned=False).convert("L")
        _check_shape(mask.size, shot)
        counts = (tensor(mask.resize((w, h), Image.Resampling.NEAREST).convert("RGB"))[:1] > 0.5).float()
    if not lens.straight:
        both, there = lens.straightened((torch.cat([pixels, clear]) if picture.mode == "RGBA" else pixels)[None])
        pixels, clear = both[0, :3].clamp(0, 1), both[0, 3:].clamp(0, 1) if len(both[0]) > 3 else clear
        counts = there * (counts if shot.mask is None else lens.straightened(counts[None], nearest=True)[0][0])
    return pixels, clear[0], counts[0] > 0.5


def _check_shape(size: tuple[int, int], shot: Shot) -> None:
    """Is a picture, or a mask, of the shape that its camera sees?"""
    (w, h), (height, width) = size, shot.lens.size
    if abs(h * width / (w * height) - 1) > max(ALIKE, 1.5 / min(h, w)):
        turned = "; it lies on its side" if abs(w * width / (h * height) - 1) < ALIKE else ""
        raise SfumatoError(
            f"{shot.name} has a picture or mask of {w} x {h}, and a camera of {width} x {height} pixels{turned}"
        )
