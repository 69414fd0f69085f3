"""Flow of frames that nobody rendered, found in them: Lucas and Kanade 1981, coarse to fine (Bouguet 2001).

It is a plain one, for a measure that needs some flow where no better is at hand: it finds what moves by a few pixels
and has some texture, and loses what is thin or flat.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.ops.blur import blur
from sfumato.ops.motion import Motion, centres
from sfumato.ops.warps import warp

LEAST = 12
"""Shorter side of the coarsest picture."""


def found(frames: Float[Tensor, "n c h w"], iterations: int = 16, window: float = 2.0) -> Motion:
    """The motion of frames in [0, 1], with what does not come back to where it was taken for hidden.

    ``window``: deviation in pixels of what is said to move alike. Raises ``SfumatoError`` for fewer than two frames.
    """
    if len(frames) < 2:
        raise SfumatoError(f"a motion is of two frames or more, got {len(frames)}")
    grey = frames.mean(1, keepdim=True).double()
    forward = _flow(grey[:-1], grey[1:], iterations, window)
    backward = _flow(grey[1:], grey[:-1], iterations, window)
    gone, new = _lost(forward, backward), _lost(backward, forward)
    ways = [flow.movedim(1, -1).to(frames) for flow in (forward, backward)]
    return Motion.of_pixels(ways[0], ways[1], gone, new)


def _flow(
    a: Float[Tensor, "m 1 h w"], b: Float[Tensor, "m 1 h w"], iterations: int, window: float
) -> Float[Tensor, "m 2 h w"]:
    """In pixels, from a to b."""
    levels = max(1, 1 + int(math.log2(max(1.0, min(a.shape[-2:]) / LEAST))))
    pairs = [(a, b)]
    for _ in range(levels - 1):
        pairs.append(tuple(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in pairs[-1]))  # pyright: ignore
    flow = a.new_zeros(len(a), 2, *pairs[-1][0].shape[-2:])
    for one, other in reversed(pairs):
        h, w = one.shape[-2:]
        scale = torch.tensor([w / flow.shape[-1], h / flow.shape[-2]]).to(flow)[:, None, None]
        flow = F.interpolate(flow, (h, w), mode="bilinear") * scale
        for _ in range(iterations):
            flow = flow + _step(one, _shifted(other, flow), window)
            flow = blur(flow, window / 2)
    return flow


def _step(a: Tensor, b: Tensor, window: float) -> Float[Tensor, "m 2 h w"]:
    """The way, of all that is in the window around a pixel, that explains best how b differs from a."""
    mean, padded = (a + b) / 2, F.pad((a + b) / 2, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    t = b - a
    xx, xy, yy, xt, yt = blur(torch.cat([x * x, x * y, y * y, x * t, y * t], 1), window).unbind(1)
    little = 1e-4 * mean.var((1, 2, 3))[:, None, None] + 1e-9  # each pair's own, whatever is found beside it
    xx, yy = xx + little, yy + little
    scale = xx * yy - xy * xy
    way = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], 1) / scale[:, None]
    return way.clamp(-1, 1)


def _shifted(x: Tensor, flow: Float[Tensor, "m 2 h w"]) -> Tensor:
    """What lies where the flow leads."""
    h, w = x.shape[-2:]
    sides = torch.tensor([w, h]).to(flow)
    return warp(x, centres(h, w).to(flow) + flow.movedim(1, -1) / sides)


def _lost(there: Float[Tensor, "m 2 h w"], back: Float[Tensor, "m 2 h w"]) -> Bool[Tensor, "m h w"]:
    """What comes back elsewhere, or leaves the picture (Sundaram et al. 2010, eq. 11)."""
    again = _shifted(back, there)
    far = (there + again).square().sum(1) > 0.01 * (there.square() + again.square()).sum(1) + 0.5
    h, w = there.shape[-2:]
    at = centres(h, w).to(there) + there.movedim(1, -1) / torch.tensor([w, h]).to(there)
    return far | ((at < 0) | (at > 1)).any(-1)
