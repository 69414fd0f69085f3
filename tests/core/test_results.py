"""What results and models say of themselves, and what they carry into files and notebooks."""

from __future__ import annotations

import inspect
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.core import denoising
from sfumato.core.brief import brief
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, invert
from sfumato.reading import read


@pytest.fixture(scope="module")
def model(models):
    return models("sd")


def test_a_sample_says_what_it_is_and_its_file_how_it_was_made(model, tmp_path):
    sample = denoise(model, ["a cube", "a duck"], steps=2, seed=3, guide=4.0)
    side = model.size
    assert f"images of {side} x {side}" in repr(model)
    assert "latents=float32[2, 4, " in repr(sample) and "tensor(" not in repr(sample) and len(repr(sample)) < 300
    words = Image.open(sample.save(tmp_path / "a.png")).text  # pyright: ignore[reportAttributeAccessIssue]
    assert words["prompt"] == "a cube | a duck" and words["seed"] == "3" and words["steps"] == "2"
    assert Path(model.name).is_absolute() and words["model"] == Path(model.name).name, "files are given to others"
    assert "4.0" in words["guidance"] and "methods" not in words
    assert len(sample.pictures) == 2 and np.array(sample.pictures[1]).shape == (side, side, 3)
    shown = Image.open(io.BytesIO(sample._repr_png_()))
    assert np.array_equal(np.array(shown), np.array(Image.open(tmp_path / "a.png")))


def test_paths_and_readers_pour_no_numbers(model):
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    path = invert(model, image, "a cube", DDIMInversion(steps=2))
    with read(model, image) as reader:
        assert all("tensor(" not in repr(found).partition("levels=")[0] for found in (path, reader))
        assert "track=3 x float32[1, 4, " in repr(path) and "pixels=float32[3, 64, 64]" in repr(reader)
    assert len(brief("x" * 200)) == 80


def test_what_denoise_takes_is_what_it_is_typed_to_take():
    named = {p.name for p in inspect.signature(denoise).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert named == {*denoising.Options.__annotations__}


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("guidance_scale", "guide"),
        ("num_inference_steps", "steps"),
        ("generator", "seed=generator.initial_seed"),
        ("negative_prompt", "cfg"),
    ],
)
def test_names_of_diffusers_are_led_to_those_here(model, name, here):
    with pytest.raises(SfumatoError, match=f"denoise has no {name}; here it is .*{here}"):
        denoise(model, "a cube", **{name: 3})  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(TypeError, match="nosuch"):
        denoise(model, "a cube", nosuch=3)  # pyright: ignore[reportCallIssue]


def test_an_inversion_by_its_word_is_refused(model):
    with pytest.raises(SfumatoError, match="how is an inversion as it is set, such as Direct"):
        invert(model, torch.rand(3, 64, 64), how="null-text")  # pyright: ignore[reportArgumentType]
