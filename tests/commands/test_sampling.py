"""How a picture is painted, by words: each is what the library has, and what cannot be is said."""

from __future__ import annotations

import json
from typing import get_args, get_type_hints

import pytest
from diffusers import LCMScheduler, PNDMScheduler
from families import randomised, stable_diffusion, write
from PIL import Image

from sfumato.backbones.load import load
from sfumato.commands.sampling import Sampling
from sfumato.core.guidance import CFG, Composed, Distilled, PerpNeg
from sfumato.core.solvers import DEIS, LMS, PLMS, DPMSolver, Heun, Midpoint, UniPC
from sfumato.core.steppers import DDIM, DDPM, LCM, Euler
from sfumato.core.views import Ring, Tiles
from sfumato.errors import SfumatoError


def test_words_are_what_the_core_has(sd):
    steppers = {"ddim": DDIM(), "ddpm": DDPM(), "euler": Euler()}
    steppers |= {"euler-ancestral": Euler(True), "dpm-solver": DPMSolver(), "lcm": LCM(), "auto": DDIM()}
    steppers |= {"heun": Heun(), "dpm2": Midpoint(), "dpm2-ancestral": Midpoint(True), "lms": LMS(), "plms": PLMS()}
    steppers |= {"deis": DEIS(), "unipc": UniPC(), "dpm-solver-sde": DPMSolver(tau=1.0)}
    assert set(steppers) == set(get_args(get_type_hints(Sampling)["stepper"]))
    assert {word: Sampling(stepper=word).made(sd) for word in steppers} == steppers  # pyright: ignore[reportArgumentType]
    assert Sampling().options(128) == {"size": 128} and Sampling().settings() == {}
    wide = Sampling(canvas=(512, 128), stride=4)
    assert wide.options(128) == {"size": (128, 512), "views": Tiles(4)}
    assert Sampling(canvas=(512, 128), views="ring").options(128)["views"] == Ring()
    assert wide.settings() == {"canvas": (512, 128), "stride": 4}


def test_a_distilled_model_is_painted_with_as_it_was_distilled(run, tmp_path):
    pipe = stable_diffusion(scheduler=LCMScheduler(), network={"time_cond_proj_dim": 8})
    randomised(*pipe.components.values())
    pipe.save_pretrained(tmp_path / "lcm")
    options = ("--model", tmp_path / "lcm", "--size", 64, "--n", 1, "--json", "--device", "cpu")
    code, out, err = run("generate", "a red cube", *options, "--out", tmp_path / "out")
    (image,) = json.loads(out)["images"]
    assert code == 0 and (image["steps"], image["guidance"]) == (4, 7.5)
    assert "was distilled: unless said otherwise 4 steps at guidance 7.5" in err
    asked = ("--steps", 2, "--guidance", 0, "--stepper", "ddim")
    code, out, err = run("generate", "a red cube", *options, "--out", tmp_path / "out", *asked)
    (image,) = json.loads(out)["images"]
    assert (image["steps"], image["guidance"], image["stepper"]) == (2, 0, "ddim") and "distilled" not in err


def test_what_a_stepper_leaves_out_of_the_schedulers_is_noted(run, tmp_path):
    pipe = stable_diffusion(scheduler=PNDMScheduler())
    randomised(*pipe.components.values())
    pipe.save_pretrained(tmp_path / "prk")
    options = ("--model", tmp_path / "prk", "--size", 64, "--n", 1, "--steps", 2, "--device", "cpu")
    code, _, err = run("generate", "a red cube", *options, "--out", tmp_path / "out")
    assert code == 0 and "note: the model comes with PNDMScheduler: steps are PLMS' from the first on" in err
    code, _, err = run("generate", "a red cube", *options, "--out", tmp_path / "out", "--stepper", "plms")
    assert code == 0 and "comes with" not in err


def test_a_guidance_of_0_is_noted_in_all_commands(run, here, tmp_path):
    options = ("--guidance", 0, "--steps", 2, "--device", "cpu", "--out", tmp_path / "out")
    code, _, err = run("generate", "a red cube", "--n", 1, "--size", 64, *options)
    assert code == 0 and err.count("guidance 0 leaves the prompt out") == 1
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    code, _, err = run("invert", tmp_path / "red.png", "a red cube", *options)
    assert code == 0 and err.count("guidance 0 leaves the prompt out") == 1


def test_further_prompts_weigh_by_guidance(tmp_path):
    model = load(str(write("sd", tmp_path / "sd")), device="cpu")
    assert Sampling().guide(model, 5.0, "blur") == CFG(5.0, "blur")
    reads = load(str(write("flux", tmp_path / "flux")), device="cpu")
    assert Sampling().guide(reads, 5.0, "") == Distilled((5.0,))
    both = Sampling(further=("a duck", "a = b=0.5"), without=("rain=2",))
    assert both.guide(model, 5.0, "") == Composed((("a duck", 5.0), ("a = b", 2.5), ("rain", -10.0)), 5.0)
    assert Sampling(without=("rain",), perp_neg=True).guide(model, 5.0, "") == PerpNeg((("rain", -1.0),), 5.0)
    assert both.settings() == {"and": both.further, "not": both.without}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"views": "ring"}, "give its pixels: --canvas 512 128"),
        ({"stride": 3}, "of a panorama"),
        ({"canvas": (512, 0)}, "a side of --canvas lies between 1 and 8192, got 0"),
        ({"perp_neg": True}, "--perp-neg takes what --not says"),
        ({"perp_neg": True, "without": ("a",), "further": ("b",)}, "and no --and"),
        ({"further": ("a=b",)}, "a weight behind = is a number, got 'a=b'"),
        ({"further": ("a=-1",)}, "weight above 0"),
        ({"without": ("=2",)}, "a prompt and its weight"),
        ({"without": ("a=inf",)}, "weight above 0"),
    ],
)
def test_what_cannot_be_is_said(asked, why):
    with pytest.raises(SfumatoError, match=why):
        Sampling(**asked)


def test_a_panorama_is_painted_by_what_was_asked_for(run, here, tmp_path):
    from sfumato.backbones.load import load
    from sfumato.core.denoising import denoise
    from sfumato.media import pictures

    words = ["generate", "a red cube", "--n", 1, "--steps", 3, "--out", tmp_path / "x.png", "--device", "cpu", "--json"]
    code, out, err = run(*words, "--canvas", 256, 128, "--views", "ring", "--stepper", "dpm-solver", "--not", "a duck")
    assert code == 0, err
    found = json.loads(out)["images"][0]
    assert (found["canvas"], found["views"], found["not"]) == ([256, 128], "ring", ["a duck"])
    painted = denoise(
        load("stilllife", device="cpu"),
        ["a red cube"],
        guide=Composed((("a duck", -5.0),), 5.0),
        steps=3,
        seed=[0],
        size=(128, 256),
        views=Ring(),
        stepper=DPMSolver(),
    )
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (256, 128) and image.text["stepper"] == "dpm-solver"  # pyright: ignore
        assert image.tobytes() == pictures.picture(painted.images[0]).tobytes()
    code, _, err = run(*words, "--canvas", 256, 128, "--size", 128)
    assert code == 2 and "--size is of an image that is seen whole" in err
    code, _, err = run(*words, "--canvas", 256, 128, "--show-attention")
    assert code == 2 and "Attention sees whole images" in err
