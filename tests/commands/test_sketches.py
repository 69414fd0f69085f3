"""What a method takes is known before it is imported: by its file, as its class has it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields as fields_of
from typing import Any

import pytest
from PIL import Image

from sfumato.commands import fields
from sfumato.commands.oneline import oneline
from sfumato.errors import SfumatoError
from sfumato.methods import index
from sfumato.methods.outline import outline
from sfumato.tasks import recipes

METHODS = [entry for entry in index.METHODS if not entry.is_function]


def refused(what: Any, *args: Any) -> Any:
    """What comes of a call, or the line that refuses it."""
    try:
        with oneline():
            return what(*args)
    except SfumatoError as e:
        return str(e)


@pytest.mark.parametrize("head", [False, True])
def test_all_methods_take_what_their_files_say(head):
    for entry in METHODS:
        assert outline(entry.head if head and entry.head else entry.home) is not None, entry.word
        found, own = refused(fields.sketch_of, entry.word, head), refused(fields.class_of, entry.word, head)
        assert isinstance(found, str) == isinstance(own, str), (entry.word, found, own)
        if isinstance(own, str):
            assert found == own and "takes a function" in own
            continue
        assert fields.grammar(found) == fields.grammar(own), entry.word
        assert [f.name for f in fields_of(found)] == [f.name for f in fields_of(own) if f.init]
        assert recipes.preset_names(entry, head) == list(recipes.presets(entry, head)), entry.word


WRONG = {"float": "abc", "int": "1.5", "Part": "3", "PartOfSteps": "-0.5", "bool": "yes", "Mapping[str, float]": "a=b"}


def test_what_is_refused_before_is_refused_as_after(monkeypatch):
    """One option of each kind, and each of those that have to be there; the very line, whoever finds it."""
    seen, early = set[str](), 0
    for entry in METHODS:
        if isinstance(cls := refused(fields.class_of, entry.word), str):
            continue
        for f in fields_of(cls):
            if (kind := str(entry.method.__dataclass_fields__[f.name].type)) in seen or f.metadata:
                continue
            seen.add(kind)
            segments = [[entry.word, f"--{f.name.replace('_', '-')}={WRONG.get(kind, 'abc')}"]]
            with monkeypatch.context() as patched:
                before = refused(fields.methods, segments, "sfumato edit")
                patched.setattr(fields, "_check", lambda *args: None)
                after = refused(fields.methods, segments, "sfumato edit")
            assert before == after, segments
            sketch = refused(fields._check, entry.word, segments[0][1:], "sfumato edit", False)
            assert sketch in (None, after), segments
            early += sketch is not None
    assert early > 30 and len(seen) > 45


def test_what_is_not_understood_is_left_to_the_class(tmp_path, monkeypatch):
    for text in ("x: int = made()", "x: int = field(default=3, init=False)", "x: unknown.Kind = 3"):
        source = f"from dataclasses import dataclass, field\n\n@dataclass\nclass Own:\n    {text}\n"
        monkeypatch.setattr("sfumato.methods.outline.source_of", lambda module, source=source: source)
        assert outline(f"edit.of_{abs(hash(text))}:Own") is None
    source = (
        "from torch import Tensor\nfrom dataclasses import dataclass\n\n@dataclass\nclass Own:\n    x: Tensor = f()\n"
    )
    monkeypatch.setattr("sfumato.methods.outline.source_of", lambda module: source)
    found = outline("edit.of_tensors:Own")
    assert found is not None and [(f.name, f.default) for f in fields_of(found)] == [("x", None)]


def test_a_wrong_option_of_a_method_takes_no_torch(tmp_path):
    """In processes of their own: what the line says, and that neither torch nor the method was imported."""
    code = "import sys; from sfumato.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    Image.new("RGB", (8, 8)).save(photo := tmp_path / "photo.png")
    for args, line in (
        ("--croos=.3", "unknown option --croos; did you mean --cross of p2p or --compose or --looks?"),
        ("--cross=3", "--cross of p2p lies between 0 and 1, got 3.0"),
        ("--preset=no", "unknown preset of prompt-to-prompt 'no'; known: pie-bench, edit-friendly, still-life"),
    ):
        call = [sys.executable, "-c", code, "edit", photo, "--from=a", "--to=b", "p2p", args]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["2", "False"] and done.stderr.endswith(f"sfumato: {line}\n"), done.stderr
