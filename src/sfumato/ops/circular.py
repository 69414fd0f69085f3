"""Images whose right border goes on at their left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Around(TorchFunctionMode):
    """What is read beyond the left and right border is what is at the other one, in place of zeros."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return _convolved(*args, **kwargs)
        return _padded(*args, **kwargs) if func is F.pad else func(*args, **kwargs)


def _convolved(
    input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *more: Any, **options: Any
) -> Tensor:
    down, across = _pair(padding)
    if across and not input.shape[-1] % _pair(stride)[1]:  # else a step of a stride is none of the whole
        input, padding = F.pad(input, (across, across, 0, 0), mode="circular"), (down, 0)
    return torch.conv2d(input, weight, bias, stride, padding, *more, **options)


def _padded(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """As encoders of Stable Diffusion do before a stride of 2: a column on the right alone."""
    zeros = mode == "constant" and not value and input.ndim == 4 and len(pad) == 4
    if not zeros or min(pad) < 0 or max(pad[:2]) > input.shape[-1]:
        return F.pad(input, pad, mode, value)
    return F.pad(F.pad(input, (*pad[:2], 0, 0), mode="circular"), (0, 0, *pad[2:]))


def _pair(n: Any) -> tuple[Any, Any]:
    return (0, 0) if isinstance(n, str) else (n, n) if isinstance(n, int) else (n[0], n[-1])


@contextmanager
def around() -> Iterator[None]:
    """Inside, convolutions and images that are padded with zeros go around from left to right, in this thread alone.

    What is made of an image by them, by norms over all of it and by attention without places, rolls with it: by cells
    of what comes of it, where strides make it smaller.
    """
    with _Around():
        yield
