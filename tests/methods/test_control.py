"""Guidance by losses, classifiers and limits: closed forms on the exact denoiser, laws on the built-in model."""

from __future__ import annotations

import diffusers
import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise
from sfumato.core.method import Need, Where
from sfumato.core.schedule import Schedule
from sfumato.core.solvers import DPMSolver
from sfumato.errors import SfumatoError
from sfumato.methods.control import ClassifierGuidance, DynamicThresholding, UniversalGuidance
from sfumato.methods.control.dynamic_thresholding import thresholded
from sfumato.stilllife import networks

CONFIG = {"_class_name": "DDIMScheduler", **networks.scheduler().config, "set_alpha_to_one": True}
PROMPT = "a red cube on grass"


@pytest.fixture
def model(stilllife):
    return stilllife


def gaussian(**more: Mixture) -> Exact:
    return Exact({"": Mixture(torch.zeros(1, 1, 2, 2), 1.0), **more}, Schedule.read(CONFIG))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_classifier_turns_a_mixture_into_its_part(prediction):
    """p(x) p(y | x) is p(x | y): with the true classifier at scale 1 the mixture is painted as its first part alone."""
    means = torch.stack([torch.full((1, 2, 2), -0.6), torch.full((1, 2, 2), 0.6)])
    config = {**CONFIG, "prediction_type": prediction}
    both, one = Mixture(means, 0.3, (0.5, 0.5)), Mixture(means[:1], 0.3)
    model = Exact({"both": both, "one": one}, Schedule.read(config))

    def log_prob(x, level):
        variance = level.alpha**2 * 0.09 + level.sigma**2
        away = (x[:, None] - level.alpha * means).square().flatten(2).sum(-1)
        return (-away / (2 * variance)).log_softmax(1)[:, 0]

    options = dict(steps=20, guide=1, seed=[0, 1, 2, 3])
    wanted = denoise(model, ["one"] * 4, **options).latents
    guided = denoise(model, ["both"] * 4, methods=[ClassifierGuidance(log_prob)], **options).latents
    torch.testing.assert_close(guided, wanted, atol=1e-4, rtol=1e-4)
    plain = denoise(model, ["both"] * 4, **options).latents
    assert (plain - wanted).abs().max() > 0.1


@pytest.mark.parametrize("network", [True, False])
def test_a_loss_pulls_as_the_chain_rule_says(network):
    """For data N(0, 1), x0-hat = alpha x; through the network its slope is alpha, with the noise held it is 1/alpha."""
    model, goal = gaussian(), 2.0
    method = UniversalGuidance(lambda x0: (x0 - goal).square().sum() / 2, 0.1, on="x0", network=network)
    levels, x = model.schedule.levels(25), model.latents([0], 2, 2)
    out = denoise(model, "", steps=25, guide=1, start=x, methods=[method]).latents
    for i in range(25):
        (_, a, s), to = levels[i], levels[i + 1]
        slope = a if network else 1 / a
        eps = s * x + s * 0.1 * slope * (a * x - goal)
        x = to.alpha * (x - s * eps) / a + to.sigma * eps
    torch.testing.assert_close(out, x, atol=1e-4, rtol=1e-4)


def test_losses_through_and_around_the_network_add_up():
    model = gaussian()
    loss = UniversalGuidance(lambda x0: x0.square().sum(), 0.05, on="x0")
    cut = UniversalGuidance(lambda x0: x0.square().sum(), 0.05, on="x0", network=False)
    levels, x = model.schedule.levels(5), model.latents([0], 2, 2)
    out = denoise(model, "", steps=5, guide=1, start=x, methods=[loss, cut]).latents
    for i in range(5):
        (_, a, s), to = levels[i], levels[i + 1]
        eps = s * x + s * 0.05 * (2 * a * x) * (a + 1 / a)
        x = to.alpha * (x - s * eps) / a + to.sigma * eps
    torch.testing.assert_close(out, x, atol=1e-4, rtol=1e-4)


def test_repeats_bring_a_loss_closer_and_keep_the_distribution_without_one():
    model = gaussian()
    seeds = list(range(400))
    options = dict(steps=20, guide=1, seed=seeds)
    still = UniversalGuidance(lambda x0: 0 * x0.sum(), on="x0", repeats=4)
    out = denoise(model, [""] * 400, methods=[still], **options).latents
    plain = denoise(model, [""] * 400, **options).latents
    assert float(out.std()) == pytest.approx(float(plain.std()), abs=0.05)
    assert abs(out.mean()) < 0.07  # other draws of the same
    assert (out - plain).abs().mean() > 0.3
    calls = []
    predict = model.predict
    model.predict = lambda *a: calls.append(1) or predict(*a)
    errors = []
    for repeats in (1, 4):
        pull = UniversalGuidance(lambda x0: (x0 - 2).square().sum(), 0.3, on="x0", repeats=repeats, steps=(0.5, None))
        errors.append((denoise(model, [""] * 400, methods=[pull], **options).latents - 2).square().mean())
    assert errors[1] < 0.8 * errors[0]
    assert len(calls) == 20 + 10 * 4 + 10
    with pytest.raises(SfumatoError, match="DPMSolver remembers the last step and cannot repeat one"):
        denoise(model, "", steps=3, guide=1, methods=[pull], stepper=DPMSolver())


def test_a_loss_on_images_and_on_maps_takes_effect(model):
    """Brighter images on request, and a word's attention pushed into a corner."""
    options = dict(steps=4, seed=3, guide=3.0)
    plain = denoise(model, PROMPT, **options)
    brighter = denoise(model, PROMPT, methods=[UniversalGuidance(lambda x: -x.mean(), 3000.0)], **options)
    assert brighter.images.mean() > plain.images.mean() + 0.02
    need, corner = Need(Where("image->text", "finest", rows="cond"), (2,)), []

    def away(maps):
        map = torch.stack([m["main", "cond"][..., 0] for m in maps.values()]).mean(0).view(-1, 16, 16)
        corner.append(float((map[:, :8, :8].sum() / map.sum()).detach()))
        return -map[:, :8, :8].sum() / map.sum()

    denoise(model, PROMPT, methods=[UniversalGuidance(away, 0.0, on=need)], **options)
    without = corner[-1]
    denoise(model, PROMPT, methods=[UniversalGuidance(away, 10000.0, on=need)], **options)
    assert corner[-1] > without + 0.02
    off = denoise(model, PROMPT, methods=[UniversalGuidance(lambda x: x.sum(), 0.0)], **options)
    torch.testing.assert_close(off.latents, plain.latents, atol=1e-5, rtol=1e-5)


def test_thresholding_is_the_papers_and_diffusers_where_they_agree():
    x = 2 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[2] /= 10  # an image that stays inside is left alone
    out = thresholded(x, 0.95)
    for image, clipped in zip(x, out, strict=True):
        s = max(1.0, image.abs().quantile(0.95).item())
        torch.testing.assert_close(clipped, image.clamp(-s, s) / s)
    assert torch.equal(out[2], x[2]) and out.abs().max() <= 1
    theirs = diffusers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5)
    torch.testing.assert_close(thresholded(x, 0.95, 1.5), theirs._threshold_sample(x))
    torch.testing.assert_close(thresholded(x, 0.95, 1.0), x.clamp(-1, 1))


def test_thresholding_needs_pixels(model):
    wide = Mixture(torch.full((1, 1, 2, 2), 1.7), 0.1)
    bright = gaussian(bright=wide)
    out = denoise(bright, "bright", steps=10, guide=1, methods=[DynamicThresholding()]).latents
    assert out.max() <= 1 + 1e-5 and out.mean() > 0.9
    with pytest.raises(SfumatoError, match="stilllife works in latents"):
        denoise(model, PROMPT, methods=[DynamicThresholding()])
