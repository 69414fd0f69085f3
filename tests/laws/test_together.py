"""Any two methods that do not write the same go together in one pass, in either order; two that do are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import combinations
from typing import Any

import pytest
import torch
from laws.painting import EDIT, LOOKS, ROWS, SAID, STEPS, picture

from sfumato.core.denoising import denoise, plan
from sfumato.core.guidance import CFG
from sfumato.core.method import Edit, Method
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion, invert

AGAIN = {
    "consi-story: queries",
    "fate-zero: word",
    "feature-transfer: guided",
    "given-attention: shapes",
    "masactrl: masks",
    "self-guidance: shapes",
    "self-guidance: looks",
    "spatext: each condition by itself",
    "sync-diffusion: detached",
}
"""Other settings of methods that are here."""
NAMES = [name for name in ROWS if name not in AGAIN]
WHOLE = (
    "sees whole images",
    "works by an image's words, and each view has its own",
    "views are tiles or a ring of it",
    "regions are of one canvas",
)
"""Why a method does not go with one that brings views of its own."""
PHASES = ("cond", "before", "denoised", "noise", "after")


class Together:
    """Pairs of rows on the first family that both run on, with the streams that both need."""

    def __init__(self, models: Callable[[str], Any]):
        self.models = models
        self.path, self.written, self.moments = cache(self.path), cache(self.written), cache(self.moments)
        self.painted = lru_cache(1)(self.painted)  # the pair that was seen to go together is looked at next

    def families(self, a: str, b: str) -> list[str]:
        return [family for family in ROWS[a].families if family in ROWS[b].families]

    def path(self, name: str, family: str, images: int) -> Any:
        model = self.models(family)
        pictures = torch.stack([picture(model, i) for i in range(images)])
        return invert(model, pictures, list(SAID["source"][:images]), ROWS[name].settings(model))

    def images(self, family: str, *names: str) -> int:
        """Two where one is a matter of sets and all take several."""
        batches = all(ROWS[name].settings(self.models(family)).requires.batch for name in names)
        return 2 if batches and any(ROWS[name].set for name in names) else 1

    def starts(self, name: str) -> bool:
        return isinstance(ROWS[name].settings(self.models(ROWS[name].families[0])), Inversion)

    def viewed(self, family: str, *names: str) -> bool:
        """Does one bring views of its own?"""
        return any(ROWS[name].settings(self.models(family)).alone() is not None for name in names)

    def apart(self, family: str, a: str, b: str) -> bool:
        """Does one bring views of its own that the other does not go with, and says so?"""
        if not self.viewed(family, a, b):
            return False
        try:
            self.painted(family, a, b)
        except SfumatoError as e:
            return any(reason in str(e) for reason in WHOLE)
        return False

    def around(self, family: str, name: str) -> str:
        """The method, if it has rows of its own in the guidance: others may write those as well."""
        kind = type(ROWS[name].settings(self.models(family)))
        return name if getattr(kind, "around", Method.around) is not Method.around else ""

    def arguments(
        self, family: str, *names: str, images: int | None = None
    ) -> tuple[dict[str, list[str]], dict[str, Any]]:
        model = self.models(family)
        streams = LOOKS if any(ROWS[name].streams == LOOKS for name in names) else EDIT
        images = images or self.images(family, *names)
        options: dict[str, Any] = {"guide": CFG(3.0), "methods": [], "frames": max(ROWS[name].frames for name in names)}
        for name in names:
            method = ROWS[name].settings(model)
            if not self.starts(name):
                options["methods"].append(method)
                continue
            options["start"] = self.path(name, family, images)
            if ROWS[name].guides_itself:
                options["guide"] = method.guide(model)
        return {stream: list(SAID[stream][:images]) for stream in streams}, options

    def painted(self, family: str, *names: str) -> dict[str, Any]:
        model = self.models(family)
        prompts, options = self.arguments(family, *names)
        if "start" not in options:
            options |= {"steps": STEPS, "size": model.factor * 8 if model.factor > 1 else 16}
        return denoise(model, prompts, seed=3, **options)

    def planned(self, family: str, name: str, streams: tuple[str, ...], steps: int, images: int, by: str) -> Any:
        prompts, options = self.arguments(family, name, images=images)
        prompts = {stream: list(SAID[stream][:images]) for stream in streams}
        methods = [options["start"]] if "start" in options else options["methods"]
        if by:
            options["guide"] = ROWS[by].settings(self.models(family)).around(options["guide"])
        return methods[0], plan(
            self.models(family),
            prompts,
            methods=methods,
            guide=options["guide"],
            steps=steps,
            size=64,
            frames=options["frames"],
        )

    def across(self, *of: Any) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
        """Where a method lets images read each other, and where it takes maps for those of an image by itself."""
        shared, own = set(), set()
        for e in self.planned(*of)[1].entries:
            field = e.what.field if isinstance(e.what, Edit) else "" if e.what.reduce or e.apart else "probs"
            into = {"sources": shared, "logits": own, "probs": own}.get(field, set())
            into |= {(e.pair, site, step, row) for site in e.sites for step in range(*e.steps) for row in e.rows}
        return shared, own

    def written(
        self, family: str, name: str, streams: tuple[str, ...], steps: int, images: int, by: str
    ) -> set[tuple[Any, ...]]:
        """What a method writes, by site, field, step and row, beside one that has rows of its own (``by``)."""
        _, planned = self.planned(family, name, streams, steps, images, by)
        return {
            (e.what.where.pair, e.what.field, part, site, step, row)
            for e in planned.entries
            if isinstance(e.what, Edit)
            for part in (e.what.parts if e.what.field == "qkv" else "-")
            for site in e.sites
            for step in range(*e.steps)
            for row in e.rows
        }

    def moments(self, family: str, name: str, streams: tuple[str, ...], steps: int, images: int, by: str) -> set[str]:
        """The moments of a step that it takes part in with a function of its own; a path comes first in any case."""
        if self.starts(name):
            return set()
        method, planned = self.planned(family, name, streams, steps, images, by)
        phases = method.prepare(planned.run.model, planned.run.prompts).start(planned.run)
        return {at for at in PHASES if getattr(phases, at) is not None}


@pytest.fixture(scope="session")
def together(models) -> Together:
    return Together(models)


TURNS = [pytest.param(i, id=f"turn-{i}", marks=[pytest.mark.slow] if i else []) for i in range(8)]
"""An eighth of the pairs every day, in which each method meets an eighth of the others."""


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("first", NAMES)
def test_pairs_go_together_unless_they_write_the_same(together, exact, first, turn):
    for (i, a), (j, b) in combinations(enumerate(NAMES), 2):
        shared = together.families(a, b)
        if a != first or (i + j) % len(TURNS) != turn or not shared or (together.starts(a) and together.starts(b)):
            continue  # of two that say where to start there is one
        family = shared[0]
        if together.apart(family, a, b):
            continue
        prompts, options = together.arguments(family, a, b)
        levels = options["start"].levels if "start" in options else range(STEPS)
        steps = len(levels)
        noisiest = together.models(family).levels(steps, (8, 8))[0]
        if "llm-grounded" in (a, b) and "start" in options and levels[0].t != noisiest.t:
            with pytest.raises(SfumatoError, match="over the model's own levels"):
                together.painted(family, a, b)
            continue
        run = (tuple(prompts), steps, together.images(family, a, b))
        of: Any = [(family, name, *run, together.around(family, by)) for name, by in ((a, b), (b, a))]
        if together.written(*of[0]) & together.written(*of[1]):
            with pytest.raises(SfumatoError, match="both write"):
                together.painted(family, a, b)
            continue
        (one, its), (other, theirs) = (together.across(*each) for each in of)
        if one & theirs or other & its:
            with pytest.raises(SfumatoError, match="lets images read each other's keys where"):
                together.painted(family, a, b)
            continue
        out = together.painted(family, a, b)
        # within a moment of a step, the order that is asked for is the order; else there is none
        ordered = together.moments(*of[0]) & together.moments(*of[1]) or together.viewed(family, a, b)
        again = out if ordered else together.painted(family, b, a)
        for stream in prompts:
            one, two = out[stream].latents, again[stream].latents
            assert one.isfinite().all(), (a, b)
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4, msg=f"{a}, {b}, {stream}")
