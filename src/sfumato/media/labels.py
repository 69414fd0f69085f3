"""Labels as files that other tools read: PNGs with a palette, COCO's JSON with run lengths, overlays for the eye."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.media import pictures
from sfumato.media.images import is_deep, opened

MOST = 255
"""Labels that a palette has room for; 255 itself means no label."""
CONTRAST = 1 / 8
"""Of black to white, the least by which a mask's inside differs."""


def palette(n: int) -> Int[np.ndarray, "n 3"]:
    """``n`` colours, neighbours far apart in hue."""
    hue = (np.arange(n) * 0.381966) % 1.0  # the golden section
    waves = np.cos(2 * np.pi * (hue[:, None] + np.arange(3) / 3))
    return np.round(255 * (0.5 + 0.38 * waves)).astype(np.uint8)


def write_labels(labels: Int[Tensor, "h w"], path: Path, words: Mapping[str, object] | None = None) -> Path:
    """Labels from 0 on as a PNG with a palette, so that a pixel's value is its label; below 0 is none, 255.

    ``words`` become its text entries.
    """
    values = labels.cpu().numpy()
    if values.max(initial=0) >= MOST:
        raise SfumatoError(f"a label picture holds at most {MOST} labels, got {int(values.max()) + 1}")
    picture = Image.fromarray(np.where(values < 0, MOST, values).astype(np.uint8), mode="P")
    picture.putpalette(np.vstack([palette(MOST), [[236, 236, 236]]]).astype(np.uint8).tobytes())
    return pictures.write(picture, path, words)


def read_labels(path: str | Path, size: tuple[int, int] | None = None) -> Int[Tensor, "h w"]:
    """Labels of a picture: the values of one with a palette or of greys, -1 for 255 in a palette.

    A mask in black and white, in two colours or in transparency is 0 and 1. Raises ``SfumatoError`` for more colours,
    and for another ``size`` (h, w) that is not of the same shape.
    """
    picture = opened(path)
    values = label_values(picture)
    if values is None:
        raise SfumatoError(
            f"{path} has colours ({picture.mode}), so its labels cannot be read; write them as values of a grey or "
            "palette PNG"
        )
    if picture.mode == "P" and not np.array_equal(values, np.asarray(picture.convert("L"))):  # else it is a grey one
        values = np.where(values == MOST, -1, values)
    elif set(np.unique(values)) <= {0, 255}:
        values //= 255
    labels = torch.from_numpy(values)
    return labels if size is None else of_size(labels, size, f"the labels of {path}")


def label_values(picture: Picture) -> Int[np.ndarray, "h w"] | None:
    """A picture's values where it is of greys or has a palette, 0 and 1 of two colours; of more colours none."""
    if picture.mode in ("P", "L", "1") or (is_deep(picture) and picture.mode != "F"):
        return np.asarray(picture).astype(np.int64)
    levels, colours = _levels(picture, ""), np.asarray(picture.convert("RGB")).astype(np.int64)
    if not picture.has_transparency_data and (colours == colours[..., :1]).all():
        return colours[..., 0]
    two = np.unique(levels)
    return (levels == two[1]).astype(np.int64) if len(two) == 2 else None


def read_mask(path: str | Path) -> Bool[Tensor, "h w"]:
    """What is inside of a mask: its opaque part, or where opacity tells nothing its bright part.

    Of two values, whatever they are, the greater is inside, of more those above the middle. Raises ``SfumatoError`` for
    a single value, and for so little contrast that it is no mask.
    """
    levels = _levels(opened(path), str(path))
    values = np.unique(levels)
    low, high = float(values[0]), float(values[-1])
    if len(values) == 1:
        raise SfumatoError(f"the mask {path} is {'full' if high else 'empty'}: all of it is {high:g}, nothing differs")
    if len(values) == 2:
        return torch.from_numpy(levels == high)
    if high - low < CONTRAST * max(255.0, high):
        raise SfumatoError(
            f"{path} is no mask: {len(values)} values from {low:g} to {high:g}; draw its inside white on black"
        )
    return torch.from_numpy(levels > (low + high) / 2)


def _levels(picture: Picture, name: str) -> Float[np.ndarray, "h w"]:
    """How bright each pixel is, or how opaque; of two colours 0 and 1."""
    if is_deep(picture):
        values = np.asarray(picture, np.float64)
        if not np.isfinite(values).all():
            raise SfumatoError(f"{name} holds values that are not finite")
        return values
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"), np.float64)
        if np.ptp(alpha) >= CONTRAST * 255:
            return alpha
    if picture.mode in ("1", "L"):
        return np.asarray(picture).astype(np.float64)
    colours = np.asarray(picture.convert("RGB")).astype(np.int64)
    bright = colours @ [299, 587, 114]
    codes = (bright << 24) + colours @ [1 << 16, 1 << 8, 1]  # by their brightness, then by their channels
    two = np.unique(codes)
    return (codes == two[-1]).astype(np.float64) if len(two) == 2 else bright / 1000


def of_size(values: Shaped[Tensor, "h w"], size: tuple[int, int], name: str) -> Shaped[Tensor, "H W"]:
    """Labels or a mask of a picture of this ``size`` (h, w): another size of the same shape is fitted, else refused."""
    (h, w), (height, width) = values.shape, size
    if min(abs(h - height * w / width), abs(w - width * h / height)) > 1:
        raise SfumatoError(f"{name}: {w} x {h} pixels, of another shape than the image of {width} x {height}")
    if (h, w) == size:
        return values
    return F.interpolate(values[None, None].double(), size, mode="nearest-exact")[0, 0].to(values.dtype)


def run_lengths(mask: Bool[Tensor, "h w"]) -> dict[str, Any]:
    """COCO's run lengths: column by column, of 0 and of 1 in turn, the first of 0."""
    flat = mask.cpu().numpy().astype(np.uint8).flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def from_run_lengths(encoded: Mapping[str, Any]) -> Bool[Tensor, "h w"]:
    """The mask again."""
    counts = encoded["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
    h, w = encoded["size"]
    return torch.from_numpy(flat.reshape((h, w), order="F").copy())


@dataclass
class Coco:
    """Segments of several images as one document in COCO's form. Categories are names, or numbers without them."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)

    def add(self, file: str, labels: Int[Tensor, "h w"], names: tuple[str, ...] = ()) -> None:
        """An image's segments, one annotation each."""
        h, w = labels.shape
        image = len(self.images) + 1
        self.images.append({"id": image, "file_name": file, "height": h, "width": w})
        for label in labels.unique().tolist():
            if label < 0:
                continue
            name = names[label] if label < len(names) else f"segment {label}"
            mask = labels == label
            y, x = mask.nonzero().T
            left, top = int(x.min()), int(y.min())
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image,
                    "category_id": self.categories.setdefault(name, len(self.categories) + 1),
                    "segmentation": run_lengths(mask),
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(x.max()) - left + 1, int(y.max()) - top + 1],
                    "iscrowd": 1,  # what COCO calls segments that are given by run lengths
                }
            )

    def document(self) -> dict[str, Any]:
        kinds = [{"id": number, "name": name} for name, number in self.categories.items()]
        return {"images": self.images, "annotations": self.annotations, "categories": kinds}


def overlay(picture: Picture, labels: Int[Tensor, "h w"], strength: float = 0.5) -> Picture:
    """A picture tinted by its labels, with their edges drawn; what has no label is left."""
    values = labels.cpu().numpy()
    tint = palette(MOST)[np.clip(values, 0, MOST - 1)]
    base = np.asarray(picture.convert("RGB")).astype(float)
    mixed = np.where((values >= 0)[..., None], (1 - strength) * base + strength * tint, base)
    edge = np.zeros(values.shape, bool)
    edge[:, 1:] |= values[:, 1:] != values[:, :-1]
    edge[1:] |= values[1:] != values[:-1]
    mixed[edge] = 255
    return Image.fromarray(mixed.round().astype(np.uint8))


def lines(
    first: Picture,
    second: Picture,
    source: Float[Tensor, "n 2"],
    target: Float[Tensor, "n 2"],
    sure: Bool[Tensor, " n"] | None = None,
    height: int = 320,
) -> Picture:
    """Two pictures side by side and a line from each point to its match; those that are not ``sure`` are thin."""
    scales = [height / p.height for p in (first, second)]
    shown = [
        p.resize((max(1, round(p.width * s)), height), Image.Resampling.LANCZOS)
        for p, s in zip((first, second), scales, strict=True)
    ]
    gap = 12
    sheet = Image.new("RGB", (shown[0].width + gap + shown[1].width, height), "white")
    sheet.paste(shown[0], (0, 0))
    sheet.paste(shown[1], (shown[0].width + gap, 0))
    draw = ImageDraw.Draw(sheet)
    colours = palette(max(1, len(source)))
    for i, (a, b) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        colour = tuple(int(c) for c in colours[i])
        ends = (a[0] * scales[0], a[1] * scales[0]), (b[0] * scales[1] + shown[0].width + gap, b[1] * scales[1])
        strong = sure is None or bool(sure[i])
        draw.line(ends, fill=colour, width=2 if strong else 1)
        for x, y in ends:
            dot(draw, x, y, colour, 4 if strong else 2)
    return sheet


def points(picture: Picture, at: Float[Tensor, "n 2"], height: int = 256) -> Picture:
    """A picture with numbered points; the same point has the same colour in every picture."""
    scale = height / picture.height
    shown = picture.convert("RGB").resize((max(1, round(picture.width * scale)), height), Image.Resampling.LANCZOS)
    draw, colours = ImageDraw.Draw(shown), palette(max(1, len(at)))
    for i, (x, y) in enumerate(at.tolist()):
        dot(draw, x * scale, y * scale, tuple(int(c) for c in colours[i]), 5)
        draw.text((x * scale + 6, y * scale - 6), str(i + 1), fill="white", stroke_width=2, stroke_fill="black")
    return shown


def dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, ...], radius: float) -> None:
    """A filled circle with a white rim."""
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white")
