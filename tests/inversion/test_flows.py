"""Inversions of flows: closed forms on a Gaussian, the published steps written out, laws on tiny SD3 and Flux."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from families import write
from PIL import Image

from sfumato import cli
from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG, guided
from sfumato.core.schedule import Schedule, joined
from sfumato.errors import SfumatoError
from sfumato.inversion import (
    DDIMInversion,
    Direct,
    Residual,
    RFInversion,
    invert,
    reconstruct,
)

FLOW = Schedule.read(FlowMatchEulerDiscreteScheduler(shift=3.0))
SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def gaussian():
    ramp = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    return Exact({"": Mixture(ramp * 0, 0.5), SOURCE: Mixture(ramp, 0.5), TARGET: Mixture(-ramp, 0.3)}, FLOW)


@pytest.fixture
def small():
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["sd3", "flux"])
def model(request, models):
    return models(request.param)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def counted(model, monkeypatch):
    """Rows that the network is asked for."""
    rows, real = [], model.predict
    monkeypatch.setitem(vars(model), "predict", lambda x, t, cond: rows.append(len(x)) or real(x, t, cond))
    return rows


def test_the_way_to_noise_of_a_gaussian(gaussian, small):
    """Without control it is the flow's own: as far from the mean, in deviations. With all of it, a straight line."""
    noise, image = gaussian.latents([3, 4], 4, 4), small * 2 - 1
    gaps = [
        float((invert(gaussian, small, SOURCE, RFInversion(0.0, steps=n)).latents - image / 0.5).abs().max())
        for n in (100, 200)
    ]
    assert gaps[1] < 0.03 and gaps[1] == pytest.approx(gaps[0] / 2, rel=0.1)  # Euler's error
    straight = invert(gaussian, small, SOURCE, RFInversion(1.0, seed=3, steps=7))
    for x, level in zip(straight.track, straight.levels, strict=True):
        torch.testing.assert_close(x, level.alpha * image + level.sigma * noise, **CLOSE)
    assert straight.track[-1] is straight.image


def test_rf_inversion_is_the_published_steps(model, images):
    """Equations 8 and 15, in their own time and with their own velocities."""
    how = RFInversion(gamma=0.5, eta=0.9, start=0.2, stop=0.6, seed=3, steps=5)
    path = invert(model, images, SOURCE, how)
    sigmas = [level.sigma for level in path.levels]
    y, y1, none = path.image, model.latents([3, 4], 64, 64), model.embed(["", ""])
    for i in (5, 4, 3, 2, 1):  # eq. 8
        u = model.predict(y, path.levels[i].t, none)
        u = u + 0.5 * ((y1 - y) / (1 - sigmas[i]) - u)
        y = y + u * (sigmas[i - 1] - sigmas[i])
    torch.testing.assert_close(path.latents, y, **CLOSE)
    said = model.embed([TARGET, TARGET])
    for i in range(5):  # eq. 15
        v, t = -model.predict(y, path.levels[i].t, said), 1 - sigmas[i]
        if 1 <= i < 3:
            v = v + 0.9 * ((path.image - y) / (1 - t) - v)
        y = y + v * (sigmas[i] - sigmas[i + 1])
    out = denoise(model, [TARGET, TARGET], start=path, guide=CFG(1.0))
    torch.testing.assert_close(out.latents, y, atol=1e-4, rtol=1e-4)


def test_rf_inversion_keeps_all_of_the_image_or_nothing(model, images):
    whole = invert(model, images, SOURCE, RFInversion(eta=1.0, stop=1.0, steps=4))
    prompts = {"source": [SOURCE] * 2, "target": [TARGET] * 2}
    for painted in denoise(model, prompts, start=whole, guide=5.0).values():
        torch.testing.assert_close(painted.latents, whole.image, **CLOSE)
    for none in (RFInversion(eta=0.0, steps=4), RFInversion(start=0.5, stop=0.5, steps=4)):
        path = invert(model, images, SOURCE, none)
        plain = denoise(model, [TARGET] * 2, start=path.latents, levels=path.levels, guide=5.0)
        assert torch.equal(denoise(model, [TARGET] * 2, start=path, guide=5.0).latents, plain.latents)


def test_more_eta_is_nearer_to_the_image_and_decays(gaussian, small):
    paths = [invert(gaussian, small, SOURCE, RFInversion(eta=eta, stop=0.8)) for eta in (0.0, 0.3, 0.6, 0.9)]
    gaps = [float((denoise(gaussian, [TARGET] * 2, start=p, guide=1.0).latents - p.image).norm()) for p in paths]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.9 * gaps[0]
    etas = invert(gaussian, small, SOURCE, RFInversion(decay=1.0, steps=8, stop=0.5)).etas
    assert etas == pytest.approx((0.9, 0.9 * 7 / 8, 0.9 * 6 / 8, 0.9 * 5 / 8, 0, 0, 0, 0))
    assert sum(e > 0 for e in RFInversion()(gaussian, small, ("", ""), lambda x: None).etas) == 7


def test_the_residual_cache_is_the_published_steps(model, images):
    path = invert(model, images, SOURCE, Residual(steps=4))
    sigmas, z = [level.sigma for level in path.levels], [path.image]
    source, target = (guided(model, 1.0).embed(model, [said] * 2)["cond"] for said in (SOURCE, TARGET))
    for i in (3, 2, 1, 0):
        z.insert(0, z[0] - (sigmas[i + 1] - sigmas[i]) * model.predict(z[0], path.levels[i].t, source))
    torch.testing.assert_close(path.latents, z[0], **CLOSE)
    x = y = z[0]
    for i in range(4):
        residual = z[i + 1] - z[i]
        x = x + (sigmas[i + 1] - sigmas[i]) * model.predict(x + residual, path.levels[i].t, source)
        y = y + (sigmas[i + 1] - sigmas[i]) * model.predict(y + residual, path.levels[i].t, target)
    torch.testing.assert_close(x, path.image, atol=1e-4, rtol=1e-4)  # which is the paper's claim
    out = denoise(model, {"source": [SOURCE] * 2, "target": [TARGET] * 2}, start=path, guide=1.0)
    torch.testing.assert_close(out["target"].latents, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 5.0, -1.0])
def test_the_residual_cache_is_exact_at_any_guidance(model, images, scale):
    path = invert(model, images, SOURCE, Residual(steps=4))
    prompts = {"source": [SOURCE] * 2, "same": [SOURCE] * 2, "target": [TARGET] * 2}
    out = denoise(model, prompts, start=path, guide=scale)
    for name in ("source", "same"):
        torch.testing.assert_close(out[name].latents, path.image, **CLOSE)
    assert (out["target"].latents - path.image).abs().max() > 1e-3


def test_the_network_is_asked_for_the_inversions_own_velocity(model, images, monkeypatch):
    """What ``Direct`` does not have: the source's prediction is the one that made the track. No row is added."""
    rows = counted(model, monkeypatch)
    prompts = {"source": [SOURCE] * 2, "target": [TARGET] * 2}
    asked = {}
    for how in (Residual(steps=4), Direct(steps=4)):
        path, steps = invert(model, images, SOURCE, how), []
        denoise(model, prompts, start=path, guide=1.0, callback=steps.append)
        asked[type(how)], rows[:] = list(rows), []
        sigmas = [level.sigma for level in path.levels]
        own = [(path.track[i + 1] - path.track[i]) / (sigmas[i + 1] - sigmas[i]) for i in range(4)]
        gap = max(float((s.parts["cond"][:2] - v).abs().max()) for s, v in zip(steps, own, strict=True))
        assert gap < 1e-4 if isinstance(how, Residual) else gap > 1e-3
    assert asked[Residual] == asked[Direct] == [2] * 4 + [4] * 4


def test_an_edit_keeps_the_error_of_a_pinned_source_but_not_that_of_a_cache(gaussian, small):
    """With the source's words an edit is the source; after ``Direct`` it is off by the error of Euler's steps."""
    prompts, gaps = {"source": [SOURCE] * 2, "same": [SOURCE] * 2}, []
    for how in (Residual(steps=10), Direct(steps=10)):
        path = invert(gaussian, small, SOURCE, how)
        out = denoise(gaussian, prompts, start=path, guide=1.0)
        torch.testing.assert_close(out["source"].latents, path.image, **CLOSE)
        gaps.append(float((out["same"].latents - path.image).abs().max()))
    assert gaps[0] < 1e-5 and gaps[1] > 1e-2


def test_levels_follow_the_images_size(model):
    """Flux shifts its levels by the number of tokens; an inversion runs those that ``denoise`` runs."""
    images, steps = torch.rand(1, 3, 32, 96), []
    path = invert(model, images, SOURCE, DDIMInversion(steps=3))
    denoise(model, SOURCE, size=(32, 96), steps=3, guide=1.0, callback=steps.append)
    assert path.levels == joined(*(s.level for s in steps), steps[-1].next)


@pytest.mark.parametrize("scale", [1.0, 3.0, -1.0])
def test_a_refined_step_back_is_a_flows_exact_inverse(gaussian, small, scale):
    plain, refined = (invert(gaussian, small, SOURCE, DDIMInversion(scale, refine=n)) for n in (0, 12))
    gaps = [float((reconstruct(gaussian, p, CFG(scale)) - p.image).abs().max()) for p in (plain, refined)]
    assert gaps[1] < 1e-4 < 1e-3 < gaps[0]


def test_models_that_are_no_flows_are_refused(here):
    still = load("stilllife", device="cpu")
    for how, who in ((RFInversion(), "RF-inversion"), (Residual(), "the residual cache")):
        with pytest.raises(SfumatoError, match=f"{who} inverts flows.*take direct"):
            invert(still, torch.rand(3, 64, 64), SOURCE, how)


@pytest.mark.parametrize("how", ["rf", "residual"])
def test_the_command_inverts_flows_and_no_others(how, here, tmp_path, capsys):
    picture = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (90, 120, 30)).save(picture)
    words = ["invert", str(picture), SOURCE, "--how", how, "--steps", "4", "--out", str(tmp_path), "--json"]
    assert cli.main([*words, "--model", str(write("sd3", tmp_path))]) == 0
    found = json.loads(capsys.readouterr().out)
    if how == "residual":
        assert abs(found["psnr"] - found["psnr_vae"]) < 0.1
    assert cli.main(words) == 2
    assert "inverts flows" in capsys.readouterr().err
