"""What is not finite is one line and 2 on the command line: no black picture, no NaN in JSON, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.backbones.load import load

CUBE, SPHERE = "a red cube", "a blue cube"
BIG = 3e5
"""With which a tiny VAE's first convolution leaves float16 (65504), though its weights do not."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion XL, whose VAE overflows in float16: as its config says or as it does not."""
    place = tmp_path_factory.mktemp("overflowing")

    def made(forced: bool) -> Path:
        torch.manual_seed(0)
        pipe = families.sdxl()
        families.randomised(*pipe.components.values())
        with torch.no_grad():
            pipe.vae.decoder.conv_in.weight.mul_(BIG)
        pipe.vae.register_to_config(force_upcast=forced)
        pipe.save_pretrained(place / str(forced))
        return place / str(forced)

    return {forced: made(forced) for forced in (True, False)}


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pixels = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)) * 255).byte()
    Image.fromarray(pixels.numpy()).save(path)
    return path


SMALL = ("--dtype", "float16", "--steps", 2, "--device", "cpu")


def refused(result, *words) -> None:
    code, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and not out and len(lines) == 1 and lines[0].startswith("sfumato: "), err
    assert all(word in err for word in words), err


def test_a_vae_that_overflows_writes_no_black_picture(run, folder, photo, tmp_path):
    model = folder[False]
    where = (*SMALL, "--model", model, "--out")
    says = ("AutoencoderKL", "not finite", "float32 or bfloat16")
    refused(run("generate", CUBE, "--n", 1, "--size", 64, *where, tmp_path / "a"), *says)
    refused(run("invert", photo, CUBE, *where, tmp_path / "b", "--json"), *says)
    refused(run("edit", photo, "--from", CUBE, "--to", SPHERE, *where, tmp_path / "c", "p2p"), *says)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file != photo and file.suffix != ".json"]


def test_what_that_error_says_helps(folder):
    z = torch.randn(1, 4, 8, 8)
    another = families.vae()
    for options in ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float16", "vae": another}):
        model = load(str(folder[False]), device="cpu", **options)
        assert model.decode(z).isfinite().all()


def test_a_config_that_forces_float32_paints_what_float32_does(run, folder, tmp_path):
    words = ("generate", CUBE, "--n", 1, "--size", 64, "--steps", 2, "--device", "cpu", "--model", folder[True])
    pictures = []
    for dtype in ("float16", "float32"):
        file = tmp_path / f"{dtype}.png"
        code, _, err = run(*words, "--dtype", dtype, "--out", file)
        assert code == 0, err
        with Image.open(file) as image:
            assert image.getextrema() != ((0, 0),) * 3
            pictures.append(torch.from_numpy(np.array(image)).float())
    assert (pictures[0] - pictures[1]).abs().mean() < 2  # of 255


def test_null_text_in_float16_is_a_picture_and_json(run, tmp_path, photo, models):
    model = models("sd").name
    code, out, err = run(
        "invert", photo, CUBE, "--how", "null-text", *SMALL, "--model", model, "--json", "--out", tmp_path
    )
    assert code == 0, err
    found = json.loads(out)
    assert 0 < found["psnr"] < 100 and 0 < found["psnr_vae"] < 100
    words = (
        "--from",
        CUBE,
        "--to",
        SPHERE,
        "--invert",
        "null-text",
        *SMALL,
        "--model",
        model,
        "--out",
        tmp_path,
        "--json",
    )
    code, out, err = run("edit", photo, *words, "p2p")
    assert code == 0, err
    for file in (value for value in json.loads(out).values() if str(value).endswith(".png")):
        with Image.open(file) as image:
            assert image.convert("RGB").getextrema() != ((0, 0),) * 3


def test_numbers_of_methods_that_are_not_finite_are_refused_before_anything_is_loaded(run, photo, tmp_path):
    call = ("edit", photo, "--from", CUBE, "--to", SPHERE, "--model", "no/such", "--out", tmp_path)
    refused(run(*call, "ledits", "--thresholds", "cube=nan"), "--thresholds of ledits is a finite number, got nan")


def test_the_same_picture_again_is_a_number_in_json(run, photo, tmp_path, models):
    """A model of pixels finds a picture again exactly, which is infinitely many decibels."""
    model = models("deepfloyd").name
    words = ("--how", "direct", "--steps", 2, "--device", "cpu", "--model", model, "--out", tmp_path, "--json")
    code, out, err = run("invert", photo, CUBE, *words)
    assert code == 0, err
    assert json.loads(out)["psnr_vae"] == 100
