"""Where things should be: boxes and masks with the words they are for, from JSON, label pictures or a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError
from sfumato.io.files import read_json
from sfumato.media.opening import checked, opened
from sfumato.prompts.words import spans

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from sfumato.core.method import Run

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as parts of the image's sides."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A part of a picture, of any size."""

    pixels: Bool[Tensor, "h w"]
    name: str = field(default="a mask", repr=False)
    """What messages call it."""

    def __post_init__(self) -> None:
        if not self.pixels.any():
            raise SfumatoError(f"{self.name} is empty: nothing of the picture lies in it")

    @classmethod
    def read(cls, path: str | Path) -> Mask:
        """A picture file's bright part, or its opaque one; see ``read_mask``."""
        checked(path)  # before torch is imported
        from sfumato.media.labels import read_mask

        return cls(read_mask(path), f"the mask {path}")

    def of(self, height: int, width: int) -> Mask:
        """Of a picture of this size. ``SfumatoError`` for one of another shape."""
        from sfumato.media.labels import of_size

        return replace(self, pixels=of_size(self.pixels, (height, width), self.name))

    def at(self, grid: tuple[int, int]) -> Bool[Tensor, "h w"]:
        """The cells of a grid that lie in it by half; where none does, those that it touches most."""
        import torch.nn.functional as F

        share = F.interpolate(self.pixels.float()[None, None], grid, mode="area")[0, 0]
        return share >= min(0.5, float(share.max()))

    def within(self, part: Box) -> Mask:
        """What of it is in this part of the picture."""
        height, width = self.pixels.shape
        return replace(self, pixels=self.pixels[_span(part[1], part[3], height), _span(part[0], part[2], width)])


@dataclass(frozen=True, eq=False)
class Region:
    """Words and where they should be: in a box, or in a mask."""

    phrase: str
    box: Box | None = None
    """Parts of the image's sides; with a number above 1, pixels, until ``Layout.relative``."""
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if (self.box is None) == (self.mask is None):
            raise SfumatoError(f"{self.phrase!r} has a box or a mask, one of them")
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise SfumatoError(
                    f"the box of {self.phrase!r} is left, top, right, bottom with left < right, top < bottom, none "
                    f"below 0; got {', '.join(f'{v:g}' for v in self.box)}"
                )


@dataclass(frozen=True, eq=False)
class Layout:
    """Several regions."""

    regions: tuple[Region, ...]

    def __post_init__(self) -> None:
        if not self.regions:
            raise SfumatoError("a layout is empty; give it a box or a mask for each thing")

    @property
    def phrases(self) -> tuple[str, ...]:
        return tuple(r.phrase for r in self.regions)

    def relative(self, height: int, width: int) -> Layout:
        """With boxes in pixels of an image of this size as parts of its sides. ``SfumatoError`` for one outside."""

        def scaled(region: Region) -> Region:
            if region.box is None or max(region.box) <= 1:
                return region
            x0, y0, x1, y1 = region.box
            if x1 > width or y1 > height:
                raise SfumatoError(
                    f"the box of {region.phrase!r} ends at {x1:g}, {y1:g}, outside of the image of {width} x {height}"
                )
            return replace(region, box=(x0 / width, y0 / height, x1 / width, y1 / height))

        return Layout(tuple(map(scaled, self.regions)))

    def of(self, height: int, width: int) -> Layout:
        """Of a picture of this size: ``relative``, and with masks as of it. ``SfumatoError`` for what is not."""
        regions = self.relative(height, width).regions
        return Layout(tuple(replace(r, mask=r.mask.of(height, width)) if r.mask else r for r in regions))

    def within(self, part: Box) -> Layout:
        """Of a layout in parts of the sides, what is in this part of the picture, in parts of that one's sides."""
        return Layout(tuple(_within(region, part) for region in self.regions))

    def masks(self, grid: tuple[int, int]) -> Float[Tensor, "n h w"]:
        """1 in the cells of each region, else 0; none is empty."""
        import torch

        return torch.stack([_cells(r, grid) for r in self.regions])

    def boxes(self) -> list[Box]:
        """Each region's, of masks the one around them."""
        return [_box(r) for r in self.regions]

    def tokens(self, run: Run, stream: str, image: int = 0) -> list[list[int]]:
        """The tokens of each phrase in a prompt. ``SfumatoError`` for one that the prompt does not have."""
        words = run.model.words(run.prompts[stream][image])
        return [spans(words, phrase) for phrase in self.phrases]

    def check(self, disjoint: bool = False) -> None:
        """Raise ``SfumatoError`` for boxes outside the image, and if ``disjoint`` for regions that overlap."""
        for region in self.regions:
            if region.box is not None and max(region.box) > 1:
                raise SfumatoError(
                    f"the box of {region.phrase!r} ends at {max(region.box):g}, outside of the image; boxes are parts "
                    "of its sides from 0 to 1, or pixels of an image whose size is told (Layout.relative)"
                )
        if disjoint:
            for i, a in enumerate(self.regions):
                for b in self.regions[i + 1 :]:
                    if _overlap(a, b):
                        raise SfumatoError(f"the regions of {a.phrase!r} and {b.phrase!r} overlap; here they may not")

    @classmethod
    def read(cls, path: str | Path) -> Layout:
        """A JSON file, or a label picture with a JSON file of the same name beside it.

        JSON: a list (or ``{"regions": [...]}``) of ``{"phrase": "a red cube", "box": [0.1, 0.1, 0.5, 0.6]}`` or
        ``{"phrase": ..., "mask": "mask.png"}``, or phrases with boxes: ``{"a red cube": [10, 10, 60, 60]}``.
        A label picture holds 0 where nothing is and 1, 2, ... (grey values or palette indices) elsewhere; the JSON
        beside it names them: ``{"1": "a red cube", "2": "a blue sphere"}``.
        """
        path = Path(path)
        if path.suffix.lower() != ".json":
            return _from_labels(path)
        found = _json(path)
        if isinstance(found, Mapping) and "regions" not in found:
            found = [{"phrase": phrase, "box": box} for phrase, box in found.items()]
        rows = found["regions"] if isinstance(found, Mapping) else found
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise SfumatoError(
                f'{path} holds no layout: a list of {{"phrase": ..., "box": [left, top, right, bottom]}}'
            )
        return cls(tuple(_region(row, path) for row in rows))


def box(text: str) -> Box:
    """A box as written on a command line: ``10,10,60,60`` or ``0.1,0.1,0.5,0.5``."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise SfumatoError(f"a box is left,top,right,bottom such as 10,10,60,60, got {text!r}") from None
    return left, top, right, bottom


def _cells(region: Region, grid: tuple[int, int]) -> Float[Tensor, "h w"]:
    if region.mask is not None:
        return region.mask.at(grid).float()
    import torch

    x0, y0, x1, y1 = _box(region)
    out = torch.zeros(grid)
    out[_span(y0, y1, grid[0]), _span(x0, x1, grid[1])] = 1
    return out


def _span(low: float, high: float, side: int) -> slice:
    """The cells from ``low`` to ``high``, at least one."""
    first = min(round(low * side), side - 1)
    return slice(first, max(first + 1, min(round(high * side), side)))


def _box(region: Region) -> Box:
    if region.mask is None:
        assert region.box is not None
        return region.box
    height, width = region.mask.pixels.shape
    rows, columns = (region.mask.pixels.any(d).nonzero().flatten().tolist() for d in (1, 0))
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def _within(region: Region, part: Box) -> Region:
    if region.mask is not None:
        return replace(region, mask=region.mask.within(part))
    x0, y0, x1, y1 = _box(region)
    left, top, right, bottom = part
    across, down = (
        [min(max((v - low) / (high - low), 0.0), 1.0) for v in ends]
        for ends, low, high in (((x0, x1), left, right), ((y0, y1), top, bottom))
    )
    if across[0] == across[1] or down[0] == down[1]:
        raise SfumatoError(f"the box of {region.phrase!r} is outside of the part of the picture that the model sees")
    return replace(region, box=(across[0], down[0], across[1], down[1]))


def _overlap(a: Region, b: Region) -> bool:
    if a.box is not None and b.box is not None:
        return max(a.box[0], b.box[0]) < min(a.box[2], b.box[2]) and max(a.box[1], b.box[1]) < min(a.box[3], b.box[3])
    h, w = next(r.mask for r in (a, b) if r.mask is not None).pixels.shape
    return bool((_cells(a, (h, w)) * _cells(b, (h, w))).any())


def _json(path: Path) -> Any:
    return read_json(path)


def _region(row: Any, beside: Path) -> Region:
    if not isinstance(row, Mapping) or not isinstance(row.get("phrase"), str):
        raise SfumatoError(f'a region of {beside} needs a "phrase" and a "box" or a "mask", got {row!r}')
    if "mask" in row:
        return Region(row["phrase"], mask=Mask.read(beside.parent / str(row["mask"])))
    sides = row.get("box")
    if not isinstance(sides, Sequence) or len(sides) != 4 or not all(isinstance(v, int | float) for v in sides):
        raise SfumatoError(f"the box of {row['phrase']!r} in {beside} is four numbers, got {sides!r}")
    return Region(row["phrase"], box=(sides[0], sides[1], sides[2], sides[3]))


def _from_labels(path: Path) -> Layout:
    names = _json(path.with_suffix(".json"))
    picture = opened(path)
    import numpy as np
    import torch

    from sfumato.media.labels import label_values

    label = label_values(picture)
    if label is None:
        raise SfumatoError(f"{path} has more than two colours; labels are values of a grey or palette picture")
    if not isinstance(names, Mapping) or not names:
        raise SfumatoError(f'{path.with_suffix(".json")} names the labels of {path.name}: {{"1": "a red cube", ...}}')
    values = np.unique(label)
    if len(values) == 2 and [*names] == ["1"]:  # a mask: its one thing is bright
        label = (label == values[1]).astype(int)
    regions = []
    for number, phrase in names.items():
        if not str(number).isdigit() or not (label == int(number)).any():
            has = ", ".join(str(v) for v in np.unique(label) if v)
            raise SfumatoError(f"{path} has no label {number} for {phrase!r}; it has {has or 'none'}")
        mask = Mask(torch.from_numpy(label == int(number)), f"the label {number} of {path}")
        regions.append(Region(str(phrase), mask=mask))
    return Layout(tuple(regions))
