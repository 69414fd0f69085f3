"""Images of a run that go through the network some at a time are what they are if all go at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from sfumato.core import denoising
from sfumato.core.denoising import denoise
from sfumato.core.groups import Group, Turn, turns
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, NegativePrompt, invert
from sfumato.methods.edit import MasaCtrl, PlugAndPlay, PromptToPrompt
from sfumato.methods.edit.prompt_to_prompt import LocalBlend
from sfumato.methods.sets import FateZero, Pix2Video, SharedAttention, StyleAligned, Text2VideoZero, TokenFlow
from sfumato.methods.sets.sources import read

FRAMES = 7
WORDS = ["a red cube and a duck", "a red duck on a cube"]
SOURCE = [WORDS[i % 2] for i in range(FRAMES)]
TARGET = [text.replace("red", "blue") for text in SOURCE]
ALONE = {
    "nothing": (),
    "first": (SharedAttention("first"),),
    "middle": (SharedAttention("self+middle"),),
    "number": (SharedAttention("5", own=True, after=0.5),),
    "chain": (SharedAttention("first+previous"),),
    "next": (SharedAttention("next"),),
    "two": (SharedAttention("previous", until=0.5), SharedAttention("next", after=0.5)),
    "style": (StyleAligned(),),
    "photograph": (StyleAligned("qkv", shift=0.7, scale=1.2),),
    "pix2video": (Pix2Video(),),
    "text2video": (Text2VideoZero(0.25, 0.13, begin=0.0, settled=0.5),),
}
EDITS = {
    "prompt-to-prompt": (PromptToPrompt(0.5, 0.5, blend=LocalBlend("cube", "cube", start=0.0)),),
    "both": (PromptToPrompt(1.0, 0.0), SharedAttention("first")),
    "fate-zero": (FateZero(1.0, 1.0, finest=1.0),),
    "fate-zero by a word": (FateZero(0.0, 1.0, finest=1.0, word="cube", threshold=0.6),),
    "token-flow": (TokenFlow(every=3),),
}
UNETS = {
    "plug-and-play": (PlugAndPlay(features=1.0, attention=1.0),),
    "flow and features": (PlugAndPlay(features=1.0, attention=1.0), TokenFlow(every=4)),
}
CASES = {**ALONE, **EDITS, **UNETS}
FAST = ("sd", "sd3")
SLOW = ("sd2", "sdxl", "deepfloyd", "pixart", "flux")


def paint(model, name: str, **options) -> dict[str, torch.Tensor]:
    streams = {"target": TARGET} if name in ALONE else {"source": SOURCE, "target": TARGET}
    given = {"methods": list(CASES[name]), "guide": 3.0, "steps": 2, "seed": 3, "size": model.multiple * 4}
    return {n: sample.latents for n, sample in denoise(model, streams, **given | options).items()}


def cases(families):
    return [(f, n) for f in families for n in CASES if n not in UNETS or f in ("sd", "sd2", "sdxl", "deepfloyd")]


def check(model, name: str, group: int) -> None:
    whole, parts = paint(model, name), paint(model, name, group=group)
    for stream, latents in whole.items():
        assert torch.allclose(parts[stream], latents, atol=2e-5 * max(1.0, float(latents.abs().max())))
    if CASES[name]:  # and that is something else than each by itself
        plain = paint(model, name, methods=[])
        assert not torch.allclose(plain["target"], whole["target"], atol=1e-4)


@pytest.mark.parametrize(("family", "name"), cases(FAST))
def test_parts_are_the_whole(models, family, name):
    check(models(family), name, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), cases(SLOW))
@pytest.mark.parametrize("group", [3, 5])
def test_parts_are_the_whole_in_every_family(models, family, name, group):
    check(models(family), name, group)
