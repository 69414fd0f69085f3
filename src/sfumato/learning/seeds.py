"""What the steps of a run draw from: the seed and the step's number alone, so that a run needs no state to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, *of: int) -> torch.Generator:
    """A generator on the CPU of a seed and of what it is for, mostly a step's number; numbers below 0 are fine."""
    words = [n if n >= 0 else n % 2**32 for n in (seed, *of)]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


@dataclass(frozen=True)
class Draws:
    """What the images of a step draw from, a generator each: image i's is that of ``seed + i`` alone."""

    seed: int
    step: int
    _known: dict[int, torch.Generator] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getitem__(self, image: int) -> torch.Generator:
        if image not in self._known:
            self._known[image] = generator(self.seed + image, self.step)
        return self._known[image]

    def each(self, images: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """What each of so many images draws, a row each."""
        return torch.stack([draw(self[i]) for i in range(images)])


def reseed(seed: int, step: int) -> None:
    """Seed torch's global generators for a step whose networks draw from them."""
    torch.manual_seed((seed * 1_000_003 + step * 7919 + 12345) % 2**63)
