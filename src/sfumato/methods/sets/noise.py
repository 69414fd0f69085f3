"""Noise of a set: what that of one image has of the others', each still unit normal and uncorrelated within itself.

Shared noise gives frames the same texture in the same places, independent noise gives each its own, which flickers.
Between them lie mixtures (Ge et al. 2023, PYoCo, arXiv 2305.10474), noise that moves (Khachatryan et al. 2023,
Text2Video-Zero, arXiv 2303.13439), and noise that goes along with what the frames show: a recursion that moves the
last frame's and adds some (Kass and Pesare 2011), or one fine noise whose grains are carried and summed wherever they
are (Chang et al. 2024, How I Warped Your Noise, ICLR).

What never happens here, as it does not leave noise white: blending independent noises, which shrinks it, and reading
noise between its cells or twice, which makes neighbours alike. Grains lie each in one cell of a frame, a cell is the
sum of its grains over the root of their number, and one without any is drawn anew.

    denoise(model, ["a red cube"] * 8, seed=7, noises=Mixed(1.0))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.noise import Independent, Noises, drawing
from sfumato.core.settings import Count, Part, Settings, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.ops.motion import Motion, carried, centres, fresh

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Advected", "Cropped", "Independent", "IntegralWarp", "Mixed", "Noises", "Numbered", "OnSurface", "Progressive",
    "Shared", "Translated",
]  # fmt: skip

Shape = Sequence[int]
_MOST = 2**64


@dataclass(frozen=True)
class OfSet(Settings, Noises):
    """Noise in which the images of a set have their numbers; their seeds count on from the first one's."""

    skip: Whole = field(default=0, kw_only=True)
    """Images of the set that came before the first of these."""

    def after(self, images: int) -> Self:
        return replace(self, skip=self.skip + images)

    def first(self, seeds: Sequence[int]) -> int:
        """The seed of the set's first image."""
        return seeds[0] - self.skip


@dataclass(frozen=True)
class Shared(OfSet):
    """One noise for all, that of the first."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        draw = drawing([self.first(seeds)], shape)
        return lambda: draw().repeat(len(seeds), *[1] * len(shape))


@dataclass(frozen=True)
class Mixed(OfSet):
    """PYoCo's mixed noise (Ge et al. 2023, eq. 4): any two images correlate by a^2 / (1 + a^2)."""

    a: Weight = 1.0
    """How much all share over what each has of its own; the published best."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        share, own = _parts(self.a)
        common, each = drawing([_seed(self.first(seeds), 1)], shape), drawing(seeds, shape)
        return lambda: share * common() + own * each()


@dataclass(frozen=True)
class Progressive(OfSet):
    """PYoCo's progressive noise (Ge et al. 2023, eq. 5): from image to image some of it stays.

    Images l apart correlate by (a^2 / (1 + a^2))^(l / 2).
    """

    a: Weight = 2.0
    """How much of the last image's over what each has of its own; the published best."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        share, own = _parts(self.a)
        draws = [drawing([seed], shape) for seed in _all(self, seeds)]

        def draw() -> Tensor:
            found: list[Tensor] = []
            for one in draws:
                found = [*found[-len(seeds) :], share * found[-1] + own * one() if found else one()]
            return torch.cat(found[-len(seeds) :])

        return draw


@dataclass(frozen=True)
class Cropped(OfSet):
    """Windows of one endless canvas: where two overlap, their noise is the same."""

    places: tuple[tuple[int, int], ...]
    """Top and left of each image of the set, in cells; the first image's own noise lies at (0, 0)."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        here = self.places[self.skip : self.skip + len(seeds)]
        if len(here) != len(seeds):
            raise SfumatoError(f"{self.skip + len(seeds)} images are cropped at places each, got {len(self.places)}")
        return _windows(self.first(seeds), here, shape)


@dataclass(frozen=True)
class Translated(OfSet):
    """Noise that moves evenly from image to image, by whole cells; what comes in is new.

    Text2Video-Zero moves the first frame's latents so (eqs. 5 to 7) and mirrors them at the border, where noise would
    be there twice.
    """

    right: float = 12 / 512
    """From an image to the next, in parts of the width: the published 12 of 512 pixels."""
    down: float = 12 / 512
    """In parts of the height."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        numbers = range(self.skip, self.skip + len(seeds))
        ways = (self.down * shape[-2], self.right * shape[-1])
        places = [(-round(i * ways[0]), -round(i * ways[1])) for i in numbers]
        return _windows(self.first(seeds), places, shape)


@dataclass(frozen=True, eq=False)
class Advected(OfSet):
    """Noise that goes along a motion and is renewed on the way (Kass and Pesare 2011, coherent noise).

    y_t = keep warp(y_{t-1}) + sqrt(1 - keep^2) w_t, and w_t where the frame before shows nothing. The warp keeps noise
    white: each cell is drawn as ``fine`` x ``fine`` grains that sum to it, which are then carried. By a way of whole
    cells frames correlate by ``keep``; by part of a cell by as much less as cells overlap, anew in each frame.
    """

    motion: Motion
    """Of all the set's frames."""
    keep: Part = 0.9
    """Of a frame's noise what the next has, as a correlation."""
    fine: Count = 8
    """Grains to a cell's side."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        _check(self, self.motion, self.fine, seeds, shape)
        draws, grid = [_Drawing(seed) for seed in _all(self, seeds)], (shape[-2], shape[-1])
        at = _grains(grid, self.fine)

        def draw() -> Tensor:
            found: list[Tensor] = []
            for t, one in enumerate(draws):
                w = one(shape)
                if found:
                    there, seen = carried(self.motion, t - 1, at)
                    seen &= ~fresh(self.motion, t - 1, there)
                    moved, none = _summed(_refined(found[-1], self.fine, one), there, seen, grid)
                    w = torch.where(none, w, self.keep * moved + math.sqrt(1 - self.keep**2) * w)
                found = [*found[-len(seeds) :], w]
            return torch.stack(found[-len(seeds) :])

        return draw


@dataclass(frozen=True, eq=False)
class IntegralWarp(OfSet):
    """One fine noise that a motion carries (Chang et al. 2024): a cell is the sum of its grains over their root.

    The grains keep their places between cells, so that frames correlate by how much their cells show the same, however
    many lie between them. Where a frame shows what the last did not, and in cells that lost all of them, are new ones.
    The paper warps cells back to the first frame; to carry grains forward leaves each in one cell, also where a motion
    has folds.
    """

    motion: Motion
    """Of all the set's frames."""
    fine: Count = 8
    """Grains to a cell's side in the first frame."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        _check(self, self.motion, self.fine, seeds, shape)
        draws = [_Drawing(seed) for seed in _all(self, seeds)]
        return lambda: torch.stack(list(self._frames(draws, shape))[-len(seeds) :])

    def _frames(self, draws: Sequence[_Drawing], shape: Shape) -> Iterator[Tensor]:
        grid = (shape[-2], shape[-1])
        everywhere = _grains(grid, self.fine)
        first = draws[0](shape)
        at, value = everywhere, _refined(first, self.fine, draws[0])
        yield first
        for t, one in enumerate(draws[1:]):
            w = one(shape)
            at, seen = carried(self.motion, t, at)
            seen &= ~fresh(self.motion, t, at)
            at, value = at[seen], value[:, seen]
            _, none = _summed(value, at, seen[seen], grid)
            anew = fresh(self.motion, t, everywhere) | none.flatten()[_cells(everywhere, grid)]
            grains = _refined(w, self.fine, one)
            at, value = torch.cat([at, everywhere[anew]]), torch.cat([value, grains[:, anew]], 1)
            yield _summed(value, at, torch.ones(len(at), dtype=torch.bool), grid)[0]


@dataclass(frozen=True, eq=False)
class OnSurface(OfSet):
    """Views of one scene that read one noise on its surface: each of its points has some, and a cell is the sum of
    those that it shows over the root of their number. Where a view shows no point, its noise is its own.
    """

    at: Float[Tensor, "n p 2"]
    """Where each point lies in each view of the set, (x, y) in parts of its sides."""
    seen: Bool[Tensor, "n p"]
    """Which of them it shows."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        here = slice(self.skip, self.skip + len(seeds))
        at, seen, grid = self.at[here].cpu().float(), self.seen[here].cpu(), (shape[-2], shape[-1])
        if len(at) != len(seeds) or self.at.shape[:2] != self.seen.shape:
            raise SfumatoError(f"{self.skip + len(seeds)} views need places of points each, got {len(self.at)}")
        seen = seen & ((at >= 0) & (at < 1)).all(-1)
        texture, own = drawing([_seed(self.first(seeds), 1)], (shape[0], at.shape[1])), drawing(seeds, shape)

        def draw() -> Tensor:
            values, out = texture()[0], []
            for places, shown, w in zip(at, seen, own(), strict=True):
                found, none = _summed(values, places, shown, grid)
                out.append(torch.where(none, w, found))
            return torch.stack(out)

        return draw


@dataclass(frozen=True)
class Numbered(Noises):
    """Noise of some images of a set, by their numbers: seeds are those of its first images, however they come."""

    of: Noises
    numbers: tuple[int, ...]
    """Of each image that is drawn for."""

    def drawing(self, seeds: Sequence[int], shape: Shape) -> Callable[[], Tensor]:
        if len(self.numbers) != len(seeds):
            raise SfumatoError(f"{len(self.numbers)} images of a set are numbered, and noise is drawn for {len(seeds)}")
        draws = [
            self.of.after(run[0]).drawing([seeds[0] + n for n in run], shape) for run in _consecutive(self.numbers)
        ]
        return lambda: torch.cat([draw() for draw in draws])


def _consecutive(numbers: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return runs


def _parts(a: float) -> tuple[float, float]:
    """Of what is shared and of what is one's own, so that their squares sum to 1."""
    return a / math.sqrt(1 + a * a), 1 / math.sqrt(1 + a * a)


def _all(noises: OfSet, seeds: Sequence[int]) -> list[int]:
    """The seeds of these images with those before them in the set."""
    return [*(noises.first(seeds) + i for i in range(noises.skip)), *seeds]


def _seed(first: int, *of: int) -> int:
    """Another seed of a set, by what it is for."""
    words = [n % _MOST for n in (first, *of)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def _windows(first: int, places: Sequence[tuple[int, int]], shape: Shape) -> Callable[[], Tensor]:
    """Of an endless canvas in tiles of this shape, each of a seed of its own, that of (0, 0) the set's first."""
    h, w = shape[-2], shape[-1]
    tiles = {
        (y, x): drawing([_seed(first, y, x) if y or x else first], shape)
        for top, left in places
        for y in {top // h, (top + h - 1) // h}
        for x in {left // w, (left + w - 1) // w}
    }

    def draw() -> Tensor:
        drawn, out = {at: tile()[0] for at, tile in tiles.items()}, []
        for top, left in places:
            (y, down), (x, right) = divmod(top, h), divmod(left, w)
            rows = [torch.cat([drawn[j, i] for i in ([x, x + 1] if right else [x])], -1)
                    for j in ([y, y + 1] if down else [y])]  # fmt: skip
            out.append(torch.cat(rows, -2)[..., down : down + h, right : right + w])
        return torch.stack(out)

    return draw


def _check(noises: OfSet, motion: Motion, fine: int, seeds: Sequence[int], shape: Shape) -> None:
    frames = noises.skip + len(seeds)
    if len(motion) < frames:
        raise SfumatoError(f"the motion is of {len(motion)} frames, and noise is drawn up to frame {frames}")
    motion.check(len(motion), shape[-2:])
    if fine < 1:
        raise SfumatoError(f"a cell has one grain a side or more, got {fine}")


class _Drawing:
    """A generator of a seed, for noise of several shapes; its first is the seed's own."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed % _MOST)

    def __call__(self, shape: Shape) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator)


def _grains(grid: tuple[int, int], fine: int) -> Float[Tensor, "p 2"]:
    """Places of the grains of all cells."""
    return centres(grid[0] * fine, grid[1] * fine).view(-1, 2)


def _refined(noise: Float[Tensor, "c h w"], fine: int, draw: _Drawing) -> Float[Tensor, "c p"]:
    """Unit normal grains, uncorrelated, that sum in each cell to ``fine`` times its noise (Chang et al. 2024)."""
    c, h, w = noise.shape
    z = draw((c, h, fine, w, fine))
    return (z - z.mean((2, 4), keepdim=True) + noise[:, :, None, :, None] / fine).view(c, -1)


def _cells(at: Float[Tensor, "p 2"], grid: tuple[int, int]) -> Tensor:
    """In which cell each place lies."""
    h, w = grid
    return (at[:, 1] * h).long().clamp(0, h - 1) * w + (at[:, 0] * w).long().clamp(0, w - 1)


def _summed(
    value: Float[Tensor, "c p"], at: Float[Tensor, "p 2"], seen: Bool[Tensor, " p"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "c h w"], Bool[Tensor, "h w"]]:
    """Each cell's grains, summed, over the root of their number; and which cells have none."""
    cell = _cells(at[seen], grid)
    count = torch.zeros(grid[0] * grid[1]).index_add_(0, cell, torch.ones(len(cell)))
    total = torch.zeros(len(value), grid[0] * grid[1]).index_add_(1, cell, value[:, seen])
    return (total / count.clamp_min(1).sqrt()).view(-1, *grid), (count == 0).view(grid)
