"""A real autoencoder, whose latents have 32 channels: photographs come back, and everything works on its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F

from sfumato.backbones.load import family
from sfumato.bench import real
from sfumato.bench.ports import taef2
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, NullText, invert, reconstruct
from sfumato.media.images import read_image
from sfumato.methods.edit import PromptToPrompt
from sfumato.metrics.image import psnr

CUBE, SPHERE = "a red cube", "a red sphere"


def place(name: str) -> Path:
    try:
        return real.real(name)
    except SfumatoError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny random UNet on its latents."""
    torch.manual_seed(0)
    pipe = families.stable_diffusion()
    network = families.unet(in_channels=taef2.CHANNELS, out_channels=taef2.CHANNELS)
    pipe.register_modules(vae=taef2.autoencoder(place("taef2")), unet=network)
    return family("taef2", pipe)


def photographs(n: int, side: int) -> torch.Tensor:
    files = sorted(place("dreambooth256").glob("*/*.jpg"))
    images = torch.stack([read_image(file) for file in files[:: len(files) // n][:n]])
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def test_photographs_come_back(model):
    images = photographs(1, 512)
    with torch.no_grad():
        latents = model.encode(images)
        found = psnr(model.decode(latents), images)
    assert latents.shape == (1, 32, 64, 64) and 0.5 < latents.std() < 1.5
    assert found.mean() >= 32, found


def test_an_image_is_painted_inverted_and_edited_on_its_latents(model):
    assert (model.channels, model.factor) == (32, 8)
    painted = denoise(model, CUBE, steps=2, size=64, guide=3.0)
    assert painted.latents.shape == (1, 32, 8, 8) and painted.images.isfinite().all()
    image = photographs(1, 128)
    with torch.no_grad():
        best = model.decode(model.encode(image))
        path = invert(model, image, CUBE, Direct(steps=3))
        torch.testing.assert_close(model.decode(reconstruct(model, path)), best, atol=1e-4, rtol=0)
    for how in (Direct(steps=3), NullText(steps=2, inner=2)):
        path = invert(model, image, CUBE, how)
        out = denoise(
            model, {"source": CUBE, "target": SPHERE}, start=path, methods=[PromptToPrompt()], guide=how.guide(model)
        )
        assert out["target"].images.isfinite().all() and not torch.equal(out["target"].latents, out["source"].latents)
