"""What a run's taps take of a CPU's memory, by torch's own account of each allocation, to hold a plan against."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from sfumato.core import attention, taps
from sfumato.core.features import Activation
from sfumato.core.sites import Layer

_MARK = "sfumato: "


@dataclass(frozen=True)
class Allocated:
    """Bytes that a piece of work allocated, above what was there before it."""

    peak: int
    """The most at any time."""
    tapped: int
    """The most at any time within tapped sites and layers, as ``Plan.bytes`` means it."""


class _Marks:
    """Notes in the profile: where tapped sites and layers begin and end, and what the network has there without them.

    A prediction begins anew: what the one before it left is not counted.
    """

    def __init__(self) -> None:
        self.given: list[tuple[weakref.ref[Any], int, bool]] = []
        """Storages of what sites were given, their bytes, and whether the network keeps them for the way back."""
        self.activation: Activation | None = None

    def seam(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if taps._local.waiting is None:
            return _SEAM(query, key, value, *args, **kwargs)
        self.begin(query, key, value)
        network = 0
        try:
            out = _SEAM(query, key, value, *args, **kwargs)
            network = out.nbytes + torch.is_grad_enabled() * query[..., 0].numel() * 4
            return out
        finally:
            _mark("end", network)

    def fused(self, *args: Any, **kwargs: Any) -> Tensor:
        """The kernel's own workspace, which the network's has as well, is not counted."""
        _mark("kernel")
        out = _FUSED(*args, **kwargs)
        _mark("done")
        return out

    def activate(self, layer: Any, rows: Any, grid: Any, step: int, whole: Tensor) -> Activation:
        self.begin(whole)
        self.activation = Activation(layer, rows, grid, step, whole)
        return self.activation

    def count(self, tap: taps.Tap, what: Any) -> None:
        if isinstance(what, Layer) and self.activation is not None:
            _mark("end", self.activation.value.nbytes * bool(self.activation.writes))
            self.activation = None
        _COUNT(tap, what)

    def check(self, tap: taps.Tap, network: Any) -> None:
        self.given.clear()
        _mark("over")
        _CHECK(tap, network)

    def begin(self, *given: Tensor) -> None:
        """Of a site; by now what earlier ones were given is gone, or kept."""
        left = 0
        for storage, size, kept in self.given:
            left += size * (storage() is not None) - size * kept
        self.given = [(weakref.ref(x.untyped_storage()), x.nbytes, torch.is_grad_enabled()) for x in given]
        _mark("left", left)
        _mark("begin")


_FUSED, _SEAM, _COUNT, _CHECK = attention.FUSED, taps._seam, taps.Tap.count, taps.Tap.check


def _mark(what: str, size: int = 0) -> None:
    with record_function(f"{_MARK}{what} {size}"):
        pass


def allocated(work: Callable[[], Any]) -> Allocated:
    """Run ``work`` on the CPU and account for what it allocates."""
    marks = _Marks()
    with ExitStack() as stack:
        stack.enter_context(patch.object(attention, "FUSED", marks.fused))
        stack.enter_context(patch.object(taps, "_seam", marks.seam))
        stack.enter_context(patch.object(taps, "Activation", marks.activate))
        stack.enter_context(patch.object(taps.Tap, "count", lambda tap, what: marks.count(tap, what)))
        stack.enter_context(patch.object(taps.Tap, "check", lambda tap, network: marks.check(tap, network)))
        seen = stack.enter_context(profile(activities=[ProfilerActivity.CPU], profile_memory=True))
        work()
    now = peak = most = kept = made = begun = 0
    inside = kernel = False
    for _, what, value in sorted(_events(seen), key=lambda event: event[0]):
        if what == "bytes":
            now += value
            peak = max(peak, now)
            made = made if kernel else max(made, now - begun)
        elif what in ("kernel", "done"):
            kernel, made = what == "kernel", max(made, now - begun)
        elif what == "begin":
            inside, begun, made = True, now, 0
        elif what == "end" and inside:
            most = max(most, kept + made)
            kept += now - begun - value
            inside = False
        elif what == "left":
            kept += value
        elif what == "over":
            kept, inside = 0, False
    return Allocated(peak, most)


def _events(seen: Any) -> Iterator[tuple[int, str, int]]:
    """(time, what, bytes) of allocations and marks."""
    from torch._C._profiler import _EventType

    waiting = list(seen.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, "bytes", event.extra_fields.alloc_size
        elif event.name.startswith(_MARK):
            what, size = event.name.removeprefix(_MARK).split()
            yield event.start_time_ns, what, int(size)
