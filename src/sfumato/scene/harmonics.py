"""Real spherical harmonics up to the third degree: how colours change with the direction that they are seen from."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError

MOST = 3


def count(degree: int) -> int:
    """How many there are up to a degree. Raises ``SfumatoError`` for a degree that is not there."""
    if not 0 <= degree <= MOST:
        raise SfumatoError(f"spherical harmonics have a degree from 0 to {MOST}, got {degree}")
    return (degree + 1) ** 2


def basis(directions: Float[Tensor, "*p 3"], degree: int) -> Float[Tensor, "*p k"]:
    """Their values for directions of length 1, orthonormal on the sphere, in the order and with the signs of 3D
    Gaussian Splatting's: Y_0, then (y, z, x) with the outer two negative, ..."""
    count(degree)
    x, y, z = directions.unbind(-1)
    out = [torch.full_like(x, math.sqrt(1 / (4 * math.pi)))]
    if degree > 0:
        one = math.sqrt(3 / (4 * math.pi))
        out += [-one * y, one * z, -one * x]
    if degree > 1:
        two = math.sqrt(15 / math.pi) / 2
        zonal = math.sqrt(5 / math.pi) / 4
        out += [two * x * y, -two * y * z, zonal * (3 * z * z - 1), -two * x * z, two / 2 * (x * x - y * y)]
    if degree > 2:
        a, b, c = math.sqrt(35 / (2 * math.pi)) / 4, math.sqrt(105 / math.pi) / 2, math.sqrt(21 / (2 * math.pi)) / 4
        d = math.sqrt(7 / math.pi) / 4
        out += [
            -a * y * (3 * x * x - y * y), b * x * y * z, -c * y * (5 * z * z - 1), d * z * (5 * z * z - 3),
            -c * x * (5 * z * z - 1), b / 2 * z * (x * x - y * y), -a * x * (x * x - 3 * y * y),
        ]  # fmt: skip
    return torch.stack(out, -1)


def beside(deep: Float[Tensor, "p w"], directions: Float[Tensor, "p 3"] | None, degree: int) -> Float[Tensor, "p k"]:
    """Features with the directions' harmonics from degree 1 on beside them; from nowhere these are 0."""
    if degree == 0:
        return deep
    none = deep.new_zeros(len(deep), count(degree) - 1)
    return torch.cat([deep, none if directions is None else basis(directions, degree)[:, 1:]], -1)
