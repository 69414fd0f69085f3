"""Where what the frames of a clip show goes from each to the next.

Places and ways are (x, y) in parts of a frame's sides, so that a motion fits pixels and latents alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.ops.warps import Mode, warp

SHAPES = 0.02
"""By how much the shapes of two grids may differ that are said to be the same picture's, as a part."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Between each frame and the next, for ``n`` frames ``n - 1`` times, both ways."""

    forward: Float[Tensor, "m h w 2"]
    """From a frame to the next."""
    backward: Float[Tensor, "m h w 2"]
    """From the next to the frame."""
    gone: Bool[Tensor, "m h w"]
    """Of a frame, what the next does not show."""
    new: Bool[Tensor, "m h w"]
    """Of the next, what the frame did not show."""

    def __post_init__(self) -> None:
        shapes = [tuple(flow.shape) for flow in (self.forward, self.backward)]
        hidden = [(*flow.shape, 2) for flow in (self.gone, self.new)]
        if len({*shapes, *hidden}) > 1 or len(shapes[0]) != 4 or shapes[0][-1] != 2:
            got = ", ".join(str(tuple(x.shape)) for x in (self.forward, self.backward, self.gone, self.new))
            raise SfumatoError(f"a motion is flows (m, h, w, 2) both ways and what they hide (m, h, w), got {got}")

    @classmethod
    def of_pixels(
        cls,
        forward: Float[Tensor, "m h w 2"],
        backward: Float[Tensor, "m h w 2"],
        gone: Bool[Tensor, "m h w"],
        new: Bool[Tensor, "m h w"],
    ) -> Motion:
        """Of flows in pixels of their own grid."""
        sides = torch.tensor([forward.shape[2], forward.shape[1]]).to(forward)
        return cls(forward / sides, backward / sides, gone, new)

    @classmethod
    def even(cls, right: float, down: float, frames: int, size: tuple[int, int] = (64, 64)) -> Motion:
        """The same way for all of every frame, in parts of the sides."""
        h, w = size
        way = torch.tensor([float(right), float(down)]).expand(frames - 1, h, w, 2).contiguous()
        at = centres(h, w)
        out = [((at + sign * way[:1] < 0) | (at + sign * way[:1] > 1)).any(-1) for sign in (1, -1)]
        return cls(way, -way, *(hidden.expand(frames - 1, h, w).contiguous() for hidden in out))

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.forward) + 1

    def __getitem__(self, frames: slice) -> Motion:
        """Of some frames, one after the other."""
        start, stop, step = frames.indices(len(self))
        if step != 1 or stop - start < 1:
            raise SfumatoError(f"frames of a motion are one or more, one after the other, got {frames}")
        parts = {name: value[start : stop - 1] for name, value in vars(self).items()}
        return replace(self, **parts)

    def check(self, frames: int, size: Sequence[int]) -> None:
        """Raise ``SfumatoError`` unless it is of so many frames, of the shape of this height and width."""
        if len(self) != frames:
            raise SfumatoError(f"the motion is of {len(self)} frames, and there are {frames}")
        (h, w), (height, width) = self.forward.shape[1:3], size
        if abs(h * width / (w * height) - 1) > SHAPES:
            raise SfumatoError(f"the motion is of frames of {h} x {w}, and these of {height} x {width} differ in shape")

    def back(
        self, x: Float[Tensor, "n c h w"], mode: Mode = "bilinear"
    ) -> tuple[Float[Tensor, "n-1 c h w"], Bool[Tensor, "n-1 h w"]]:
        """Every frame but the last as the next one shows it, and which of its pixels that does show."""
        self.check(len(x), x.shape[-2:])
        height, width = x.shape[-2:]
        at = centres(height, width).to(x).expand(len(x) - 1, -1, -1, -1)
        way, gone = _at(self.forward, at), _at(self.gone[..., None].float(), at)[..., 0] > 0.5
        there = at + way
        inside = ((there >= 0) & (there <= 1)).all(-1)
        return warp(x[1:], there, mode), inside & ~gone


def centres(height: int, width: int) -> Float[Tensor, "1 h w 2"]:
    """Places of the middles of pixels."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]


def carried(motion: Motion, pair: int, at: Float[Tensor, "p 2"]) -> tuple[Float[Tensor, "p 2"], Bool[Tensor, " p"]]:
    """Where points of a frame lie in the next, and which of them that shows."""
    places = at[None, None]
    way = _at(motion.forward[pair : pair + 1], places)[0, 0]
    gone = _at(motion.gone[pair : pair + 1, ..., None].float(), places)[0, 0, :, 0] > 0.5
    there = at + way
    return there, ((there >= 0) & (there < 1)).all(-1) & ~gone


def fresh(motion: Motion, pair: int, at: Float[Tensor, "p 2"]) -> Bool[Tensor, " p"]:
    """Which places of the next frame the one before it did not show."""
    return _at(motion.new[pair : pair + 1, ..., None].float(), at[None, None])[0, 0, :, 0] > 0.5


def _at(field: Float[Tensor, "b h w c"], at: Float[Tensor, "b H W 2"]) -> Float[Tensor, "b H W c"]:
    """A field at places, by its nearest value: between two things that move apart there is no way in the middle."""
    return warp(field.movedim(-1, 1), at.to(field), "nearest").movedim(1, -1).to(at)
