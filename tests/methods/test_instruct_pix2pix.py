"""InstructPix2Pix: beside diffusers' pipelines on the same weights, and its laws."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from families import INSTRUCTED, instruct, randomised, stable_diffusion

from sfumato.backbones.load import family, load
from sfumato.core.denoising import denoise, plan
from sfumato.errors import SfumatoError
from sfumato.inversion import invert
from sfumato.methods.edit.instruct_pix2pix import InstructPix2Pix
from sfumato.stilllife import weights

SOURCE, TARGET = "a red cube on grass", "make the cube blue"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
PIXELS = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=INSTRUCTED.values(), ids=list(INSTRUCTED))
def pipe(request):
    torch.manual_seed(0)
    made = request.param()
    randomised(*made.components.values())
    made.set_progress_bar_config(disable=True)
    return made


def edited(model, how: InstructPix2Pix, pixels=PIXELS[:1], said: Any = TARGET, scale: float | None = None):
    return denoise(model, said, start=invert(model, pixels, SOURCE, how), guide=how.guide(model, scale)).latents


def test_it_is_diffusers(pipe):
    model = family("tiny", pipe)
    how = InstructPix2Pix(1.7, seed=3, steps=4)
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "image_guidance_scale": 1.7, "output_type": "latent"}
    noise = model.latents([3, 4], 64, 96)
    said = [TARGET, "a duck"]
    if isinstance(pipe, diffusers.StableDiffusionXLInstructPix2PixPipeline):
        options |= {"height": 64, "width": 96}
    wanted = pipe(said, image=PIXELS, latents=noise, negative_prompt=["", ""], **options).images
    torch.testing.assert_close(edited(model, how, PIXELS, said, 5.0), wanted, **CLOSE)


def test_the_shipped_relative_is_diffusers(here):
    theirs = weights.pipeline("stilllife-instruct")
    options = {"num_inference_steps": 4, "guidance_scale": 7.5, "image_guidance_scale": 1.5, "output_type": "latent"}
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    wanted = theirs(TARGET, image=PIXELS[:1], latents=noise, **options).images
    ours = edited(load("stilllife-instruct", device="cpu"), InstructPix2Pix(steps=4))
    torch.testing.assert_close(ours, wanted, **CLOSE)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = instruct()
    randomised(*made.components.values())
    return family("tiny", made)


def test_without_guidance_neither_words_nor_image_matter(model):
    blind = InstructPix2Pix(0.0, steps=3)
    out = edited(model, blind, scale=0.0)
    assert torch.equal(edited(model, blind, PIXELS[1:], "a duck", 0.0), out)
    deaf = InstructPix2Pix(steps=3)
    seen = edited(model, deaf, scale=0.0)
    assert torch.equal(edited(model, deaf, said="a duck", scale=0.0), seen)
    assert (seen - out).abs().max() > 1e-3 < (edited(model, deaf, PIXELS[1:], scale=0.0) - seen).abs().max()


def test_of_two_streams_the_first_is_the_image(model):
    how = InstructPix2Pix(steps=3)
    path = invert(model, PIXELS, SOURCE, how)
    prompts = {"source": [SOURCE] * 2, "target": [TARGET, "a duck"]}
    out = denoise(model, prompts, start=path, guide=how.guide(model))
    assert torch.equal(out["source"].latents, path.image)
    torch.testing.assert_close(out["target"].latents, edited(model, how, PIXELS, prompts["target"]), **CLOSE)
    several = denoise(model, ["a duck", TARGET], start=invert(model, PIXELS[0], SOURCE, how), guide=how.guide(model))
    torch.testing.assert_close(several.latents[1:], out["target"].latents[:1], **CLOSE)


def test_what_it_cannot_do_is_said(model):
    how = InstructPix2Pix(steps=3)
    with pytest.raises(SfumatoError, match="guidances of its own; give guide=InstructPix2Pix"):
        denoise(model, TARGET, start=invert(model, PIXELS[0], SOURCE, how))
    torch.manual_seed(0)
    with pytest.raises(SfumatoError, match="plain does not read an image beside its latents"):
        invert(family("plain", stable_diffusion()), PIXELS[0], SOURCE, how)
    assert not plan(model, TARGET, guide=how.guide(model), steps=3, size=64).entries  # before there is an image
