"""Further predictions, which a method asks for beside the step's own: their maps, or the images that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.core.conditions import Cond
from sfumato.core.features import Activation
from sfumato.core.method import Maps, Need, Step, captured
from sfumato.core.rows import Pattern
from sfumato.core.taps import Enough
from sfumato.errors import SfumatoError


def look(
    step: Step, needs: Sequence[Need], x: Float[Tensor, "b c h w"] | None = None, rows: Pattern = "cond"
) -> dict[Need, Maps]:
    """Maps and features of one more prediction, which runs these rows alone and stops after the last of the sites.

    ``rows`` are of one condition. Gradients flow to ``x`` (``step.x``) where they are on. The network is as the model
    has it, with the step's controls: what methods edit is not in it.
    """
    run = step.run
    names = run.rows.match(rows)
    streams, conditions = tuple(s for s, _ in names), tuple(dict.fromkeys(c for _, c in names))
    if len(conditions) > 1:
        raise SfumatoError(f"look asks for rows of one condition, got {', '.join(conditions)}")
    some, found = replace(run.rows, streams=streams, conditions=conditions), {need: {} for need in needs}
    sites = {need: choose(run.model, need.where, run.grid) for need in needs}

    def handle(call: Call | Activation) -> None:
        for need in needs:
            if call.site in sites[need]:
                found[need][call.site] = captured(call, need, some.match(need.where.rows))

    shown = step.split(step.x if x is None else x)
    batch = torch.cat([shown[run.rows.stream(s)] for s in streams])
    cond = Cond.cat([step.cond[run.rows[name]] for name in names])
    wanted = {site for found in sites.values() for site in found}
    with run.model.tap(dict.fromkeys(wanted, handle), some, run.grid) as tap:
        tap.step = step.i
        tap.stop = True
        with suppress(Enough):
            run.model.predict(batch, step.level.t, cond)
        tap.check(run.model.network)
    return found


def foresee(
    step: Step, shown: Float[Tensor, "bv c h w"], views: Sequence[int] | None = None
) -> Float[Tensor, "bv c h w"]:
    """The x0 that one more prediction of all rows stands for, guided as the run is; of what the network is ``shown``.

    ``views``: which ones of each image are shown; all, unless some are named. Gradients flow to it where they are on.
    The network is as the model has it, with the step's controls: what methods edit is not in it.
    """
    run, rows = step.run, step.run.rows
    if views is None or len(views) == rows.views:
        predicted = run.predict(shown, step.level.t, step.cond)
    elif step.cond.controls:  # which may know rows by their places
        whole = shown.new_zeros(len(shown) // len(views), rows.views, *shown.shape[1:])
        whole[:, list(views)] = shown.unflatten(0, (-1, len(views)))
        return foresee(step, whole.flatten(0, 1)).unflatten(0, (-1, rows.views))[:, list(views)].flatten(0, 1)
    else:
        at = torch.arange(len(rows)).view(-1, rows.views)[:, list(views)].flatten().tolist()
        rows, cond = replace(rows, views=len(views)), Cond.cat([step.cond[i : i + 1] for i in at])
        predicted = run.model.predict(shown.repeat(len(rows.conditions), 1, 1, 1), step.level.t, cond)
    parts = dict(zip(rows.conditions, predicted.split(len(shown)), strict=True))
    prediction = parts["cond"] if run.guide is None else run.guide.combine(parts, rows)
    return run.model.schedule.x0_and_eps(prediction, shown, step.level)[0]
