"""The laws of every method that distils, on every family that it runs on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import families
import pytest
import torch
from laws.distilling import ROWS
from laws.traces import breaking, unchanged

from sfumato.distill import Latents, Pixels, RandomViews, between, distil

EACH = [
    pytest.param(word, family, space, marks=[] if i in (0, 1 + (number + more) % max(1, last)) else [pytest.mark.slow])
    for number, (word, row) in enumerate(ROWS.items())
    for last in (len(row.families) - 1,)
    for i, family in enumerate(row.families)
    for more, space in enumerate(("latent", "pixel"))
]
"""Every day on the first, and on one of the others, which rows take in turn, another for each space."""
PROMPTS = ["a blue cube on grass", "a red cube on grass"]


def generator(model: Any, space: str) -> Any:
    """Two images."""
    side, rng = families.side(model), torch.Generator().manual_seed(0)
    if space == "pixel":
        return Pixels(torch.rand(2, 3, side, side, generator=rng).to(model.device))
    return Latents(
        torch.randn(2, model.channels, side // model.factor, side // model.factor, generator=rng).to(model.device)
    )


def run(model: Any, method: Any, space: str = "latent", steps: int = 2, **options: Any) -> tuple[Any, Any, Any]:
    """Images before and after, and what the steps were like."""
    moved = generator(model, space)
    (before,) = (p.detach().clone() for p in moved.parameters())
    records = distil(model, moved, PROMPTS, method, steps, **options)
    (after,) = (p.detach() for p in moved.parameters())
    return before, after, records


@pytest.mark.parametrize(("word", "family", "space"), EACH)
def test_it_moves_images_of_either_space_and_leaves_the_model_as_it_was(models, dtype, word, family, space):
    model = models(family)
    for method in ROWS[word].ways:
        if (dtype, family) == ("float16", "flux"):
            method = replace(method, guidance=min(method.guidance, 60.0))  # Flux reads up to 65 there
        with unchanged(model):
            before, after, records = run(model, method, space)
        assert len(records) == 2 and all(math.isfinite(r.strength) and r.strength > 0 for r in records)
        assert after.shape == before.shape and after.isfinite().all()
        assert ((after - before).abs().flatten(1).amax(1) > 1e-4).all()


class Cut(Exception):
    """Where a run is cut off."""


@pytest.mark.parametrize("word", ROWS)
def test_the_same_seed_is_the_same_result_also_where_a_run_was_cut_off(models, exact, word, tmp_path):
    model = models("sd")

    def cut(step: int, images: Any) -> None:
        if step == 1:
            raise Cut

    for number, method in enumerate(ROWS[word].ways):
        keep = tmp_path / f"{number}.safetensors"
        _, whole, _ = run(model, method, steps=2, seed=5)
        _, again, _ = run(model, method, steps=2, seed=5)
        with unchanged(model), pytest.raises(Cut):
            run(model, method, steps=2, seed=5, keep=keep, watch=cut)
        _, resumed, records = run(model, method, steps=2, seed=5, keep=keep)
        _, other, _ = run(model, method, steps=2, seed=6)
        assert len(records) == 1
        assert torch.equal(again, whole) and torch.equal(resumed, whole)
        assert (other - whole).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("word", "family"),
    [
        pytest.param(word, family, marks=[pytest.mark.slow] if (i + j) % 2 else [])
        for i, word in enumerate(ROWS)
        for j, family in enumerate(("sd", "sd3"))
    ],
)
def test_images_of_a_batch_are_what_their_seeds_give_alone(models, word, family):
    model = models(family)
    together = generator(model, "latent").latents.detach()
    for method in ROWS[word].ways:
        if word == "collaborative-score-distillation":  # images of a set share their level and their gradients
            method = replace(method, bandwidth="off", times=between(0.5, 0.5))
        steps = 1 if hasattr(method, "rank") else 2  # a copy learns from all images
        prompts = dict(zip((5, 6), PROMPTS, strict=True))

        def moved(x, *which, method=method, steps=steps, prompts=prompts):
            canvas, views = Latents(x), RandomViews(len(which))
            asked = [prompts[seed] for seed in which]
            distil(model, canvas, asked, method, steps, seed=which[0], viewpoints=views, optimiser=torch.optim.SGD)
            return canvas.latents.detach()

        alone = [moved(x, seed) for x, seed in zip(together.split(1), (5, 6), strict=True)]
        torch.testing.assert_close(moved(together, 5, 6), torch.cat(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("word", ROWS)
def test_nothing_is_left_behind_after_an_error_inside_the_network(models, word):
    model = models("sd")
    for method in ROWS[word].ways:
        with unchanged(model), breaking(model, 0, 2):
            run(model, method)
