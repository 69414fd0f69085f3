"""Noise by seeds: whatever is drawn for an image of a batch is what its own seed gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def drawing(seeds: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
    """What draws unit normal noise again and again: a row a seed, each from a generator of its own on the CPU."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
