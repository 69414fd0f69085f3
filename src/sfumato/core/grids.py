"""Images of a stream seen as tiles of one image, so that attention binds them: views of one thing, frames of a video.

Tsalicoglou et al. 2023 (TextMesh, arXiv 2304.12439) paint four views of a thing as a grid of 2 x 2, Shi et al. 2023
(Zero123++, arXiv 2310.15110) six as 3 x 2. Kara et al. 2024 (RAVE, arXiv 2312.04524) edit a video as grids of its
frames, 3 x 3, and put other frames together in each step, so that all of them come to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.views import Fuse, Views
from sfumato.errors import SfumatoError, integer


@dataclass(frozen=True)
class Grids(Views):
    """A stream's images, as tiles of as few grids as hold them.

    The last grid is filled up with images that are shown once more; of those the mean counts. To methods each tile is
    an image, and a row is a grid, which reads one prompt.
    """

    rows: int = 2
    columns: int = 2
    seed: int | None = None
    """Other images are put together in each step, drawn from here; None: they stay in order."""
    fuse: Fuse = "eps"

    def __post_init__(self) -> None:
        for what, n in (("rows of a grid", self.rows), ("columns of a grid", self.columns)):
            if integer(what, n) < 1:
                raise SfumatoError(f"a grid has a row and a column at least, got {self.rows} x {self.columns}")

    def grids(self, images: int) -> int:
        """How many hold so many images."""
        return -(-images // (self.rows * self.columns))

    def order(self, images: int, i: int) -> Int[Tensor, " tiles"]:
        """Which image each tile shows in a step, row by row and grid by grid."""
        tiles, every = self.grids(images) * self.rows * self.columns, torch.arange(images)
        if self.seed is not None:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + i) % 2**63)
            every = torch.randperm(images, generator=generator)
        return every.repeat(-(-tiles // images))[:tiles]

    def gather(self, x: Float[Tensor, "si c h w"], images: int, i: int) -> Float[Tensor, "sg c H W"]:
        """The grids of a step, of several streams of so many images."""
        tiles = x.unflatten(0, (-1, images))[:, self.order(images, i).to(x.device)]
        tiles = tiles.unflatten(1, (-1, self.rows, self.columns))  # streams, grids, rows, columns, c, h, w
        return tiles.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(0, 1)

    def scatter(self, grids: Float[Tensor, "sg c H W"], images: int, i: int) -> Float[Tensor, "si c h w"]:
        """The images again."""
        x = grids.unflatten(0, (-1, self.grids(images)))
        x = x.unflatten(4, (self.columns, -1)).unflatten(3, (self.rows, -1))  # streams, grids, c, rows, h, columns, w
        tiles = x.permute(0, 1, 3, 5, 2, 4, 6).flatten(1, 3)
        order = self.order(images, i).to(x.device)
        total = tiles.new_zeros(len(tiles), images, *tiles.shape[2:]).index_add(1, order, tiles)
        times = order.bincount(minlength=images).to(total)
        return (total / times.view(-1, 1, 1, 1)).flatten(0, 1)


RAVE = Grids(3, 3, seed=0)
TEXT_MESH = Grids(2, 2)
ZERO123 = Grids(3, 2)
