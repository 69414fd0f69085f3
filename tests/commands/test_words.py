"""What a command line says, it says in the words that it takes."""

from __future__ import annotations

import json
import re
from dataclasses import fields as fields_of
from typing import Annotated, Any, get_args, get_origin

import pytest
from PIL import Image

from sfumato.commands import fields
from sfumato.commands.oneline import oneline, worded
from sfumato.core.settings import Between, kinds_of
from sfumato.errors import SettingError, SfumatoError
from sfumato.methods import index


def outside(kind: Any) -> str | None:
    """What lies out of the bounds of one number, as it is typed."""
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    found = [each for each in get_args(kind)[1:] if isinstance(each, Between)] if get_origin(kind) is Annotated else []
    return str(int(found[0].low) - 1) if found else None


def refused(*args: Any) -> str:
    with pytest.raises(SfumatoError) as e, oneline():
        fields.methods(*args)
    return worded(e.value)


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
    (tmp_path / "one" / "b.png").rename(tmp_path / "two" / "c.png")
    assert run("segment", "two/c.png", "--side", 64, "--out", "s", "diff-seg")[0] == 0
    assert "c.png" in (tmp_path / "s" / "segments.json").read_text()


@pytest.mark.parametrize(("error", "left"), [(SfumatoError("no"), False), (KeyboardInterrupt(), True)])
def test_a_run_that_is_refused_late_leaves_nothing(run, here, tmp_path, monkeypatch, error, left):
    """After Ctrl-C the name is kept, under which the same run goes on."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr("sfumato.tasks.learn.learn", lambda *args, **options: (_ for _ in ()).throw(error))
    call = ("learn", tmp_path / "a.png", "--as", "<it>", "--kind", "cube", "--steps", 1, "--out", tmp_path / "out")
    assert run(*call, "textual-inversion")[0] in (2, 130)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".it-textual-inversion.learn.json"] * left
