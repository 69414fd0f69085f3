"""A head that SpaText paints by, of random numbers, for any model with a UNet."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sfumato.learning.heads import Head
from sfumato.methods.control.spatio_textual import Learned, SpaTextHead, reading_maps
from sfumato.methods.perceive.clip_patches import ClipPatches

WIDTH = 128
"""Of what the CLIP that ships has of a text."""
_FILES = TemporaryDirectory()


def head(model: Any, deviation: float = 0.02) -> Head:
    """One that changes each weight a little, and what is new by as much."""
    rng = torch.Generator().manual_seed(3)
    network = Learned(WIDTH)
    _, weights = reading_maps(model, WIDTH)
    with torch.no_grad():
        for weight in weights.values():
            weight += (deviation * torch.randn(weight.shape, generator=rng)).to(weight)
        network.gain(model.network, weights)
        network.prior.weight.copy_(torch.randn(WIDTH, WIDTH, generator=rng))
    return Head(SpaTextHead(), ClipPatches(), network, {"width": WIDTH}, (), model.name)


@cache
def file(model: Any) -> Path:
    """The same as a file."""
    path = Path(_FILES.name) / f"{id(model)}.safetensors"
    head(model).save(path)
    return path
