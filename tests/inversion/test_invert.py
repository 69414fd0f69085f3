"""Inversions: exact where the paper says so; on the exact denoiser, and on a tiny random network."""

from __future__ import annotations

import sys
from copy import copy
from dataclasses import replace
from typing import ClassVar

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from families import BETAS, SOME
from rounding import assert_same_but_for_rounding

from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg, reads_scale
from sfumato.core.method import Method, Phases
from sfumato.core.noise import drawing
from sfumato.core.schedule import Schedule
from sfumato.errors import SfumatoError
from sfumato.inversion import (
    EDICT,
    DDIMInversion,
    Direct,
    EditFriendly,
    NegativePrompt,
    Noise,
    NullText,
    invert,
    reconstruct,
)
from sfumato.media.pictures import picture
from sfumato.methods.edit import LocalBlend, MasaCtrl, PlugAndPlay, PromptToPrompt
from sfumato.stilllife import networks

PROMPTS = ("a red cube on grass", "a duck")
CONFIG = {"_class_name": "DDIMScheduler", **networks.scheduler().config}


@pytest.fixture
def model(stilllife):
    return stilllife


@pytest.fixture
def images():
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (128, 128), mode="bilinear")


def gap(path, latents) -> float:
    return float((latents - path.image).abs().max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("last", [True, False])
def test_ddim_inversion_on_a_gaussian(prediction, last):
    """Inverting and sampling run the same levels; refined, the step back is the step's exact inverse."""
    config = {**CONFIG, "set_alpha_to_one": last, "prediction_type": prediction}
    model = Exact({"": Mixture(torch.linspace(-1, 1, 48).view(1, 3, 4, 4), 0.5)}, Schedule.read(config))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, refined = (invert(model, images, "", DDIMInversion(refine=n)) for n in (0, 8))
    assert len(plain.track) == 51 and plain.track[-1] is plain.image
    assert 1e-4 < gap(plain, reconstruct(model, plain)) < 0.2
    if prediction == "epsilon":
        assert gap(refined, reconstruct(model, refined)) < 1e-4
    # every latent on the track stays as far from the mean as its own level says
    for x, level in zip(plain.track, plain.levels, strict=True):
        spread = (level.alpha**2 * 0.25 + level.sigma**2) ** 0.5
        away = (x - level.alpha * model.mixtures[""].means[0]) / spread
        torch.testing.assert_close(away, (images * 2 - 1 - model.mixtures[""].means[0]) / 0.5, atol=0.25, rtol=0.1)


def test_a_step_and_its_inverse_cancel_for_a_noise_that_does_not_change():
    model = Exact({"": Mixture(torch.zeros(1, 3, 4, 4), 0.5)}, Schedule.read(CONFIG))
    eps = torch.randn(1, 3, 4, 4)
    model.predict = lambda x, t, cond: eps.expand_as(x)
    for steps in (7, 50):
        path = invert(model, torch.rand(1, 3, 4, 4), "", DDIMInversion(steps=steps))
        assert gap(path, reconstruct(model, path)) < 1e-5


@pytest.mark.parametrize(
    ("how", "scale"),
    [
        (Direct(steps=8), 7.5),
        (EditFriendly(steps=9), 3.5),
        (EditFriendly(steps=9, skip=0.0), 3.5),
        (EditFriendly(steps=7, scale=1.0), 1.0),
    ],
    ids=repr,
)
def test_exact_inversions_find_the_image(model, images, how, scale):
    path = invert(model, images, PROMPTS, how)
    assert gap(path, reconstruct(model, path, scale)) < 1e-4
    assert gap(path, reconstruct(model, path, 2.0)) < 1e-4 or isinstance(how, EditFriendly)


def test_a_pinned_source_leaves_the_target_alone(model, images):
    path = invert(model, images, PROMPTS, Direct(steps=4))
    free = invert(model, images, PROMPTS, DDIMInversion(steps=4))
    prompts = {"source": PROMPTS, "target": ("a blue cube", "a robot")}
    a, b = (denoise(model, prompts, start=p, guide=5.0) for p in (path, free))
    assert_same_but_for_rounding(a["target"].latents, b["target"].latents)  # of six rows, and of eight
    torch.testing.assert_close(a["source"].latents, path.image)
    assert (b["source"].latents - path.image).abs().max() > 1e-3


class Looking(Method):
    """Takes part in steps without edits and needs."""

    prompted: ClassVar = True

    def start(self, run):
        return Phases(denoised=lambda step: None)


@pytest.mark.parametrize(
    ("methods", "rows"),
    [
        ([], [4, 4, 4, 4]),
        ([PromptToPrompt(0.5, 0.25)], [6, 6, 4, 4]),
        ([PromptToPrompt(0.5, 0.25, blend=LocalBlend("cube", "cube"))], [6, 6, 6, 6]),
        ([PlugAndPlay(0.25, 0.75)], [6, 6, 6, 4]),
        ([Looking()], [6, 6, 6, 6]),
        ([MasaCtrl(0.0)], [8, 8, 8, 8]),
    ],
)
def test_a_source_on_its_track_has_no_rows_that_no_one_reads(sd, monkeypatch, methods, rows):
    """Two images: of eight rows six are asked for, and four where no method has a part in the step, with the same edit,
    at one guidance or one a stream."""
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = {"source": ["a red cube", "a cube on grass"], "target": ["a blue cube", "a cube on snow"]}
    path = invert(sd, pictures, prompts["source"], Direct(steps=4))
    asked, real = [], sd.predict
    monkeypatch.setitem(vars(sd), "predict", lambda x, t, cond: asked.append(len(x)) or real(x, t, cond))

    def edited(path, **options):
        asked.clear()
        out = denoise(sd, prompts, start=path, methods=methods, **options)
        assert torch.equal(out["source"].latents, path.image)
        return out["target"].latents

    for guide in (7.5, {"source": 2.0, "target": 5.0}):
        found = edited(path, guide=guide)
        assert asked == rows
        with monkeypatch.context() as all_rows:
            all_rows.setattr(type(path), "settled", False)
            assert_same_but_for_rounding(found, edited(path, guide=guide))
        assert asked == [8] * 4
    edited(path, guide=1.0)
    assert asked == [4 if n > 4 else 2 for n in rows]
    seen = []
    for guide in (5.0, 1.0):
        edited(path, guide=guide, callback=lambda step: seen.append(step.x0[: len(pictures)]))
        assert asked == [max(6, n) if guide > 1 else 4 for n in rows]
    if 8 not in rows:  # whoever watches sees what the network says of the source under its prompt
        for guided, plain in zip(seen[:4], seen[4:], strict=True):
            assert_same_but_for_rounding(guided, plain)


def test_the_negative_prompt_is_the_sources(model, images):
    path = invert(model, images, PROMPTS, NegativePrompt(steps=4))
    free = invert(model, images, PROMPTS, DDIMInversion(steps=4))
    # with the source's own prompt on both sides guidance has nothing to add
    torch.testing.assert_close(reconstruct(model, path, 7.5), reconstruct(model, free, 1.0), atol=1e-4, rtol=1e-4)
    with pytest.raises(SfumatoError, match="replaces the empty prompt"):
        reconstruct(model, path, 1.0)


def test_null_text_follows_the_track_and_a_batch_is_its_images_one_by_one(model, images):
    how = NullText(steps=4, inner=5)
    path = invert(model, images, PROMPTS, how)
    free = invert(model, images, PROMPTS, DDIMInversion(steps=4))
    assert len(path.uncond) == 4 and path.uncond[0].shape == (2, 77, 16)
    assert gap(path, reconstruct(model, path, 7.5)) < gap(path, reconstruct(model, free, 7.5))
    for i in range(2):
        alone = invert(model, images[i], PROMPTS[i], how)
        for a, b in zip(alone.uncond, path.uncond, strict=True):
            torch.testing.assert_close(a[0], b[i], atol=2e-3, rtol=1e-2)


def test_null_text_is_the_published_algorithm(model, images):
    """Against a plain port: autograd on the text, a new Adam a level, one image at a time."""
    how = NullText(steps=3, inner=4)
    path = invert(model, images[0], PROMPTS[0], how)
    levels = model.schedule.levels(3)
    cond, text = model.embed([PROMPTS[0]]).text, model.embed([""]).text.clone()
    x, alphas = path.track[0], [level.alpha**2 for level in levels]

    def step(x, eps, i):
        x0 = (x - (1 - alphas[i]) ** 0.5 * eps) / alphas[i] ** 0.5
        return alphas[i + 1] ** 0.5 * x0 + (1 - alphas[i + 1]) ** 0.5 * eps

    def network(x, text, i):
        return model.network(x, levels[i].t, encoder_hidden_states=text).sample

    for i in range(3):
        text = text.clone().detach().requires_grad_()
        adam = torch.optim.Adam([text], lr=1e-2 * (1 - i / 100))
        with torch.no_grad():
            said = network(x, cond, i)
        for _ in range(4):
            empty = network(x, text, i)
            loss = torch.nn.functional.mse_loss(step(x, empty + 7.5 * (said - empty), i), path.track[i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < 1e-5 + i * 2e-5:
                break
        with torch.no_grad():
            empty = network(x, text, i)
            x = step(x, empty + 7.5 * (said - empty), i)
        torch.testing.assert_close(path.uncond[i], text.detach(), atol=1e-3, rtol=1e-3)


def test_one_level_of_noise(model, images):
    path = invert(model, images, PROMPTS, Noise(0.5, seed=3, steps=10))
    first = model.schedule.levels(10)[5]
    assert len(path.levels) == 5 and path.levels[0] == first
    noise = model.latents([3, 4], 128, 128)
    torch.testing.assert_close(path.latents, first.alpha * path.image + first.sigma * noise)
    none = invert(model, images, PROMPTS, Noise(0.0, steps=10))
    assert torch.equal(reconstruct(model, none, 5.0), none.image)
    with pytest.raises(SfumatoError, match="between 0 and 1, got 2"):
        invert(model, images, PROMPTS, Noise(2.0))


def test_image_to_image_is_diffusers(model, here, images):
    from sfumato.stilllife import weights

    pipe = weights.assemble("StableDiffusionImg2ImgPipeline", weights.load())
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    wanted = pipe(
        PROMPTS[0], image=images[:1], strength=0.5, num_inference_steps=8, guidance_scale=5.0, generator=generator,
        output_type="latent",
    ).images  # fmt: skip
    again = torch.Generator().manual_seed(3)
    seen = pipe.vae.encode(images[:1] * 2 - 1).latent_dist.sample(again) * networks.SCALING
    noise = torch.randn(seen.shape, generator=again)
    levels = model.schedule.levels(8).last(4)
    start = levels[0].alpha * seen + levels[0].sigma * noise
    out = denoise(model, PROMPTS[0], start=start, levels=levels, guide=5.0)
    torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_inverted_is_said(model, images):
    with pytest.raises(SfumatoError, match="2 images need a prompt each, got 3"):
        invert(model, images, ["a", "b", "c"])
    with pytest.raises(SfumatoError, match="multiples of 8 pixels for stilllife, got 100 x 128"):
        invert(model, images[..., :100, :])
    with pytest.raises(SfumatoError, match=r"images are \(b, 3, H, W\), got \(2, 128, 128, 3\)"):
        invert(model, images.permute(0, 2, 3, 1))


@pytest.mark.parametrize("wrong", [lambda x: x * 2 - 1, lambda x: x * 255, lambda x: (x * 255).byte(), lambda x: x / 0])
def test_values_that_are_no_pictures_are_refused_and_not_read_as_others(model, images, wrong):
    with pytest.raises(SfumatoError, match=r"an image lies in \[0, 1\], got"):
        invert(model, wrong(images))


def test_one_image_may_be_what_a_reader_reads(model, images, tmp_path):
    one = (images[0] * 255).round() / 255
    seen = picture(one)
    seen.save(tmp_path / "one.png")
    wanted = invert(model, one, how=Direct(steps=2)).latents
    for given in (seen, tmp_path / "one.png", np.asarray(seen), one[None].double()):
        torch.testing.assert_close(invert(model, given, how=Direct(steps=2)).latents, wanted)


CLIPPED = {"clip_sample": True, "clip_sample_range": 0.7, "timestep_spacing": "leading", "steps_offset": 1}


@pytest.mark.parametrize(
    "scheduler", [diffusers.DDIMScheduler(**CLIPPED), diffusers.LCMScheduler(**BETAS, original_inference_steps=50)]
)
def test_noise_alone_is_taken_away_as_the_models_scheduler_does(models, monkeypatch, images, scheduler):
    """An image of one level of noise is painted on as any noise is: limited, and by the stepper that suits."""
    pipe = copy(models("sdxl").pipe)
    pipe.scheduler, image = scheduler, images[:1, :, :64, :64]
    model, draw = load(pipe), drawing([0x5F0], (4, 8, 8))
    stepping = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(stepping, "randn_tensor", lambda *_, **__: draw())
    path = invert(model, image, PROMPTS[0], Noise(0.5, steps=4))
    out = denoise(model, PROMPTS[0], start=path, guide=3.0)
    theirs = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    monkeypatch.setattr(
        sys.modules[type(theirs).__module__], "randn_tensor", lambda *_, **__: drawing([0], (4, 8, 8))()
    )
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    wanted = theirs(
        PROMPTS[0], image=image, strength=0.5, num_inference_steps=4, guidance_scale=3.0, output_type="latent"
    ).images
    torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [3.0, -1.0])
def test_either_way_has_a_guidance_of_its_own(scale):
    """On Gaussians, negative scales included: refined, the same scale finds the image and another does not."""
    ramp = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    model = Exact({"": Mixture(ramp * 0, 0.5), "a ramp": Mixture(ramp / 2, 0.4)}, Schedule.read(CONFIG))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    path, own = (invert(model, images, "a ramp", DDIMInversion(s, steps=20, refine=20)) for s in (scale, 1.0))
    assert gap(path, reconstruct(model, path, scale)) < 1e-4
    assert (path.latents - own.latents).abs().max() > 1e-2
    others = [reconstruct(model, path, other) for other in (1.0, 5.0)]
    assert all(gap(path, x) > 1e-2 for x in others) and (others[0] - others[1]).abs().max() > 1e-2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_refined_step_is_exact_whatever_is_predicted(prediction):
    config = {**CONFIG, "prediction_type": prediction}
    model = Exact({"": Mixture(torch.linspace(-1, 1, 48).view(1, 3, 4, 4), 0.5)}, Schedule.read(config))
    path = invert(model, torch.rand(2, 3, 4, 4), "", DDIMInversion(steps=20, refine=10))
    assert gap(path, reconstruct(model, path)) < 1e-4


def test_edit_friendly_is_exact_where_levels_end_without_noise(model, images):
    model.schedule = Schedule.read({**CONFIG, "set_alpha_to_one": True})
    path = invert(model, images, PROMPTS, EditFriendly(steps=6))
    assert path.levels[len(path.levels)].sigma == 0
    assert gap(path, reconstruct(model, path, 3.5)) < 1e-5


def test_null_text_begins_with_what_guidance_takes_for_no_words(models, images):
    """Of SDXL zeros, and not the empty prompt as it is read."""
    model = models("sdxl")
    path = invert(model, images[:1, :, :64, :64], PROMPTS[0], NullText(steps=2, inner=0))
    empty = model.embed_negative([""]).text
    assert not empty.any() and all(torch.equal(text, empty) for text in path.uncond)


def test_null_text_asks_for_no_image_that_has_stopped(model, images, monkeypatch):
    """With a tolerance between the two images' errors one goes on alone; each gets what it gets by itself."""
    rows, real = [], model.predict

    def predict(x, t, cond):
        rows.append((len(x), torch.is_grad_enabled()))
        return real(x, t, cond)

    errors = []
    for i in range(2):
        track = invert(model, images[i], PROMPTS[i], DDIMInversion(steps=1)).track
        guided = denoise(model, PROMPTS[i], start=track[0], levels=model.schedule.levels(1), guide=7.5).latents
        errors.append(float((guided - track[1]).square().mean()))
    how = NullText(steps=1, inner=4, tolerance=sum(errors) / 2, rate=1e-6)
    monkeypatch.setitem(vars(model), "predict", predict)
    path = invert(model, images, PROMPTS, how)
    assert [n for n, fits in rows if fits] == [2, 1, 1, 1]
    assert [n for n, fits in rows if not fits] == [2, 2, 2]  # the track, the prompt, the step
    for i in range(2):
        alone = invert(model, images[i], PROMPTS[i], how)
        torch.testing.assert_close(alone.uncond[0][0], path.uncond[0][i], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", SOME)
def test_every_family_is_inverted(family, models):
    """Also where the network reads more than text, such as pooled words or a mask."""
    model = models(family)
    side = 16 if model.factor == 1 else 64
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    said = ("a red cube on grass", "a duck")
    free, negative, friendly, fitted = (
        invert(model, pictures, said, how)
        for how in (DDIMInversion(steps=3), NegativePrompt(steps=3), EditFriendly(steps=4), NullText(steps=3, inner=2))
    )
    plain = replace(negative, negative=None)
    assert reads_scale(model) or torch.equal(plain.latents, free.latents)
    track = reconstruct(model, plain, cfg(1.0))
    torch.testing.assert_close(reconstruct(model, negative, cfg(5.0)), track, atol=1e-4, rtol=1e-4)
    assert gap(friendly, reconstruct(model, friendly, 3.5)) < 1e-4
    gaps = [float((reconstruct(model, path, cfg(7.5)) - path.image).norm()) for path in (fitted, plain)]
    assert gaps[0] < gaps[1]


@pytest.mark.parametrize(
    "how",
    [DDIMInversion(steps=3), Direct(steps=3), NullText(steps=3), EDICT(steps=3), EditFriendly(steps=3, skip=0.0)],
    ids=lambda how: type(how).__name__,
)
def test_an_inversion_that_leaves_the_finite_numbers_says_at_which_step(sd, how, monkeypatch):
    predict, calls = sd.predict, []

    def broken(x, t, cond):
        calls.append(t)
        return predict(x, t, cond) * (torch.nan if len(calls) > 1 else 1)

    monkeypatch.setitem(vars(sd), "predict", broken)
    with pytest.raises(SfumatoError, match=rf"step \d of 3 of {type(how).__name__}: the latents became not finite"):
        invert(sd, torch.rand(3, 64, 64), "a cube", how)
