"""The map between a canvas and the images that the network sees, and back: MultiDiffusion's windows, a ring.

Bar-Tal et al. 2023 (MultiDiffusion): a canvas wider than the model's images is covered by overlapping windows; each is
predicted on its own, and where windows overlap their answers are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError

Fuse = Literal["eps", "x0", "x_prev"]


class Views:
    """``fuse``: which variable the windows agree on."""

    fuse: Fuse

    def count(self, height: int, width: int, window: tuple[int, int]) -> int:
        """How many windows a canvas of latents has."""
        return len(self.places(height, width, window))

    def places(self, height: int, width: int, window: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Top and left of each window."""
        raise NotImplementedError

    def split(self, x: Float[Tensor, "b c H W"], window: tuple[int, int]) -> Float[Tensor, "bv c h w"]:
        """All windows of the first image, then those of the next."""
        return torch.stack(
            [x[..., rows, columns] for rows, columns in _cells(self, x.shape[-2], x.shape[-1], window)], 1
        ).flatten(0, 1)

    def merge(self, parts: Float[Tensor, "bv c h w"], like: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """The canvas of shape ``like``: the mean of all windows that cover a cell."""
        height, width, window = *like.shape[-2:], (parts.shape[-2], parts.shape[-1])
        cells = _cells(self, height, width, window)
        out = torch.zeros_like(like)
        windows = parts.view(len(like), len(cells), *parts.shape[1:]).unbind(1)
        for part, (rows, columns) in zip(windows, cells, strict=True):
            out[..., rows, columns] += part
        return out / self.coverage(height, width, window).to(like)

    def coverage(self, height: int, width: int, window: tuple[int, int]) -> Float[Tensor, "H W"]:
        """How many windows cover each cell; never zero."""
        out = torch.zeros(height, width)
        for rows, columns in _cells(self, height, width, window):
            out[rows, columns] += 1
        return out


@lru_cache(8)  # they are the same in every step
def _cells(views: Views, height: int, width: int, window: tuple[int, int]) -> tuple[tuple[Tensor, Tensor], ...]:
    """Rows and columns of each window's cells."""
    h, w = window
    return tuple(
        ((torch.arange(h) + top)[:, None] % height, (torch.arange(w) + left)[None] % width)
        for top, left in views.places(height, width, window)
    )


@dataclass(frozen=True)
class Tiles(Views):
    """Overlapping windows that cover the canvas to its borders.

    ``stride`` in cells of the latents; the default is an eighth of the window's side, as published (8 of 64).
    """

    stride: int | None = None
    fuse: Fuse = "x_prev"

    def places(self, height: int, width: int, window: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        rows, columns = (_starts(n, side, self.stride) for n, side in ((height, window[0]), (width, window[1])))
        return tuple((top, left) for top in rows for left in columns)


@dataclass(frozen=True)
class Ring(Tiles):
    """Tiles whose right border goes on at the left: a panorama of 360 degrees."""

    def places(self, height: int, width: int, window: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        rows = _starts(height, window[0], self.stride)
        if width < window[1]:
            raise SfumatoError(f"a ring is at least as wide as the window, {window[1]} cells, got {width}")
        return tuple((top, left) for top in rows for left in range(0, width, _stride(window[1], self.stride)))


def _stride(side: int, stride: int | None) -> int:
    step = max(1, side // 8) if stride is None else stride
    if not 1 <= step <= side:
        raise SfumatoError(f"a stride lies between 1 and the window's side, {side} cells, got {step}")
    return step


@cache
def _starts(length: int, side: int, stride: int | None) -> tuple[int, ...]:
    """Where windows begin; the last one ends at the border."""
    if length < side:
        raise SfumatoError(f"a canvas is at least as large as the window, {side} cells, got {length}")
    starts = list(range(0, length - side + 1, _stride(side, stride)))
    if starts[-1] != length - side:
        starts.append(length - side)
    return tuple(starts)
