"""What a run may leave on a model: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfumato.core.attention import FUSED


@lru_cache
def networks(model: Any) -> list[nn.Module]:
    """All that a model has. Those that read text hook themselves when first they are called, so they are."""
    model.embed([""])
    return [part for part in model.pipe.components.values() if isinstance(part, nn.Module)]


def trace(model: Any) -> list[Any]:
    """Modules and their hooks, weights, which take gradients, and how often each was written."""
    out: list[Any] = []
    for network in networks(model):
        out += [(id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
        out += [(id(p), p.requires_grad, p.grad is None, p._version) for p in network.parameters()]
    return out


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """What runs inside leaves no hooks, no gradients and no weights changed, and the attention as torch has it."""
    before, drawing = trace(model), torch.random.get_rng_state()
    yield
    assert F.scaled_dot_product_attention is FUSED
    assert trace(model) == before
    assert torch.equal(torch.random.get_rng_state(), drawing)


class Broken(Exception):
    """Raised inside a network."""


@contextmanager
def breaking(model: Any, site: int, at: int) -> Iterator[None]:
    """What runs inside fails the so manieth time that an attention has begun: one that is tapped is waited for."""
    reached = [0]

    def fail(*_: Any) -> None:
        reached[0] += 1
        if reached[0] == at:
            raise Broken

    hook = model.network.get_submodule(f"{model.sites[site].path}.to_q").register_forward_pre_hook(fail)
    try:
        with pytest.raises(Broken):
            yield
    finally:
        hook.remove()


@contextmanager
def calls(model: Any) -> Iterator[list[int]]:
    """The rows of each call of the network."""
    rows: list[int] = []

    def note(module: Any, args: Any, named: Any) -> None:
        rows.append(len(args[0] if args else named["hidden_states"]))

    hook = model.network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()
