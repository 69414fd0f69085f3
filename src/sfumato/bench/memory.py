"""What a run's taps take of a CPU's memory, by torch's own account of each allocation, to hold a plan against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sfumato.core import taps

_MARK = "sfumato: a tapped site"


@dataclass(frozen=True)
class Allocated:
    """Bytes that a piece of work allocated, above what was there before it."""

    peak: int
    """The most at any time."""
    tapped: int
    """The most at any time within tapped sites, beyond what the network had there without the taps: what earlier sites
    left, and what this one makes."""


def allocated(work: Callable[[], Any]) -> Allocated:
    """Run ``work`` on the CPU and account for what it allocates.

    A site's own output, which the network has without a tap as well, counts for nothing.
    """
    seam = taps._seam

    def marked(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if taps._local.waiting is None:
            return seam(query, *args, **kwargs)
        with record_function(f"{_MARK} {query.nbytes}"):
            return seam(query, *args, **kwargs)

    with patch.object(taps, "_seam", marked), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = sorted(_events(seen), key=lambda event: event[0])
    now = peak = most = kept = made = 0
    inside: tuple[int, int] | None = None
    for _, what, value in events:
        if what == "bytes":
            now += value
            peak = max(peak, now)
            if inside is not None:
                made = max(made, now - inside[0])
        elif what == "begin":
            inside, made = (now, value), 0
        elif inside is not None:  # the end
            most = max(most, kept + made)
            kept += max(0, now - inside[0] - inside[1])
            inside = None
    return Allocated(peak, most)


def _events(seen: Any) -> Iterator[tuple[int, str, int]]:
    """(time, what, bytes) of allocations, and of where tapped sites begin and end."""
    from torch._C._profiler import _EventType

    waiting = list(seen.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, "bytes", event.extra_fields.alloc_size
        elif event.name.startswith(_MARK):
            output = int(event.name.rpartition(" ")[2])
            yield event.start_time_ns, "begin", output
            yield event.end_time_ns, "end", output
