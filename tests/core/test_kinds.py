"""What is of a wrong type is refused in a sentence, wherever a person hands something in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sfumato import cfg, denoise, invert, load, read_image
from sfumato.core import denoising
from sfumato.core.steppers import DDIM
from sfumato.distill import GuidedModel
from sfumato.errors import SfumatoError, shown
from sfumato.inversion import DDIMInversion, reconstruct
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.edit.prompt_to_prompt import LocalBlend, PromptToPrompt
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.reading import read
from sfumato.tasks.distill import distill_images
from sfumato.tasks.generate import generate
from sfumato.tasks.match import match
from sfumato.tasks.segment import Segmenter

PICTURE = Image.new("RGB", (64, 64))
NAMED = 'a model is what load gives, such as load("stilllife"), got'
SET = "methods are a list of them as they are set, such as [PromptToPrompt()], got"
CALLS: dict[str, tuple[Any, str]] = {
    "model by name": (lambda m: denoise("stilllife", "a", steps=1), f"{NAMED} 'stilllife'"),
    "model by place": (lambda m: denoise(Path("x"), "a", steps=1), 'load("x"), got PosixPath'),
    "model of a plan": (lambda m: denoising.plan("stilllife", "a"), NAMED),
    "model of an inversion": (lambda m: invert("stilllife", PICTURE), NAMED),
    "model of a reader": (lambda m: read("stilllife", PICTURE), NAMED),
    "model of a way back": (lambda m: reconstruct("stilllife", 3), NAMED),
    "model of a prior": (lambda m: GuidedModel("stilllife", ("a",), cfg(7)), NAMED),
    "model of an image": (lambda m: read_image(PICTURE, "stilllife"), "a model that load gave, not 'stilllife'"),
    "a method's word": (lambda m: denoise(m, "a", methods=["p2p"], steps=1), f"{SET} ['p2p']"),
    "a method's class": (lambda m: denoise(m, "a", methods=[PromptToPrompt], steps=1), f"{SET} "),
    "a method alone": (lambda m: denoise(m, "a", methods=PromptToPrompt(), steps=1), f"{SET} a PromptToPrompt"),
    "methods of a task": (lambda m: generate(m, "a", [7], methods=["p2p"]), SET),
    "seeds": (lambda m: generate(m, "a", 7), "seeds are one an image, such as range(4), got 7"),
    "views": (lambda m: denoise(m, "a", views="tiles", steps=1), "views is a Views or None, got 'tiles'"),
    "a stepper's word": (lambda m: denoise(m, "a", stepper="ddim", steps=1), "is a Stepper or None, got 'ddim'"),
    "a stepper's class": (lambda m: denoise(m, "a", stepper=DDIM, steps=1), "stepper is a Stepper or None, got <class"),
    "callback": (lambda m: denoise(m, "a", callback="x", steps=1), "callback is a function or None, got 'x'"),
    "memory": (lambda m: denoise(m, "a", memory="8", steps=1), "memory is a whole number or None, got '8'"),
    "prompt of an inversion": (lambda m: invert(m, PICTURE, 3), "a prompt is a text, or one an image, got 3"),
    "a path": (lambda m: reconstruct(m, torch.zeros(99)), "a path is what invert gives, got a Tensor"),
    "side": (lambda m: read(m, PICTURE, "256"), "a side in pixels is a whole number, got '256'"),
    "scale": (lambda m: cfg("7"), "the scale of a guidance is a number, or one a stream, got '7'"),
    "negative": (lambda m: cfg(7, negative=3), "a negative prompt is a text, got 3"),
    "device": (lambda m: load("stilllife", device=3), "device is a text or a device, got 3"),
    "matching by word": (lambda m: match(m, PICTURE, PICTURE, "dift"), "one as it is set, such as DIFT(), got 'dift'"),
    "matching by class": (lambda m: match(m, PICTURE, PICTURE, DIFT), "one as it is set, such as DIFT(), got <class"),
    "segmenting by class": (lambda m: Segmenter(m, DiffSeg), "one as it is set, such as DiffSeg(), got <class"),
    "prompts of a prior": (lambda m: GuidedModel(m, "a", cfg(7)), "one an image, such as (\"a cube\",), got 'a'"),
    "guide of a prior": (lambda m: GuidedModel(m, ("a",), 7), "a Guide such as cfg(5), got 7"),
    "distilling by word": (lambda m: distill_images(m, "a", "sds", 2), "such as ScoreDistillation(), got 'sds'"),
    "distilling by class": (lambda m: distill_images(m, "a", ScoreDistillation, 2), "such as ScoreDistillation(), got"),
    "a number": (lambda m: PromptToPrompt(cross="0.8"), "cross of PromptToPrompt is a number, got '0.8'"),
    "no number": (lambda m: PromptToPrompt(cross=None), "cross of PromptToPrompt is a number, got None"),
    "a mapping": (
        lambda m: PromptToPrompt(words=["cube"]),
        "words of PromptToPrompt is a mapping, each",
    ),
    "a part": (lambda m: PromptToPrompt(blend=("a", "b")), "blend of PromptToPrompt is a LocalBlend or None, got"),
    "a text": (lambda m: LocalBlend(3, "a"), "source of LocalBlend is a text, got 3"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_wrong_type_is_a_sentence(sd, what):
    call, why = CALLS[what]
    with pytest.raises(SfumatoError) as e:
        call(sd)
    assert why in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 250


def test_what_is_right_is_taken(sd):
    assert PromptToPrompt(cross=torch.tensor(0.5), blend=LocalBlend("a", "b"), words={"a": 1}).blend
    assert invert(sd, PICTURE, ("a cube",), DDIMInversion(steps=1)).prompts == ("a cube",)
    assert DiffSeg(stage=None, least=1).least == 1
    assert shown("a" * 200) == "a str" and shown("a\nb") == "'a\\nb'" and shown([1]) == "[1]"
