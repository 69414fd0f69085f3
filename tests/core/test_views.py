"""Views: coverage, the laws of splitting and merging, parity with diffusers' panorama."""

from __future__ import annotations

import pytest
import torch

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.steppers import DDIM
from sfumato.core.views import Ring, Tiles
from sfumato.errors import SfumatoError
from sfumato.stilllife import weights

PROMPT = "a red cube on grass"


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


@pytest.mark.parametrize("views", [Tiles(), Tiles(3), Tiles(16), Ring(), Ring(5)], ids=repr)
@pytest.mark.parametrize("canvas", [(16, 16), (16, 37), (21, 50)])
def test_every_cell_is_covered_and_what_is_split_is_merged(views, canvas):
    assert views.coverage(*canvas, (16, 16)).min() >= 1
    x = torch.randn(2, 4, *canvas)
    parts = views.split(x, (16, 16))
    assert parts.shape == (2 * views.count(*canvas, (16, 16)), 4, 16, 16)
    torch.testing.assert_close(views.merge(parts, x), x)


def test_overlaps_are_means():
    x = torch.zeros(1, 1, 4, 6)
    parts = torch.stack([torch.full((1, 4, 4), v) for v in (1.0, 3.0)])
    out = Tiles(2).merge(parts, x)
    assert out[0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("fuse", ["eps", "x0", "x_prev"])
def test_one_window_is_plain_sampling(model, fuse):
    plain = denoise(model, PROMPT, steps=3).latents
    torch.testing.assert_close(
        denoise(model, PROMPT, steps=3, views=Tiles(fuse=fuse)).latents, plain, atol=1e-5, rtol=1e-5
    )


def test_for_a_linear_step_it_does_not_matter_which_variable_is_fused(model):
    def run(fuse, stepper):
        options = {"steps": 3, "size": (128, 200), "stepper": stepper}
        return denoise(model, PROMPT, views=Tiles(4, fuse=fuse), **options).latents

    for stepper in (DDIM(), DDIM(1.0)):
        eps = run("eps", stepper)
        assert eps.shape == (1, 4, 16, 25)
        for fuse in ("x0", "x_prev"):
            torch.testing.assert_close(run(fuse, stepper), eps, atol=1e-3, rtol=1e-3)


def test_a_ring_has_no_beginning(model):
    noise = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(0))
    out = denoise(model, PROMPT, steps=3, start=noise, views=Ring(4)).latents
    moved = denoise(model, PROMPT, steps=3, start=noise.roll(8, -1), views=Ring(4)).latents
    torch.testing.assert_close(moved, out.roll(8, -1), atol=1e-4, rtol=1e-4)
    tiles = denoise(model, PROMPT, steps=3, start=noise, views=Tiles(4)).latents
    assert (tiles - out).abs().max() > 1e-3


def test_it_is_diffusers_panorama(here, monkeypatch):
    pipe = weights.assemble("StableDiffusionPanoramaPipeline", weights.load())
    pipe.set_progress_bar_config(disable=True)
    model = load("stilllife", device="cpu")
    model.size = 512  # theirs has windows of 64 cells, whatever the model
    noise = torch.randn(1, 4, 64, 80, generator=torch.Generator().manual_seed(0))
    wanted = pipe(
        PROMPT, height=512, width=640, latents=noise, num_inference_steps=2, guidance_scale=5.0, output_type="latent"
    ).images
    out = denoise(model, PROMPT, steps=2, guide=5.0, start=noise, views=Tiles(8))
    torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_said(model):
    with pytest.raises(SfumatoError, match="between 1 and the window's side, 16 cells, got 20"):
        denoise(model, PROMPT, steps=1, size=(128, 256), views=Tiles(20))
    with pytest.raises(SfumatoError, match="at least as wide as the window, 16 cells, got 8"):
        Ring().places(16, 8, (16, 16))
