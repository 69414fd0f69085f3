"""Real photographs and a real denoiser: whole runs, which show that they go to their end, not how far they come."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.backbones.load import load
from sfumato.bench import real
from sfumato.bench.ports import faces
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson, levels
from sfumato.media import pictures
from sfumato.methods.personalise.dream_booth import WITHOUT_PRIOR
from sfumato.tasks import learn as task
from sfumato.tasks import recipes

SMILES = tuple(f"1f6{code:02x}" for code in range(10))


def place(name: str) -> Path:
    try:
        return real.real(name)
    except SfumatoError as e:
        pytest.skip(str(e))


@pytest.mark.slow
@pytest.mark.parametrize("word, thing", [("textual-inversion", "dog5"), ("lora", "rc_car")])
def test_real_photographs_are_learned_by_the_built_in_model(word, thing, tmp_path):
    folder = place("dreambooth256") / thing
    if not folder.exists():
        pytest.skip(f"there is no {folder}")
    model = load("stilllife")
    method, kind = recipes.learning(word, "stilllife")
    seen = task.read([folder], model, 40)
    done = task.learn(model, seen, "<it>", method, kind=kind or "cube", samples=2)
    pictures.write(pictures.sheet(torch.cat([seen.pixels[:2], done.samples]), 2), tmp_path / "looked-at.png")
    done.concept.save(tmp_path / "it.safetensors")
    found = Concept.load(tmp_path / "it.safetensors")
    assert all(value.isfinite().all() for value in (*found.rows.values(), *found.changes.values()))
    assert done.samples.isfinite().all() and done.samples.std() > 0.02
    assert (done.samples - task.painted(model, f"a {kind or 'cube'}", 2)).abs().mean() > 0.01, "nothing was learned"


def emoji(codes: tuple[str, ...]) -> torch.Tensor:
    """Of 64 pixels, on white, in [0, 1]."""
    found = []
    with zipfile.ZipFile(place("emoji_fluent3d_64.zip")) as files:
        for code in codes:
            image = Image.open(io.BytesIO(files.read(f"{code}.webp"))).convert("RGBA").resize((64, 64))
            white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            found.append(torch.from_numpy(np.array(white)).permute(2, 0, 1) / 255)
    return torch.stack(found)


@torch.no_grad()
def error(model: Any, shown: torch.Tensor) -> float:
    """Of the noise that it sees in pictures, each at a level of its own."""
    x0, at = Lesson.of(model, shown, mirrored=False).latents[:, 0], levels(model, 5, 0, len(shown))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
    alpha, sigma = at.like(x0)
    return float((model.predict(alpha * x0 + sigma * noise, at.t, model.embed([""] * len(x0))) - noise).square().mean())


@pytest.mark.slow
def test_a_real_denoiser_of_faces_learns_ten_emoji(tmp_path):
    """Without words: DreamBooth is fine-tuning. After 20 steps the error is 0.75 of what it was."""
    model = load(faces.pipeline(place("ddpm64")))
    learned = emoji(SMILES)
    method = replace(WITHOUT_PRIOR, rate=1e-4, batch=2)
    done = task.learn(model, task.Photographs((), learned), "<smile>", method, steps=20, samples=0)
    known = done.concept.on(model)
    before, after = (error(of, learned[:4]) for of in (model, known))
    print({"before": before, "after": after})
    assert after < 0.9 * before
    images = denoise(known, [""] * 2, seed=[0, 1], steps=20).images
    pictures.write(pictures.sheet(torch.cat([learned[:2], images]), 2), tmp_path / "looked-at.png")
    assert images.isfinite().all()
