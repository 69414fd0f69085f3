"""What the steps of a run draw from: the seed and the step's number alone, so that a run needs no state to go on."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int, *of: int) -> torch.Generator:
    """A generator on the CPU of a seed and of what it is for, mostly a step's number; numbers below 0 are fine."""
    words = [n if n >= 0 else n % 2**32 for n in (seed, *of)]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def reseed(seed: int, step: int) -> None:
    """Seed torch's global generators for a step whose networks draw from them."""
    torch.manual_seed((seed * 1_000_003 + step * 7919 + 12345) % 2**63)
