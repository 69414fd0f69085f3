"""What makes a GPU train fast: TF32, the fastest convolutions, channels last, a compiled forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import out_of_memory
from sfumato.io.terminal import note
from sfumato.stilllife.train.precision import autocast


def prepare(device: torch.device) -> None:
    """Let float32 products use TF32, and measure which convolution is the fastest for each shape. GPUs only."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def compiled(model: nn.Module, *example: Tensor, backend: str = "inductor") -> Callable[..., Any]:
    """``model`` compiled, after a try of these inputs forward and back; ``model`` itself, with a word, if it fails.

    The module stays what it is, so that its copies and its state do not know of the compiled form.
    """
    call = torch.compile(model, backend=backend)
    try:
        with autocast(example[0].device):
            predicted = call(*example).sample
        predicted.float().mean().backward()
    except Exception as e:  # each backend, and each compiler that it calls, has its own
        if out_of_memory(e):
            raise
        note(f"not compiled, which trains slower: {(str(e).strip().splitlines() or [type(e).__name__])[0]}")
        torch._dynamo.reset()
        return model
    finally:
        model.zero_grad(set_to_none=True)
    return call
