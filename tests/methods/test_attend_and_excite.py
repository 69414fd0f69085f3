"""Attend-and-Excite: the authors' formulas, diffusers' pipeline step by step, laws on every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import SOME, side
from rounding import assert_same_but_for_rounding

from sfumato.core.denoising import denoise
from sfumato.core.results import Trajectory
from sfumato.errors import SfumatoError
from sfumato.methods.control.attend_and_excite import AUTHORS, AttendAndExcite, excitation
from sfumato.methods.control.latent_descent import sharpened
from sfumato.prompts.grammar import Phrase

PROMPT = "a red cube on the blue duck"


def theirs_loss(maps, indices, kernel, last=-1):
    """Their loss on maps (h, w, tokens), with their own smoothing kernel."""
    text = (maps[:, :, 1:last] * 100).softmax(-1)
    greatest = []
    for i in indices:
        image = F.pad(text[:, :, i - 1][None, None], (1, 1, 1, 1), mode="reflect")
        greatest.append(F.conv2d(image, kernel[None, None]).max())
    return max([max(torch.zeros(()), 1.0 - g) for g in greatest])


def gaussian(sigma: float):
    d = torch.tensor([-1.0, 0.0, 1.0])
    kernel = torch.exp(-(d[:, None] ** 2 + d**2) / (2 * sigma**2))
    return kernel / kernel.sum()


@pytest.mark.parametrize("last", [-1, 6])
def test_the_loss_is_the_papers(last):
    maps = torch.rand(6, 5, 12, generator=torch.Generator().manual_seed(0)) / 12
    inside = sharpened(maps, 1, 11 if last == -1 else last)
    for sigma in (0.5, 0.8):
        mine = excitation(inside, [[2], [5]], sigma)
        torch.testing.assert_close(mine, theirs_loss(maps, [2, 5], gaussian(sigma), last))
    both = excitation(inside, [[2, 3]])
    torch.testing.assert_close(both, theirs_loss_of_sum(inside, (2, 3)))
    assert excitation(inside, [[2, 3]]) < excitation(inside, [[2]])
    assert excitation(inside, []) == 0


def theirs_loss_of_sum(inside, tokens):
    image = F.pad(sum(inside[..., t] for t in tokens)[None, None], (1, 1, 1, 1), mode="reflect")
    return 1 - F.conv2d(image, gaussian(0.5)[None, None]).max()


def test_the_authors_kernel_is_diffusers():
    from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
        pipeline_stable_diffusion_attend_and_excite as module,
    )

    torch.testing.assert_close(gaussian(AUTHORS.sigma), module.GaussianSmoothing().weight[0, 0])


@pytest.fixture
def pipeline(models):
    from diffusers import StableDiffusionAttendAndExcitePipeline

    parts: Any = {k: v for k, v in models("sd").pipe.components.items() if k != "image_encoder"}
    return StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)


REFINING = {
    "none": {},
    "in vain": {0: 0.01, 2: 0.5},  # of these two, the first is reached from the start
    "reached": {2: 0.0223},  # by one image earlier than by the other
}


@pytest.mark.parametrize("refining", REFINING)
def test_each_step_is_diffusers(models, pipeline, refining):
    """The same latents after each of ten steps, of two images with words of their own."""
    model, thresholds, prompts = models("sd"), REFINING[refining], [PROMPT, "a blue sphere and a red cube"]
    scale = 1000.0 if refining == "in vain" else 5000.0  # forty updates in a row make much of rounding
    x = model.latents([3, 4], 64, 64)
    wanted: list[torch.Tensor] = []
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompts, [[3, 7], [3, 7]], latents=x, num_inference_steps=10, max_iter_to_alter=5, thresholds=thresholds,
        scale_factor=scale, attn_res=(8, 8), output_type="latent", callback=lambda i, t, z: wanted.append(z),
    )  # fmt: skip
    words, at = ("cube", "duck", "sphere"), {i / 10: to for i, to in thresholds.items()}
    method = replace(AUTHORS, words=words, res=1.0, scale=scale, refine_at=tuple(at), refine_to=tuple(at.values()))

    def steps(*methods: AttendAndExcite) -> torch.Tensor:
        kept = Trajectory(("x_next",))
        denoise(model, prompts, methods=methods, start=x, steps=10, trajectory=kept)
        return kept["x_next"]

    mine = steps(method)
    for ours, theirs in zip(mine, wanted, strict=True):
        assert_same_but_for_rounding(ours, theirs)
    others = {"none": steps(), "in vain": steps(replace(method, refine_at=(), refine_to=()))}
    others["reached"] = steps(replace(method, beyond=False))
    assert ((mine - others[refining])[5:].flatten(2).abs().amax(2) > 1e-3).all()


def test_the_paper_stops_at_the_threshold_and_the_code_one_update_later(models):
    method = AttendAndExcite(res=1.0, scale=5000.0, refine_at=(0.2,), refine_to=(0.0223,))
    looks = [count_looks(models("sd"), replace(method, beyond=b), steps=10, seed=3) for b in (False, True)]
    assert 5 + 1 < looks[0] < 5 + 20 and looks[1] == looks[0] + 1


def count_looks(model, method, prompt=PROMPT, **options) -> int:
    calls, network = [0], model.network
    handle = network.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    try:
        denoise(model, prompt, methods=[method], size=side(model), **options)
    finally:
        handle.remove()
    return calls[0] - options["steps"]


def test_what_it_costs(models):
    """A look a step in the first half, of the conditional row alone, and none later."""
    method = AttendAndExcite(refine_at=(), refine_to=())
    assert count_looks(models("sd"), method, steps=4) == 2
    assert count_looks(models("sd"), replace(method, until=1.0), steps=4) == 4
    rows, network = [], models("sd").network
    handle = network.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    denoise(models("sd"), PROMPT, methods=[method], size=64, steps=2)
    handle.remove()
    assert rows == [1, 2, 2]


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def test_it_goes_down_its_loss(model):
    from sfumato.core.look import look
    from sfumato.core.method import Run, Step
    from sfumato.core.rows import Rows
    from sfumato.methods.control.latent_descent import text_span, word_maps

    x, cond = model.latents([1], side(model), side(model)), model.embed(["", PROMPT])
    run = Run(model, {"main": (PROMPT,)}, Rows(("main",), ("uncond", "cond")), 2, (x.shape[-2], x.shape[-1]))
    scale = 1000.0 if model.factor == 1 else 1.0  # pixels attend to pixels as well: slopes are small
    phases = AttendAndExcite(scale=scale, refine_at=(0.0,), refine_to=(1.0,), refinements=4).start(run)
    (need,), levels = phases.looks, model.schedule.levels(2, 16)
    step = Step(0, levels[0], levels[1], x, run, cond)
    found = [[t for t in range(a.start, a.stop)] for w, a in model.words(PROMPT) if w in ("cube", "duck")]

    @torch.no_grad()
    def loss() -> float:
        (image,) = word_maps(look(step, (need,))[need], run)
        return float(excitation(sharpened(image, *text_span(run, PROMPT)), found))

    before = loss()
    phases.before(step)
    assert loss() < before


def test_each_image_of_a_batch_has_those_of_the_words_that_its_prompt_has(models):
    model, prompts, words = models("sd"), [PROMPT, "a blue sphere"], ("sphere", "duck")
    method = AttendAndExcite(words, res=1.0, scale=5000.0, refine_at=(0.0,), refine_to=(0.5,), refinements=2)
    both = denoise(model, prompts, methods=[method], size=64, steps=2, seed=5).latents
    for i, prompt in enumerate(prompts):
        own = replace(method, words=tuple(w for w in words if w in prompt))
        one = denoise(model, prompt, methods=[own], size=64, steps=2, seed=5 + i).latents
        assert_same_but_for_rounding(both[i : i + 1], one)


def test_words_are_the_heads_of_the_phrases_unless_told(models):
    def run(*words: str, **more: Any):
        method = AttendAndExcite(words, refine_at=(), refine_to=(), scale=200.0, **more)
        return denoise(models("sd"), PROMPT, methods=[method], size=64, steps=2).latents

    assert torch.equal(run(), run("cube", "duck")) and not torch.equal(run(), run("red"))
    duck = run(parser=lambda prompt: [Phrase("the blue duck", "duck", ("blue",), range(4, 7))])
    assert torch.equal(duck, run("duck")) and not torch.equal(duck, run("cube"))
    assert not torch.equal(run(), run(normalize_eot=True))


def test_images_need_not_be_square(models):
    out = denoise(models("sd"), PROMPT, methods=[AttendAndExcite(res=1.0)], size=(64, 128), steps=2)
    assert out.latents.shape[-2:] == (8, 16) and out.latents.isfinite().all()


def test_what_it_cannot_do_is_said(models):
    def refused(match: str, method: AttendAndExcite, prompt: Any = PROMPT):
        with pytest.raises(SfumatoError, match=match):
            denoise(models("sd"), prompt, methods=[method], size=64, steps=2)

    refused("has no 'frog'; its words are: a, red, cube", AttendAndExcite(("cube", "frog")))
    refused("no prompt has all words of 'frog'|has no 'frog'", AttendAndExcite(("frog",)), [PROMPT, "a duck"])
    refused("finds no thing in ''", AttendAndExcite(), "")
    refused("a step and a threshold, got 2 and 3", AttendAndExcite(refine_at=(0.0, 0.1)))
