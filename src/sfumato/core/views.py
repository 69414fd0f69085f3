"""The map between a canvas and the images that the network sees, and back: windows, a ring, turns, warps.

Bar-Tal et al. 2023 (MultiDiffusion): a canvas wider than the model's images is covered by overlapping windows; each is
predicted on its own, and where windows overlap their answers are averaged. Any map that can be undone will do in place
of a window: a flip (Geng et al. 2024, visual anagrams), the projection of a texture (Kim et al. 2024, SyncTweedies).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.sites import Grid
from sfumato.errors import SfumatoError
from sfumato.ops.warps import warp

Fuse = Literal["eps", "x0", "x_prev", "pixels"]
Side = Literal["canvas", "instance"]


class View:
    """One look at a canvas. Subclasses say what it shows, and where what it shows belongs."""

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        """What it shows of a canvas."""
        raise NotImplementedError

    def unproject(
        self, part: Float[Tensor, "b c h w"], canvas: Grid
    ) -> tuple[Float[Tensor, "b c H W"], Float[Tensor, "H W"]]:
        """A part laid on an empty canvas times its weights, and the weights; both are 0 where it shows nothing."""
        raise NotImplementedError

    def noise(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        """What it shows of unit noise, which is unit noise as well."""
        return self.project(canvas)

    def in_pixels(self) -> View:
        """The same look at a picture, which may be finer than a look at noise; itself, unless it is."""
        return self

    def lay(
        self, part: Float[Tensor, "b c h w"], total: Float[Tensor, "b c H W"], weight: Float[Tensor, "H W"]
    ) -> None:
        """``unproject``, added to a canvas and its weights."""
        laid, by = self.unproject(part, (total.shape[-2], total.shape[-1]))
        total += laid
        weight += by


class Views:
    """Several views of a canvas, whose means are the canvas.

    ``fuse``: which variable they agree on; ``pixels`` is x0 decoded. ``side``: on which it is sampled. On the canvas
    there is one image, which views show parts of; on the instance's, each view has latents of its own. ``until``: up to
    which part of the steps they agree; then each goes on by itself, so that it has to have latents of its own.
    """

    fuse: Fuse
    side: Side = "canvas"
    until: float = 1.0
    around: bool = False
    """Does the canvas' right border go on at its left?"""
    partial: bool = False
    """Do those of one step leave out what those of others show?"""

    def at(self, i: int) -> Views:
        """The views of a step, as many in each: of some it is others."""
        return self

    def window(self, canvas: Grid, side: int) -> Grid:
        """Height and width of what the network sees of a canvas; ``side`` is that of the model's own images."""
        return min(side, canvas[0]), min(side, canvas[1])

    def of(self, canvas: Grid, window: Grid, cell: int = 1) -> tuple[View, ...]:
        """The views of a canvas. Sides are counted in cells of the latents, or in pixels, ``cell`` to one of them."""
        raise NotImplementedError

    def count(self, height: int, width: int, window: Grid) -> int:
        """How many views a canvas of latents has."""
        return len(self.of((height, width), window))

    def prompts_of(self, prompt: str, canvas: Grid, window: Grid) -> tuple[str, ...]:
        """What the network reads of each view of an image with this prompt."""
        return (prompt,) * self.count(*canvas, window)

    def split(self, x: Float[Tensor, "b c H W"], window: Grid, cell: int = 1) -> Float[Tensor, "bv c h w"]:
        """All views of the first image, then those of the next."""
        return _stacked([view.project(x) for view in self.of((x.shape[-2], x.shape[-1]), window, cell)])

    def split_noise(self, x: Float[Tensor, "b c H W"], window: Grid) -> Float[Tensor, "bv c h w"]:
        """``split`` of unit noise into unit noise."""
        return _stacked([view.noise(x) for view in self.of((x.shape[-2], x.shape[-1]), window)])

    def merge(
        self, parts: Float[Tensor, "bv c h w"], like: Float[Tensor, "b c H W"], cell: int = 1
    ) -> Float[Tensor, "b c H W"]:
        """The canvas of shape ``like``: the weighted mean of all views that show a cell, 0 where none does."""
        canvas, window = (like.shape[-2], like.shape[-1]), (parts.shape[-2], parts.shape[-1])
        views = self.of(canvas, window, cell)
        total, weight = torch.zeros_like(like), torch.zeros(canvas).to(like)
        for view, part in zip(views, parts.unflatten(0, (-1, len(views))).unbind(1), strict=True):
            view.lay(part, total, weight)
        return total / torch.where(weight > 0, weight, 1)

    def coverage(self, height: int, width: int, window: Grid) -> Float[Tensor, "H W"]:
        """The weights of each cell, summed; never zero where the canvas is sampled."""
        total, weight = torch.zeros(1, 1, height, width), torch.zeros(height, width)
        for view in self.of((height, width), window):
            view.lay(torch.zeros(1, 1, *window), total, weight)
        return weight


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts), 1).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Window(View):
    """The cells of a canvas that lie in these rows and columns."""

    rows: Tensor
    columns: Tensor
    weight: Float[Tensor, "h w"] | None = None
    """How much each of its cells counts; None: all the same."""

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return canvas[..., self.rows, self.columns]

    def unproject(self, part: Float[Tensor, "b c h w"], canvas: Grid) -> tuple[Tensor, Tensor]:
        total, weight = part.new_zeros(*part.shape[:2], *canvas), torch.zeros(canvas).to(part)
        self.lay(part, total, weight)
        return total, weight

    def lay(
        self, part: Float[Tensor, "b c h w"], total: Float[Tensor, "b c H W"], weight: Float[Tensor, "H W"]
    ) -> None:
        by = 1 if self.weight is None else self.weight.to(part)
        total[..., self.rows, self.columns] += part * by
        weight[self.rows, self.columns] += by


class Windows(Views):
    """Views that are windows of one size."""

    def weights(self, window: Grid) -> Float[Tensor, "h w"] | None:
        """How much each cell of a window counts where windows overlap; None: all the same."""
        return None

    def places(self, height: int, width: int, window: Grid) -> tuple[tuple[int, int], ...]:
        """Top and left of each window."""
        raise NotImplementedError

    def of(self, canvas: Grid, window: Grid, cell: int = 1) -> tuple[View, ...]:
        return _windows(self, canvas, window, cell)

    def on_tokens(self, canvas: Grid, window: Grid, scale: int) -> Looks | None:
        """The windows where a token is ``scale`` cells a side; None where one of them does not begin with a token."""
        places = self.places(*canvas, window)
        if any(n % scale for n in (*canvas, *window, *(n for place in places for n in place))):
            return None
        grid, (h, w) = (canvas[0] // scale, canvas[1] // scale), (window[0] // scale, window[1] // scale)
        return Looks(tuple(_window(grid, (h, w), top // scale, left // scale) for top, left in places))


@lru_cache(8)  # they are the same in every step
def _windows(views: Windows, canvas: Grid, window: Grid, cell: int) -> tuple[View, ...]:
    (height, width), (h, w) = canvas, window
    places = views.places(height // cell, width // cell, (h // cell, w // cell))
    weight = views.weights(window)
    return tuple(_window(canvas, window, top * cell, left * cell, weight) for top, left in places)


def _window(canvas: Grid, window: Grid, top: int, left: int, weight: Tensor | None = None) -> View:
    if canvas == window and not top and not left:
        return Turned()  # the canvas itself
    rows, columns = torch.arange(window[0]) + top, torch.arange(window[1]) + left
    return Window(rows[:, None] % canvas[0], columns[None] % canvas[1], weight)


def gaussian(side: int) -> Float[Tensor, " side"]:
    """Weights along a window's side, 1 in its middle: of deviation a tenth of the side (Jimenez 2023)."""
    return (-((torch.arange(side) + 0.5) / side - 0.5).square() / (2 * 0.1**2)).exp()


@dataclass(frozen=True)
class Tiles(Windows):
    """Overlapping windows that cover the canvas to its borders.

    ``stride`` in cells of the latents, or as a part of the window's side; the default is an eighth of that, as
    published (8 of 64). Where windows overlap their mean is taken: each comes in with its whole weight where it begins,
    which shows at large strides. With ``feather`` it counts less towards its borders, by the Gaussian weights of
    Mixture of Diffusers (Jimenez 2023, arXiv 2302.02412).
    """

    stride: int | float | None = None
    fuse: Fuse = "x_prev"
    side: Side = "canvas"
    until: float = 1.0
    feather: bool = False

    def weights(self, window: Grid) -> Float[Tensor, "h w"] | None:
        return gaussian(window[0])[:, None] * gaussian(window[1]) if self.feather else None

    def places(self, height: int, width: int, window: Grid) -> tuple[tuple[int, int], ...]:
        rows, columns = (_starts(n, side, self.stride) for n, side in ((height, window[0]), (width, window[1])))
        return tuple((top, left) for top in rows for left in columns)


@dataclass(frozen=True)
class Ring(Tiles):
    """Tiles whose right border goes on at the left: a panorama of 360 degrees."""

    around = True

    def places(self, height: int, width: int, window: Grid) -> tuple[tuple[int, int], ...]:
        rows = _starts(height, window[0], self.stride)
        if width < window[1]:
            raise SfumatoError(f"a ring is at least as wide as the window, {window[1]} cells, got {width}")
        return tuple((top, left) for top in rows for left in range(0, width, _stride(window[1], self.stride)))


def _stride(side: int, stride: int | float | None) -> int:
    part = 1 / 8 if stride is None else stride if isinstance(stride, float) and 0 < stride <= 1 else None
    step = stride if part is None else max(1, int(side * part))
    if not (isinstance(step, int) and 1 <= step <= side):
        raise SfumatoError(f"a stride lies between 1 and the window's side, {side} cells, got {step}")
    return step


@cache
def _starts(length: int, side: int, stride: int | float | None) -> tuple[int, ...]:
    """Where windows begin; the last one ends at the border."""
    if length < side:
        raise SfumatoError(f"a canvas is at least as large as the window, {side} cells, got {length}")
    starts = list(range(0, length - side + 1, _stride(side, stride)))
    if starts[-1] != length - side:
        starts.append(length - side)
    return tuple(starts)


@dataclass(frozen=True)
class Looks(Views):
    """These views, whose parts are of one size: the first one's."""

    views: tuple[View, ...]
    fuse: Fuse = "eps"
    side: Side = "canvas"
    prompts: tuple[str, ...] = ()
    """What each of them is to read as; {} in it is the run's prompt. None: that of all."""
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.prompts and len(self.prompts) != len(self.views):
            raise SfumatoError(f"{len(self.views)} views have as many prompts or none, got {len(self.prompts)}")

    def prompts_of(self, prompt: str, canvas: Grid, window: Grid) -> tuple[str, ...]:
        if not self.prompts:
            return super().prompts_of(prompt, canvas, window)
        return tuple(own.replace("{}", prompt) for own in self.prompts)

    def window(self, canvas: Grid, side: int) -> Grid:
        sizes = [view.project(torch.zeros(1, 1, *canvas)).shape[-2:] for view in self.views]
        if len(set(sizes)) != 1:
            shown = ", ".join(f"{h} x {w}" for h, w in sizes) or "none"
            raise SfumatoError(f"views show parts of one size, got {shown} of a canvas of {canvas[0]} x {canvas[1]}")
        return sizes[0][0], sizes[0][1]

    def of(self, canvas: Grid, window: Grid, cell: int = 1) -> tuple[View, ...]:
        return self.views if cell == 1 else tuple(view.in_pixels() for view in self.views)


@dataclass(frozen=True)
class Turned(View):
    """The whole canvas mirrored left to right, if ``flipped``, then turned counter-clockwise by quarters."""

    quarters: int = 0
    flipped: bool = False

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        if not self.quarters % 4 and not self.flipped:
            return canvas
        return (canvas.flip(-1) if self.flipped else canvas).rot90(self.quarters, (-2, -1))

    def unproject(self, part: Float[Tensor, "b c h w"], canvas: Grid) -> tuple[Tensor, Tensor]:
        back = part.rot90(-self.quarters, (-2, -1))
        return back.flip(-1) if self.flipped else back, torch.ones(canvas).to(part)


@dataclass(frozen=True, eq=False)
class Warped(View):
    """A canvas as it looks along a map, which ``ops.warps`` follows: a turn by any angle, a texture on a surface."""

    there: Float[Tensor, "h w 2"]
    """Where on the canvas each cell of the view looks, (x, y) in parts of its sides."""
    back: Float[Tensor, "H W 2"]
    """Where in the view each cell of the canvas is seen."""
    weight: Float[Tensor, "H W"]
    """How well each cell of the canvas is seen; 0 where it is not."""

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return warp(canvas, self.there[None])

    def noise(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        """Each cell's nearest on the canvas: mixed ones would be less than unit. What two cells of the view look at is
        the same in both, so the canvas has to be the finer one of the two."""
        return warp(canvas, self.there[None], mode="nearest")

    def unproject(self, part: Float[Tensor, "b c h w"], canvas: Grid) -> tuple[Tensor, Tensor]:
        weight = self.weight.to(part)
        if weight.shape != canvas:
            sizes = [f"{h} x {w}" for h, w in (weight.shape, canvas)]
            raise SfumatoError(f"this warp is of a canvas of {sizes[0]} cells, and the canvas has {sizes[1]}")
        return warp(part, self.back[None]) * weight, weight
