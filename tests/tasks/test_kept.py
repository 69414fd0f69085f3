"""What lies in a folder of results stays: other runs get other names, the same run its own again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.tasks.kept import Kept, digest, named


def make(folder: Path, name: str) -> str:
    (folder / f"{name}-edited.png").touch()
    return name


def run(folder: Path, **settings: object) -> str:
    return make(folder, named(folder, "edit", "-edited.png", "photo", settings))


def test_the_same_settings_have_the_same_name_and_others_another(tmp_path):
    assert [run(tmp_path, steps=n) for n in (1, 2, 1, 3, 2)] == ["photo", "photo.2", "photo", "photo.3", "photo.2"]
    assert named(tmp_path, "invert", "-inverted.png", "photo", {"steps": 9}) == "photo"


def test_a_name_whose_results_were_deleted_is_free(tmp_path):
    assert (run(tmp_path, steps=1), run(tmp_path, steps=2)) == ("photo", "photo.2")
    (tmp_path / "photo-edited.png").unlink()
    assert run(tmp_path, steps=3) == "photo" and run(tmp_path, steps=2) == "photo.2"


@pytest.mark.parametrize("stem", ["x" * 250, "画" * 83, os.fsdecode(b"\xe9" * 250)])
def test_pictures_of_long_names_have_results(tmp_path, stem):
    """A name that is as long as a file system takes leaves no room for endings."""
    first, second = (make(tmp_path, named(tmp_path, "edit", "-edited.png", stem, {"steps": n})) for n in (1, 2))
    assert stem.startswith(first) and second == f"{first}.2" and len(os.fsencode(first)) > 100
    assert named(tmp_path, "edit", "-edited.png", stem, {"steps": 1}) == first


def test_a_persons_own_file_is_left(tmp_path):
    (tmp_path / "photo-edited.png").write_text("mine")
    assert run(tmp_path, steps=1) == "photo.2"
    assert (tmp_path / "photo-edited.png").read_text() == "mine"


def test_a_name_that_a_living_process_has_taken_is_taken(tmp_path):
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / ".photo.edit.json").write_text(json.dumps({"key": "x", "process": living.pid}))
        assert named(tmp_path, "edit", "-edited.png", "photo", {}) == "photo.2"
    finally:
        living.communicate(b"\n")
    assert named(tmp_path, "edit", "-edited.png", "photo", {"steps": 1}) == "photo"


def test_of_many_at_once_each_gets_its_own(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from sfumato.tasks.kept import named\n"
        "input(); f = Path(sys.argv[1]); name = named(f, 'edit', '-edited.png', 'photo', {'n': sys.argv[2]})\n"
        "(f / f'{name}-edited.png').touch(); print(name)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], **pipes) for n in range(4)]
    for one in many:
        one.stdin.write("\n")
        one.stdin.flush()
    names = {one.communicate()[0].strip() for one in many}
    assert names == {"photo", *(f"photo.{n}" for n in range(2, 5))}


@dataclass
class Settings:
    a: object


def test_settings_are_told_apart_by_all_that_they_hold(tmp_path):
    (tmp_path / "m.png").write_bytes(b"1")
    mask = torch.zeros(100, 100)
    other = mask.clone()
    other[50, 50] = 1
    values = [1, 2, "1", None, mask, other, Settings(1), Settings(mask), {"a": 1}, [1, 2], tmp_path / "m.png"]
    assert len({digest(v) for v in values}) == len(values)
    assert all(digest(v) == digest(v) for v in values) and digest(mask) == digest(torch.zeros(100, 100))
    before = digest(tmp_path / "m.png")
    (tmp_path / "m.png").write_bytes(b"2")
    assert digest(tmp_path / "m.png") != before


def test_documents_list_what_comes_meanwhile(tmp_path):
    kept, written = Kept(tmp_path, "x", ".png"), []

    def write(rows):
        written.append([row["files"][0] for row in rows])
        if len(written) == 1:  # another process
            (tmp_path / "b.png").touch()
            kept.write("b", {"files": ["b.png"]})

    (tmp_path / "a.png").touch()
    kept.write("a", {"files": ["a.png"]})
    kept.write("gone", {"files": ["gone.png"]})
    kept.listed(write)
    assert written == [["a.png"], ["a.png", "b.png"]]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(SfumatoError, match="cannot write"):
        named(tmp_path / "none", "edit", "-edited.png", "photo", {})
