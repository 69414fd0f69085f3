"""Pictures edited by words: what stays is the picture's own, at its own size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES, randomised
from PIL import Image

from sfumato.backbones.load import family
from sfumato.core.denoising import denoise
from sfumato.core.steppers import DDPM
from sfumato.inversion import DDIMInversion, invert
from sfumato.media.images import fit, tensor
from sfumato.methods.edit import BlendedLatents, SDEdit
from sfumato.prompts.layout import Mask
from sfumato.tasks.edit import edit_pictures

SOURCE, TARGET = "a red cube on grass", "a blue duck on grass"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    pipe = FAMILIES["sd"]()
    randomised(*pipe.components.values())
    return family("sd", pipe)


def photos(model, n: int = 2):
    """Pictures of no size that the model works in, and what it sees of them."""
    dice = np.random.default_rng(0)
    shown = [Image.fromarray(dice.integers(0, 256, (45, 70, 3), np.uint8)) for _ in range(n)]
    return [fit(picture, 32, model.multiple) for picture in shown]


def same(a, b) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_the_same_words_leave_every_pixel(model):
    fitted = photos(model)
    path = invert(model, torch.stack([f.pixels for f in fitted]), SOURCE, DDIMInversion(steps=4))
    done = edit_pictures(model, fitted, path, {"source": SOURCE, "target": SOURCE}, guide=1.0)
    assert not done.changed.any() and all(same(p, f.original) for p, f in zip(done.pictures, fitted, strict=True))


def test_what_changes_is_painted_and_the_rest_is_the_pictures_own(model):
    fitted = photos(model)
    half = Mask(torch.arange(64).expand(32, 64) > 31)
    pixels = torch.stack([f.pixels for f in fitted])
    path = invert(model, pixels, SOURCE, BlendedLatents(half, steps=3))
    prompts = {"source": [SOURCE] * 2, "target": [TARGET] * 2}
    whole = denoise(model, prompts, start=path, seed=4)["target"]
    for streams in ({"source": SOURCE, "target": TARGET}, {"target": TARGET}):  # beside the source, and the path alone
        done = edit_pictures(model, fitted, path, streams, seed=4)
        cells = done.changed.shape[-1]
        assert done.changed[..., cells // 2 :].all() and not done.changed[..., : cells // 2].any()
        torch.testing.assert_close(done.painted, whole.images, atol=1e-4, rtol=1e-4)
        for picture, one in zip(done.pictures, fitted, strict=True):
            assert picture.size == one.original.size == (70, 45)
            new, old = tensor(picture), tensor(one.original)
            assert torch.equal(new[..., :20], old[..., :20]) and (new != old)[..., 50:].any()


def test_without_a_source_it_is_beside_the_pictures_themselves(model):
    fitted = photos(model, 1)
    path = replace(invert(model, fitted[0].pixels, SOURCE, SDEdit(0.5, steps=4)), stepper=DDPM())  # the seed matters
    done = edit_pictures(model, fitted, path, {"target": TARGET}, guide=3.0, seed=1)
    out = denoise(model, {"target": [TARGET]}, start=path, guide=3.0, seed=1)["target"]
    assert torch.equal(done.painted, out.images) and done.changed.all()
