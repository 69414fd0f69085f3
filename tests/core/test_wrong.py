"""Whatever is handed to Python's calls in the place of what they take, it is refused in a sentence, or taken."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import cfg, denoise, invert, load, read_image
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, reconstruct
from sfumato.io.files import read_json
from sfumato.learning.checkpoint import header_of
from sfumato.learning.concepts import Concept
from sfumato.learning.encoders import Pretrained
from sfumato.learning.heads import Head
from sfumato.media.labels import read_mask
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.edit import PromptToPrompt
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.label_efficient import Classifier
from sfumato.methods.perceive.normalised_cut import NormalisedCut
from sfumato.methods.perceive.propagation import Propagation
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.methods.perceive.unsupervised_keypoints import Keypoints
from sfumato.reading import read
from sfumato.scene.clouds import read_points
from sfumato.scene.splat_files import read_splats
from sfumato.scene.store import load_scene
from sfumato.tasks.distill import distill_images
from sfumato.tasks.generate import generate

PICTURE = Image.new("RGB", (64, 64))
PLACE = torch.zeros(1, 2)
ARRAY, SHAPE = np.zeros((8, 8, 3), np.uint8), torch.zeros(2, 3)
NAN, INF = float("nan"), float("inf")
WRONG: list[Any] = [None, "x", Path("x"), True, NAN, INF, -1, 2.5, ["x"], [], {"a": "b"}, {}, PICTURE, ARRAY, SHAPE]
WRONG += [PromptToPrompt, object()]
PLAIN = "steps seed size noises start stepper views frames controls memory trajectory callback group mark methods guide"
ONE = {"steps": 1, "size": 64}
SDS = ScoreDistillation()
DOWN = DDIMInversion(steps=1)
CALLS: dict[str, Any] = {
    **{f"denoise {k}": lambda m, v, k=k: denoise(m, "a cube", **{**ONE, k: v}) for k in PLAIN.split()},
    "denoise levels": lambda m, v: denoise(m, "a cube", size=64, levels=v) if v is not None else None,
    "denoise model": lambda m, v: denoise(v, "a", steps=1),
    "denoise prompts": lambda m, v: denoise(m, v, **ONE),
    "denoise a stream": lambda m, v: denoise(m, {"a": v}, **ONE),
    "invert model": lambda m, v: invert(v, PICTURE),
    "invert image": lambda m, v: invert(m, v, "a", DOWN),
    "invert prompt": lambda m, v: invert(m, PICTURE, v, DOWN),
    "invert how": lambda m, v: invert(m, PICTURE, "a", v) if v is not None else None,
    "reconstruct": reconstruct,
    "cfg scale": lambda m, v: cfg(v),
    "cfg negative": lambda m, v: cfg(7, negative=v),
    "read_image": lambda m, v: read_image(v),
    "read_image model": lambda m, v: read_image(PICTURE, v),
    "read_image how": lambda m, v: read_image(PICTURE, None, v),
    "load": lambda m, v: None if isinstance(v, str | Path) else load(v),
    "load device": lambda m, v: load("stilllife", device=v) if v is not None else None,
    "load dtype": lambda m, v: load("stilllife", dtype=v) if v is not None else None,
    "read": read,
    "read model": lambda m, v: read(v, PICTURE),
    "read side": lambda m, v: read(m, PICTURE, v),
    "generate seeds": lambda m, v: generate(m, "a", v),
    "distill model": lambda m, v: distill_images(v, "a", SDS, 1),
    "distill prompts": lambda m, v: distill_images(m, v, SDS, 1, size=(64, 64)),
    "distill method": lambda m, v: distill_images(m, "a", v, 1),
    "distill steps": lambda m, v: distill_images(m, "a", SDS, v, size=(64, 64)),
    **{type(f).__name__: lambda m, v, f=f: f(v) for f in (DiffSeg(), NormalisedCut(), TextAttribution(("a",)))},
    "Propagation": lambda m, v: Propagation(click=(1, 1))(v),
    "DIFT": lambda m, v: DIFT()(v, v, PLACE),
}


@pytest.mark.parametrize("what", CALLS)
def test_what_is_wrong_is_a_sentence(sd, what):
    for value in WRONG:
        try:
            CALLS[what](sd, value)
        except SfumatoError as e:
            assert "\n" not in str(e)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: denoise(m, "a", steps=1, seed=-1), "a seed lies between 0 and 2**64 - 1, got -1"),
        (lambda m: denoise(m, "a", steps=1, seed=True), "a seed is a whole number, got True"),
        (lambda m: denoise(m, "a", steps=1, guide=True), "a guidance is a number, one a stream, or a Guide"),
        (lambda m: denoise(m, "a", steps=1, guide={}), "a guidance is a number, one a stream, or a Guide"),
        (lambda m: cfg(True), "the scale of a guidance is a number, or one a stream, got True"),
        (lambda m: denoise(m, "a", steps=1, controls=["x"]), "controls is several, each a function, got ['x']"),
        (lambda m: denoise(m, {"a": []}, steps=1), "streams have equally many prompts, got a: 0"),
        (lambda m: DiffSeg()(PICTURE), "DiffSeg reads what sfumato.reading.read(model, image) gives, got <PIL."),
        (lambda m: DIFT()(read(m, PICTURE), "x", PLACE), "DIFT reads what sfumato.reading.read(model, image) gives"),
        (lambda m: distill_images(m, [], SDS, 1), "there is no prompt to distil"),
    ],
)
def test_it_says_what_is_wanted(sd, call, says):
    with pytest.raises(SfumatoError) as e:
        call(sd)
    assert says in str(e.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda **k: invert(None, PICTURE, **k), "invert has no guidance_scale; here it is how=DDIMInversion(scale)"),
        (lambda **k: cfg(**k), "cfg has no guidance_scale; here it is scale"),
        (lambda **k: reconstruct(None, None, **k), "reconstruct has no guidance_scale; here it is guide"),
        (lambda **k: distill_images(None, "a", SDS, 1, **k), "has no guidance_scale; here it is the method's guidance"),
    ],
    ids=["invert", "cfg", "reconstruct", "distil"],
)
def test_names_of_diffusers_are_led_to_those_here(call, says):
    with pytest.raises(SfumatoError) as e:
        call(guidance_scale=3.0)
    assert says in str(e.value)
    with pytest.raises(TypeError, match="nosuch"):
        call(nosuch=3)


PLACES = ("/no/such", "./no", "../no", "~/no", "no/", "a/b/c", Path("no"), Path("a/b"), Path("no.safetensors"))
FILES = (Head.load, Keypoints.load, Classifier.load, Concept.load, Pretrained.load, load_scene)
FILES += (read_points, read_splats, read_json, read_mask, header_of)


@pytest.mark.parametrize("place", PLACES, ids=repr)
def test_a_place_where_nothing_lies_is_told(place):
    """Not that no model is called so, with a list of all."""
    for name in ("name", "vae", "scheduler", "motion"):
        with pytest.raises(SfumatoError, match=r"^there is no file or folder [^;,]*$"):
            load(**{name: place}, device="cpu", offline=True)


@pytest.mark.parametrize("f", FILES, ids=lambda f: f.__qualname__)
def test_a_file_that_is_missing_is_told(f, tmp_path):
    given = (str,) if f == Head.load else ()
    with pytest.raises(SfumatoError, match=r"^there is no [a-z ]+ \S*none"):
        f(tmp_path / "none", *given)
    with pytest.raises(SfumatoError, match=r"^\S+ is (a folder|not a classifier)|^there is no [a-z ]+ \S+"):
        f(tmp_path, *given)
