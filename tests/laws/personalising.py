"""The table of methods that teach a frozen model something of a few pictures: a row each, and what all laws need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sfumato.learning.encoders import Pretrained
from sfumato.learning.encoding import Pretraining, pretrain
from sfumato.learning.lessons import Lesson
from sfumato.learning.personal import Asked
from sfumato.methods.personalise.azimuth_inversion import AzimuthInversion
from sfumato.methods.personalise.break_a_scene import BreakAScene
from sfumato.methods.personalise.custom_diffusion import CustomDiffusion
from sfumato.methods.personalise.disentangled_inversion import DisentangledInversion
from sfumato.methods.personalise.dream_booth import DreamBooth
from sfumato.methods.personalise.encoder_tuning import EncoderTuning
from sfumato.methods.personalise.extended_textual_inversion import ExtendedTextualInversion
from sfumato.methods.personalise.lora import LoRA
from sfumato.methods.personalise.neural_inversion import NeuralInversion
from sfumato.methods.personalise.reversion import ReVersion
from sfumato.methods.personalise.textual_inversion import TextualInversion
from sfumato.methods.personalise.view_inversion import ViewInversion

GROUNDS = ("grass", "snow", "sand", "stone")
BASIS = ("on", "behind", "of", "at", "by")
UNETS = ("sd", "sd2", "sdxl")


@dataclass(frozen=True)
class Row:
    """A method of the index, and settings that show its parts."""

    word: str
    ways: Sequence[Any]
    families: Sequence[str] = UNETS


METHODS = (
    Row("azimuth-inversion", (AzimuthInversion(batch=2, vectors=2),)),
    Row("break-a-scene", (BreakAScene(rate=1e-3, rank=2), BreakAScene(rate=1e-3, prior_weight=0.0, batch=2))),
    Row("custom-diffusion", (CustomDiffusion(rate=1e-3, identifier="red", sizes=2),)),
    Row("dream-booth", (DreamBooth(rate=1e-3, identifier="red"),)),
    Row("lora", (LoRA(rate=1e-2, identifier="red"),)),
    Row("disentangled-inversion", (DisentangledInversion(batch=2, scene="grass"),)),
    Row("encoder-tuning", (EncoderTuning(batch=2, rate=1e-2), EncoderTuning(batch=1, rate=1e-2, network=True))),
    Row("extended-textual-inversion", (ExtendedTextualInversion(batch=2, vectors=2),)),
    Row("neural-inversion", (NeuralInversion(batch=2, waves=16), NeuralInversion(batch=1, bypass=0.0, dropout=0.0))),
    Row("reversion", (ReVersion(batch=2, basis=BASIS), ReVersion(batch=3, steer=0.0, alpha=1.0))),
    Row(
        "view-inversion",
        (ViewInversion(batch=2), ViewInversion(batch=1, dropout=0.5, layer_spread=0.0, begin="kind")),
    ),
    Row(
        "textual-inversion",
        (
            TextualInversion(batch=2),
            TextualInversion(batch=1, warmup=3, vectors=2, regularise=0.1),
            TextualInversion(batch=1, vectors=3, progressive=1),
            TextualInversion(batch=2, vectors=4, shuffle="all"),
            TextualInversion(batch=1, per_image=0.5),
            TextualInversion(batch=1, resolutions=5),
            TextualInversion(batch=1, vectors=2, begin="noise", pull=0.1),
        ),
    ),
)
WAYS = [(row.word, i, way) for row in METHODS for i, way in enumerate(row.ways)]


def asked(model: Any, n: int = 2, seed: int = 0) -> Asked:
    """A few random pictures, with masks, cameras and captions, and others of the kind at large."""
    lessons = _lessons(model, n)
    cameras = torch.tensor([[50.0 * i, 10.0 * i] for i in range(n)])
    captions = tuple((f"a cube {{}} a duck on {ground}", "a red sphere <own> the cube") for ground in GROUNDS[:n])
    encoder = _encoder(model) if getattr(model, "learns", False) else None
    return Asked(
        model, lessons[0], "<own>", "cube", lessons[1], seed, cameras=cameras, encoder=encoder, captions=captions
    )


@cache
def _encoder(model: Any) -> Pretrained:
    """One that was taught a little."""
    return pretrain(model, _lessons(model, 2)[1], "cube", Pretraining(rate=1e-2, batch=1, hidden=8), steps=1)


@cache
def _lessons(model: Any, n: int) -> list[Lesson]:
    rng = torch.Generator().manual_seed(7)
    pictures = torch.rand(2 * n, 3, model.size, model.size, generator=rng)
    masks = torch.zeros(n, model.size, model.size)
    masks[:, : model.size // 2] = 1
    return [Lesson.of(model, pictures[:n], masks, mirrored=False), Lesson.of(model, pictures[n:])]
