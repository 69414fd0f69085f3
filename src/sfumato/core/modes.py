"""What a caller has switched on for all of torch, kept out of the library's own work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def unmoded() -> Iterator[None]:
    """Inside, torch is as it starts: no inference mode, no autocast, tensors in float32 on the CPU unless said.

    Methods need gradients, which inference mode forbids; autocast computes in halves what is kept in float32; another
    default device or type would draw other noise. Without gradients where inference mode was.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
