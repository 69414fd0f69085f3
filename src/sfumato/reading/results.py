"""What is read of an image: segments and matches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from sfumato.core.brief import Brief, table
from sfumato.media.labels import overlay
from sfumato.media.pictures import png


@dataclass(frozen=True, repr=False)
class Segments(Brief):
    """Scores of each segment at the resolution they were read at; the highest has the place."""

    scores: Float[Tensor, "k h w"]
    size: tuple[int, int]
    """Height and width of the image."""
    names: tuple[str, ...] = ()
    """What the segments are, where that is known; else they have none."""

    @property
    def whole(self) -> Float[Tensor, "k H W"]:
        """The scores at the image's size, bilinear."""
        return F.interpolate(self.scores[None].float(), self.size, mode="bilinear", align_corners=False)[0]

    @property
    def labels(self) -> Int[Tensor, "H W"]:
        """Which segment each pixel belongs to, from 0."""
        return self.whole.argmax(0)

    def _repr_png_(self) -> bytes:
        """The labels in colours, which a notebook shows."""
        return png(overlay(Image.new("RGB", (self.size[1], self.size[0])), self.labels.cpu(), 1.0))

    @property
    def used(self) -> Segments:
        """Those that have a pixel; the labels stay what they are, numbered anew."""
        found = self.labels.unique()
        return replace(self, scores=self.scores[found], names=tuple(self.names[i] for i in found if self.names))


@dataclass(frozen=True, repr=False)
class Matches(Brief):
    """Where points of one image lie in another."""

    source: Float[Tensor, "n 2"]
    """(x, y) in the first image's pixels, centres at halves."""
    target: Float[Tensor, "n 2"]
    """(x, y) in the second image's."""
    scores: Float[Tensor, " n"]
    """How alike they are; larger is more."""
    sure: Bool[Tensor, " n"]
    """Found again from there, where that was asked."""

    def _repr_html_(self) -> str:
        rows = zip(self.source.tolist(), self.target.tolist(), self.scores.tolist(), self.sure.tolist(), strict=True)
        return table(
            [
                {"from": f"{x:.1f}, {y:.1f}", "to": f"{u:.1f}, {v:.1f}", "score": f"{score:.3f}", "sure": sure}
                for (x, y), (u, v), score, sure in rows
            ]
        )
