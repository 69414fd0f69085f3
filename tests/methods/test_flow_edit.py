"""FlowEdit: the published algorithm written out, closed forms on a Gaussian, and laws on every family."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from families import SOME

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG, Distilled, guided
from sfumato.core.schedule import Schedule
from sfumato.errors import SfumatoError
from sfumato.inversion import Path, invert
from sfumato.methods.edit import PromptToPrompt
from sfumato.methods.edit.flow_edit import FLUX, FlowEdit
from sfumato.stilllife import networks

FLOW = Schedule.read(FlowMatchEulerDiscreteScheduler(shift=3.0))
NOISE = Schedule.read({"_class_name": "DDIMScheduler", **networks.scheduler().config, "set_alpha_to_one": True})
SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def pictures(model, n: int = 2):
    side = 16 if model.factor == 1 else 64
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def run(model, how, target=TARGET, methods=(), scales=(3.5, 13.5), n=2):
    start = invert(model, pictures(model, n), SOURCE, how)
    prompts = {"source": [SOURCE] * n, "target": [target] * n}
    guide = guided(model, dict(zip(prompts, scales, strict=True)))
    out = denoise(model, prompts, start=start, methods=methods, guide=guide)
    return start, out["source"].latents, out["target"].latents


def published(model, image, how: FlowEdit, source: str, target: str, scales: tuple[float, float]):
    """Algorithm 1 for a batch, each image with noise of its own; n_min > 0 as the paper describes it.

    For networks that predict noise the same in y = x / alpha over sigma / alpha.
    """
    steps, n = how.steps, len(image)
    levels = model.levels(steps, image.shape[-2:])
    n_max, n_min = steps - int(how.skip * steps), int(how.finish * steps)
    generators = [torch.Generator().manual_seed(how.seed + i) for i in range(n)]
    flow = model.schedule.prediction == "flow"
    conds = {"": model.embed_negative([""] * n), **{text: model.embed([text] * n) for text in (source, target)}}

    def velocity(x, level, text, scale):
        if (guide := guided(model, {"main": scale})) and isinstance(guide, Distilled):
            told = model.predict(x, level.t, guide.embed(model, [text] * n)["cond"])
        else:
            u, c = (model.predict(x, level.t, conds[t]) for t in ("", text))
            told = u + scale * (c - u)
        x0, eps = model.schedule.x0_and_eps(told, x, level)
        return eps - x0 if flow else eps

    def noise():
        return torch.stack([torch.randn(image.shape[1:], generator=g) for g in generators])

    edit, x = image.clone(), None
    for i in range(steps):
        if steps - i > n_max:
            continue
        t, s = levels[i], levels[i + 1]
        a, now, then = (1, t.sigma, s.sigma) if flow else (t.alpha, t.sigma / t.alpha, s.sigma / s.alpha)
        if steps - i > n_min:
            total = torch.zeros_like(image)
            for _ in range(how.average):
                z_source = t.alpha * image + t.sigma * noise()
                z_target = z_source + a * (edit - image)
                total += velocity(z_target, t, target, scales[1]) - velocity(z_source, t, source, scales[0])
            edit = edit + (then - now) * total / how.average
        else:
            if x is None:
                x = t.alpha * image + t.sigma * noise() + a * (edit - image)
            x = (
                s.alpha * x / t.alpha + s.alpha * (then - now) * velocity(x, t, target, scales[1])
                if not flow
                else (x + (then - now) * velocity(x, t, target, scales[1]))
            )
    return edit if n_min == 0 else x


@pytest.mark.parametrize("options", [{}, {"average": 2, "finish": 0.4}])
def test_it_is_the_published_algorithm(model, options):
    how = FlowEdit(skip=0.25, seed=5, steps=3, **options)
    with torch.no_grad():
        start, source, target = run(model, how)
        wanted = published(model, start.image, how, SOURCE, TARGET, (3.5, 13.5))
    torch.testing.assert_close(target, wanted, atol=1e-3, rtol=1e-4)
    assert torch.equal(source, start.image)
    assert (target - source).abs().max() > 1e-2


def test_without_moving_it_is_sdedit(model):
    """All of the steps ordinary: noise, and the target from there; and at the last level nothing is left to do."""
    how = FlowEdit(skip=0.5, finish=0.5, steps=4, seed=7)
    start, source, target = run(model, how, n=1)
    level = start.levels[0]
    noise = torch.randn(start.image.shape[1:], generator=torch.Generator().manual_seed(7))
    x = level.alpha * start.image + level.sigma * noise
    plain = denoise(
        model, TARGET, start=Path(x, start.levels, (TARGET,), x), guide=guided(model, {"main": 13.5})
    ).latents
    torch.testing.assert_close(target, plain, **CLOSE)
    assert torch.equal(source, start.image)
    start, source, target = run(model, FlowEdit(skip=1.0, steps=4), n=1)
    assert torch.equal(target, start.image)


def test_attention_methods_go_with_it(model):
    if not any("image->text" in s.pairs for s in model.sites):
        pytest.skip("no attention to words")
    how = FlowEdit(skip=0.4, steps=3)
    start, _, target = run(model, how, n=1)
    _, kept, edited = run(model, how, n=1, methods=[PromptToPrompt()])
    assert torch.equal(kept, start.image)
    assert (edited - target).abs().max() > 1e-4
    off = run(model, how, n=1, methods=[PromptToPrompt(cross=0.0, self=0.0)])[2]
    torch.testing.assert_close(off, target, **CLOSE)
    same = run(model, how, n=1, methods=[PromptToPrompt()], target=SOURCE, scales=(5.0, 5.0))[2]
    torch.testing.assert_close(same, start.image, **CLOSE)


def gaussian(schedule, stds=(0.4, 0.4)):
    means = torch.linspace(-0.5, 0.5, 16).view(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.3)
    both = {name: Mixture(mean, std) for name, mean, std in zip(("s", "t"), means, stds, strict=True)}
    return Exact(both, schedule), means[1] - means[0]


def edited(model, how):
    image = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    path = how(model, image, ("s",) * 3, lambda: None)
    return image, denoise(model, {"a": ["s"] * 3, "b": ["t"] * 3}, start=path, guide=1)["b"].latents


def test_of_gaussians_a_flow_takes_the_difference_of_the_means():
    """z - x = (1 - t) times it solves the equation, and Euler's steps follow a straight line."""
    model, away = gaussian(FLOW)
    for steps in (1, 7):
        image, out = edited(model, FlowEdit(skip=0.0, steps=steps))
        torch.testing.assert_close(out, image + away, atol=1e-5, rtol=1e-5)
    how = FlowEdit(skip=0.0, steps=40)
    other, _ = gaussian(FLOW, (0.4, 0.2))  # with other deviations the noise matters
    assert (edited(other, how)[1] - edited(other, replace(how, seed=9))[1]).abs().max() > 1e-3


def test_of_gaussians_noise_takes_what_of_the_difference_the_first_level_lets_through():
    """d(z - x)/ds = s (z - x - m) / (std^2 + s^2): what is left of m falls by the root of std^2 + s^2."""
    model, away = gaussian(NOISE)
    gaps = []
    for steps in (50, 100):
        image, out = edited(model, FlowEdit(skip=0.5, steps=steps))
        level = model.schedule.levels(steps).last(steps // 2)[0]
        first = level.sigma / level.alpha
        left = 0.4 / math.hypot(0.4, first)
        gaps.append(float((out - image - (1 - left) * away).abs().max()))
    assert gaps[1] < 0.02 and gaps[1] == pytest.approx(gaps[0] / 2, rel=0.3)  # Euler's error


def test_what_it_cannot_do_is_said():
    model, _ = gaussian(FLOW)
    image = torch.zeros(1, 1, 4, 4)
    for bad in ({"skip": 0.6, "finish": 0.6},):
        with pytest.raises(SfumatoError, match="skip and finish are parts of the steps"):
            FlowEdit(**bad)(model, image, ("s",), lambda: None)
    blind = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    blind = Schedule.read(DDIMScheduler.from_config(networks.scheduler().config, **blind))
    with pytest.raises(SfumatoError, match="noise alone"):
        FlowEdit(skip=0.0)(gaussian(blind)[0], image, ("s",), lambda: None)
    assert len(FLUX(model, image, ("s",), lambda: None).levels) == 24
    assert len(FlowEdit()(model, image, ("s",), lambda: None).levels) == 33
    assert guided(model, FlowEdit().guide(model)) == CFG({"source": 3.5, "target": 13.5})
    assert guided(model, FlowEdit().guide(model, 6.0)) == CFG({"source": 3.5, "target": 6.0})


def test_a_network_that_reads_its_guidance_gets_each_streams(models):
    model = models("flux")
    cond = guided(model, {"source": 1.5, "target": 5.5}).embed(model, [SOURCE] * 2 + [TARGET] * 2)["cond"]
    assert cond.extra["guidance"].tolist() == [1.5, 1.5, 5.5, 5.5]
    assert guided(model, FLUX.guide(model)) == Distilled((1.5, 5.5))
    x = torch.randn(4, model.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = model.predict(x, 500.0, cond)
        plain = {k: v for k, v in cond.extra.items() if k != "guidance"}
        for i, scale in enumerate((1.5, 1.5, 5.5, 5.5)):
            model.distilled = scale
            alone = model.predict(x, 500.0, replace(cond, extra=plain))
            torch.testing.assert_close(told[i], alone[i], atol=1e-5, rtol=1e-5)
    with pytest.raises(SfumatoError, match="2 scales do not go into 3 prompts"):
        Distilled((1.0, 2.0)).embed(model, [SOURCE] * 3)
    with pytest.raises(SfumatoError, match="does not read its guidance"):
        Distilled((1.0,)).embed(gaussian(FLOW)[0], ["s"])
