"""How far apart the rounding of float32 may bring two ways to compute the same."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


def assert_same_but_for_rounding(
    actual: Tensor, wanted: Tensor, units: float = 100, largest: float | None = None
) -> None:
    """No element is off by more than so many units in the last place of the largest one, or of a number that is given.

    A processor adds the terms of a sum in an order of its own, which changes with its instructions, with the threads
    and with the rows of a batch. What is lost there goes by the terms and not by their sum: beside a number of 40 one
    near zero is off by a unit of 40, so neither a bound for all sizes of numbers nor a share of each number fits.
    A few steps of a tiny network, guided, come to 1 to 30 units on processors with and without AVX512, with one
    thread and with two; a fault, such as a row or a step that is another's, begins at 10 000.
    """
    size = float(wanted.abs().max()) if largest is None else largest
    torch.testing.assert_close(actual, wanted, atol=units * EPS * size, rtol=0)
