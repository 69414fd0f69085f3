"""Any two methods that do not write the same go together in one pass, in either order; two that do are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from laws.painting import EDIT, LOOKS, ROWS, SAID, STEPS, picture

from sfumato.core.denoising import denoise, plan
from sfumato.core.guidance import CFG
from sfumato.core.method import Edit
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion, invert

AGAIN = {"feature-transfer: guided", "masactrl: masks", "self-guidance: shapes", "self-guidance: looks"}
"""Other settings of methods that are here."""
NAMES = [name for name in ROWS if name not in AGAIN]
PHASES = ("cond", "before", "denoised", "noise", "after")


class Together:
    """Pairs of rows on the first family that both run on, with the streams that both need."""

    def __init__(self, models: Callable[[str], Any]):
        self.models = models
        self.path, self.written, self.moments = cache(self.path), cache(self.written), cache(self.moments)

    def families(self, a: str, b: str) -> list[str]:
        return [family for family in ROWS[a].families if family in ROWS[b].families]

    def path(self, name: str, family: str) -> Any:
        model = self.models(family)
        return invert(model, picture(model, 0), SAID["source"][0], ROWS[name].settings(model))

    def starts(self, name: str) -> bool:
        return isinstance(ROWS[name].settings(self.models(ROWS[name].families[0])), Inversion)

    def arguments(self, family: str, *names: str) -> tuple[dict[str, str], dict[str, Any]]:
        model = self.models(family)
        streams = LOOKS if any(ROWS[name].streams == LOOKS for name in names) else EDIT
        options: dict[str, Any] = {"guide": CFG(3.0), "methods": [], "frames": max(ROWS[name].frames for name in names)}
        for name in names:
            method = ROWS[name].settings(model)
            if not self.starts(name):
                options["methods"].append(method)
                continue
            options["start"] = self.path(name, family)
            if ROWS[name].guides_itself:
                options["guide"] = method.guide(model)
        return {stream: SAID[stream][0] for stream in streams}, options

    def painted(self, family: str, *names: str) -> dict[str, Any]:
        model = self.models(family)
        prompts, options = self.arguments(family, *names)
        if "start" not in options:
            options |= {"steps": STEPS, "size": model.factor * 8 if model.factor > 1 else 16}
        return denoise(model, prompts, seed=3, **options)

    def planned(self, family: str, name: str, streams: tuple[str, ...], steps: int) -> Any:
        prompts, options = self.arguments(family, name)
        prompts = {stream: SAID[stream][0] for stream in streams}
        methods = [options["start"]] if "start" in options else options["methods"]
        return methods[0], plan(
            self.models(family),
            prompts,
            methods=methods,
            guide=options["guide"],
            steps=steps,
            size=64,
            frames=options["frames"],
        )

    def written(self, family: str, name: str, streams: tuple[str, ...], steps: int) -> set[tuple[Any, ...]]:
        """What a method writes, by site, field, step and row."""
        _, planned = self.planned(family, name, streams, steps)
        return {
            (e.what.where.pair, e.what.field, part, site, step, row)
            for e in planned.entries
            if isinstance(e.what, Edit)
            for part in (e.what.parts if e.what.field == "qkv" else "-")
            for site in e.sites
            for step in range(*e.steps)
            for row in e.rows
        }

    def moments(self, family: str, name: str, streams: tuple[str, ...], steps: int) -> set[str]:
        """The moments of a step that it takes part in with a function of its own; a path comes first in any case."""
        if self.starts(name):
            return set()
        method, planned = self.planned(family, name, streams, steps)
        phases = method.prepare(planned.run.model, planned.run.prompts).start(planned.run)
        return {at for at in PHASES if getattr(phases, at) is not None}


@pytest.fixture(scope="session")
def together(models) -> Together:
    return Together(models)


@pytest.mark.parametrize("first", NAMES)
def test_pairs_go_together_unless_they_write_the_same(together, exact, first):
    for a, b in combinations(NAMES, 2):
        shared = together.families(a, b)
        if a != first or not shared or (together.starts(a) and together.starts(b)):
            continue  # of two that say where to start there is one
        family = shared[0]
        prompts, options = together.arguments(family, a, b)
        levels = options["start"].levels if "start" in options else range(STEPS)
        steps = len(levels)
        noisiest = together.models(family).levels(steps, (8, 8))[0]
        if "llm-grounded" in (a, b) and "start" in options and levels[0].t != noisiest.t:
            with pytest.raises(SfumatoError, match="over the model's own levels"):
                together.painted(family, a, b)
            continue
        of: Any = [(family, name, tuple(prompts), steps) for name in (a, b)]
        if together.written(*of[0]) & together.written(*of[1]):
            with pytest.raises(SfumatoError, match="both write"):
                together.painted(family, a, b)
            continue
        out = together.painted(family, a, b)
        # within a moment of a step, the order that is asked for is the order; else there is none
        again = out if together.moments(*of[0]) & together.moments(*of[1]) else together.painted(family, b, a)
        for stream in prompts:
            one, two = out[stream].latents, again[stream].latents
            assert one.isfinite().all(), (a, b)
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4, msg=f"{a}, {b}, {stream}")
