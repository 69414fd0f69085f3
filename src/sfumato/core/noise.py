"""Noise by seeds: whatever is drawn for an image of a batch is what its own seed gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    if wrong := next((each for each in found if not 0 <= each < _MOST), None):
        raise SfumatoError(f"a seed lies between 0 and 2**64 - 1, got {wrong}")
    return found


class Noises:
    """Unit normal noise of a set of images: what each has of its own seed, and what of that of the others.

    Whatever a run draws comes from the model's (``Backbone.noises``): what it starts from, and what its steps add.
    """

    def drawing(self, seeds: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
        """What draws noise for the images of these seeds again and again; ``shape`` is that of one."""
        raise NotImplementedError

    def draw(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Noise for the images of these seeds."""
        return self.drawing(seeds, shape)()

    def clips(self, seeds: Sequence[int], shape: Sequence[int], frames: int) -> Callable[[], Tensor]:
        """``drawing`` for clips of so many frames: each is a set, whose frames have the seeds from its own on."""
        if frames == 1:
            return self.drawing(seeds, shape)
        sets = [self.drawing([seed + i for i in range(frames)], shape) for seed in seeds]
        return lambda: torch.cat([draw() for draw in sets])

    def after(self, images: int) -> Noises:
        """That of the same set without its first images, for what is run part by part."""
        return self


@dataclass(frozen=True)
class Independent(Noises):
    """Whatever is drawn for an image is what its own seed gives alone."""

    def drawing(self, seeds: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
        return drawing(seeds, shape)

    def clips(self, seeds: Sequence[int], shape: Sequence[int], frames: int) -> Callable[[], Tensor]:
        return drawing(seeds, shape, frames)
