"""EDICT undoes itself, for even and odd counts of steps."""

from __future__ import annotations

import pytest
import torch

from sfumato.backbones.load import load
from sfumato.methods.edit import EDICT


@pytest.mark.parametrize("steps", [4, 5, 7])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_the_way_back_is_exact(here, steps, scale):
    model = load("stilllife", device="cpu")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = ["a red cube", "a duck"]
    how = EDICT(steps=steps, scale=scale, strength=1.0)
    pair = how.invert(model, images, prompts)
    assert (pair[0] - pair[1]).abs().max() > 1e-6  # the two are not one
    torch.testing.assert_close(how.denoise(model, pair, prompts), model.encode(images), atol=1e-4, rtol=1e-4)
    assert (how.denoise(model, pair, prompts[::-1]) - model.encode(images)).abs().max() > 1e-3 or scale == 1.0


def test_without_mixing_and_with_one_noise_it_is_ddim(here):
    model = load("stilllife", device="cpu")
    eps = torch.randn(1, 4, 8, 8)
    model.predict = lambda x, t, cond: eps.expand_as(x)
    x = torch.randn(1, 4, 8, 8).double()
    out = EDICT(mixing=1.0, steps=5, strength=1.0, scale=1.0).denoise(model, (x, x), ["a duck"])
    levels = model.schedule.levels(5)
    for i in range(5):
        x0 = (x - levels[i].sigma * eps) / levels[i].alpha
        x = levels[i + 1].alpha * x0 + levels[i + 1].sigma * eps
    torch.testing.assert_close(out, x.float(), atol=1e-5, rtol=1e-5)
