"""``sfumato edit`` of many pictures, of a list, and in a grid of settings: each edit is what it is alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.tasks import edit as task
from tests.test_cli import refused

WORDS = ["--from", "a red cube", "--to", "a blue cube", "--steps", 2]


@pytest.fixture
def photos(tmp_path):
    """Two of one shape, one of another."""
    rng, files = np.random.default_rng(0), []
    for name, (w, h) in {"a": (48, 40), "b": (48, 40), "c": (40, 60)}.items():
        Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)).save(tmp_path / f"{name}.png")
        files.append(tmp_path / f"{name}.png")
    return files


@pytest.fixture
def runs(monkeypatch):
    """How many pictures each run was of, and by which names its edits went."""
    seen, plain = [], task.run_edits

    def noted(model, fitted, edits, **options):
        seen.append((len(fitted), list(edits)))
        return plain(model, fitted, edits, **options)

    monkeypatch.setattr(task, "run_edits", noted)
    return seen


def same(a: str | Path, b: str | Path) -> bool:
    """But for the rounding of batches."""
    one, two = (np.asarray(Image.open(file), int) for file in (a, b))
    return one.shape == two.shape and int(np.abs(one - two).max()) <= 1


@pytest.mark.parametrize("method", [["sdedit"], ["ledits"], ["p2p"]], ids="".join)
def test_pictures_of_one_shape_are_edited_together_and_each_as_alone(run, here, photos, runs, tmp_path, method):
    options = [*WORDS, "--json", "--seed", 5, *method]
    code, out, err = run("edit", *photos, "--out", tmp_path / "all", *options)
    assert code == 0, err
    found = json.loads(out)
    assert [count for count, _ in runs] == [2, 1] and [Path(row["picture"]) for row in found["edits"]] == photos
    page = Path(found["page"]).read_text()
    assert len(found["sheets"]) == 3 and page.count("<img") == 3 and "--least: 100%" in page, "pairs are wide"
    assert "3 edits, each beside its picture." in page
    alone = json.loads(run("edit", photos[1], "--out", tmp_path / "one", *options)[1])
    assert same(alone["image"], found["edits"][1]["image"]) and not same(alone["image"], found["edits"][0]["image"])
    assert Image.open(alone["image"]).info == Image.open(found["edits"][1]["image"]).info


def test_a_list_has_words_methods_and_seeds_of_each(run, here, photos, runs, tmp_path):
    (tmp_path / "l.csv").write_text(
        "picture, from, to, method, seed\n"
        'a.png, a red cube, a blue cube, "sdedit --strength 0.5", 3\n'
        "b.png, a cat, a dog, , \n"
        "a.png, a cat, a dog, p2p:pie-bench, \n"
        "a.png, a red cube, a blue cube, , \n"
    )
    rows = [
        {"picture": "a.png", "from": "a red cube", "to": "a blue cube", "method": "sdedit --strength 0.5", "seed": 3},
        {"picture": "b.png", "from": "a cat", "to": "a dog"},
        {"picture": "a.png", "from": "a cat", "to": "a dog", "method": "p2p:pie-bench", "steps": None},
        {"picture": "a.png", "from": "a red cube", "to": "a blue cube", "method": ""},
    ]
    (tmp_path / "l.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    out = [
        run("edit", "--list", tmp_path / f"l.{kind}", "--out", tmp_path / "out", "--steps", 2, "--json", "p2p")
        for kind in ("csv", "jsonl")
    ]
    assert out[0][0] == out[1][0] == 0, out
    assert out[0][1] == out[1][1], "the same edits, which were there"
    assert [count for count, _ in runs] == [1, 2, 1], "two are of one setting"
    found = json.loads(out[0][1])["edits"]
    assert [row["method"] for row in found] == ["sdedit", "p2p", "p2p", "p2p"]
    assert [row["seed"] for row in found] == [3, 0, 0, 0]
    words = ["--from", "a red cube", "--to", "a blue cube", "--steps", 2, "--json", "--out", tmp_path / "one"]
    for at, method in ((0, ["--seed", 3, "sdedit", "--strength", 0.5]), (3, ["p2p"])):
        alone = json.loads(run("edit", photos[0], *words, *method)[1])
        assert same(alone["image"], found[at]["image"])
    assert [Path(row["image"]).name for row in found] == [f"{n}-edited.png" for n in ("a", "b", "a.2", "a.3")]
    assert "the edit of" in out[0][2] and "is called a.2" in out[0][2]


def test_a_grid_has_each_setting_and_inverts_once(run, here, photos, monkeypatch, tmp_path):
    count, plain = [], task.invert
    monkeypatch.setattr(task, "invert", lambda *args: count.append(1) or plain(*args))
    edit = ["edit", photos[0], *WORDS, "--json", "--out", tmp_path / "out"]
    code, out, err = run(
        *edit, "--grid", "guidance=2,6", "threshold=.1,.9", "cross=0,.5,1", "p2p", "--blend", "cube", "cube"
    )
    assert code == 0, err
    found = json.loads(out)
    assert len(count) == 1 and Image.open(found["grid"]).size == (4 * 50 - 2, 4 * 58 - 2)
    own = run(*edit, "--guidance", 6, "p2p", "--blend", "cube", "cube", 0.1, "--cross", 0.5)
    assert same(json.loads(own[1])["image"], found["image guidance 6, threshold .1, cross .5"])
    seeds = run(*edit, "--grid", "seed=1,2", "sdedit")
    one, two = (json.loads(seeds[1])[f"image seed {n}"] for n in (1, 2))
    assert not same(one, two) and Path(one).name == "a-seed-1-edited.png"
    noise = run(*edit, "--invert", "edit-friendly", "--grid", "seed=1,2", "p2p")  # p2p has no seed of its own
    one_noise, other = (json.loads(noise[1])[f"image seed {n}"] for n in (1, 2))
    assert not same(one_noise, other), "the run's own is varied"
    assert same(json.loads(run(*edit, "--seed", 2, "--overwrite", "sdedit")[1])["image"], two)
    run("edit", *photos[:2], *WORDS, "--out", tmp_path / "both", "--grid", "seed=1,2", "sdedit")
    assert "4 edits." in (tmp_path / "both/index.html").read_text(), "whose pictures are on their sheets"


def test_what_was_stopped_goes_on_behind_what_is_there(run, here, photos, runs, monkeypatch, tmp_path):
    edit = ["edit", *photos, *WORDS, "--out", tmp_path / "out", "p2p"]
    with monkeypatch.context() as patch:
        plain = task.run_edits

        def stopped(model, fitted, edits, **options):
            if len(fitted) == 1:
                raise KeyboardInterrupt
            return plain(model, fitted, edits, **options)

        patch.setattr(task, "run_edits", stopped)
        assert run(*edit)[0] == 130
    there = {file.name for file in (tmp_path / "out").glob("*-edited.png")}
    assert there == {"a-edited.png", "b-edited.png"} and not (tmp_path / "out" / ".c.edit.json").exists()
    runs.clear()
    assert run(*edit)[0] == 0 and [count for count, _ in runs] == [1]
    code, _, err = run(*edit)
    assert code == 0 and len(runs) == 1 and "were there" in err
    assert run(*edit, "--overwrite")[0] == 0 and [count for count, _ in runs] == [1, 2, 1]


def test_a_picture_that_fails_does_not_stop_the_others(run, here, photos, tmp_path):
    photos[0].write_bytes(photos[0].read_bytes()[:200])
    code, out, err = run("edit", *photos, *WORDS, "--out", tmp_path / "out", "--json", "p2p")
    assert code == 2 and "1 of 3 pictures failed" in err and f"note: {photos[0]}: cannot read" in err
    found = json.loads(out)
    assert found["failed"] == [str(photos[0])] and [Path(row["picture"]) for row in found["edits"]] == photos[1:]


BAD = {
    "picture,from,to\na.png,x\n": "line 2: it has not as many cells",
    "picture,form,to\na.png,x,y\n": "unknown column 'form'; did you mean from",
    "picture,from,to\n,x,y\n": "line 2: it names no picture",
    "picture,from,to,seed\na.png,x,y,1.5\n": "seed is a whole number, got '1.5'",
    "picture,from,to,guidance\na.png,x,y,nan\n": "--guidance is a number from 0",
    "picture,from,to,method\na.png,x,y,p2q\n": "line 2: unknown method 'p2q'; known: ",
    "picture,from,to,method\na.png,x,y,p2p --cros 1\n": "unknown option --cros; did you mean --cross of p2p",
    "picture,from,to\nnone.png,x,y\n": "there is no file",
    "picture,from,to\na.png,,y\n": "a.png needs --from, what it shows",
    "picture,from,to\n": "lists no edit",
    '{"picture": 3}\n': "line 1: picture is text, got 3",
    "[1]\n": "line 1: it is a list, where an object is meant",
    "{\n": "line 1: Expecting property name",
    "[" * 100_000: "line 1: it is nested too deeply",
}


def test_what_a_list_or_a_grid_cannot_say_is_one_line(run, here, photos, tmp_path):
    for text, says in BAD.items():
        file = tmp_path / ("l.jsonl" if text[0] in "{[" else "l.csv")
        file.write_text(text)
        refused(run("edit", "--list", file, "--out", tmp_path / "out", "p2p"), says)
    edit = ["edit", photos[0], *WORDS, "--out", tmp_path / "out"]
    refused(run(*edit, "--grid", "gidance=1,2", "p2p"), "unknown setting of --grid 'gidance'; did you mean guidance")
    refused(run(*edit, "--grid", "cross=1,2", "p2p"), "between 0 and 1, got 2")
    refused(run(*edit, "--grid", "cross=much", "p2p"), "--cross takes a number, got 'much'")
    refused(run(*edit, "--grid", "cross", "p2p"), "--grid takes NAME=VALUE,VALUE")
    refused(run(*edit, "--grid", f"seed={','.join(map(str, range(101)))}", "p2p"), "101 cells, and 100 at most")
    refused(run(*edit, "--grid", "seed=1,2", "--compare", "p2p,sdedit"), "give one of them")
    refused(run("edit", photos[0], "--list", tmp_path / "l.csv", "p2p"), "--list names the pictures")
    refused(run("edit", "--list", tmp_path / "l.txt", "p2p"), "there is no file")
    refused(run("edit", tmp_path / "none.png", *WORDS, "p2p"), "there is no file or folder")
    refused(run("edit", "p2p", *WORDS), "no picture is given: p2p is a method")
    assert not [*(tmp_path / "out").glob(".*")]


def test_a_grid_of_what_is_painted_has_each_setting_as_alone(run, here, tmp_path):
    paint = ["generate", "a red cube", "--json", "--size", 64, "--out", tmp_path / "out"]
    code, out, err = run(*paint, "--seed", 3, "--grid", "guidance=2,6", "steps=1,2")
    assert code == 0, err
    found = json.loads(out)
    labels = [f"guidance {g}, steps {s}" for g in (2, 6) for s in (1, 2)]
    assert list(found["cells"]) == labels and Image.open(found["sheet"]).size == (2 * 66 - 2, 2 * 96 - 2)
    each = [found["cells"][label]["images"][0]["image"] for label in labels]
    assert len({Path(file).read_bytes() for file in each}) == 4
    assert Path(each[0]).name == "a-red-cube-guidance-2-steps-1-3.png"
    alone = json.loads(run(*paint, "--seed", 3, "--n", 1, "--guidance", 6, "--steps", 1)[1])["images"][0]["image"]
    assert same(alone, each[2]) and Image.open(alone).info == Image.open(each[2]).info
    sheet = np.asarray(Image.open(found["sheet"]))
    assert np.array_equal(sheet[96 + 30 : 96 + 94, :64], np.asarray(Image.open(each[2])))
    assert run(*paint, "--seed", 3, "--grid", "guidance=2,6", "steps=1,2")[1] == out, "it was there"
    code, out, err = run(*paint, "--n", 2, "--steps", 1, "--grid", "seed=1,2", "attend-and-excite", "--words", "cube")
    one, two = (json.loads(out)["cells"][f"seed {n}"]["images"] for n in (1, 2))
    assert code == 0 and same(one[1]["image"], two[0]["image"]) and not same(one[0]["image"], two[0]["image"]), err
    refused(run(*paint, "--grid", "gidance=1,2"), "unknown setting of --grid 'gidance'; did you mean guidance")
    refused(run(*paint, "--grid", "steps=1,0"), "--steps")
