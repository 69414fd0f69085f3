"""Which arithmetic trains fastest here: bf16 on GPUs and CPUs with AMX or AVX512-BF16, float32 on all other CPUs.

A CPU without instructions for bf16 emulates it, at a tenth of float32's speed. Names of instructions say little
about what a library makes of them, so it is measured: a second, once a process.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

WORDS = {"bf16": torch.bfloat16, "float32": torch.float32}
_chosen: dict[str, torch.dtype] = {}  # kind of device -> arithmetic
_why: dict[str, str] = {}


def choose(device: torch.device, asked: str = "auto") -> torch.dtype:
    """Settle this process's arithmetic for ``device``: ``bf16``, ``float32``, or ``auto`` for the faster of them."""
    kind = device.type
    if asked != "auto":
        _chosen[kind], _why[kind] = WORDS[asked], "as asked"
    elif kind == "cpu":
        took = {dtype: _seconds(dtype) for dtype in WORDS.values()}
        _chosen[kind] = min(took, key=lambda k: took[k])
        ratio = took[torch.float32] / took[torch.bfloat16]
        _why[kind] = f"bf16 was measured to be {ratio:.2g} times as fast as float32"
    else:
        _chosen[kind], _why[kind] = torch.bfloat16, "a GPU's own"
    return _chosen[kind]


def fastest(device: torch.device) -> torch.dtype:
    """The arithmetic that was chosen for this kind of device; chosen now if it was not."""
    return _chosen.get(device.type) or choose(device)


def explained(device: torch.device) -> str:
    """The choice and its reason, in words."""
    dtype = fastest(device)
    return f"{next(k for k, v in WORDS.items() if v == dtype)} ({_why[device.type]})"


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to the chosen arithmetic; none for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fastest(device) == torch.bfloat16)


@torch.enable_grad()
def _seconds(dtype: torch.dtype) -> float:
    """The best of three: a convolution of the UNet's size, forward and backward."""
    x = torch.ones(16, 128, 16, 16, dtype=dtype, requires_grad=True)
    weight = torch.ones(128, 128, 3, 3, dtype=dtype, requires_grad=True)
    best = float("inf")
    for _ in range(4):  # the first warms up
        began = time.perf_counter()
        F.conv2d(x, weight, padding=1).sum().backward()
        best = min(best, time.perf_counter() - began)
    return best
