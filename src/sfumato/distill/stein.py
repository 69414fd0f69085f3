"""Stein variational gradient descent over a set of images (Liu and Wang 2016, as in Kim et al. 2023, appendix B.1).

Each image follows the gradients of all, weighted by how close they are, and is driven away from those it is close to.
The kernel is exp(-gamma d^2), its bandwidth from the median distance between different images: with the zeros of each
image to itself, as in public code, two images would have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.distill.prior import Images
from sfumato.errors import SfumatoError

Bandwidth = Literal["text", "code", "off"]
"""gamma = log N / median^2 (Kim et al. 2023, D.2); log(N + 1) / median^2, as their code for edits; each alone."""
Division = Literal["kernel", "number"]
"""By the sum of an image's kernel, so that it moves as far in a set of any number; by N, as in their eq. 3."""
Features = Callable[[Images], Float[Tensor, "n ..."]]
"""What is compared of images instead of their values, such as features of a frozen network; gradients flow through."""
ALIKE = 1e-5
"""Images whose distance is so small a part of their length differ by rounding alone, and do not count as different."""


def bandwidth_of(features: Float[Tensor, "n d"], bandwidth: Bandwidth = "text") -> float:
    """gamma, from the median distance of images that differ; 0, all as one, where none do.

    ``SfumatoError`` for fewer than two.
    """
    n = len(features)
    if n < 2:
        raise SfumatoError(f"a kernel compares two images or more, got {n}; one alone has nothing to collaborate with")
    apart = torch.pdist(features)
    different = apart[apart > ALIKE * features.norm(dim=1).mean()]
    return math.log(n if bandwidth == "text" else n + 1) / float(different.median()) ** 2 if len(different) else 0.0


class Kernel(NamedTuple):
    """k(x_i, x_j) of all pairs, and for each i the sum over j of its gradient by x_i, the bandwidth held."""

    values: Float[Tensor, "n n"]
    gradient: Images


def kernel(x: Images, bandwidth: Bandwidth = "text", features: Features | None = None) -> Kernel:
    """Of images, or of what ``features`` says of them, in float32 or what is finer."""

    def flat(of: Tensor) -> Tensor:
        return of.flatten(1).to(torch.promote_types(of.dtype, torch.float32))

    with torch.enable_grad():
        asked = x.detach().requires_grad_()
        seen = flat(asked if features is None else features(asked))
        apart = seen[:, None] - seen
        values = (-bandwidth_of(seen.detach(), bandwidth) * apart.square().sum(-1)).exp()
        # in the sum of all values each pair counts twice, once from either side
        (both,) = torch.autograd.grad(values.sum(), asked)
    return Kernel(values.detach(), both / 2)


@dataclass(frozen=True)
class Stein:
    """How the images of a set share their gradients."""

    bandwidth: Bandwidth = "text"
    repulsion: float = 1.0
    """How many times the kernel's own gradient, which keeps images apart, is added."""
    division: Division = "kernel"

    def __call__(self, gradients: Images, x: Images, features: Features | None = None) -> Images:
        """(sum over j of k_ij gradient_j + repulsion grad_{x_i} k_ij) / division, to descend (eq. 3).

        As printed the kernel's gradient is by x_j, which descent would follow towards the others; it is by x_i here, as
        in the authors' code. One image keeps its gradient as it is.
        """
        if len(x) == 1 or self.bandwidth == "off":
            return gradients
        found = kernel(x, self.bandwidth, features)
        values = found.values.to(gradients)
        total = values.sum(1).view(-1, 1, 1, 1) if self.division == "kernel" else len(x)
        return (torch.tensordot(values, gradients, 1) + self.repulsion * found.gradient) / total


PUBLISHED = Stein()
