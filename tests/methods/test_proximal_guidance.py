"""Proximal guidance: the published formulas written out, and its laws."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.core.rows import Rows
from sfumato.core.schedule import Level, Schedule, add_noise
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, EditFriendly, NegativePrompt, invert
from sfumato.methods.edit.proximal_guidance import InversionGuidance, ProximalCFG
from sfumato.stilllife import networks

ROWS = Rows(("source", "target"), ("uncond", "cond"))
SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 4, 8, 8, generator=generator) for name in ROWS.conditions}


@pytest.fixture
def path(here):
    model = load("stilllife", device="cpu")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return model, invert(model, images, SOURCE, NegativePrompt(steps=4))


def each(d, what):
    """``what`` (values, threshold) of each image by itself, the threshold its quantile of 0.7."""
    return torch.stack([what(one, torch.quantile(one.abs(), 0.7)) for one in d])


def test_hard_thresholding_is_the_papers_formula(parts):
    u, c = parts["uncond"], parts["cond"]
    wanted = u + 5.0 * each(c - u, lambda d, t: d * (d.abs() > t))
    torch.testing.assert_close(ProximalCFG(5.0).combine(parts, ROWS), wanted)


def test_soft_thresholding_is_the_papers_formula_and_what_the_code_calls_l0(parts):
    u, c = parts["uncond"], parts["cond"]
    out = ProximalCFG(5.0, prox="l1").combine(parts, ROWS)
    torch.testing.assert_close(out, u + 5.0 * each(c - u, lambda d, t: d.sign() * (d.abs() - t).clamp_min(0)))
    torch.testing.assert_close(out, u + 5.0 * each(c - u, lambda d, t: d - d.clamp(-float(t), float(t))))


def test_the_threshold_taken_off_twice_is_what_the_code_calls_l1(parts):
    def code(d, t):
        d = d - d.clamp(-float(t), float(t))
        d = torch.where(d > 0, d - t, d)
        return torch.where(d < 0, d + t, d)

    u, c = parts["uncond"], parts["cond"]
    twice = ProximalCFG(5.0, prox="twice")
    torch.testing.assert_close(twice.combine(parts, ROWS), u + 5.0 * each(c - u, code))
    d = torch.tensor([[-2.6, -1.2, -0.5, 0.0, 0.5, 1.2, 2.6]])
    fixed = ProximalCFG(prox="twice", threshold=1.0)
    torch.testing.assert_close(fixed.shrunk(d), torch.tensor([[-0.6, 0.8, 0.0, 0.0, 0.0, 0.2, 0.6]]))


@pytest.mark.parametrize("prox", ["l0", "l1", "twice"])
def test_its_ends_are_cfg_and_the_empty_prompt(parts, prox):
    plain = CFG(5.0, rescale=0.3).combine(parts, ROWS)
    assert torch.equal(ProximalCFG(5.0, rescale=0.3, prox=prox, quantile=0.0).combine(parts, ROWS), plain)
    assert torch.equal(ProximalCFG(5.0, rescale=0.3, prox=prox, threshold=0.0).combine(parts, ROWS), plain)
    assert torch.equal(ProximalCFG(5.0, prox=prox, quantile=1.0).combine(parts, ROWS), parts["uncond"])
    assert torch.equal(ProximalCFG(5.0, prox=prox, threshold=99.0).combine(parts, ROWS), parts["uncond"])


def test_streams_have_scales_of_their_own(parts):
    both = ProximalCFG({"source": 1.0, "target": 5.0}).combine(parts, ROWS)
    assert torch.equal(both[:1], ProximalCFG(1.0).combine(parts, ROWS)[:1])
    assert torch.equal(both[1:], ProximalCFG(5.0).combine(parts, ROWS)[1:])


@pytest.mark.parametrize("prox", ["l0", "l1"])
@pytest.mark.parametrize("other", ["v_prediction", "flow"])
def test_models_that_predict_something_else_are_guided_alike(parts, prox, other):
    noise = Schedule.read(networks.scheduler())
    level, kind = noise.at(401), noise.predicting(other)
    if other == "flow":
        level = Level.of(float(level.t), 0.4, 0.6)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    told = {k: kind.prediction_of(*noise.x0_and_eps(eps, x, level), level) for k, eps in parts.items()}
    guide = ProximalCFG(5.0, prox=prox)
    wanted = noise.x0_and_eps(guide.combine(parts, ROWS), x, level)
    for a, b in zip(kind.x0_and_eps(guide.combine(told, ROWS), x, level), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert torch.allclose(add_noise(*wanted, level), x, atol=1e-4)


def test_inversion_guidance_is_one_step_down_to_the_track_outside_the_mask(path):
    model, found = path
    guide = ProximalCFG(5.0)
    prompts = {"source": SOURCE, "target": TARGET}
    seen, plain = [], []
    denoise(model, prompts, start=found, guide=guide, callback=plain.append)
    denoise(model, prompts, start=found, guide=guide, callback=seen.append, methods=[InversionGuidance(found, guide)])
    assert [s.level.t >= 400 for s in seen] == [True, True, False, False]
    assert torch.equal(seen[1].x_next, plain[1].x_next)
    step, move = seen[2], plain[2]  # the first that is drawn to the track
    d = step.parts["cond"] - step.parts["uncond"]
    mask = each(d, lambda d, t: (d.abs() > t).float())
    mask = torch.stack([mask.roll((a, b), (2, 3)) for a in (-1, 0, 1) for b in (-1, 0, 1)]).amax(0)
    mask[:1] = 0  # the source's negative prompt is its own words: what is left of the difference is rounding
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # rolling goes round, the mask does not
    wanted = move.x_next - 0.1 * (move.x_next - found.track[3].repeat(2, 1, 1, 1)) * (1 - mask)
    torch.testing.assert_close(step.x_next[inside], wanted[inside])
    assert (step.x_next - move.x_next).abs().max() > 1e-4


def test_inversion_guidance_has_laws_of_its_own(path):
    model, found = path
    prompts, guide = {"source": SOURCE, "target": TARGET}, ProximalCFG(5.0)

    def run(guide, **options):
        out = denoise(model, prompts, start=found, guide=guide, methods=[InversionGuidance(found, guide, **options)])
        return out["source"].latents, out["target"].latents

    plain = denoise(model, prompts, start=found, guide=guide)["target"].latents
    assert torch.equal(run(guide, rate=0.0)[1], plain) and torch.equal(run(guide, below=0)[1], plain)
    # the source's own words are its negative prompt: there is nothing to guide, and all of it is drawn to the track
    assert_same_but_for_rounding(run(guide, rate=1.0, below=1000)[0], found.image)
    # with a threshold that nothing exceeds the target is the source as well
    assert_same_but_for_rounding(run(ProximalCFG(5.0, threshold=99.0), rate=1.0)[1], found.image)


def test_what_is_wrong_is_said(path):
    model, _ = path
    with pytest.raises(SfumatoError, match="l2"):
        ProximalCFG(prox="l2")
    with pytest.raises(SfumatoError, match="between 0 and 1, got 7"):
        ProximalCFG(quantile=7)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other, free = (invert(model, images, SOURCE, how) for how in (EditFriendly(steps=4), DDIMInversion(steps=4)))
    with pytest.raises(SfumatoError, match="the image at every level"):
        denoise(model, SOURCE, start=other, methods=[InversionGuidance(other, ProximalCFG())], guide=ProximalCFG())
    with pytest.raises(SfumatoError, match="InversionGuidance takes a guidance with an empty prompt"):
        denoise(model, SOURCE, start=free, methods=[InversionGuidance(free, ProximalCFG())], guide=1.0)
