"""Images whose right border goes on at their left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class _Around(TorchFunctionMode):
    """A convolution reads beyond the left and right border what is at the other one, in place of zeros."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d:
            return func(*args, **kwargs)
        named = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
        named |= kwargs
        down, across = _pair(named.get("padding", 0))
        if not across or _pair(named.get("stride", 1))[1] != 1:
            return func(*args, **kwargs)
        x = F.pad(named.pop("input"), (across, across, 0, 0), mode="circular")
        return func(x, named.pop("weight"), **{**named, "padding": (down, 0)})


def _pair(n: Any) -> tuple[Any, Any]:
    return (0, 0) if isinstance(n, str) else (n, n) if isinstance(n, int) else (n[0], n[-1])


@contextmanager
def around() -> Iterator[None]:
    """Inside, convolutions of stride 1 that pad with zeros go around from left to right, in this thread alone.

    What is made of an image by them, by norms over all of it and by attention without places, rolls with it.
    """
    with _Around():
        yield
