"""Self-attention guidance: laws on every family, diffusers' pipeline, and the paper's equation in noise."""

from __future__ import annotations

import pytest
import torch
from families import SOME

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.core.method import Step
from sfumato.core.schedule import add_noise
from sfumato.core.steppers import DDIM
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.methods.control.self_attention_guidance import IMAGENET, SelfAttentionGuidance, salience
from sfumato.ops.blur import blur
from sfumato.stilllife import weights

PROMPT = "a red cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def run(model, *methods, prompts=PROMPT, **options):
    options = {"size": 16 if model.factor == 1 else 64, "steps": 2, "seed": 3, "guide": 5.0, **options}
    return denoise(model, prompts, methods=methods, **options)


def test_with_nothing_to_blur_the_network_is_asked_for_what_it_has_said_already(model):
    nowhere = run(model, SelfAttentionGuidance(threshold=1e9)).latents
    torch.testing.assert_close(nowhere, run(model).latents, **CLOSE)


@pytest.mark.parametrize("guide", [1.0, 5.0])
def test_it_is_the_papers_equation(model, guide):
    """eps + s (eps - eps'), eps' from x0 blurred where attention adds up to more than 1 and noised again with eps."""
    rows, method = "cond" if guide == 1 else "uncond", SelfAttentionGuidance(0.75)
    seen: list[Step] = []
    real = model.predict
    told = []
    model.predict = lambda x, t, cond: told.append((x, out := real(x, t, cond), cond)) or out
    try:
        out = run(model, method, prompts=[PROMPT, "a duck"], guide=CFG(guide), callback=seen.append, stepper=DDIM())
    finally:
        del model.predict
    for step, (_, _, whole), (x, again, cond) in zip(seen, told[::2], told[1::2], strict=True):
        _, alpha, sigma = step.level
        schedule = model.schedule
        u = step.parts[rows]
        x0, eps = schedule.x0_and_eps(u, step.x, step.level)
        (at,) = step.maps.values()
        maps = [(m["main", rows] / m["main", rows].sum(-1, keepdim=True), s) for s, m in at.items()]
        grids = [m.sum(1).view(2, 1, *s.grid(step.run.grid)) for m, s in maps]
        mask = sum(torch.nn.functional.interpolate(g, step.run.grid) for g in grids) / len(grids) > 1
        assert 0 < mask.float().mean() < 1
        noisy = alpha * torch.where(mask, blur(x0, 1.0, 4, "reflect"), x0) + sigma * eps
        torch.testing.assert_close(x, noisy, atol=1e-5, rtol=1e-5)
        assert torch.equal(cond.text, whole.text[: len(x)])  # the first condition's
        away = schedule.x0_and_eps(again, noisy, step.level)[1]
        c = step.parts["cond"]
        guided = schedule.x0_and_eps(u + guide * (c - u) if guide != 1 else c, step.x, step.level)[1]
        if alpha > 0:  # as parts of the latents: where there is hardly any noise, eps itself is mostly rounding
            own = sigma * (guided + 0.75 * (eps - away))
            torch.testing.assert_close(sigma * step.eps, own, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(add_noise(step.x0, step.eps, step.level), step.x, **CLOSE)
    assert len(out.latents) == 2


@pytest.mark.parametrize("guide", [1.0, 5.0])
def test_it_is_diffusers(here, guide):
    model = load("stilllife", device="cpu")
    pipe = weights.assemble("StableDiffusionSAGPipeline", weights.load())
    pipe.set_progress_bar_config(disable=True)
    noise = model.latents([3, 4], 128, 128)
    options = {"num_inference_steps": 4, "guidance_scale": guide, "sag_scale": 0.75, "output_type": "latent"}
    wanted = pipe([PROMPT, "a duck"], latents=noise, **options).images
    ours = run(model, SelfAttentionGuidance(), prompts=[PROMPT, "a duck"], guide=guide, steps=4, size=128).latents
    torch.testing.assert_close(ours, wanted, **CLOSE)
    assert (run(model, prompts=[PROMPT, "a duck"], guide=guide, steps=4, size=128).latents - wanted).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("method", "side", "sigma", "radius"),
    [
        *((SelfAttentionGuidance(), *wanted) for wanted in ((64, 1.0, 4), (128, 2.0, 8), (16, 1.0, 4))),
        *((IMAGENET, *wanted) for wanted in ((256, 9.0, 15), (64, 2.25, 4))),
    ],
)
def test_a_blur_is_a_part_of_the_image_and_no_less_than_a_cell(method, side, sigma, radius):
    x = torch.randn(1, 2, side, side + 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.blurred(x), blur(x, sigma, radius, "reflect"))


def test_of_an_exact_denoiser_it_takes_the_detail_that_the_network_would_sharpen_again(models):
    """x0 - s sigma^2 / (alpha^2 v + sigma^2) (x0 - blur x0), of a Gaussian of variance v."""
    model, v, seen = models("ddpm"), 0.3, []
    method = SelfAttentionGuidance(0.75, threshold=0.0)
    real = model.predict

    def predict(x, t, cond):
        real(x, t, cond)  # for its maps
        alpha, sigma = model.schedule.at(t).like(x)
        return sigma / (alpha**2 * v + sigma**2) * x

    model.predict = predict
    try:
        denoise(model, "", steps=4, methods=[method], callback=seen.append)
    finally:
        del model.predict
    for step in seen:
        alpha, sigma = step.level.like(step.x)
        kept = sigma**2 / (alpha**2 * v + sigma**2)
        x0 = alpha * v / (alpha**2 * v + sigma**2) * step.x
        torch.testing.assert_close(step.x0, x0 - 0.75 * kept * (x0 - method.blurred(x0)), atol=1e-5, rtol=1e-4)


def test_salience_is_one_on_average_also_beside_text():
    map = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.1
    torch.testing.assert_close(salience(map).mean(1), torch.ones(2))
    whole = map / map.sum(-1, keepdim=True)
    torch.testing.assert_close(salience(whole), whole.sum(1))


def test_what_it_cannot_do_is_said(here):
    model = load("stilllife", device="cpu")
    with pytest.raises(SfumatoError, match="seen in windows"):
        run(model, SelfAttentionGuidance(), views=Tiles(fuse="x0"), size=256)
