"""What a command line says, it says in the words that it takes."""

from __future__ import annotations

import json
import re
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from PIL import Image

from sfumato.commands import fields
from sfumato.commands.oneline import oneline, worded
from sfumato.core.settings import Between, kinds_of
from sfumato.errors import SettingError, SfumatoError
from sfumato.experiments.equivariance import Equivariance
from sfumato.io.files import shared
from sfumato.methods import index
from sfumato.methods.control.spatext import SpaText
from sfumato.tasks import lift_recipes


def outside(kind: Any) -> str | None:
    """What lies out of the bounds of one number, as it is typed."""
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    found = [each for each in get_args(kind)[1:] if isinstance(each, Between)] if get_origin(kind) is Annotated else []
    return str(int(found[0].low) - 1) if found else None


def refused(*args: Any) -> str:
    with pytest.raises(SfumatoError) as e, oneline():
        fields.methods(*args).items  # noqa: B018
    return worded(e.value, (), [args[0][0][0]])


@pytest.mark.parametrize("head", [False, True])
def test_a_value_out_of_bounds_is_refused_by_its_option(head):
    """Of each method the first that has them; what is typed is said again, and no name of a class."""
    found = 0
    for entry in (entry for entry in index.METHODS if not entry.is_function and (entry.head or not head)):
        kinds, cls = kinds_of(entry.learner if head else entry.method), (entry.learner if head else entry.method)
        if any(f.default is f.default_factory for f in fields_of(cls)):  # both are missing
            continue
        named = ((f.name, outside(kinds[f.name])) for f in fields_of(cls) if f.metadata.get("command") is not False)
        name, value = next(((name, value) for name, value in named if value), ("", ""))
        if name:
            line = refused([[entry.word, f"--{name.replace('_', '-')}={value}"]], "sfumato edit", head)
            assert re.fullmatch(rf"--{name.replace('_', '-')} of {entry.word} (is|lies) .*, got {value}(\.0)?", line)
            found += 1
    assert found > (0 if head else 70)


def test_what_lies_in_an_option_is_told_of_it():
    line = refused([["p2p", "--blend", "cube", "duck", "3"]], "sfumato edit")
    assert line == "--blend of p2p: its threshold lies between 0 and 1, got 3"


def test_an_error_calls_methods_and_options_what_they_are_called_here():
    wrong = SettingError("offset_rate", "Pretraining", "is at least 0, got -1")
    assert str(wrong) == "offset_rate of Pretraining is at least 0, got -1" == worded(wrong)
    assert worded(wrong, ("--offset-rate",)) == "--offset-rate is at least 0, got -1"
    for text, line in (
        ("AttendAndExcite's words; take PromptToPrompt", "attend-and-excite's words; take prompt-to-prompt"),
        ("SpaTextHead learns; a LoRA, MasaCtrl", "spatext learns; a LoRA, MasaCtrl"),
        ("no file /a/TokenFlow/TokenFlow.png, 'TokenFlow'", "no file /a/TokenFlow/TokenFlow.png, 'TokenFlow'"),
        ("give TokenFlow(every=2)", "give TokenFlow(every=2)"),
    ):
        assert worded(SfumatoError(text)) == line


def test_a_picture_that_is_there_twice_is_done_once_and_told(run, here, tmp_path, monkeypatch):
    """Of two folders, one of which holds a copy: results once, rows and counts of all."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("one/a", "one/b", "two/a")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (90 * (i % 2), 60, 0)).save(tmp_path / f"{name}.png")
    for call, rows, named in (
        (("segment", "one", "two", "--side", 64, "--out", "s", "diff-seg"), "images", "image"),
        (("edit", "one", "two", "--from=a", "--to=b", "--steps", 1, "--out", "e", "sdedit"), "edits", "picture"),
    ):
        code, out, err = run(*call)
        lines = out.splitlines()
        assert code == 0 and len(lines) == len({*lines}) > 4, out
        assert err.count("note: the same picture, done once: two/a.png is one/a.png\n") == 1
        code, out, _ = run(*call[:-1], "--json", call[-1])
        assert [row[named] for row in json.loads(out)[rows]] == ["one/a.png", "one/b.png", "two/a.png"]
        assert str(tmp_path) not in out
    (tmp_path / "one" / "b.png").rename(tmp_path / "two" / "b.png")
    assert run("segment", "two/b.png", "--side", 64, "--out", "s", "diff-seg")[0] == 0
    page = (tmp_path / "s" / "index.html").read_text()
    assert page.count("as it is") == 4, "a picture that was moved is still beside its segments"


@pytest.mark.parametrize(("error", "left"), [(SfumatoError("no"), False), (KeyboardInterrupt(), True)])
def test_a_run_that_is_refused_late_leaves_nothing(run, here, tmp_path, monkeypatch, error, left):
    """After Ctrl-C the name is kept, under which the same run goes on."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr("sfumato.tasks.learn.learn", lambda *args, **options: (_ for _ in ()).throw(error))
    call = ("learn", tmp_path / "a.png", "--as", "<it>", "--kind", "cube", "--steps", 1, "--out", tmp_path / "out")
    assert run(*call, "textual-inversion")[0] in (2, 130)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".it-textual-inversion.learn.json"] * left


def test_what_learns_lifts_and_reads_shapes_names_no_place_either(run, here, models, tmp_path, monkeypatch):
    """Pictures, documents and headers, of a model in a folder and files elsewhere, all named absolutely."""
    pytest.importorskip("trimesh")  # which reads shapes
    real, out, photos = lift_recipes.recipe, tmp_path / "out", tmp_path / "photos"
    small = {"cells": 6, "samples": 6, "cameras": replace(real("sds", "stilllife").cameras, n=1, size=(8, 8))}
    monkeypatch.setattr(lift_recipes, "recipe", lambda word, model: replace(real(word, "stilllife"), **small))
    photos.mkdir()
    for name, colour in (("a", "red"), ("b", "green")):
        Image.new("RGB", (64, 64), colour).save(photos / f"{name}.png")
        (photos / f"{name}.txt").write_text(f"a {{{colour} cube}}")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    (tmp_path / "x.off").write_text("OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n")
    few = ("--steps", 1, "--model", models("sd").name, "--device", "cpu", "--out")
    dift = ("pacl", "+", "dift", "--layers", "up_blocks.0.resnets.0", "--ensemble", 1)
    flat = ("--look", "shaded", "--azimuths", 0, "--elevations", 0, "--size", 64)
    words, shape = ("--from", "a cube", "--to", "a duck"), tmp_path / "x.off"
    for call in (
        ("train-head", photos, "--side", 64, *few, out / "head", *dift),
        ("train-encoder", photos, "--kind", "cube", "--n", 1, "--samples", 1, "--batch", 1, *few, out / "encoder"),
        ("learn", photos, "--as", "<it>", "--kind", "cube", "--samples", 1, *few, out / "word", "textual-inversion"),
        ("distill2d", "a cube", "--n", 1, "--init", photos / "a.png", *few, out / "distilled", "sds"),
        ("lift", "a cube", "--image", photos / "a.png", *few, out / "lifted", "sds"),
        ("edit", photos / "a.png", *words, *few, out / "edit", "blended-latents", "--mask", tmp_path / "mask.png"),
        ("shapes", shape, shape, *few[2:], out / "shapes", "diff3f", "--preset", "defaults", *flat),
    ):
        code, _, err = run(*call)
        assert code == 0, (call, err)
    written = [file for file in out.rglob("[!.]*") if file.is_file()]
    assert {file.suffix for file in written} >= {".png", ".gif", ".json", ".safetensors"} and len(written) > 20
    for file in written:
        for there in (tmp_path, Path(models("sd").name)):
            assert there.is_absolute() and str(there).encode() not in file.read_bytes(), file


def test_texts_and_figures_name_files_alone(models, tmp_path):
    head = tmp_path / "head.safetensors"
    text = f"{SpaText(head=head)!r}"
    assert "head='head.safetensors'" in shared({"by": [text]})["by"][0] and str(tmp_path) in text
    assert shared([str(head), "a / b", "/"]) == ["head.safetensors", "a / b", "/"]
    assert Equivariance(head).about(models("sd")) == "sd: head.safetensors"
