"""Blended latents: laws on every family, and the published algorithm written down once more."""

from __future__ import annotations

import pytest
import torch
from families import SOME

from sfumato.core.denoising import denoise
from sfumato.core.schedule import add_noise
from sfumato.errors import SfumatoError
from sfumato.inversion import invert
from sfumato.inversion.path import noise_of
from sfumato.methods.edit.blended_latents import BlendedLatents
from sfumato.prompts.layout import Mask

SOURCE, TARGET = "a red cube on grass", "a blue duck on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
HALF = Mask(torch.arange(48).expand(32, 48) > 23)


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def pixels(model, seed: int = 0) -> torch.Tensor:
    side = 4 * model.factor if model.factor > 1 else 16
    return torch.rand(3, 2 * side, 3 * side, generator=torch.Generator().manual_seed(seed))


def test_inside_is_painted_and_outside_is_the_image(model):
    path = invert(model, pixels(model), SOURCE, BlendedLatents(HALF, steps=4))
    out = denoise(model, {"source": SOURCE, "target": TARGET}, start=path)
    half = path.image.shape[-1] // 2
    target = out["target"].latents
    assert torch.equal(out["source"].latents, path.image)
    assert torch.equal(target[..., :half], path.image[..., :half])
    assert (target != path.image).any(1)[..., half:].all()
    torch.testing.assert_close(denoise(model, TARGET, start=path).latents, target, **CLOSE)


def test_a_mask_of_everything_is_plain_sampling_from_the_noised_image(sd):
    path = invert(sd, pixels(sd), SOURCE, BlendedLatents(Mask(torch.ones(2, 2) > 0), steps=4, seed=3))
    start = add_noise(path.image, noise_of(sd, path.image, 3), path.levels[0])
    plain = denoise(sd, TARGET, start=start, levels=path.levels).latents
    assert torch.equal(denoise(sd, TARGET, start=path).latents, plain) and len(path.levels) == 3


def test_the_loop_is_algorithm_1(sd):
    """With diffusers' scheduler: after each step, outside of the mask, the image noised anew to the level reached."""
    image = sd.encode(pixels(sd)[None]).detach()
    path = BlendedLatents(HALF, steps=8, seed=2)(sd, image, (SOURCE,), lambda: None)
    scheduler, draw = sd.pipe.scheduler, torch.Generator().manual_seed(2)
    scheduler.set_timesteps(8)
    times, mask = scheduler.timesteps[2:], (torch.arange(image.shape[-1]) >= image.shape[-1] // 2).float()
    both = sd.embed(["", TARGET]).text
    x = scheduler.add_noise(image, torch.randn(image.shape, generator=draw), times[0])
    for i, t in enumerate(times):
        with torch.no_grad():
            empty, said = sd.pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        x = scheduler.step(empty + 7.5 * (said - empty), t, x).prev_sample
        last = i + 1 == len(times)
        noise = None if last else torch.randn(image.shape, generator=draw)
        behind = image if last else scheduler.add_noise(image, noise, times[i + 1])
        x = x * mask + behind * (1 - mask)
    torch.testing.assert_close(denoise(sd, TARGET, start=path).latents, x, **CLOSE)


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="paint inside a mask; give one, or take diff-edit"):
        invert(sd, pixels(sd), SOURCE, BlendedLatents())
    path = invert(sd, pixels(sd), SOURCE, BlendedLatents(HALF, skip=1.0, steps=3))
    assert torch.equal(denoise(sd, TARGET, start=path).latents, path.image)
