"""The command line: it teaches, it says what is wrong in one line, and its exit codes can be trusted."""

from __future__ import annotations

import json
import runpy
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from sfumato import cli
from sfumato.stilllife.captions import parse, truth
from sfumato.stilllife.scene import Scene


def refused(result, *words):
    """The command was refused with one clear line that holds these words."""
    code, out, err = result
    last = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and out == "" and len(last) == 1 and last[0].startswith("sfumato: "), result
    for word in words:
        assert word in last[0], last[0]


def test_what_a_terminal_cannot_show_is_no_failure(tmp_path, monkeypatch):
    """Such as Windows' code pages: results have been written before they are named."""
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(shown := BytesIO(), encoding="ascii"))
    assert cli.main(["render", "--seed", "3", "--out", str(tmp_path / "画")]) == 0
    sys.stdout.flush()
    assert b"\\u753b" in shown.getvalue()
    assert [*(tmp_path / "画").glob("*.png")]


def test_no_arguments_is_help(run):
    code, out, _ = run()
    assert code == 0 and all(name in out for name in cli.COMMANDS) and out == run("--help")[1]


@pytest.mark.parametrize(
    "name",
    [(n,) for n in cli.COMMANDS if n not in cli.GROUPS]
    + [(g, n) for g, inner in cli.GROUPS.items() for n in inner("")],
    ids=" ".join,
)
def test_every_command_teaches_by_example(run, name):
    code, out, _ = run(*name, "--help")
    assert code == 0 and "Example: " in out and f"sfumato {' '.join(name)}" in out
    assert "--json" in out or name == ("completion",)


def test_version(run):
    assert run("--version")[1].startswith("sfumato ")


def test_a_process_ends_without_looking_for_garbage(monkeypatch, capsys):
    frozen = []
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # which it sets, and nobody else here is to have
    monkeypatch.setattr(cli.gc, "freeze", lambda: frozen.append(True))
    for args, code in ((["--version"], 0), (["nonsense"], 2)):
        monkeypatch.setattr(sys, "argv", ["sfumato", *args])
        for begin in (cli.entry, lambda: runpy.run_module("sfumato", run_name="__main__")):
            with pytest.raises(SystemExit) as ended:
                begin()
            assert ended.value.code == code and frozen.pop(), capsys.readouterr().err


def test_an_unknown_command_or_option_is_a_user_error(run):
    assert run("paint")[0] == 2
    assert run("generate", "a red cube", "--nn", "3")[0] == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--size", "100"], ["multiple of 8", "got 100"]),
        (["--size", "100x64"], ["multiple of 8", "got 100x64; try 96x64"]),
        (["--size", "0"], ["--size lies between 1 and 8192"]),
        (["--size", "64x"], ["WIDTHxHEIGHT, such as 768x512, got '64x'"]),
        (["--canvas", "100", "64"], ["--canvas is a multiple of 8", "got 100x64; try 96x64"]),
        (["--n", "0"], ["--n"]),
        (["--steps", "0"], ["--steps"]),
        (["--seed", "-1"], ["--seed"]),
        (["--guidance", "nan"], ["--guidance"]),
        (["--device", "tpu"], ["unknown device 'tpu'", "cpu"]),
        (["--device", "cuda:99"], ["cuda:99", "cpu"]),
        (["--model", "no/such"], ["unknown model", "there is no such folder"]),
        (["--out", "picture.jpg"], [".png"]),
    ],
)
def test_what_generate_refuses(run, here, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    refused(run("generate", "a red cube", *args), *words)


def test_a_place_that_cannot_be_written_is_found_before_the_work(run, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (["generate", "a red cube"], ["render", "a red cube"], ["tour"], ["bench"]):
        refused(run(*command, "--out", tmp_path / "file" / "x"), "cannot write")


def test_generate_writes_images_that_tell_how_they_were_made(run, here, tmp_path):
    args = ["generate", "a red cube on grass", "--n", 3, "--steps", 2, "--size", 64, "--seed", 5, "--device", "cpu"]
    code, out, err = run(*args, "--out", tmp_path / "a", "--json")
    assert code == 0 and err == ""
    found = json.loads(out)
    assert [row["seed"] for row in found["images"]] == [5, 6, 7]
    image = Image.open(found["images"][1]["image"])
    assert image.size == (64, 64)
    assert image.text["prompt"] == "a red cube on grass" and image.text["seed"] == "6" and image.text["steps"] == "2"
    assert Image.open(found["grid"]).width > 64
    code, out, _ = run(*args[:2], *args[4:8], "--n", 1, "--seed", 6, "--device", "cpu", "--out", tmp_path / "one.png")
    assert code == 0 and out.split() == [str(tmp_path / "one.png")]
    alone = np.array(Image.open(tmp_path / "one.png"), int)
    assert np.abs(alone - np.array(image, int)).max() <= 1  # the same picture, whatever the batch it was in


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a red zebra with a hat", "zebra"),
        ("a red cube and " * 250, "the rest is left out"),
        ("", None),
        ("кот 🐈 \n\x00", "кот"),
    ],
)
def test_any_prompt_works_and_is_remarked_upon(run, here, tmp_path, prompt, says):
    code, out, err = run("generate", prompt, "--n", 1, "--steps", 1, "--size", 64, "--out", tmp_path)
    assert code == 0 and len(out.split()) == 1
    assert (says is None and err == "") or (says is not None and err.startswith("note: ") and says in err)


def test_render_of_a_sentence_is_true_and_its_scene_renders_again(run, tmp_path):
    sentence = "a small red cube to the left of a blue duck on sand at night"
    code, out, _ = run("render", sentence, "--out", tmp_path, "--size", 48, "--seed", 3, "--buffers", "--json")
    assert code == 0
    found = json.loads(out)
    scene = Scene.from_dict(found["scene"])
    assert truth(scene, parse(sentence)) == []
    buffers = np.load(found["files"]["buffers"])
    assert buffers["depth"].shape == (48, 48) and buffers["canonical"].shape == (48, 48, 3)
    again = run("render", "--scene", found["files"]["scene"], "--size", 48, "--out", tmp_path / "again.png")
    assert again[0] == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "again.png")), np.array(Image.open(found["files"]["image"])))


def test_render_depends_on_its_seed(run, tmp_path):
    scenes = [json.loads(run("render", "--size", 16, "--seed", s, "--out", tmp_path, "--json")[1]) for s in (1, 1, 2)]
    assert scenes[0] == scenes[1] and scenes[0]["scene"] != scenes[2]["scene"]


def test_what_render_refuses(run, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.json").write_text('{"things": []}')
    refused(run("render", "a zebra on grass", "--out", tmp_path), "zebra")
    refused(run("render", "", "--out", tmp_path))
    refused(run("render", "a cube on top of a ring", "--out", tmp_path), "ring")
    refused(run("render", "--scene", tmp_path / "none.json", "--out", tmp_path), "none.json")
    refused(run("render", "--scene", tmp_path / "bad.json", "--out", tmp_path), "bad.json: not a", "JSON")
    refused(run("render", "--scene", tmp_path / "empty.json", "--out", tmp_path), "one to 3 things")
    refused(run("render", "a red cube", "--scene", tmp_path / "bad.json", "--out", tmp_path), "not both")


def test_describe_reads_pictures_of_any_kind(run, here, tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)
    rgb = Image.fromarray(colours)
    kinds = {
        "rgba.png": rgb.convert("RGBA"),
        "grey.png": rgb.convert("L"),
        "deep.png": Image.fromarray(colours[..., 0].astype(np.uint16) * 257),
        "palette.gif": rgb.convert("P"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "bits.png": rgb.convert("1"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    code, out, _ = run("describe", *(tmp_path / name for name in kinds), "--json")
    assert code == 0
    rows = json.loads(out)
    assert len(rows) == len(kinds) and all({"image", "things", "ground", "sentence"} <= set(row) for row in rows)
    assert run("describe", tmp_path / "grey.png")[1].count("\n") == 1


def test_describe_says_of_what_it_does_not_know(run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert run("render", "a red cube on grass, by day", "--out", tmp_path / "render.png")[0] == 0
    code, out, _ = run("describe", tmp_path / "noise.png", tmp_path / "render.png")
    assert code == 0 and ["unlike anything it knows" in line for line in out.splitlines()] == [True, False], out
    rows = json.loads(run("describe", tmp_path, "--json")[1])
    assert [row["strange"] for row in rows] == [True, False] and rows[1]["sure"] > 0.85 > rows[0]["sure"]


def test_what_describe_refuses(run, here, tmp_path):
    (tmp_path / "words.png").write_text("not a picture")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    refused(run("describe", tmp_path / "none.png"), "there is no file")
    code, out, err = run("describe", tmp_path)  # one that fails does not stop the others
    assert code == 2 and out.count("\n") == 1 and out.startswith(f"{tmp_path / 'whole.png'}: ")
    assert "3 of 4 images failed (named above); the others are done" in err and "half.png" in err
    refused(run("describe", tmp_path / "words.png"), "not an image")
    refused(run("describe", tmp_path / "half.png"), "half.png")
    refused(run("describe", tmp_path / "huge.png"), "million")
    refused(run("describe"), "one or more images")


def test_models_lists_and_exports(run, here, tmp_path):
    code, out, _ = run("show", "models")
    assert code == 0 and "stilllife-instruct" in out and str(here) in out.replace("\n", "")
    rows = json.loads(run("show", "models", "--json")[1])
    assert {row["name"] for row in rows} == {"stilllife", "stilllife-instruct", "stilllife-depth", "oracle"}
    assert run("export", "stilllife", tmp_path / "out")[:2] == (0, f"{tmp_path / 'out'}\n")
    assert (tmp_path / "out" / "model_index.json").is_file()
    refused(run("export", "stilllife", tmp_path / "out"), "not empty")
    refused(run("export", "still", tmp_path / "new"), "unknown model 'still'")
    code, _, err = run("export")
    assert code == 2 and "NAME" in err and "DIR" in err


def test_ctrl_c_is_130_and_leaves_nothing_half_written(run, here, tmp_path, monkeypatch):
    from sfumato.core import denoising

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(denoising, "denoise", interrupted)
    code, out, err = run("generate", "a red cube", "--out", tmp_path / "out")
    assert (code, out, err) == (130, "", "sfumato: stopped\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_memory_is_one_line(run, here, tmp_path, monkeypatch):
    import torch

    from sfumato.core import denoising

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...\nmore lines")

    monkeypatch.setattr(denoising, "denoise", full)
    refused(run("generate", "a red cube", "--out", tmp_path / "out"), "out of memory", "smaller images")
    monkeypatch.setattr(denoising, "denoise", lambda *args, **kwargs: torch.zeros(10**15))
    refused(run("generate", "a red cube", "--out", tmp_path / "out"), "out of memory")
    assert list((tmp_path / "out").iterdir()) == []


def test_debugging_shows_the_whole_error(monkeypatch):
    from sfumato.errors import SfumatoError

    monkeypatch.setenv("SFUMATO_DEBUG", "1")
    with pytest.raises(SfumatoError):
        cli.main(["generate", "a red cube", "--n", "0"])


def test_bench_prints_one_object(run, here, monkeypatch):
    from sfumato.bench import generate

    monkeypatch.setattr(generate, "STEPS", 1)
    monkeypatch.setattr(generate, "MEASURES", [m for m in generate.MEASURES if m[0][0] == "pair"])
    monkeypatch.setattr(generate, "MEANINGS", {"pair": "pairs"})
    code, out, _ = run("bench", "generate", "--n", 2, "--json")
    found = json.loads(out)
    assert code == 0 and found["suite"] == "generate" and found["n"] == 2 and set(found["results"]) == {"pair"}
    assert "pair" in run("bench", "generate", "--n", 2)[1]


@pytest.mark.parametrize("how", ["direct", "null-text", "negative-prompt", "ddim", "edit-friendly", "edict"])
def test_edit_writes_the_picture_at_its_own_size(run, here, tmp_path, how):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))
    image.save(tmp_path / "photo.jpg")
    options = ["--from", "a red cube", "--to", "a blue cube", "--steps", 4, "--out", tmp_path / "out", "--json"]
    code, out, err = run(
        "edit",
        tmp_path / "photo.jpg",
        *options,
        "--invert",
        how,
        "prompt-to-prompt",
        "--blend",
        "cube",
        "cube",
        0.6,
    )
    assert code == 0, err
    files = json.loads(out)
    assert Image.open(files["image"]).size == (130, 90)
    assert Image.open(files["image"]).text["target"] == "a blue cube"  # pyright: ignore[reportAttributeAccessIssue]
    assert Image.open(files["beside"]).size == (262, 90)
    plan = json.loads(Path(files["plan"]).read_text(encoding="utf-8"))
    assert {row["does"] for row in plan} == {"reads maps", "writes probs", "writes qkv"}


def test_a_mask_is_of_the_picture_however_that_is_fitted(run, here, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (128, 256, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    mask = np.zeros((128, 256), np.uint8)
    mask[:, 64:96] = 255  # what --fit crop sees begins at 64
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--from", "a cube", "--to", "a duck", "--fit", "crop", "--steps", 3, "--out", tmp_path, "--json"]
    code, out, err = run("edit", tmp_path / "photo.png", *options, "blended-latents", "--mask", tmp_path / "mask.png")
    assert code == 0, err
    changed = (np.asarray(Image.open(json.loads(out)["image"])) != image).any((0, 2)).nonzero()[0]
    assert changed.min() == 64 and 92 < changed.max() < 104


def test_sdedit_without_noise_is_the_picture(run, here, tmp_path):
    Image.new("RGB", (128, 128), (90, 120, 30)).save(tmp_path / "photo.png")
    options = ["--from", "a cube", "--to", "a duck", "--steps", 3, "--out", tmp_path, "--json"]
    pictures = []
    for strength in (0.0, 0.0, 1.0):
        code, out, err = run("edit", tmp_path / "photo.png", *options, "sdedit", "--strength", strength)
        assert code == 0, err
        pictures.append(np.asarray(Image.open(json.loads(out)["image"]), float))
    assert np.array_equal(pictures[0], pictures[1]) and np.abs(pictures[2] - pictures[0]).mean() > 1


def test_what_edit_refuses(run, here, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    options = ["--from", "a red cube", "--to", "a blue cube", "--out", tmp_path / "out"]
    refused(run("edit", tmp_path / "none.png", *options, "sdedit"), "there is no file")
    refused(run("edit", tmp_path / "x.png", *options, "sdedit", "--strength", 2), "strength", "got 2")
    refused(run("edit", tmp_path / "x.png", *options, "--steps", 0, "sdedit"), "--steps")
    blend = ["prompt-to-prompt", "--blend", "duck", "cube"]
    refused(run("edit", tmp_path / "x.png", *options, *blend), "has no 'duck'", "a, red, cube")
    refused(run("edit", tmp_path / "x.png", *options, "--memory", 0, "prompt-to-prompt"), "MiB allowed")
    refused(run("edit", tmp_path / "x.png", *options, "prompt-to-prompt", "--cross", 1.5), "between 0 and 1")


def test_sites_and_plan_are_tables(run, here):
    code, out, _ = run("show", "sites", "--json")
    rows = json.loads(out)
    assert code == 0 and [r["index"] for r in rows] == list(range(len(rows)))
    assert {r["pairs"] for r in rows} == {"image->image", "image->text"} and {r["grid"] for r in rows} == {
        "16x16",
        "8x8",
    }
    assert "image->text" in run("show", "sites", "--size", 256)[1]
    code, out, _ = run("show", "plan", "--steps", 10, "--json", "prompt-to-prompt", "--cross", 0.5)
    assert code == 0 and [r["steps"] for r in json.loads(out)] == ["0-4", "0-3"]
    assert "nothing is tapped" in run("show", "plan", "sdedit")[1]
    refused(run("show", "sites", "no/such"), "unknown model")


@pytest.mark.parametrize("how", ["direct", "edit-friendly", "edict"])
def test_invert_finds_the_image(run, here, tmp_path, how):
    Image.new("RGB", (200, 130), (90, 120, 30)).save(tmp_path / "photo.png")
    code, out, err = run(
        "invert", tmp_path / "photo.png", "a cube", "--steps", 4, "--how", how, "--out", tmp_path, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert abs(found["psnr"] - found["psnr_vae"]) < 0.1
    assert Image.open(found["image"]).size == (3 * 200 + 4, 128)
    with safe_open(found["path"], "pt") as file:
        assert "start" in file.keys() and file.metadata()["how"] == how  # noqa: SIM118
    refused(run("invert", tmp_path / "none.png", "a cube"), "there is no file")


@pytest.mark.parametrize("command", ["edit", "invert"])
def test_a_picture_that_the_model_cannot_hold_is_remarked_upon(run, here, tmp_path, monkeypatch, command):
    Image.new("RGB", (64, 64), (90, 120, 30)).save(tmp_path / "photo.png")
    words = ["--from", "a red cube", "--to", "a blue cube", "sdedit"] if command == "edit" else ["--how", "ddim"]
    call = [command, tmp_path / "photo.png", *words, "--steps", 2, "--out", tmp_path]
    for held, says in ((200.0, True), (-200.0, False)):
        monkeypatch.setattr("sfumato.stilllife.paint.HELD", held)
        code, _, err = run(*call)
        assert code == 0 and ("dB, and what it was made for at" in err) == says, err


def test_methods_are_chained_and_compared(run, here, tmp_path):
    Image.new("RGB", (70, 90), (90, 120, 30)).save(tmp_path / "photo.png")
    edit = ["edit", tmp_path / "photo.png", "--from", "a red cube", "--to", "a blue cube", "--steps", 3, "--json"]
    code, out, err = run(*edit, "--out", tmp_path / "a", "--show-attention", "sdedit", "+", "p2p", "--cross", 0.5)
    assert code == 0, err
    files = json.loads(out)
    assert Image.open(files["image"]).size == (70, 90) and Image.open(files["attention"]).width == 2 * 128 + 2
    assert json.loads(Path(files["plan"]).read_text())[0]["method"] == "PromptToPrompt"
    code, out, err = run(*edit, "--out", tmp_path / "b", "--compare", "sdedit,p2p:pie-bench")
    assert code == 0, err
    files = json.loads(out)
    assert {r["method"] for r in files["runs"]} == {"sdedit", "p2p:pie-bench"} and Path(files["image sdedit"]).is_file()
    sheet = Image.open(files["compare"])
    assert sheet.size == (3 * 72 - 2, 106)
    assert "method" not in sheet.info, "it is of no single one"
    refused(run(*edit), "edit takes methods", "masactrl")
    refused(run(*edit, "masa"), "unknown method 'masa'", "masactrl")
    refused(run(*edit, "--compare", "masa"), "unknown method 'masa'", "masactrl")
    refused(run(*edit, "--compare", "p2p", "p2p"), "edit takes methods")
    refused(run(*edit, "p2p", "+", "pnp"), "both write qkv of image->image", "disjoint steps")


def test_generate_takes_methods_layouts_and_overlays(run, here, tmp_path):
    words = ["generate", "a red cube and a duck", "--n", 2, "--steps", 2, "--json", "--out", tmp_path]
    box = ["--box", "red cube", "0,0,64,128", "--box", "a duck", "0.5,0,1,1"]
    excited = ["attend-excite", "--words", "cube,duck", "--res", 1, "--refinements", 1]
    chained = [*excited, "+", "dense", "--until", 1, "+", "sag"]
    code, out, err = run(*words, *box, "--show-attention", *chained)
    assert code == 0, err
    found = json.loads(out)
    assert len(found["images"]) == 2 and Path(found["images"][0]["attention"]).is_file()
    does = {row["method"]: row["does"] for row in json.loads(Path(found["plan"]).read_text()) if "pair" in row}
    assert does["AttendAndExcite"] == "looks at maps" and does["DenseDiffusion"] == "writes logits"
    assert "DenseDiffusion" in Image.open(found["images"][1]["image"]).text["methods"]  # pyright: ignore
    (tmp_path / "l.json").write_text('{"cube": [0, 0, 64, 128]}')
    assert run(*words, "dense", "--layout", tmp_path / "l.json")[0] == 0
    before = set(tmp_path.iterdir())
    refused(run(*words, "dense"), "needs a layout")
    refused(run(*words, "attend-excite", "--words", "cat"), "has no 'cat'", "a, red, cube, and, a, duck")
    refused(run(*words, "--box", "cube", "0,0,300,10", "dense"), "outside of the image of 128 x 128")
    refused(run(*words, "--box", "cube", "0,0,10", "dense"), "left,top,right,bottom")
    refused(run(*words, "--box", "a cat", "0,0,1,1", "dense"), "has no 'a cat'")
    refused(run(*words, "p2p"), "needs two prompts")
    assert set(tmp_path.iterdir()) == before


def test_looks_go_over_from_another_picture(run, here, tmp_path):
    for name, colour in {"photo": (90, 120, 30), "looks": (200, 20, 30)}.items():
        Image.new("RGB", (128, 128), colour).save(tmp_path / f"{name}.png")
    edit = ["edit", tmp_path / "photo.png", "--from", "a cube", "--to", "a cube", "--steps", 3, "--out", tmp_path]
    looks = ["--appearance", tmp_path / "looks.png", "--looks", "a sphere", "--invert", "direct"]
    method = ["eye-for-an-eye", "--word", "cube", "--appearance-word", "sphere"]
    code, out, err = run(*edit, *looks, *method)
    assert code == 0 and "photo-edited.png" in out, err
    refused(run(*edit, *method), "eye-for-an-eye takes a picture's looks; give it --appearance PICTURE")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_cannot_be_parsed_is_one_line(run, monkeypatch, encoding):
    """Of the boxes that tyro draws, with lines and without."""
    import tyro

    monkeypatch.setattr(tyro._fmtlib, "_should_use_utf8_drawing_chars", lambda: encoding == "utf-8")
    for call, says in (
        ("generate", "sfumato generate needs PROMPT (What to paint, in quotes); see sfumato generate --help"),
        ("edit a.png sdedit", "needs --from STR (What the picture shows) and --to STR (What it should show); see"),
        ("generate x --n nan", "--n takes a whole number, got 'nan'"),
        ("generate x --steps 2.5", "--steps takes a whole number, got '2.5'"),
        ("generate x --guidance much", "--guidance takes a number, got 'much'"),
        ("generate x --canvas 5", "--canvas takes WIDTH HEIGHT, got '5'"),
        ("generate x sag --scale much", "--scale takes a number, got 'much'"),
        ("generate x --stepper nope", "unknown --stepper 'nope'; known: auto, ddim, ddpm, euler"),
        ("bench nope", "unknown suite 'nope'; known: generate, core"),
        ("render --size", "--size takes a value, and none follows"),
        ("nope", "unknown command 'nope'; known: generate, panorama"),
        ("nope edit", "unknown command 'nope'; known: generate, panorama"),
        ("show nope", "unknown command 'nope'; known: models, sites"),
        ("tour --nope 3", "unknown option --nope; see --help"),
        ("genrate x", "unknown command 'genrate'; did you mean generate? known: generate"),
        ("render --sed 3", "unknown option --sed; did you mean --seed or"),
        ("edit x.png --from a --to b promt-to-prompt", "did you mean prompt-to-prompt or"),
        ("render a b", "'b' is a word too many; a sentence stands in quotes"),
    ):
        code, out, err = run(*call.split())
        assert code == 2 and not out and err.startswith("sfumato: ") and says in err, (call, err)
        assert len(err.splitlines()) == 1, err
