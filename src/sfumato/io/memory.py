"""What memory a piece of work takes beyond what was there before."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def peaked(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What ``work`` gives, and its peak in MiB: of a GPU, or of the process, where Linux tells it; 0 elsewhere."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        give_back()
        before = resident("VmRSS", reset=True)
    out = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resident("VmHWM")
    return out, max(0.0, peak - before)


def give_back() -> None:
    """What was freed goes back to the system, where glibc can; else what a run takes is hidden by what others took."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident(key: str, reset: bool = False) -> float:
    """MiB of this process, as Linux tells them; ``reset`` starts the high-water mark anew. 0 elsewhere."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith(f"{key}:")), f"{key}: 0 kB")
    return int(line.split()[1]) / 1024
