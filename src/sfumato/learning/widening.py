"""First layers that read more than they were trained on, such as a mask beside an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sfumato.errors import SfumatoError


def widened(conv: Any, more: int, *, repeated: bool = False) -> nn.Conv2d:
    """A convolution that reads ``more`` channels behind its own, in float32; the one that is given stays as it is.

    Weights of the new channels are zero, so that at first nothing depends on them (InstructPix2Pix, Brooks et al. 2023,
    arXiv 2211.09800); or, ``repeated``, its own once more, and all divided by how often they are there, so that
    the same in each place is read as before (Marigold, Ke et al. 2024, arXiv 2312.02145; DiffewS, arXiv 2410.02369).
    Raises ``SfumatoError`` for another layer, and where a repetition does not come out even.
    """
    if type(conv) is not nn.Conv2d or conv.groups != 1:
        raise SfumatoError(f"a plain convolution can read more channels, not a {type(conv).__name__}; load no adapters")
    like: Any = conv
    own, weight = like.in_channels, like.weight.detach().float()
    if more < 1 or (repeated and more % own):
        raise SfumatoError(f"of {own} channels a layer reads 1 more or, repeated, a multiple of {own}; got {more}")
    times = 1 + more // own
    if repeated:
        weight = weight.repeat(1, times, 1, 1) / times
    else:
        weight = torch.cat([weight, weight.new_zeros(len(weight), more, *weight.shape[2:])], 1)
    wide = nn.Conv2d(
        own + more, like.out_channels, like.kernel_size, like.stride, like.padding, like.dilation,
        padding_mode=like.padding_mode, device="meta",
    )  # fmt: skip
    wide.weight = nn.Parameter(weight)
    wide.bias = None if like.bias is None else nn.Parameter(like.bias.detach().to(torch.float32, copy=True))
    return wide
