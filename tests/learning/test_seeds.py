"""What the steps of a run draw from."""

from __future__ import annotations

import numpy as np
import torch

from sfumato.learning import seeds


def test_draws_are_of_the_seed_and_the_step_alone():
    first = torch.rand(3, generator=seeds.generator(7, 2))
    assert torch.equal(first, torch.rand(3, generator=seeds.generator(7, 2)))
    ways = ((7, 3), (8, 2), (7, -2), (7, 2, 1), (7,), (2**40, 2))
    others = [torch.rand(3, generator=seeds.generator(*way)) for way in ways]
    assert len({tuple(x.tolist()) for x in [first, *others]}) == 7


def test_an_image_draws_what_its_own_seed_draws_alone():
    draws = seeds.Draws(7, 2)
    each = [torch.rand(3, generator=seeds.generator(7 + i, 2)) for i in range(3)]
    assert torch.equal(draws.each(3, lambda rng: torch.rand(3, generator=rng)), torch.stack(each))
    further = torch.rand(3, generator=draws[1])  # a generator goes on
    assert draws[1] is draws[1] and not torch.equal(further, each[1])


def test_they_stay_what_they_were():
    """Checkpoints of earlier runs go on with these."""
    wanted = int(np.random.SeedSequence((7, 2)).generate_state(1)[0])
    assert seeds.generator(7, 2).initial_seed() == wanted
    assert seeds.generator(7, -1, 3).initial_seed() == int(
        np.random.SeedSequence([7, 2**32 - 1, 3]).generate_state(1)[0]
    )
    seeds.reseed(3, 5)
    assert torch.initial_seed() == 3 * 1_000_003 + 5 * 7919 + 12345
