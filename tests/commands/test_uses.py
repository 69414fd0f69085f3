"""What nobody would read is refused or noted: no option is dropped in silence."""

from __future__ import annotations

import json
import re
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import write
from PIL import Image
from safetensors.torch import save_file

from sfumato.commands import uses
from sfumato.commands.options import is_image, painted_size, size_of, slug
from sfumato.errors import SfumatoError
from sfumato.learning import concept_files
from sfumato.methods.edit.appearance import START
from sfumato.tasks.starts import start_of


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo", "other"):
        Image.new("RGB", (64, 64), (90, 120, 30)).save(tmp_path / f"{name}.png")
    (tmp_path / "l.json").write_text('{"cube": [0, 0, 0.5, 1]}')
    (tmp_path / "scene.json").write_text("{}")
    return tmp_path / "photo.png"


EDIT = ("edit", "photo.png", "--from", "a cube", "--to", "a duck", "--steps", 2)
GENERATE = ("generate", "a cube", "--n", 1, "--steps", 1, "--size", 64)
BOX = ("--box", "cube", "0,0,0.5,1")
LAB = ("distill2d", "a cube", "--n", 1, "--steps", 1)
USELESS = {
    "box of no layout": ((*GENERATE, *BOX), "--box is of methods with a layout: .*box-diff, .*llm-grounded"),
    "box of another method": ((*GENERATE, *BOX, "sag"), "--box is of methods with a layout"),
    "box and layout": ((*GENERATE, *BOX, "dense", "--layout", "l.json"), "give one of them"),
    "box of an edit": ((*EDIT, *BOX, "p2p"), "--box is of methods with a layout"),
    "box of compared edits": ((*EDIT, *BOX, "--compare", "p2p,sdedit"), "--box is of methods with a layout"),
    "box of a plan": (("show", "plan", *BOX, "p2p"), "--box is of methods with a layout"),
    "a start without a picture": ((*GENERATE, "sdedit"), "sdedit starts from a picture; .* sfumato edit"),
    "views": ((*GENERATE, "--views", "ring"), "--views and --stride are of a panorama"),
    "stride": ((*GENERATE, "--stride", 2), "--views and --stride are of a panorama"),
    "size and canvas": ((*GENERATE, "--canvas", 128, 64), "give one of them"),
    "perp-neg": ((*GENERATE, "--perp-neg"), "--perp-neg takes what --not says"),
    "looks": ((*EDIT, "--looks", "a duck", "p2p"), "--looks is read with --appearance alone"),
    "appearance": ((*EDIT, "--appearance", "other.png", "p2p"), "that take looks: cross-image.*, eye-for-an-eye"),
    "appearance and guidance": (
        (*EDIT, "--appearance", "other.png", "--guidance", 3, "eye-for-an-eye"), "--appearance goes without guidance"
    ),
    "invert": ((*EDIT, "--invert", "ddim", "sdedit"), "sdedit has a start of its own; leave --invert out"),
    "invert compared": ((*EDIT, "--invert", "ddim", "--compare", "sdedit,diff-edit"), "leave --invert out"),
    "appearance and a start": (
        (*EDIT, "--appearance", "other.png", "sdedit", "+", "eye-for-an-eye"), "starts in a way of its own, .* sdedit"
    ),
    "looks of no appearance": ((*EDIT, "eye-for-an-eye"), "takes a picture's looks; give it --appearance PICTURE"),
    "the same methods": ((*EDIT, "--compare", "p2p,p2p"), "takes different methods, got p2p,p2p"),
    "no names": (("segment", "photo.png", "--names", ","), "are words with commas"),
    "a clip below 0": ((*LAB, "--clip", "-1", "sds"), "--clip is the largest value of a gradient, above 0"),
    "no times": (("features", "photo.png", "--times"), "--times are training steps"),
    "no pictures": (("features",), "no picture is given"),
    "also and appearance": (
        (*EDIT, "--also", "other.png", "--appearance", "other.png", "p2p"), "of one picture alone"
    ),
    "attention of a segmentation": (("segment", "photo.png", "--show-attention", "diff-seg"), "is of text-attribution"),
    "a method that only train-head knows": (
        ("segment", "photo.png", "--json", "nosuch"), r"unknown method 'nosuch'; known: diff-seg, (?!.*(stego|dift))"
    ),
    "a place that only train-head knows": (("segment", "no"), r"nor a method of that name: diff-seg, (?!.*stego)"),
    "a place that is a picture's": (("segment", "no.png"), "no file or folder no.png$"),
    "a method that is mistyped": (
        ("edit", "promt-to-prompt", *EDIT[2:]), "nor a method .*; did you mean prompt-to-prompt"
    ),
    "a place of no method": (("features", "no"), "no file or folder no$"),
    "a method of a picture": ((*GENERATE, "nosuch"), r"unknown method 'nosuch'; known: (?!.*(sdedit|ip2p))"),
    "a match by segments": (("match", "photo.png", "other.png", "diff-seg"), "diff-seg does not match; .* segment"),
    "a segmenter that is none": (("segment", "photo.png", "clip-patches"), "clip-patches does not segment"),
    "labelled": (("segment", "photo.png", "--labelled", "photo.png", "diff-seg"), "takes no examples"),
    "learned": (("segment", "photo.png", "--learned", "x.safetensors", "diff-seg"), "leave --learned out"),
    "learned and a method": (
        ("keypoints", "photo.png", "--learned", "x", "unsupervised-keypoints"), "--learned has its own settings"
    ),
    "edited": (("match", "photo.png", "other.png", "--edited", "photo.png"), "--edited needs --mask"),
    "guidance of a way back": (("invert", "photo.png", "--guidance", 3, "--how", "ddim"), "of its own .* back, 1"),
    "seed of a scene": (("render", "--scene", "scene.json", "--seed", 3), "leave --seed out"),
    "caption and scene": (("render", "a cube", "--scene", "scene.json"), "not both"),
    "reference": ((*LAB, "--reference", "photo.png", "sds"), "--reference is read with --saturation, --hue"),
    "variant": ((*GENERATE, "--variant", "fp16"), "has no variant 'fp16'"),
    "offload": ((*GENERATE, "--offload", "model", "--device", "cpu"), "leave offload out"),
}  # fmt: skip


@pytest.mark.parametrize("name", USELESS)
def test_what_nobody_reads_is_refused(run, here, photo, name):
    args, says = USELESS[name]
    code, out, err = run(*args)
    assert code == 2 and not out and re.search(says, err), err
    assert len(err.strip().splitlines()) == 1


def test_what_is_read_is_not_refused(run, here, photo):
    for args in (
        (*GENERATE, *BOX, "dense", "--until", 1),
        (*EDIT[:3], "a cube", "--to", "a red cube", "--steps", 2, *BOX, "--compare", "sdedit,dense"),
        (*EDIT, "--invert", "ddim", "--compare", "sdedit,p2p"),
        ("invert", "photo.png", "--how", "edict", "--guidance", 2, "--steps", 2),
        ("render", "a cube", "--seed", 3, "--size", 16),
    ):
        code, _, err = run(args[0], "--out", "out", *args[1:])
        assert code == 0, err


def test_what_is_not_read_in_the_end_is_noted(run, here, photo):
    """Each option is noted where nothing reads it, and not where something does."""
    unread, drawn = "does not read --from", "--seed changes nothing"
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save("mask.png")
    for call, says, noted in (
        ((*EDIT, "sdedit"), unread, True),
        ((*EDIT, "blended-latents", "--mask", "mask.png"), unread, True),
        ((*EDIT, "diff-edit", "--mask", "mask.png"), unread, True),
        ((*EDIT, "diff-edit"), unread, False),
        ((*EDIT, "p2p"), unread, False),
        ((*EDIT, "ledits"), unread, False),
        ((*EDIT, "--compare", "p2p,sdedit"), f"note: sdedit {unread}", True),
        ((*EDIT, "--grid", "seed=1,2", "sdedit"), f"note: sdedit {unread}", True),
        ((*EDIT, "--seed", 3, "p2p"), drawn, True),
        ((*EDIT, "--seed", 3, "sdedit"), drawn, False),
        ((*EDIT, "--seed", 3, "--invert", "edit-friendly", "p2p"), drawn, False),
        (("invert", "photo.png", "--steps", 2, "--seed", 3), drawn, True),
        (("invert", "photo.png", "--steps", 2, "--seed", 3, "--how", "edit-friendly"), drawn, False),
        ((*LAB, "--size", 64, "--sweep", "1,2", "sds", "--guidance", 30), "place of the guidance of sds, 30", True),
        ((*LAB, "--size", 64, "--sweep", "1,2", "sds"), "place of the guidance", False),
    ):
        code, _, err = run(call[0], "--out", "out", *call[1:])
        assert code == 0 and err.count(says) == noted, (call, err)


def test_steps_and_seeds_of_an_appearance_are_obeyed(run, here, photo):
    call = ("edit", "photo.png", "--from", "a cube", "--to", "a duck", "--appearance", "other.png", "--out", "out")
    found = [run(*call, "--steps", 4, "--seed", seed, "--json", "eye-for-an-eye") for seed in (0, 1)]
    assert all(code == 0 for code, _, _ in found), found
    one, other = (json.loads(out) for _, out, _ in found)
    assert one["runs"][0]["steps"] < 4 and one["image"] != other["image"]  # of which some are left out
    assert Image.open(one["image"]).tobytes() != Image.open(other["image"]).tobytes()
    assert start_of(None, 4, None, 7, appearance=True) == replace(START, steps=4, seed=7)
    assert start_of(None, appearance=True) == START


def test_a_learned_word_that_no_prompt_says_is_noted_and_its_file_read_once(run, here, photo, monkeypatch):
    save_file({"emb_params": torch.randn(1, 16)}, "mycat.safetensors")
    read, plain = [], concept_files.tensors
    monkeypatch.setattr(concept_files, "tensors", lambda file: read.append(str(file)) or plain(file))
    for prompt, noted in (("a cube", True), ("a mycat on grass", False)):
        code, _, err = run("generate", prompt, *GENERATE[2:], "--embedding", "mycat.safetensors", "--out", "out")
        assert code == 0 and ("no prompt says 'mycat'" in err) == noted, err
    assert read == 2 * ["mycat.safetensors"]
    twice = ("--embedding", "mycat.safetensors", "--embedding", "mycat.safetensors")
    code, _, err = run(*GENERATE, *twice, "--out", "out")
    assert code == 2 and "two files of --embedding hold a word 'mycat'" in err


def test_places_of_a_set_are_said_to_be_the_first_ones(run, here, photo):
    Image.new("L", (64, 64)).save("mask.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save("mask.png")
    call = ("edit", "photo.png", "--also", "other.png", *EDIT[2:6], "--out", "out")
    code, _, err = run(*call, "csd-edit", "--mask", "mask.png", "--steps", 1)
    assert code == 0 and "are of photo.png, and are taken for the others as well" in err, err
    mask.resize((64, 40)).save("mask.png")
    code, _, err = run(*call, "csd-edit", "--mask", "mask.png", "--steps", 1)
    assert code == 2 and "mask.png: 64 x 40 pixels, of another shape than the image of 64 x 64" in err


def test_settings_of_what_was_learned_are_said_to_be_its_own(run, here, photo):
    Image.new("L", (64, 64), 1).save("photo-labels.png")
    call = ("segment", "photo.png", "--side", 64, "--learned", "x.safetensors", "--out", "out")
    quick = ("label-efficient", "--epochs", 1, "--members", 1)
    assert run(*call, "--labelled", "photo.png", *quick)[0] == 0
    for more, said in ((quick, False), (quick[:1], False), ((*quick, "--seed", 3), True)):
        code, _, err = run(*call, *more)
        assert code == 0 and ("those said here are not read" in err) == said, err


@pytest.mark.parametrize(("text", "size"), [("64", (64, 64)), ("96x64", (64, 96)), ("96X64", (64, 96)), (None, None)])
def test_a_size_is_a_side_or_width_and_height(text, size):
    assert size_of(text) == size


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red cube, photo", "a-red-cube-photo"),
        ("  ../../etc/passwd ", "etc-passwd"),
        ("立方体 on grass", "立方体-on-grass"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "café"),
        ("हिन्दी", "हिन्दी"),
        ("a\ncube\0!", "a-cube"),
        ("(cube:1.3) 🦆", "cube-1-3"),
        ("!!!", "untitled"),
        ("con", "con-"),
        ("LPT1", "lpt1-"),
        ("console", "console"),
        ("x" * 99, "x" * 60),
    ],
)
def test_prompts_become_names_of_files(text, name):
    assert slug(text) == name


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".avif", ".heic", ".tif"])
def test_pictures_of_other_kinds_are_no_folders(suffix):
    with pytest.raises(SfumatoError, match=r"images are written as PNG; give --out a \.png or a folder"):
        is_image(Path(f"out/x{suffix}"))
    assert is_image(Path("x.PNG")) and not is_image(Path("out/v1.5"))


def test_a_picture_that_was_given_is_not_written_over(run, here, photo, tmp_path):
    folder, before = write("sd", tmp_path), Path(photo).read_bytes()
    Path("link.png").symlink_to(photo)
    for out in (photo, "link.png"):
        for given in (("--control", photo, "--controlnet", folder), ("--inpaint", photo, "--mask", photo)):
            code, _, err = run("generate", "a cube", "--n", 1, *given, "--out", out)
            assert code == 2 and f"--out {out} is a picture that was given, and would be gone" in err, err
    assert Path(photo).read_bytes() == before


@pytest.mark.parametrize("text", ["", "x64", "64x", "64,96", "64.5", "-64", "big"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(SfumatoError, match="is a side in pixels or WIDTHxHEIGHT"):
        size_of(text)


@pytest.mark.parametrize(
    ("multiple", "size", "says"),
    [
        (8, (768, 512), None), (16, (1024, 2048), None), (64, (64, 128), None), (8, (4096, 4096), None),
        (16, (1032, 1024), "multiple of 16 for m, got 1024x1032; try 1024"),
        (64, (96, 96), "multiple of 64 for m, got 96; try 128"),
        (8, (4, 4), "try 8"),
    ],
)  # fmt: skip
def test_the_model_says_which_sizes_it_paints(multiple, size, says):
    model = types.SimpleNamespace(multiple=multiple, size=512, name="m")
    if says is None:
        assert painted_size(model, size) == size and painted_size(model, None) == (512, 512)  # pyright: ignore
    else:
        with pytest.raises(SfumatoError, match=says):
            painted_size(model, size)  # pyright: ignore[reportArgumentType]


def test_images_are_painted_in_any_size(run, here, tmp_path):
    folder = write("sd3", tmp_path)
    call = ("generate", "a red cube", "--n", 2, "--steps", 1, "--json", "--out", tmp_path / "out")
    code, out, err = run(*call, "--size", "96x64")
    found = json.loads(out)
    assert code == 0 and {Image.open(i["image"]).size for i in found["images"]} == {(96, 64)}, err
    assert found["images"][0]["size"] == "96x64" and Image.open(found["images"][0]["image"]).text["size"] == "96x64"
    assert Image.open(found["grid"]).size == (2 * 96 + 2, 64)
    code, out, err = run(*call, "--model", folder, "--size", "1040x32")
    assert code == 0 and Image.open(json.loads(out)["images"][0]["image"]).size == (1040, 32), err
    code, _, err = run(*call, "--model", folder, "--size", "72")
    assert code == 2 and "multiple of 16" in err and "got 72; try 64" in err
    rows = json.loads(run("show", "sites", "--size", "96x64", "--json")[1])
    assert rows[0]["grid"] == "8x12"
    code, out, err = run(
        "distill2d", "a cube", "--n", 1, "--steps", 1, "--size", "96x64", "--out", tmp_path, "--json", "sds"
    )
    assert code == 0 and Image.open(json.loads(out)["grid"]).size == (96, 64), err


def test_the_table_names_options_that_there_are():
    from sfumato import cli
    from sfumato.commands import fields
    from sfumato.commands.plan import plan

    known = {o for f in (*cli.COMMANDS.values(), plan) for o in fields.grammar(f).options}
    listed = [line.split("|")[1] for line in (uses.__doc__ or "").splitlines() if line.startswith("| ``")]
    assert len(listed) > 15 and {o for cell in listed for o in re.findall(r"--[\w-]+", cell)} <= known
