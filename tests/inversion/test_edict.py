"""EDICT undoes itself, for even and odd counts of steps, and leaves room for methods."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.errors import SfumatoError
from sfumato.inversion import EDICT, invert, reconstruct
from sfumato.inversion.edict import Coupled
from sfumato.methods.control import UniversalGuidance
from sfumato.methods.edit import LocalBlend, PromptToPrompt

PROMPTS = ["a red cube", "a duck"]


@pytest.fixture
def model(stilllife):
    return stilllife


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [4, 5, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [1.0, 7.5, -2.0])
def test_the_way_back_is_exact(model, images, steps, scale):
    path = invert(model, images, PROMPTS, EDICT(steps=steps, scale=scale, strength=1.0))
    assert isinstance(path.stepper, Coupled) and (path.latents - path.stepper.waiting).abs().max() > 1e-6
    assert len(path.levels) == 2 * steps
    torch.testing.assert_close(reconstruct(model, path, scale), path.image, atol=1e-4, rtol=1e-4)
    swapped = denoise(model, PROMPTS[::-1], start=path, guide=scale).latents
    assert (swapped - path.image).abs().max() > 1e-3


def test_without_mixing_and_with_one_noise_it_is_ddim(model, images):
    eps = torch.randn(2, 4, 8, 8)
    model.predict = lambda x, t, cond: eps.expand_as(x)
    path = invert(model, images, PROMPTS, EDICT(mixing=1.0, steps=5, strength=1.0, scale=1.0))
    levels, x = model.schedule.levels(5), path.latents
    for i in range(5):
        x0 = (x - levels[i].sigma * eps) / levels[i].alpha
        x = levels[i + 1].alpha * x0 + levels[i + 1].sigma * eps
    torch.testing.assert_close(reconstruct(model, path), x.float(), atol=1e-5, rtol=1e-5)


def test_an_edit_follows_the_path_and_the_source_stays(model, images):
    path = invert(model, images[:1], PROMPTS[0], EDICT(steps=4, scale=3.0))
    prompts = {"source": PROMPTS[0], "target": "a blue cube"}
    plain = denoise(model, prompts, start=path, guide=CFG(3.0))
    edited = denoise(model, prompts, start=path, guide=CFG(3.0), methods=[PromptToPrompt()])
    first = path.levels[0]  # noise of four deviations is taken off, guided: 1 - 3 times the one and 3 times the other
    terms = 4 * (2 + 3) * first.sigma / first.alpha
    for out in (plain, edited):
        assert_same_but_for_rounding(out["source"].latents, path.image, largest=terms)
    assert (edited["target"].latents - plain["target"].latents).abs().max() > 1e-4
    nowhere = PromptToPrompt(blend=LocalBlend("cube", "cube", threshold=1.0, start=0.0, res=4))
    held = denoise(model, prompts, start=path, guide=CFG(3.0), methods=[nowhere])
    torch.testing.assert_close(held["target"].latents, held["source"].latents)
    again = UniversalGuidance(lambda x: x.sum(), repeats=2)
    with pytest.raises(SfumatoError, match="Coupled remembers the last step"):
        denoise(model, PROMPTS[0], start=path, methods=[again])


def test_a_level_without_signal_is_refused(models):
    flow = models("sd3")
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(SfumatoError, match="take a strength below 1"):
        invert(flow, images, PROMPTS[0], EDICT(steps=3, strength=1.0))
    path = invert(flow, images, PROMPTS[0], EDICT(steps=5, scale=2.0))
    torch.testing.assert_close(reconstruct(flow, path, 2.0), path.image, atol=1e-4, rtol=1e-4)
