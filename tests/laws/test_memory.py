"""What a plan says of memory is what torch measures, for every method that paints, on every family that it runs on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from laws.painting import ROWS, SAID, started

from sfumato.bench.memory import allocated
from sfumato.core.denoising import denoise, plan

APART = {"llm-grounded": {"frozen": 0.0, "transfer": 0.0}}
"""Settings without runs of a method's own, whose plans are their own."""
BOUNDS = {
    "consi-story",
    "consi-story: queries",
    "fate-zero: word",
    "masactrl: masks",
    "spatial-temporal",
    "structured-diffusion",
    "token-flow",
}
"""Methods with handlers that need what the step has found by then; their plans say at most."""


SMALL = 2**12
"""Bytes that are not looked for: masks' indices, and numbers by themselves."""


EACH = [
    pytest.param(word, family, marks=[] if family == row.families[-(i % 2)] else pytest.mark.slow)
    for i, (word, row) in enumerate(ROWS.items())
    for family in row.families
]
"""Every day on one, in turn on a UNet and on a transformer, where there are both."""


@pytest.mark.parametrize(("word", "family"), EACH)
def test_a_plan_says_what_is_measured(models, exact, word, family):
    row, model = ROWS[word], models(family)
    side = 128 if model.factor > 1 else 16
    method, options = started(model, word, (side, side))
    if word in APART:
        method = replace(method, **APART[word])
        options["methods"] = [method]
    prompts = {stream: list(SAID[stream][: 1 + row.set]) for stream in row.streams}
    steps = options["steps"] if "steps" in options else len(method.levels)
    planned = plan(model, prompts, methods=[method], guide=options["guide"], steps=steps, size=side, frames=row.frames)
    measured = allocated(lambda: denoise(model, prompts, **options)).tapped
    if any(price.bound for price in planned.prices):
        assert word in BOUNDS
        assert measured <= planned.bytes
    else:
        assert planned.bytes == pytest.approx(measured, rel=0.15, abs=SMALL)
