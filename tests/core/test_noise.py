"""Seeds: whole numbers of any type, one an image; what is drawn is of the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.core.noise import drawing, seeds_of
from sfumato.errors import SfumatoError


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_seed_is_a_whole_number_of_any_type(seed):
    assert seeds_of(seed, 2) == [3, 4] and all(type(each) is int for each in seeds_of(seed, 2))


@pytest.mark.parametrize("seeds", [[5, 1], (5, 1), np.array([5, 1]), torch.tensor([5, 1]), range(5, -1, -4)])
def test_several_are_one_an_image(seeds):
    assert seeds_of(seeds, 2) == [5, 1]


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (None, "a seed is a whole number, got None"),
        (3.0, "a seed is a whole number, got 3.0"),
        ("3", "a seed is a whole number, got '3'"),
        ([1, 0.5], "a seed is a whole number, got 0.5"),
        ([1], "2 images need 2 seeds, got 1"),
        (torch.Generator(), r"not a Generator; give generator.initial_seed\(\)"),
        (2**64, "between 0 and 2\\*\\*64 - 1, got 18446744073709551616"),
        (-1, "between"),
    ],
)
def test_what_is_no_seed_is_said(seed, words):
    with pytest.raises(SfumatoError, match=words):
        seeds_of(seed, 2)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1])
def test_the_largest_seeds_draw_and_what_is_added_to_them_goes_round(seed):
    (one,), (other,) = drawing([seed], (4,))(), drawing([seed + 0x5F0], (4,))()
    assert one.isfinite().all() and not torch.equal(one, other)
    assert torch.equal(drawing([2**64 + 7], (4,))(), drawing([7], (4,))())
