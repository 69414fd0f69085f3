"""Commands load models from files, with parts and LoRAs of one's own, and paint parts of pictures anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import families
import layouts
import numpy as np
import pytest
import torch
from families import pipeline, seeded, write
from PIL import Image
from safetensors.torch import save_file

from sfumato.methods import index

PROMPT = "a red cube on grass"
OPTIONS = ("--steps", 2, "--n", 1, "--size", 64, "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write("sd", tmp_path_factory.mktemp("models"))


@pytest.fixture
def paint(run, tmp_path) -> Any:
    """The picture that ``generate`` paints with further options."""

    def painted(model: object, *options: object) -> np.ndarray:
        code, out, err = run("generate", PROMPT, "--model", model, *OPTIONS, *options, "--out", tmp_path / "out")
        assert code == 0, err
        return np.asarray(Image.open(json.loads(out)["images"][0]["image"]))

    return painted


def test_a_checkpoint_file_is_painted_from(folder, paint, run, tmp_path):
    save_file(layouts.checkpoint(pipeline(folder)), tmp_path / "model.safetensors")
    own = paint(tmp_path / "model.safetensors", "--config", folder)
    assert (own == paint(folder)).all()
    code, _, err = run("show", "plan", "--model", tmp_path / "model.safetensors", "--config", "nothing", "sdedit")
    assert code == 2 and "unknown config 'nothing'; known: sd-1" in err and len(err.splitlines()) == 1


def test_another_vae_schedule_and_loras_are_taken(folder, paint, run, tmp_path):
    plain = paint(folder)
    seeded(families.vae).save_pretrained(tmp_path / "vae")
    families.ddim(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    pipe, changes = pipeline(folder), {}
    for path, layer in pipe.unet.named_modules():
        if path.endswith("to_q"):
            shapes = {"A": (2, layer.in_features), "B": (layer.out_features, 2)}
            changes |= {f"unet.{path}.lora_{k}.weight": torch.randn(s) * 3 for k, s in shapes.items()}
    save_file(changes, tmp_path / "lora.safetensors")
    lora = tmp_path / "lora.safetensors"
    for options in (["--vae", tmp_path / "vae"], ["--scheduler", tmp_path / "scheduler"], ["--lora", lora]):
        assert (paint(folder, *options) != plain).any(), options
    assert (paint(folder, "--lora", f"{lora}:0") == plain).all()
    assert (
        paint(folder, "--lora", f"{lora}:0.5", "--lora", f"{lora}:0.5") == paint(folder, "--lora", lora)
    ).mean() > 0.9
    assert (paint(folder, "--scheduler", "EulerDiscreteScheduler") != plain).any()
    for options, words in (
        (["--lora", tmp_path / "no.safetensors"], "there is no file"),
        (["--scheduler", "Nope"], "diffusers has no scheduler 'Nope'"),
        (["--vae", lora], "holds no VAE: it is a LoRA"),
    ):
        code, _, err = run("generate", PROMPT, "--model", folder, *OPTIONS, *options, "--out", tmp_path / "out")
        assert code == 2 and words in err and len(err.splitlines()) == 1, err


@pytest.fixture(scope="module")
def inpainting(folder, tmp_path_factory) -> Path:
    """An inpainting checkpoint, a picture, a hole in it, and a mask of another shape."""
    place, pipe = tmp_path_factory.mktemp("inpainting"), pipeline(folder)
    parts = {**pipe.components, "unet": seeded(lambda: families.unet(in_channels=9))}
    diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(place / "model")
    picture = np.random.default_rng(0).integers(0, 255, (150, 200, 3), np.uint8)
    hole = np.zeros((150, 200), np.uint8)
    hole[40:80, 60:120] = 255
    Image.fromarray(picture).save(place / "photo.png")
    Image.fromarray(hole).save(place / "hole.png")
    Image.fromarray(hole[:100]).save(place / "other.png")
    return place


def test_a_part_of_a_picture_is_painted_anew(folder, inpainting, run, tmp_path):
    picture = np.asarray(Image.open(inpainting / "photo.png"))

    def call(*options: object) -> tuple[int, str, str]:
        given = ("--steps", 2, "--n", 1, "--device", "cpu", "--json", "--out", tmp_path / "out")
        return run("generate", PROMPT, "--model", inpainting / "model", *given, *options)

    part = ("--inpaint", inpainting / "photo.png", "--mask", inpainting / "hole.png")
    code, out, err = call(*part)
    assert code == 0, err
    found = np.asarray(Image.open(json.loads(out)["images"][0]["image"]))
    assert (
        found.shape == picture.shape
        and (found[:20] == picture[:20]).all()
        and (found[:, 160:] == picture[:, 160:]).all()
    )
    assert (found[50:70, 70:110] != picture[50:70, 70:110]).mean() > 0.9
    for options, words in (
        ((), "it needs an image and a mask as condition"),
        (part[:2], "--inpaint PICTURE and --mask MASK go together"),
        ((*part, "--size", "64"), "leave --size and --canvas out"),
        ((*part[:3], inpainting / "other.png"), "other.png"),
    ):
        code, _, err = call(*options)
        assert code == 2 and words in err and len(err.splitlines()) == 1, err
    code, _, err = run(
        "generate", PROMPT, "--model", folder, *part, "--device", "cpu", "--n", 1, "--out", tmp_path / "out"
    )
    assert code == 2 and "reads 4 channels and no mask; an inpainting checkpoint reads 9" in err


REFUSED = {
    "cross-image-attention": "takes a picture's looks; give it --appearance",
    "eye-for-an-eye": "takes a picture's looks; give it --appearance",
    "instruct-pix2pix": "does not read an image beside its latents",
    "stable-flow": "is for transformers",
}
"""Methods that no inpainting checkpoint runs, and why."""


@pytest.mark.parametrize("word", index.words(("edit",)))
def test_inpainting_checkpoints_edit_inside_of_a_mask(inpainting, run, tmp_path, word):
    call = (
        "edit",
        inpainting / "photo.png",
        "--from",
        "a red cube",
        "--to",
        "a blue cube",
        "--json",
        "--device",
        "cpu",
    )
    call += ("--model", inpainting / "model", "--mask", inpainting / "hole.png", "--device", "cpu", "--out", tmp_path)
    call += ("--steps", 4)
    code, out, err = run(*call, word)
    if word in REFUSED:
        assert code == 2 and REFUSED[word] in err and len(err.splitlines()) == 1, err
        return
    assert code == 0, err
    picture = np.asarray(Image.open(inpainting / "photo.png"))
    found = np.asarray(Image.open(json.loads(out)["image"]))
    assert found.shape == picture.shape and (found[:20] == picture[:20]).all()
    assert (found[:, 160:] == picture[:, 160:]).all() and (found[50:70, 70:110] != picture[50:70, 70:110]).any()


def test_a_mask_of_an_edit_is_read_or_refused(inpainting, folder, run, tmp_path):
    def call(model: Path, *options: object) -> tuple[int, str, str]:
        given = ("--from", "a cube", "--to", "a duck", "--steps", 2, "--model", model, "--device", "cpu")
        return run("edit", inpainting / "photo.png", *given, "--out", tmp_path, "--json", *options)

    hole, own = ("--mask", inpainting / "hole.png"), inpainting / "model"
    for model, options, says in (
        (own, ("sdedit",), "is an inpainting checkpoint; give --mask PICTURE, the part that may change"),
        (folder, (*hole, "p2p"), "--mask is of inpainting checkpoints and methods with a mask: "),
        (folder, (*hole, "blended-latents", *hole), "--mask and a --mask behind a method say the same"),
        (own, ("--mask", inpainting / "other.png", "sdedit"), "other.png: 200 x 100 pixels, of another shape"),
        (own, (*hole, "--also", inpainting / "hole.png", "--fit", "crop", "sdedit"), "sees one picture; leave --also"),
        (own, (*hole, "--appearance", inpainting / "photo.png", "eye-for-an-eye"), "sees one picture; leave --also"),
    ):
        code, out, err = call(model, *options)
        assert code == 2 and not out and says in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.rglob("*.png"))
    for model in (own, folder):
        (first, _, _), (second, _, _) = call(model, *hole, "blended-latents"), call(model, "blended-latents", *hole)
        assert first == second == 0
    found = [json.loads(call(folder, *some)[1])["image"] for some in ((*hole, "diff-edit"), ("diff-edit", *hole))]
    assert np.array_equal(*(np.asarray(Image.open(file)) for file in found))
