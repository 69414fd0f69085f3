"""How much may exist at once where a large tensor is made only to be reduced."""

from __future__ import annotations

from torch import Tensor

BUDGET = 2**24
"""Numbers: 64 MiB of float32."""


def chunks(x: Tensor, each: int, dim: int = 0) -> tuple[Tensor, ...]:
    """``x`` in parts along ``dim``: of ``each`` numbers made of every entry no more exist at once than may."""
    return x.split(max(1, BUDGET // each), dim)
