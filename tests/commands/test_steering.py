"""Commands steer by ControlNets: of every family, as diffusers does, and refuse what steers no such model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from families import controlnet, pipeline, seeded, write
from PIL import Image

from sfumato.backbones.load import load
from sfumato.media import pictures
from sfumato.stilllife import weights

PROMPT = "a red cube on grass"
NAMES = ("sd", "sd2", "sdxl", "sdxl-union", "sd3", "flux", "flux-union")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folders of models, of a ControlNet for each, and pictures."""
    place = tmp_path_factory.mktemp("steered")
    for name in (*NAMES, "sd-pooled"):
        family = name.partition("-")[0]
        folder = place / family if (place / family).exists() else write(family, place)
        part = "unet" if family.startswith("sd") and family != "sd3" else "transformer"
        controlnet(name, getattr(pipeline(folder), part)).save_pretrained(place / f"{name}-control")
    write("pixart", place)
    rng = np.random.default_rng(0)
    for name, size in (("edges", (64, 64)), ("wide", (96, 64)), ("photo", (64, 64))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(place / f"{name}.png")
    return place


@pytest.fixture
def paint(run, place, tmp_path) -> Any:
    def painted(model: str, *options: object) -> tuple[int, list[Path], str]:
        given = ("--n", 1, "--steps", 3, "--device", "cpu", "--json", "--out", tmp_path / "out", *options)
        code, out, err = run("generate", PROMPT, "--model", place / model, *given)
        return code, [Path(i["image"]) for i in json.loads(out)["images"]] if code == 0 else [], err

    return painted


def control(place: Path, name: str, picture: str = "edges") -> tuple[object, ...]:
    return ("--controlnet", place / f"{name}-control", "--control", place / f"{picture}.png")


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


@pytest.mark.parametrize("name", NAMES)
def test_each_family_is_steered(paint, place, name):
    family = name.partition("-")[0]
    more = ("--control-mode", 1) if name.endswith("union") else ()
    code, plain, err = paint(family, "--size", 64)
    assert code == 0, err
    code, steered, err = paint(family, "--size", 64, *control(place, name), *more)
    assert code == 0, err
    assert steered[0] != plain[0] and (pixels(steered[0]) != pixels(plain[0])).mean() > 0.1
    said = Image.open(steered[0]).text
    assert "control" in said["controlnet"] and "edges.png" in said["control"]
    code, none, err = paint(family, "--size", 64, control(place, name)[0], f"{place / name}-control:0", "--control",
                            place / "edges.png", *more)  # fmt: skip
    assert code == 0 and abs(pixels(none[0]) - pixels(plain[0])).max() <= 1, err


@pytest.mark.parametrize("name", ["sd", "sd-pooled"])
def test_it_is_what_diffusers_paints(paint, place, monkeypatch, name):
    seen: list[torch.Tensor] = []
    plain = pictures.picture
    monkeypatch.setattr(pictures, "picture", lambda image: seen.append(image) or plain(image))
    how = ("--size", 64, "--seed", 3, "--guidance", 4, "--negative", "a duck")
    steering = ("--controlnet", f"{place}/{name}-control:0.7", "--control", place / "edges.png")
    code, _, err = paint("sd", *how, *steering)
    assert code == 0, err
    pipe: Any = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        place / "sd", controlnet=diffusers.ControlNetModel.from_pretrained(place / f"{name}-control")
    )
    x = load(str(place / "sd"), device="cpu").latents([3], 64, 64)
    wanted = pipe(
        PROMPT, image=Image.open(place / "edges.png"), latents=x, num_inference_steps=3, guidance_scale=4.0,
        controlnet_conditioning_scale=0.7, negative_prompt="a duck", output_type="pt",
    ).images[0]  # fmt: skip
    torch.testing.assert_close(seen[0], wanted, atol=1e-4, rtol=1e-4)


def test_a_picture_brings_its_shape_and_is_cropped_to_one_that_is_said(paint, place):
    code, found, err = paint("sd", *control(place, "sd", "wide"))
    assert code == 0 and Image.open(found[0]).size == (192, 128) and "its middle" not in err, err
    code, found, err = paint("sd", *control(place, "sd", "wide"), "--size", 64)
    assert code == 0 and Image.open(found[0]).size == (64, 64)
    assert "its middle is read of" in err and "wide.png, 96 x 64" in err and len(err.splitlines()) == 1
    Image.open(place / "wide.png").crop((16, 0, 80, 64)).save(place / "middle.png")
    code, same, err = paint("sd", *control(place, "sd", "middle"), "--size", 64)
    assert code == 0 and not err and (pixels(same[0]) == pixels(found[0])).all()


def test_several_add_up(paint, place):
    one, two = control(place, "sd"), control(place, "sd", "photo")
    found = [paint("sd", "--size", 64, *some)[1][0] for some in (one, two, (*one, *two), (*two, *one))]
    a, b, both, turned = map(pixels, found)
    assert (both != a).any() and (both != b).any() and abs(both - turned).max() <= 1


@pytest.mark.parametrize("command", ["edit", "invert"])
def test_a_picture_is_found_and_edited_under_one(run, place, tmp_path, command):
    words = {"edit": ("--from", "a red cube", "--to", "a blue cube"), "invert": ("a red cube", "--how", "ddim")}[
        command
    ]
    tail = ("p2p",) if command == "edit" else ()

    def call(*options: object) -> tuple[int, str, str]:
        given = ("--model", place / "sd", "--steps", 2, "--device", "cpu", "--json", "--out", tmp_path)
        return run(command, place / "photo.png", *words, *given, *options, *tail)

    results = [call(), call(*control(place, "sd"))]
    assert all(code == 0 for code, _, _ in results), results
    plain, steered = (pixels(Path(json.loads(out)["image"])) for _, out, _ in results)
    assert (plain != steered).mean() > 0.01
    code, out, err = call(*control(place, "sd", "wide"))
    assert code == 2 and not out and "wide.png: 96 x 64 pixels, of another shape than the image of 64 x 64" in err
    assert "or say --fit crop" in err
    assert call(*control(place, "sd", "wide"), "--fit", "crop")[0] == 0


def test_the_models_own_is_used_or_said_to_be_there(run, here, place, tmp_path, monkeypatch):
    ships, own = weights.module, {}
    monkeypatch.setattr(weights, "module", lambda name: own.setdefault(name, seeded(lambda: ships(name))))

    def call(*options: object) -> tuple[int, str, str]:
        given = ("--n", 1, "--steps", 2, "--json", "--out", tmp_path, "--device", "cpu")
        return run("generate", PROMPT, *given, *options)

    edges = ("--control", place / "edges.png")
    plain = call("--model", "stilllife-depth")
    assert plain[0] == 0 and "comes with a ControlNet, which steers by --control PICTURE" in plain[2]
    mine, named = call("--model", "stilllife-depth", *edges), call("--controlnet", "stilllife-depth", *edges)
    assert mine[0] == named[0] == 0 and not mine[2], mine[2] + named[2]
    a, b, c = (pixels(Path(json.loads(out)["images"][0]["image"])) for _, out, _ in (plain, mine, named))
    assert (b == c).all() and (a != b).any()
    code, _, err = call(*edges)
    assert code == 2 and "comes with 0 ControlNets, and --control gives 1 pictures; give each a --controlnet" in err


def test_what_cannot_be_steered_so_is_refused_in_one_line(paint, run, place, tmp_path):
    (edges,) = control(place, "sd")[3:]
    for model, options, says in (
        ("sd", ("--controlnet", place / "sd-control"), "each --controlnet steers by a --control PICTURE of its own"),
        ("sd", (*control(place, "sd"), "--control", edges), "got 1 and 2"),
        ("sd", ("--control-mode", 1), "--control-mode is read with --controlnet alone"),
        ("sd", (*control(place, "sd"), "--control-mode", 1), "none of these is one; leave it out"),
        ("sdxl", control(place, "sdxl-union"), "say which one it is given by mode (--control-mode), 0 to 5"),
        ("sdxl", (*control(place, "sdxl-union"), "--control-mode", 6), "lies between 0 and 5, got 6"),
        ("sd", ("--controlnet", f"{place}/sd-control:much", "--control", edges), "PLACE or PLACE:WEIGHT"),
        ("sd", ("--controlnet", f"{place}/sd-control:nan", "--control", edges), "PLACE or PLACE:WEIGHT"),
        ("sd", ("--controlnet", "nowhere", "--control", edges), "there is no ControlNet 'nowhere'"),
        ("sd", ("--controlnet", place / "sd-control", "--control", "no.png"), "there is no file no.png"),
        ("sd", ("--canvas", 256, 64, *control(place, "sd")), "leave it or --canvas out"),
        ("sd", control(place, "sdxl"), "reads texts of width 32, and the model's have 16: it is of another family"),
        ("sdxl", control(place, "sd"), "reads texts of width 16, and the model's have 32: it is of another family"),
        ("sd", control(place, "flux"), "steered by a ControlNetModel, not by a FluxControlNetModel; take one"),
        ("pixart", control(place, "sd"), "takes no controls; ControlNets steer"),
    ):
        code, _, err = paint(model, *options)
        assert code == 2 and says in err and len(err.splitlines()) == 1, (says, err)
    code, _, err = run(
        "edit", place / "photo.png", "--also", place / "edges.png", "--from", "a", "--to", "b", "--out", tmp_path,
        *control(place, "sd"), "csd-edit",
    )  # fmt: skip
    assert code == 2 and "--control is of one picture alone" in err
    assert not list(tmp_path.rglob("*.png"))


def test_a_folder_or_file_of_a_controlnet_as_a_model_says_how_it_is_given(run, place, tmp_path):
    for model in (place / "flux-control", place / "sd-control" / "diffusion_pytorch_model.safetensors"):
        code, _, err = run("generate", PROMPT, "--model", model, "--out", tmp_path)
        assert code == 2 and "give it beside the model (--controlnet F" in err and len(err.splitlines()) == 1, err
