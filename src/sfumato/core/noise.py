"""Noise by seeds: whatever is drawn for an image of a batch is what its own seed gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from sfumato.errors import SfumatoError, integer

_MOST = 2**64  # seeds of a generator; what is added to one goes round


def drawing(seeds: Sequence[int], shape: Sequence[int], frames: int = 1) -> Callable[[], Tensor]:
    """What draws unit normal noise again and again: a row a seed, each from a generator of its own on the CPU.

    Of clips a row a frame, one after the other, so that a longer clip begins as a shorter one does.
    """
    generators = [torch.Generator().manual_seed(seed % _MOST) for seed in seeds]
    return lambda: torch.stack(
        [
            torch.randn(tuple(shape), generator=g, dtype=torch.float32, device="cpu")
            for g in generators
            for _ in range(frames)
        ]
    )


def seeds_of(seed: int | Sequence[int], images: int) -> list[int]:
    """A seed an image or clip: i has seed + i, or its own of several. ``SfumatoError`` for what is no such seed."""
    if isinstance(seed, torch.Generator):
        raise SfumatoError("seeds are whole numbers, not a Generator; give generator.initial_seed()")
    if isinstance(seed, Sequence) or getattr(seed, "ndim", 0):
        found = [integer("a seed", each) for each in cast("Sequence[int]", seed)]
    else:
        found = [integer("a seed", seed) + i for i in range(images)]
    if len(found) != images:
        raise SfumatoError(f"{images} images need {images} seeds, got {len(found)}")
    if wrong := next((each for each in found if not -_MOST // 2 <= each < _MOST), None):
        raise SfumatoError(f"a seed lies between -2**63 and 2**64 - 1, got {wrong}")
    return found
