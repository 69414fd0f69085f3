"""A plan's sites tapped while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.features import Activation
from sfumato.core.method import Step
from sfumato.core.plan import Entry, Plan, act
from sfumato.core.rows import Rows
from sfumato.core.sites import Layer, Site
from sfumato.core.taps import Handler, Tap, tapped


@contextmanager
def tapping(model: Backbone, plan: Plan) -> Iterator[Callable[..., Any]]:
    """Tap the plan's sites for the whole run; yields what is entered around each step's prediction, of all rows or of
    some."""
    active: dict[Site | Layer, list[Entry]] = {}  # empty between predictions: methods' own find the taps asleep
    now: list[Step] = []

    def handle(call: Call | Activation) -> None:
        act(call, active[call.site], now[0].maps)

    sites = plan.sites
    handlers: dict[Site | Layer, Handler] = dict.fromkeys(sites, handle)
    everything, grid = plan.run.rows, plan.run.grid

    @contextmanager
    def begin(step: Step, rows: Rows | None = None) -> Iterator[None]:
        active.update(plan.active(step.i))
        now[:] = [step]
        tap.rows, tap.grid, tap.step = rows or everything, grid, step.i
        try:
            yield
            tap.check(model.network)
        finally:
            active.clear()

    @contextmanager
    def nothing(step: Step, rows: Rows | None = None) -> Iterator[None]:
        yield

    if not sites:
        yield nothing
        return
    with tapped(model.network, Tap(handlers, active=lambda site: site in active)) as tap:
        yield begin
