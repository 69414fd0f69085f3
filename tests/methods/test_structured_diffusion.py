"""Structured diffusion: its averaged outputs as published, and its laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, side
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Edit, Method, Phases, Where
from sfumato.errors import SfumatoError
from sfumato.methods.control.structured_diffusion import StructuredDiffusion
from sfumato.prompts.grammar import Phrase

PROMPT = "a red cube on the blue duck"
CROSS = ("sd", "sd2", "sdxl", "deepfloyd", "pixart")


@pytest.fixture(params=CROSS)
def model(request, models):
    return models(request.param)


def run(model, *methods: Method, prompt: Any = PROMPT, steps: int = 2, **options: Any) -> torch.Tensor:
    return denoise(model, prompt, methods=methods, size=side(model), steps=steps, **options).latents


class Published(Method):
    """Their attention for Stable Diffusion, of texts by hand: each one's values, the outputs averaged."""

    def __init__(self, texts: torch.Tensor):
        self.texts = texts

    def start(self, run):
        modules = dict(run.model.network.named_modules())

        def average(call: Call) -> None:
            q, k = (call.get(n, ("main", "cond")) for n in "qk")
            values = modules[call.site.path].to_v(self.texts).unflatten(-1, (call.site.heads, -1)).transpose(1, 2)
            outs = [F.scaled_dot_product_attention(q, k, v[None]) for v in values]
            call.set("out", ("main", "cond"), torch.stack(outs).mean(0))

        return Phases((Edit(Where("image->text", rows="cond"), "out", average),))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_outputs_are_averaged_as_published(models, name):
    """Keys of the whole prompt, values of the whole prompt and of the two phrases in their words' places."""
    model = models(name)
    whole, cube, duck = model.embed([PROMPT, "a red cube", "the blue duck"]).text
    texts = whole.repeat(3, 1, 1)
    texts[1, 1:4], texts[2, 5:8] = cube[1:4], duck[1:4]
    mine = run(model, StructuredDiffusion())
    assert_same_but_for_rounding(mine, run(model, Published(texts)))
    assert (mine - run(model)).abs().max() > 1e-4
    heavier = run(model, StructuredDiffusion(weight=2.0))
    assert_same_but_for_rounding(heavier, run(model, Published(texts[[0, 1, 1, 2, 2]])))


def test_without_phrases_it_is_plain_sampling(model):
    assert torch.equal(run(model, StructuredDiffusion(), prompt="cube"), run(model, prompt="cube"))


def test_a_phrase_that_is_the_prompt_changes_nothing(model):
    whole = run(model, StructuredDiffusion((PROMPT,)))
    assert_same_but_for_rounding(whole, run(model))


def test_guidance_without_the_prompt_is_untouched(models):
    """Only the conditional rows are written: at guidance 0 the empty prompt alone is painted."""
    model = models("sd")
    assert torch.equal(run(model, StructuredDiffusion(), guide=0.0), run(model, guide=0.0))


def test_phrases_are_read_off_the_prompt_or_named(models):
    model = models("sd")
    both, mine = run(model, StructuredDiffusion()), run(model, StructuredDiffusion(("a red cube", "the blue duck")))
    assert_same_but_for_rounding(mine, both)
    red = run(model, StructuredDiffusion(("a red cube",)))
    parsed = run(model, StructuredDiffusion(parser=lambda p: [Phrase("a red cube", "cube", ("red",), range(3))]))
    assert_same_but_for_rounding(parsed, red)
    assert (red - both).abs().max() > 1e-5
    of = "a cube of red grass"
    deep, flat = (run(model, StructuredDiffusion(nested=n), prompt=of) for n in (True, False))
    assert (deep - flat).abs().max() > 1e-5
    named = run(model, StructuredDiffusion(("a cube", "red grass")), prompt=of)
    assert_same_but_for_rounding(named, flat)
    marked = run(model, StructuredDiffusion(), prompt="a red cube, a blue duck")
    named = run(model, StructuredDiffusion(("a red cube", "a blue duck")), prompt="a red cube, a blue duck")
    assert_same_but_for_rounding(marked, named)


def test_an_image_of_a_batch_is_the_image_alone(model):
    prompts = [PROMPT, "cube", "a blue sphere"]
    both = run(model, StructuredDiffusion(), prompt=prompts, seed=3)
    for i, prompt in enumerate(prompts):
        alone = run(model, StructuredDiffusion(), prompt=prompt, seed=3 + i)
        assert_same_but_for_rounding(both[i : i + 1], alone)


def test_values_are_seen_once(models):
    """One call more a run, of a row a phrase."""
    rows, network = [], models("sd").network
    handle = network.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    run(models("sd"), StructuredDiffusion(), steps=3)
    handle.remove()
    assert rows == [2, 2, 2, 2]  # two phrases; then the prompt and the empty prompt


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(CROSS)))
def test_joint_attention_is_refused(models, name):
    with pytest.raises(SfumatoError, match="text and image attend together"):
        run(models(name), StructuredDiffusion())


def test_phrases_that_are_not_there_are_refused(models):
    with pytest.raises(SfumatoError, match="has no 'frog'; its words are: a, red, cube"):
        run(models("sd"), StructuredDiffusion(("a frog",)))
