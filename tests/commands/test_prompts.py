"""Prompts on the command line: what is cut off is said in every command, negative prompts, weights, learned words."""

from __future__ import annotations

import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

LONG = "a red cube and " * 25
TARGET = LONG + "a blue duck"


@pytest.fixture
def photo(tmp_path):
    noise = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def call(run, here, tmp_path):
    return lambda *args: run(*args, "--out", tmp_path / "out", "--device", "cpu", "--json")


def notes(err: str) -> list[str]:
    return [line for line in err.splitlines() if "left out" in line]


COMMANDS = {
    "generate": ["generate", LONG, "--n", 1, "--steps", 1, "--size", 64],
    "generate --negative": ["generate", "a cube", "--negative", LONG, "--n", 1, "--steps", 1, "--size", 64],
    "edit": ["edit", "PHOTO", "--from", LONG, "--to", "a duck", "--steps", 2, "pnp"],
    "edit --to": ["edit", "PHOTO", "--from", "a duck", "--to", LONG, "--steps", 2, "masactrl"],
    "invert": ["invert", "PHOTO", LONG, "--steps", 2],
    "distill2d": ["distill2d", LONG, "--n", 1, "--steps", 1, "sds"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_once_what_is_cut_off(call, photo, name):
    code, _, err = call(*(photo if a == "PHOTO" else a for a in COMMANDS[name]))
    assert code == 0, err
    (note,) = notes(err)
    assert note.startswith("note: the prompt has 100 tokens, stilllife reads the first 75; the rest is left out: ")
    assert note.endswith(": and a red cube and a red cube and a red cube and 13 more")


@pytest.mark.parametrize("method", [["sdedit"], ["prompt-to-prompt"], ["flow-edit"]])
def test_an_edit_of_what_is_cut_off_is_refused(call, photo, method):
    code, _, err = call("edit", photo, "--from", LONG + "a red cube", "--to", TARGET, "--steps", 2, *method)
    assert code == 2 and "source and target differ only in what is cut off: stilllife reads the first 75" in err


def test_a_named_word_that_is_cut_off_is_refused(call, photo):
    edit = ["edit", photo, "--from", "a duck on grass", "--to", TARGET, "--steps", 2, "prompt-to-prompt"]
    code, _, err = call(*edit, "--blend", "duck", "duck")
    assert code == 2 and "'duck' lies in what is cut off: the prompt is read only to" in err
    code, _, err = call("generate", TARGET, "--n", 1, "--steps", 1, "attend-and-excite", "--words", "duck")
    assert code == 2 and "'duck' lies in what is cut off" in err


def painted(call, *args):
    code, out, err = call(*args)
    assert code == 0, err
    found = json.loads(out)
    return Image.open(found["image"] if "image" in found else found["images"][0]["image"]).tobytes()


def test_weights_act_and_brackets_are_not_words(call):
    plain = ["--n", 1, "--steps", 2, "--size", 64, "--guidance", 5]
    pictures = [painted(call, "generate", p, *plain) for p in ("a red cube", "a (red:1.0) cube", "a (red:3) cube")]
    assert pictures[0] == pictures[1] != pictures[2]
    code, _, err = call("generate", "a (red:1.4) zebra", *plain)
    assert code == 0 and err == "note: the built-in model never met: zebra; it paints what it knows\n"
    code, _, err = call("generate", "a [red:blue:0.5] cube", *plain)
    assert code == 2 and "words that change at a step" in err


def test_edits_and_inversions_take_a_negative_prompt(call, photo):
    edit = ["edit", photo, "--from", "a red cube", "--to", "a blue cube", "--steps", 3]
    options = [[], ["--negative", "a duck"], ["--negative", "a (duck:3)"]]
    assert len({painted(call, *edit, *more, "sdedit", "--strength", 1) for more in options}) == 3
    code, _, err = call(*edit, "--negative", "a duck", "--invert", "null-text", "prompt-to-prompt")
    assert code == 2 and "NullText replaces the empty prompt, so there is no place for a negative one" in err
    code, _, err = call(*edit, "--negative", "a duck", "--guidance", 1, "sdedit")
    assert code == 2 and "at guidance 1 only the prompt is asked for" in err
    paths = []
    for more in options[:2]:
        code, out, _ = call("invert", photo, "a red cube", "--how", "edict", "--guidance", 3, "--steps", 3, *more)
        assert code == 0 and json.loads(out)["psnr"] == pytest.approx(json.loads(out)["psnr_vae"], abs=0.1)
        paths.append(load_file(json.loads(out)["path"])["start"])
    assert (paths[0] - paths[1]).abs().max() > 1e-4
    code, _, err = call("invert", photo, "a red cube", "--how", "negative-prompt", "--negative", "a duck")
    assert code == 2 and "NegativePrompt replaces the empty prompt" in err


def test_distillation_takes_a_negative_prompt(call, tmp_path):
    def distilled(*more):
        code, out, err = call("distill2d", "a red cube", "--n", 1, "--steps", 2, *more)
        assert code == 0, err
        return Image.open(json.loads(out)["runs"][0]["files"][0]).tobytes()

    plain, away = distilled("sds"), distilled("--negative", "a duck", "sds")
    assert plain != away == distilled("sds", "--negative", "a duck")


def test_a_prompt_that_is_no_text_is_one_line(call):
    code, _, err = call("generate", os.fsdecode(b"a caf\xe9"), "--n", 1, "--steps", 1, "--size", 64)
    assert code == 2 and err.splitlines()[-1].endswith("a prompt is text in UTF-8, got 'a caf\\udce9'")


def test_a_learned_word_and_skipped_layers(call, tmp_path):
    save_file({"emb_params": torch.arange(32.0).view(2, 16) / 16}, tmp_path / "toy.safetensors")
    plain = ["--n", 1, "--steps", 2, "--size", 64]
    pictures = [painted(call, "generate", "a toy", *plain)]
    pictures += [painted(call, "generate", "a toy", *plain, "--embedding", tmp_path / "toy.safetensors")]
    pictures += [painted(call, "generate", "a thing", *plain, "--embedding", f"{tmp_path / 'toy.safetensors'}:thing")]
    pictures += [painted(call, "generate", "a toy", *plain, "--clip-skip", 0)]
    assert pictures[0] == pictures[3] != pictures[1] == pictures[2]
    code, _, err = call("generate", "a toy", *plain, "--clip-skip", 1)
    assert code == 2 and "clip_skip lies between 0 and 0, got 1" in err, "the tiny model's CLIP has one layer"
    save_file({"emb_params": torch.zeros(2, 32)}, tmp_path / "wide.safetensors")
    code, _, err = call("generate", "a toy", *plain, "--embedding", tmp_path / "wide.safetensors")
    assert code == 2 and "'wide' is 32 wide, and stilllife reads words of 16" in err
    code, _, err = call("generate", "a toy", *plain, "--embedding", tmp_path / "none.safetensors")
    assert code == 2 and "there is no file" in err
