"""Linguistic binding: the authors' losses on random maps, its pairs, laws on every family."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from families import SOME, side
from rounding import assert_same_but_for_rounding
from torch.distributions import Categorical, kl_divergence

from sfumato.core.denoising import denoise
from sfumato.core.look import look
from sfumato.core.method import Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.control.latent_descent import word_maps
from sfumato.methods.control.linguistic_binding import Bound, LinguisticBinding, binding, distances
from sfumato.prompts.grammar import Phrase

PROMPT = "a red cube on the blue duck"


def running(model, *prompts: str) -> Run:
    x = model.latents([0], side(model), side(model))
    return Run(model, {"main": prompts}, Rows(("main",), ("uncond", "cond"), len(prompts)), 2, tuple(x.shape[-2:]))


def theirs(maps, subtrees, words):
    """Their attribution loss: for each noun with its modifiers (noun last), pair by pair."""

    def kl(a, b):
        p, q = (Categorical(probs=maps[..., t].reshape(-1)) for t in (a, b))
        return (kl_divergence(p, q) + kl_divergence(q, p)) / 2

    total = 0
    for subtree in subtrees:
        *modifiers, noun = subtree
        outside = [t for t in words if t not in [t for member in subtree for t in member]]
        for modifier in modifiers:
            total += max(kl(s, d) for s, d in product(modifier, noun))
            of_noun = -sum(max(kl(t, o) for t in noun) for o in outside) / len(outside)
            of_modifier = -sum(max(kl(t, o) for t in modifier) for o in outside) / len(outside)
            total += (of_noun + of_modifier) / 2
    return total


def test_the_loss_is_the_authors():
    maps = torch.rand(6, 5, 14, generator=torch.Generator().manual_seed(0)) ** 3
    words = list(range(1, 12))
    subtrees = [[[2], [3, 4]], [[6, 7], [8], [9]]]
    bound = [
        Bound([3, 4], ([2],), [t for t in words if t not in (2, 3, 4)]),
        Bound([9], ([6, 7], [8]), [t for t in words if t not in (6, 7, 8, 9)]),
    ]
    torch.testing.assert_close(binding(maps, bound), theirs(maps, subtrees, words))
    alone = [replace(b, others=[]) for b in bound]
    torch.testing.assert_close(binding(maps, bound, apart=0.0), binding(maps, alone))
    assert binding(maps, alone) > 0 and binding(maps, []) == 0


def test_distances_are_symmetric_and_survive_zeros():
    maps = torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    maps[0, :4], maps[1, 4:] = 0, 0
    maps[3] = 3 * maps[2]
    far = distances(maps)
    assert far.isfinite().all() and torch.equal(far, far.T)
    torch.testing.assert_close(far.diagonal(), torch.zeros(4), atol=1e-6, rtol=0)
    assert far[2, 3].abs() < 1e-6 and far[0, 1] > far[0, 2] > 0.1


def pairs(model, prompt: str, **fields: Any) -> list[tuple[list[str], str, set[str]]]:
    """What is bound, in words."""
    told = {t: w for w, at in model.words(prompt) for t in range(at.start, at.stop)}
    method = LinguisticBinding(**fields)
    found = method._bound(running(model, prompt), prompt, fields.get("phrases", ()))
    return [([told[m[0]] for m in b.modifiers], told[b.noun[0]], {told[t] for t in b.others}) for b in found]


def test_pairs_are_read_off_the_prompt_or_named(models):
    model, two = models("sd"), "a large red cube and a red sphere on grass"
    (cube, sphere) = pairs(model, two)
    assert cube == (["large", "red"], "cube", {"a", "and", "red", "sphere", "on", "grass"})
    assert sphere[:2] == (["red"], "sphere") and {"large", "cube"} <= sphere[2]
    method = LinguisticBinding()
    first, second = method._bound(running(model, two), two, ())
    assert second.modifiers[0] != first.modifiers[1]  # each its own "red"
    assert pairs(model, "the cube is red", phrases=("red cube",)) == [(["red"], "cube", {"the", "is"})]
    assert pairs(model, two, phrases=("red sphere",)) == [sphere]

    def parser(prompt: str) -> list[Phrase]:
        return [Phrase("cube on grass", "cube", ("grass",), range(3, 10))]

    assert pairs(model, two, parser=parser)[0][:2] == (["grass"], "cube")


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def test_it_goes_down_its_loss(model):
    x, cond = model.latents([1], side(model), side(model)), model.embed(["", PROMPT])
    run = running(model, PROMPT)
    method = LinguisticBinding(scale=1.0)
    phases, bound = method.start(run), method._bound(run, PROMPT, ())
    (need,), levels = phases.looks, model.schedule.levels(2, 16)
    step = Step(0, levels[0], levels[1], x, run, cond)

    @torch.no_grad()
    def loss() -> float:
        (image,) = word_maps(look(step, (need,))[need], run)
        return float(binding(image.double(), bound))

    before = loss()
    phases.before(step)
    assert loss() < before


def test_an_image_of_a_batch_is_the_image_alone(models):
    model, prompts = models("sd"), [PROMPT, "a blue sphere", "a cube"]
    both = denoise(model, prompts, methods=[LinguisticBinding(scale=500.0)], size=64, steps=2, seed=5).latents
    for i, prompt in enumerate(prompts):
        method = [LinguisticBinding(scale=500.0)] if i < 2 else []  # the last has no adjective: it stays plain
        one = denoise(model, prompt, methods=method, size=64, steps=2, seed=5 + i).latents
        assert_same_but_for_rounding(both[i : i + 1], one)


def test_what_it_cannot_do_is_said(models):
    def refused(match: str, method: LinguisticBinding, prompt: Any = PROMPT):
        with pytest.raises(SfumatoError, match=match):
            denoise(models("sd"), prompt, methods=[method], size=64, steps=2)

    refused("no noun with an adjective in 'a cube'", LinguisticBinding(), "a cube")
    refused("no noun with an adjective in ''", LinguisticBinding(), "")
    refused("has no 'green'; its words are: a, red, cube", LinguisticBinding(("green cube",)))
    refused("no prompt has all words of 'red duck'", LinguisticBinding(("red duck",)), ["a red cube", "a blue duck"])
