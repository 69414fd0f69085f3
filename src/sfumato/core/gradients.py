"""Gradients through a network that computes in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone

SCALES = (2.0**16, 2.0**8, 1.0)
"""What a loss is multiplied by, the first with which nothing overflows: float16 ends at 65504 and loses what is below
6e-8, where gradients of means over images lie."""


def gradients(model: Backbone, loss: Float[Tensor, ""], inputs: Sequence[Tensor], **more: Any) -> tuple[Any, ...]:
    """Of a loss that came through the model, by ``inputs``, in their type; as ``torch.autograd.grad``.

    In float16 the loss is scaled and its gradients are scaled back (Micikevicius et al. 2018, section 3.2), once more
    at a smaller scale where one is not finite.
    """
    if model.dtype != torch.float16:
        return torch.autograd.grad(loss, inputs, **more)
    found: tuple[Any, ...] = ()
    for scale in SCALES:
        found = torch.autograd.grad(loss.float() * scale, inputs, retain_graph=scale > SCALES[-1], **more)
        if all(g.isfinite().all() for g in found if g is not None):
            return tuple(g if g is None else g / scale for g in found)
    return found
