"""What results and models say of themselves, and what they carry into files and notebooks."""

from __future__ import annotations

import ast
import inspect
import io
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.backbones.load import load
from sfumato.core import denoising
from sfumato.core.brief import brief, table
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import DDIMInversion, Path, invert
from sfumato.media.pictures import grid, picture
from sfumato.methods.edit.prompt_to_prompt import PromptToPrompt
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.reading import read
from sfumato.tasks.distill import Distilled
from sfumato.tasks.edit import Edited, EditRun, Inverted
from sfumato.tasks.generate import Generated
from sfumato.tasks.illusion import Illusion
from sfumato.tasks.learn import Learned
from sfumato.tasks.lift import Lifted


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
    assert File(model.name).is_absolute() and words["model"] == File(model.name).name, "files are given to others"
    assert "4.0" in words["guidance"] and "methods" not in words
    assert len(sample.pictures) == 2 and np.array(sample.pictures[1]).shape == (side, side, 3)
    shown = Image.open(io.BytesIO(sample._repr_png_()))
    assert np.array_equal(np.array(shown), np.array(Image.open(tmp_path / "a.png")))


def test_paths_and_readers_pour_no_numbers(model):
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    path = invert(model, image, "a cube", DDIMInversion(steps=2))
    with read(model, image) as reader:
        segments, matches = DiffSeg()(reader), DIFT(ensemble=1)(reader, reader, torch.tensor([(3.0, 4.0), (60.0, 8.0)]))
        shown = [Image.open(io.BytesIO(found._repr_png_())) for found in (reader, segments)]
        html, told = matches._repr_html_(), (path, path.levels, reader, segments, matches, model.embed(["a cube"]))
        assert all("tensor(" not in repr(found) and "\n" not in repr(found) for found in told)
    assert [picture.size for picture in shown] == [(64, 64), (64, 64)]
    assert len(shown[1].getcolors() or ()) == len(segments.labels.unique()), "a segment is a colour"
    assert html.count("<tr>") == 3 and "<td>60.0, 8.0</td>" in html
    assert "track=3 x float32[1, 4, " in repr(path) and "pixels=float32[3, 64, 64]" in repr(reader)
    assert len(brief("x" * 200)) == 80 and brief({"a": torch.ones(2)}) == "{'a': float32[2]}"
    assert "tensor(" not in repr(Shifted(path.latents, path.levels, path.prompts, path.image))


@dataclass(frozen=True)
class Shifted(Path):
    """As ``dataclass`` makes one by itself."""


def test_a_plan_is_a_line_and_in_a_notebook_a_table(model):
    planned = denoising.plan(model, {"source": "a cube", "target": "a <duck>"}, methods=[PromptToPrompt()], steps=5)
    assert repr(planned) == f"Plan(2 entries of PromptToPrompt at {len(planned.sites)} sites in 5 steps)"
    html = planned._repr_html_()
    assert html.count("<tr>") == 1 + len(planned.table()) and "<td>image-&gt;text</td>" in html
    many = table([{"n": n} for n in range(60)])
    assert many.count("<tr>") == 52 and "<td>and 10 more</td>" in many


def test_images_are_decoded_once(model, monkeypatch):
    sample = denoise(model, "a cube", steps=1)
    calls, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda x: calls.append(x) or decode(x))
    assert sample.images is sample.images and sample.picture.size == (model.size, model.size)
    assert sample.pictures and sample._repr_png_() and len(calls) == 1


def test_results_of_tasks_show_their_pictures():
    """Each is one that a notebook draws, by the same few words."""
    images: Any = torch.rand(2, 3, 8, 8)
    drawn, none = [picture(image) for image in images], cast("Any", None)
    found = [
        Distilled(images, (), ()),
        Generated(tuple(drawn), (), none),
        Learned(none, images),
        Lifted(none, none, images, images[:, :1], (), (), ()),
        Illusion(Generated((drawn[0],), (), none), (drawn[1],), none),
        EditRun(Edited(tuple(drawn), images, none), none, 5, 1.0),
        Inverted(none, 1.0, images[0], images[1], 20.0, 21.0),
    ]
    for each in found:
        assert Image.open(io.BytesIO(each._repr_png_())).tobytes() == grid(drawn).tobytes()
        assert "tensor(" not in repr(each)


def test_what_denoise_takes_is_what_it_is_typed_to_take():
    named = {p.name for p in inspect.signature(denoise).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert named == {*denoising.Options.__annotations__}
    typed = [f for f in ast.parse(inspect.getsource(denoising)).body if getattr(f, "name", "") == "denoise"]
    given = {ast.unparse(f.args.args[1].annotation): ast.unparse(f.returns) for f in typed}  # pyright: ignore
    assert given == {
        "str": "Sample", "Streams": "dict[str, Sample]", "Sequence[str]": "Sample", "Prompts": "Any"
    }  # fmt: skip


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
    with pytest.raises(SfumatoError, match="load has no torch_dtype; here it is dtype"):
        load("stilllife", torch_dtype=torch.float16)
    with pytest.raises(TypeError, match="nosuch"):
        denoise(model, "a cube", nosuch=3)  # pyright: ignore[reportCallIssue]


def test_an_inversion_by_its_word_is_refused(model):
    with pytest.raises(SfumatoError, match="how is an inversion as it is set, such as Direct"):
        invert(model, torch.rand(3, 64, 64), how="null-text")  # pyright: ignore[reportArgumentType]
