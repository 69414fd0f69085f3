"""Commands that read images: files and folders in, label files, tables and pages out; what is wrong in one line."""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from html import escape
from io import BytesIO
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sfumato.commands.options import Loading
from sfumato.errors import SfumatoError
from sfumato.media import opening, page
from sfumato.media.labels import from_run_lengths, read_labels
from sfumato.tasks.recipes import RECIPES, Recipe


@pytest.fixture
def photos(tmp_path):
    """Three pictures of different shapes, a text file and a broken picture."""
    rng, place = np.random.default_rng(0), tmp_path / "photos"
    place.mkdir()
    for name, size in (("a", (40, 30)), ("b", (30, 50)), ("c", (24, 24))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(place / f"{name}.png")
    (place / "notes.txt").write_text("not a picture")
    (place / "d.jpg").write_bytes(b"broken")
    return place


def test_a_folder_is_segmented_and_one_bad_image_does_not_stop_it(run, here, photos, tmp_path):
    out = tmp_path / "out"
    code, told, err = run("segment", photos, "--side", 64, "--out", out, "diff-seg", "+", "graph-cut")
    assert code == 2 and "1 of 4 images failed" in err and "notes.txt" in err and "d.jpg is not an image" in err
    document = json.loads((out / "segments.json").read_text())
    assert [(i["width"], i["height"]) for i in document["images"]] == [(30, 40), (50, 30), (24, 24)]
    for image in document["images"]:
        stem = image["file_name"].rsplit("/", 1)[-1][0]
        labels = read_labels(out / f"{stem}-labels.png", (image["height"], image["width"]))
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        assert sum(a["area"] for a in own) == labels.numel()
        for a in own:
            mask = from_run_lengths(a["segmentation"])
            assert int(mask.sum()) == a["area"] and len(labels[mask].unique()) == 1
    page = (out / "index.html").read_text()
    assert "a.png" in page and "http" not in page.replace("http-equiv", "")
    assert str(out / "a-labels.png") in told


def test_what_was_done_is_not_done_again_until_settings_change(run, here, photos, tmp_path, monkeypatch):
    from sfumato.methods.perceive.diff_seg import DiffSeg

    done, work = [], DiffSeg.__call__
    monkeypatch.setattr(DiffSeg, "__call__", lambda self, reader: done.append(1) or work(self, reader))
    call = ("segment", photos / "a.png", photos / "c.png", "--side", 64, "--out", tmp_path / "out", "diff-seg")
    first = run(*call)
    assert first[0] == 0 and len(done) == 2
    assert run(*call) == first and len(done) == 2
    (tmp_path / "out" / "a-labels.png").unlink()
    assert run(*call) == first and len(done) == 3
    run(*call, "--threshold", "0.5")
    assert len(done) == 5


def test_segments_learn_from_labelled_examples_and_get_names(run, here, photos, tmp_path):
    examples = tmp_path / "examples"
    examples.mkdir()
    for name in "ac":
        with Image.open(photos / f"{name}.png") as picture:
            picture.save(examples / f"{name}.png")
            mask = Image.new("L", picture.size)
            mask.paste(255, (0, 0, picture.width // 2, picture.height))
        mask.save(examples / f"{name}-labels.png")
    call = ("segment", photos / "b.png", "--side", 64, "--out", tmp_path / "out")
    code, _, err = run(*call, "--labelled", examples, "few-shot", "--preset", "defaults")
    assert code == 0, err
    assert set(read_labels(tmp_path / "out" / "b-labels.png").unique().tolist()) <= {0, 1}
    code, _, err = run(*call, "--labelled", examples, "label-efficient", "--epochs", 1, "--members", 2)
    assert code == 0, err
    code, out, err = run(*call, "--names", "cube,grass", "--json", "diff-seg")
    assert code == 0 and set(json.loads(out)["images"][0]["names"]) <= {"cube", "grass"}, err
    for more, why in (
        (("few-shot",), "give a folder of them: --labelled"),
        (("--labelled", examples, "diff-seg"), "takes no examples"),
        (("--labelled", tmp_path / "none", "few-shot"), "no file or folder"),
        (("--labelled", photos, "few-shot"), "holds no picture NAME.png with its labels"),
        (("graph-cut",), "one method segments"),
        (("diffsegg",), "unknown method 'diffsegg'; did you mean diffseg or diff-seg? known: "),
        (("dift",), "does not segment"),
        (("--side", 3, "diff-seg"), "--side lies between"),
    ):
        code, _, err = run(*call, *more)
        last = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert code == 2 and len(last) == 1 and why in last[0], (more, err)


def test_what_is_learned_anew_and_what_is_learned_from_are_not_mistaken_for_what_they_were(run, here, photos, tmp_path):
    learned, label = tmp_path / "learned.safetensors", photos / "a-labels.png"
    quick = ("label-efficient", "--epochs", 3, "--members", 1, "--seed", 1)
    call = ("segment", photos / "b.png", "--side", 64, "--out", tmp_path / "out")

    def segmented(value: int, *more: object) -> set[int]:
        Image.new("L", Image.open(photos / "a.png").size, value).save(label)
        code, _, err = run(*call, "--labelled", photos / "a.png", *more, *quick)
        assert code == 0, err
        return set(read_labels(tmp_path / "out" / "b-labels.png").unique().tolist())

    assert 2 not in segmented(1) and 2 in segmented(2)
    for value in (1, 2):
        segmented(value, "--learned", learned)
        assert run(*call[:-1], tmp_path / "later", "--learned", learned, *quick)[0] == 0
        assert (2 in read_labels(tmp_path / "later" / "b-labels.png")) == (value == 2)


def test_points_masks_and_edits_go_from_one_image_to_another(run, here, photos, tmp_path, monkeypatch):
    quick = Recipe("dift", {"ensemble": 1})  # the tiny model has no such layers
    monkeypatch.setitem(RECIPES, ("stilllife", "dift"), quick)
    out = tmp_path / "out"
    mask = Image.new("L", (30, 40))
    mask.paste(255, (5, 5, 20, 20))
    mask.save(tmp_path / "mask.png")
    code, told, err = run(
        "match", photos / "a.png", photos / "b.png", "--points", "3,4", "20.5,30", "--mask", tmp_path / "mask.png",
        "--edited", photos / "a.png", "--side", 64, "--out", out, "--json", "dift", "--ensemble", 1,
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(told)
    assert [m["source"] for m in found["matches"]] == [[3, 4], [20.5, 30]]
    assert all(0 <= m["target"][0] <= 50 and 0 <= m["target"][1] <= 30 for m in found["matches"])
    assert read_labels(out / "a-to-b-mask.png").shape == (30, 50)
    assert Image.open(out / "a-to-b-edited.png").size == (50, 30)
    clear = Image.open(photos / "b.png").convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(tmp_path / "clear.png")
    code, told, err = run(
        "match", photos / "a.png", tmp_path / "clear.png", "--mask", tmp_path / "mask.png", "--edited",
        photos / "a.png", "--side", 64, "--out", out, "--json", "dift", "--ensemble", 1,
    )  # fmt: skip
    carried = Image.open(out / "a-to-clear-edited.png")
    assert code == 0 and carried.getchannel("A").tobytes() == clear.getchannel("A").tobytes(), err
    code, told, _ = run("match", photos / "a.png", photos / "b.png", "--side", 64, "--out", out, "--json")
    assert code == 0 and len(json.loads(told)["matches"]) == 36
    mask.resize((9, 9)).save(tmp_path / "small.png")
    pair = ("match", photos / "a.png", photos / "b.png", "--side", 64, "--out", out)
    for more, why in (
        (("--points", "300,4"), "outside of the image of 30 x 40"),
        (("--points", "3;4"), "a point is X,Y"),
        (("--mask", tmp_path / "small.png"), "small.png: 9 x 9 pixels, of another shape than the image of 30 x 40"),
        (("--edited", photos / "a.png"), "--edited needs --mask"),
    ):
        code, _, err = run(*pair, *more)
        assert code == 2 and why in err, (more, err)


def test_words_are_shown_where_they_look(run, here, photos, tmp_path):
    out = tmp_path / "out"
    call = ("segment", photos / "a.png", "--side", 64, "--out", out, "--show-attention", "text-attribution")
    code, _, err = run(*call, "--words", "red cube,grass", "--prompt", "a red cube on grass", "--preset", "still-life")
    assert code == 0, err
    assert {p.name for p in out.glob("a-*")} == {
        "a-red-cube.png",
        "a-grass.png",
        "a-attribution.png",
        "a-attribution.safetensors",
        "a-labels.png",
        "a-overlay.png",
    }
    assert set(load_file(out / "a-attribution.safetensors")) == {"red cube", "grass"}
    code, _, err = run("segment", photos / "a.png", "--side", 64, "--out", out, "--show-attention", "diff-seg")
    assert code == 2 and "--show-attention is of text-attribution" in err
    for more, why in (
        (("--words", "duck", "--prompt", "a cube"), "the prompt has no 'duck'"),
        (("--words", " , "), "attribution needs words"),
        (("--words", "cube", "--preset", "best"), "unknown preset of text-attribution 'best'"),
    ):
        code, _, err = run(*call, *more)
        assert code == 2 and why in err, err


def test_keypoints_are_learned_once_and_found_again(run, here, tmp_path):
    place = tmp_path / "ducks"
    place.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    learn = ("--tokens", 8, "--candidates", 4, "--keypoints", 2, "--steps", 2, "--grid", 8, "--augmentations", 1)
    out = tmp_path / "out"
    code, told, err = run(
        "keypoints", place, "--side", 64, "--out", out, "--json", "unsupervised-keypoints", *learn, "--parts", 1, 1
    )
    assert code == 0, err
    first = json.loads(told)
    assert all(len(row["points"]) == 2 for row in first["images"])
    again = run("keypoints", place, "--learned", first["learned"], "--side", 64, "--out", tmp_path / "more", "--json")
    assert [r["points"] for r in json.loads(again[1])["images"]] == [r["points"] for r in first["images"]]
    code, _, err = run("keypoints", place, "--learned", place / "0.png", "--out", out)
    assert code == 2 and "cannot read" in err
    code, _, err = run("keypoints", place, "--out", out, "diff-seg")
    assert code == 2 and "learned by unsupervised-keypoints" in err


def test_features_are_drawn_and_kept(run, here, photos, tmp_path):
    out = tmp_path / "out"
    code, _, err = run("features", photos / "a.png", "--side", 64, "--layers", 0, 3, "--times", 1, 100, "--out", out)
    assert code == 0, err
    tensors = load_file(out / "a-features.safetensors")
    assert set(tensors) == {"hidden 0", "hidden 3"} and all(len(t) == 2 for t in tensors.values())
    assert (out / "features.png").exists()
    code, _, err = run("features", photos / "a.png", photos / "b.png", "--out", out)
    assert code == 2 and "images of one shape" in err
    other = tmp_path / "other"
    other.mkdir()
    copy(photos / "a.png", other)
    call = ("features", photos / "a.png", other / "a.png", photos / "d.jpg", "--side", 64, "--layers", 3, "--times", 1)
    code, told, err = run(*call, "--out", tmp_path / "more")
    assert code == 2 and "1 of 3 images failed (named above); the others are done" in err and "d.jpg is not" in err
    assert f"of several pictures of one name: {other / 'a.png'} is a-2\n" in err and "a-2-features" in told
    code, _, err = run("features", photos / "a.png", "--what", "tokens", "--layers", 99, "--out", out)
    assert code == 2 and "has layers tokens 0 to" in err


def test_strange_images_are_read_or_refused_in_one_line(run, here, tmp_path):
    torch.manual_seed(0)
    for name, picture in (
        ("plain", Image.new("RGB", (40, 40), (200, 30, 30))),
        ("grey", Image.new("L", (40, 40), 90)),
        ("clear", Image.new("RGBA", (40, 40), (0, 0, 0, 0))),
        ("wide", Image.new("I;16", (60, 30), 30000)),
    ):
        picture.save(tmp_path / f"{name}.png")
        code, _, err = run("segment", tmp_path / f"{name}.png", "--side", 64, "--out", tmp_path / "out", "diff-seg")
        assert code == 0, err
    for name in (os.fsdecode(b"caf\xe9"), "x" * 250, "画" * 80, "a b.c é"):
        file = (tmp_path / "plain.png").rename(tmp_path / f"{name}.png")
        code, out, err = run("segment", file, "--side", 64, "--out", tmp_path / "out", "--json", "diff-seg")
        assert code == 0 and json.loads(out)["images"][-1]["image"] == str(file), err
        assert run("features", file, "--side", 64, "--times", 1, "--layers", 3, "--out", tmp_path / "out")[0] == 0
        file.rename(tmp_path / "plain.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "tiny.png")
    code, _, err = run("segment", tmp_path / "tiny.png", "--out", tmp_path / "out", "diff-seg")
    assert code == 2 and "smaller than a patch" in err
    code, _, err = run("segment", tmp_path / "none.png", "--out", tmp_path / "out", "diff-seg")
    assert code == 2 and "no file or folder" in err
    code, _, err = run("segment", tmp_path / "plain.png", "--out", tmp_path / "out", "masactrl")
    assert code == 2


def test_all_that_lies_in_a_folder_is_listed_and_none_is_lost(run, here, photos, tmp_path):
    """Folders of like names, one after the other and again; other settings; a picture that is gone."""
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (20, 36, 3), dtype=np.uint8)).save(other / "a.png")

    def segmented(*args: object) -> tuple[list[tuple[str, int, int]], str]:
        code, _, err = run("segment", *args, "--side", 64, "--out", out, "diff-seg")
        assert code == 0, err
        document = json.loads((out / "segments.json").read_text())
        return [(i["file_name"], i["width"], i["height"]) for i in document["images"]], err

    first = segmented(photos / "a.png", photos / "c.png")[0]
    before = (out / "a-labels.png").read_bytes()
    both, err = segmented(other / "a.png")
    assert f"of several pictures of one name: {other / 'a.png'} is a.2\n" in err
    assert [name for name, *_ in both] == ["photos/a.png", "other/a.png", "c.png"]
    assert (out / "a-labels.png").read_bytes() == before and read_labels(out / "a.2-labels.png").shape == (20, 36)
    page = (out / "index.html").read_text()
    assert all(name in page for name, *_ in both)
    assert segmented(photos / "a.png", photos / "c.png")[0] == both and len(first) == 2
    (other / "a.png").unlink()  # its result is still there
    assert segmented(photos / "c.png")[0] == both
    (out / "a.2-overlay.png").unlink()
    assert segmented(photos / "c.png")[0] == first == [("a.png", 30, 40), ("c.png", 24, 24)]
    code, told, err = run(
        "segment", photos / "a.png", "--side", 64, "--out", out, "--json", "diff-seg", "--threshold", 2
    )
    assert code == 0 and "1 results of other settings in" in err and "are replaced" in err
    assert json.loads(told)["images"][0]["files"][0] == str(out / "a-labels.png")
    assert not segmented(photos / "c.png")[1]


def test_a_run_without_a_result_says_so_and_leaves_nothing(run, here, tmp_path):
    place, out = tmp_path / "photos", tmp_path / "out"
    (tmp_path / "none").mkdir(), place.mkdir()
    (place / "a.png").write_bytes(b"")
    Image.new("RGB", (5, 5)).save(place / "tiny.png")
    for given, says in (
        ([], "no picture is given"),
        ([tmp_path / "none"], "there is no picture in"),
        ([place / "a.png"], "a.png is empty"),
        ([place / "tiny.png"], "tiny.png: "),
        ([place], "2 of 2 images failed (named above)\n"),
    ):
        code, told, err = run("segment", *given, "--out", out, "diff-seg")
        assert code == 2 and says in err and not told and not [*out.glob("*")], err
        assert all(f"{place / name}" in err for name in ("a.png", "tiny.png") if given == [place])


def test_all_that_is_written_names_no_place_and_shows_pictures_as_results_see_them(
    run, here, models, tmp_path, monkeypatch
):
    """Photographs that lie on their side, transparent, in a folder whose name is HTML, all named absolutely: pages,
    documents, figures, and what PNGs and tensors tell. Hidden records alone, which are of this machine, name places."""
    monkeypatch.setitem(RECIPES, ("stilllife", "dift"), Recipe("dift", {"ensemble": 1}))
    place, out, turned = tmp_path / '<b>&"', tmp_path / "out", Image.Exif()
    place.mkdir()
    turned[0x0112] = 6
    for name in ('<i>"&', "b"):
        Image.new("RGBA", (60, 40), (0, 0, 0, 0)).save(place / f"{name}.png", exif=turned)
    one, other = sorted(place.iterdir(), key=lambda file: file.stem)
    learn = ("--tokens", 8, "--candidates", 4, "--keypoints", 2, "--steps", 1, "--grid", 8, "--augmentations", 1)
    tiny, words = ("--model", models("sd").name, "--device", "cpu"), ("--from", "a <u>&", "--to", "a cube")
    small = ("--side", 64)
    calls = {
        "segment": ("segment", place, *small, "--names", "<u>&,cube", "diff-seg"),
        "keypoints": ("keypoints", place, *small, "unsupervised-keypoints", *learn, "--parts", 1, 1),
        "edit": ("edit", place, *words, "--steps", 1, "p2p"),
        "match": ("match", one, other, *small),
        "features": ("features", one, other, *tiny, "--layers", 3, "--times", 1),
        "invert": ("invert", one, "a <u>&", *tiny, "--steps", 1),
        "experiment": ("experiment", "equivariance", one, *tiny),
        "generate": ("generate", "a cube <u>&", *tiny, "--steps", 1, "--grid", "seed=1,2"),
    }
    for name, call in calls.items():
        at = len(call) if name == "experiment" else 2
        code, _, err = run(*call[:at], "--out", out / name, *call[at:])
        assert code == 0, err
    pages = [file.read_text() for file in sorted(out.glob("*/index.html"))]
    assert len(pages) == 3 and "<h2>&lt;i&gt;&quot;&amp;.png</h2>" in (out / "segment" / "index.html").read_text()
    for text in pages:
        shown = [Image.open(BytesIO(b64decode(png))) for png in re.findall(r"base64,([^\"]+)", text)]
        assert all(picture.height > picture.width or picture.width > 60 for picture in shown)
        assert "<i>" not in text and "<u>" not in text and not re.search(r"&amp;(lt|gt|amp|quot);", text)
    first = Image.open(BytesIO(b64decode(re.findall(r"base64,([^\"]+)", pages[-1])[0]))).convert("RGB")
    assert np.asarray(first).min() == 255, "transparent is white"
    written = [file for file in out.rglob("[!.]*") if file.is_file()]
    assert {file.suffix for file in written} >= {".png", ".json", ".html", ".safetensors"}
    for file in written:
        for there in (tmp_path, models("sd").name):
            assert Path(there).is_absolute() and str(there).encode() not in file.read_bytes(), file
    name, small = '<b>&"x', Image.new("RGB", (8, 8))
    for made in (page.figure(small, escape(name)), page.image(small, name), page.ring(small, name)):
        assert re.findall(r'(?:alt|aria-label)="([^"]*)"', made) == [escape(name)] and "<b>" not in made


def test_results_of_earlier_settings_are_not_taken_for_those_of_now(run, here, photos, tmp_path):
    from sfumato.media.labels import read_labels

    call = ("segment", photos / "a.png", "--side", 64, "--out", tmp_path / "out", "diff-seg", "--threshold")
    found = []
    for threshold in (1e-6, 100, 1e-6):
        assert run(*call, threshold)[0] == 0
        found.append(read_labels(tmp_path / "out" / "a-labels.png"))
    assert torch.equal(found[0], found[2]) and len(found[0].unique()) > 1 and len(found[1].unique()) == 1


def test_matches_features_and_edits_of_other_settings_have_names_of_their_own(run, here, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, ("stilllife", "dift"), Recipe("dift", {"ensemble": 1}))
    out = tmp_path / "out"
    calls = {
        "match": ("match", photos / "a.png", photos / "c.png", "--side", 64, "--points"),
        "features": ("features", photos / "a.png", "--side", 64, "--layers", 0, "--times"),
        "edit": ("edit", photos / "a.png", "--from", "a cube", "--to", "a duck", "p2p", "--steps"),
        "invert": ("invert", photos / "a.png", "a cube", "--steps"),
        "generate": ("generate", "a cube", "--n", 2, "--size", 64, "--steps"),
        "distill2d": ("distill2d", "a cube", "--n", 2, "--size", 64, "sds", "--steps"),
        "sweep": ("distill2d", "a cube", "--n", 1, "--size", 64, "--sweep", "1,5", "sds", "--steps"),
        "render": ("render", "a red cube", "--buffers", "--size"),
    }
    values = {"match": ("3,4", "5,6"), "render": (16, 32)}
    for name, call in calls.items():
        place, (one, other) = out / name, values.get(name, (1, 2))
        made = []
        for value in (one, other, one):
            code, told, err = run(*call, value, "--out", place)
            assert code == 0 and ("scores of the points: 0." in err) == (name == "match"), err
            made.append([line for line in told.splitlines() if line.startswith(str(place))])
        assert made[0] == made[2] and made[0] and not {*made[0]} & {*made[1]}, name
        assert all(Path(file).exists() for file in made[0] + made[1])
    seeds = run(*calls["generate"], 1, "--seed", 1, "--n", 1, "--out", out / "generate")[1].split()
    assert seeds == [str(out / "generate" / "a-cube-1.png")]  # image 2 of the first run is image 1 of this one
    assert run(*calls["generate"], 1, "--out", tmp_path / "x.png")[0] == 0
    assert run(*calls["generate"], 2, "--out", tmp_path / "x.png")[0] == 0 and not (tmp_path / "x.2.png").exists()


ONE = ("match", "match other", "invert", "experiment", "generate", "lift", "distill2d", "looks")


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in turn", "each"])
def test_files_and_folders_are_treated_alike_by_every_command(run, photos, tmp_path, monkeypatch, each):
    """What cannot be read is one line before a model is loaded; of one picture a folder is; AVIF is a picture. Of the
    formats that a plugin reads each command meets one, in turn, and all where it is slow."""
    monkeypatch.chdir(photos)
    Image.new("RGB", (20, 20)).save("e.avif")
    for name, head in (("f.jxl", b"\xff\x0a"), ("f.heic", b"\0\0\0\x18ftypheic"), ("f.svg", b"<svg/>")):
        Path(name).write_bytes(head + bytes(40))
    Path("empty").mkdir(), Path("bad").mkdir()
    Path("bad/x.jxl").touch()

    def loaded(*args):
        raise SfumatoError("a model is loaded")

    monkeypatch.setattr(Loading, "load", loaded)
    words = ("--from", "a", "--to", "b")
    calls = {
        "edit": lambda p: ("edit", p, *words, "p2p"),
        "also": lambda p: ("edit", "a.png", "--also", p, *words, "p2p"),
        "looks": lambda p: ("edit", "a.png", "--appearance", p, *words, "cross-image-attention"),
        "segment": lambda p: ("segment", p),
        "features": lambda p: ("features", p),
        "keypoints": lambda p: ("keypoints", p),
        "match": lambda p: ("match", p, "a.png"),
        "match other": lambda p: ("match", "a.png", p),
        "invert": lambda p: ("invert", p),
        "experiment": lambda p: ("experiment", "equivariance", p),
        "learn": lambda p: ("learn", p, "--as", "<d>", "textual-inversion"),
        "video": lambda p: ("video", p, *words, "sdedit"),
        "generate": lambda p: ("generate", "x", "--control", p),
        "lift": lambda p: ("lift", "x", "--image", p, "sds"),
        "distill2d": lambda p: ("distill2d", "x", "--init", p, "sds"),
    }
    says = {
        "e.avif": "a model is loaded",
        "none.png": "there is no ",
        "empty": "no picture",
        "bad": "pillow-jxl-plugin",
        "f.jxl": "in JPEG XL; pip install pillow-jxl-plugin reads it, or save it as PNG or JPEG",
        "f.heic": "in HEIF; pip install pillow-heif reads it, or save it as PNG or JPEG",
        "f.svg": "in SVG; an image is made of it by a browser or Inkscape, or save it as PNG or JPEG",
        "notes.txt": "notes.txt is not an image that can be read",
    }
    formats = ("f.jxl", "f.heic", "f.svg")
    for i, (name, call) in enumerate(calls.items()):
        for place, why in says.items():
            if place in formats and place != formats[i % 3] and not each:
                continue
            if opening.suffixes() & {Path(place).suffix, ".jxl"} - {".avif", ".png"}:
                continue  # with a plugin these are read
            one = name in (*ONE, "also") and place in ("empty", "bad")
            why = "is a folder; a picture file is meant" if one else why
            why = (
                {"empty": "there are no pictures", "notes.txt": "cannot read"}.get(place, why)
                if name == "video"
                else why
            )
            code, _, err = run(*call(place))
            last = [line for line in err.splitlines() if not line.startswith("note: ")]
            assert code == 2 and len(last) == 1 and why in (err if name == "video" else last[0]), (name, place, err)
