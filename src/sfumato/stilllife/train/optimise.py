"""The optimisers of training: AdamW, or Muon for the matrices and AdamW for the rest.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest semi-orthogonal matrix, found by five
Newton-Schulz steps, so that all directions of a matrix move alike. A convolution counts as the matrix
(out, in x kernel). The update is scaled to the root mean square that AdamW's usually has (Liu et al. 2025,
2502.16982, eq. 4), so that both share one rate. torch's own Muon takes no convolutions, goes matrix by matrix, and
always works in bf16, which many processors do slowly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.stilllife.train.precision import fastest

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: singular values end between 0.7 and 1.2
RMS = 0.2  # of a matrix's update, as a part of the rate
Parameters = Iterable[nn.Parameter]


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for parameters of two dimensions or more."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            dtype = fastest(group["params"][0].device)
            alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[len(p), p[0].numel()].append(p)
            for shape, params in alike.items():
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                kept = [self.state[p]["momentum"] for p in params]
                grads: list[Any] = [p.grad for p in params]
                torch._foreach_lerp_(kept, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, kept, group["momentum"])  # Nesterov
                moves = orthogonal(torch.stack([x.reshape(shape) for x in ahead]).to(dtype)).float()
                scale = -group["lr"] * RMS * max(shape) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(
                    params, [m.view_as(p) for m, p in zip(moves.unbind(), params, strict=True)], alpha=scale
                )


def orthogonal(matrices: Float[Tensor, "n a b"], steps: int = 5) -> Float[Tensor, "n a b"]:
    """The semi-orthogonal matrices nearest to these, roughly: singular values become 0.7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def optimisers(
    params: Parameters, kind: str, rate: float, weight_decay: float, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """``adam``: AdamW for all. ``muon``: Muon for what has two dimensions or more, AdamW for gains and biases, which
    never decay."""
    params = list(params)
    large = [p for p in params if p.ndim > 1]
    small = [p for p in params if p.ndim <= 1]

    def adam(*groups: tuple[list[nn.Parameter], float]) -> torch.optim.AdamW:
        listed = [{"params": p, "weight_decay": decay} for p, decay in groups if p]
        return torch.optim.AdamW(listed, lr=rate, betas=betas, fused=True)

    if kind == "adam" or not large:
        return [adam((large, weight_decay), (small, 0.0))]
    return [Muon(large, lr=rate, weight_decay=weight_decay), *([adam((small, 0.0))] if small else [])]
