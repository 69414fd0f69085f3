"""What a method takes is known before it is imported: by its file, as its class has it."""

from __future__ import annotations

from dataclasses import fields as fields_of
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sfumato.commands import fields
from sfumato.commands.oneline import oneline
from sfumato.errors import SfumatoError
from sfumato.experiments.index import EXPERIMENTS
from sfumato.inversion import Inversion
from sfumato.learning.heads import HeadMethod
from sfumato.methods import index
from sfumato.methods.outline import derives, look, outline
from sfumato.methods.perceive.few_shot import FewShot
from sfumato.tasks import recipes
from sfumato.tasks.chain import values
from sfumato.tasks.segment import ready

METHODS = [entry for entry in index.METHODS if not entry.is_function]


def refused(what: Any, *args: Any, **options: Any) -> Any:
    """What comes of a call, or the line that refuses it."""
    try:
        with oneline():
            return what(*args, **options)
    except SfumatoError as e:
        return str(e)


@pytest.mark.parametrize("head", [False, True])
def test_all_methods_take_what_their_files_say(head):
    for entry in METHODS:
        assert outline(f"methods.{entry.head if head and entry.head else entry.home}") is not None, entry.word
        found, own = refused(fields.sketch_of, entry.word, head), refused(fields.class_of, entry.word, head)
        assert isinstance(found, str) == isinstance(own, str), (entry.word, found, own)
        if isinstance(own, str):
            assert found == own and "takes a function" in own
            continue
        assert fields.grammar(found) == fields.grammar(own), entry.word
        assert [f.name for f in fields_of(found)] == [f.name for f in fields_of(own) if f.init]
        presets = recipes.presets(entry, head)
        assert recipes.preset_names(entry, head) == list(presets), entry.word
        for name, preset in presets.items():
            assert alike(fields._preset(entry, name, found, head), preset), (entry.word, name)
        for kind in (Inversion, HeadMethod):
            assert derives(entry, kind.__name__, head) == issubclass(entry.learner if head else entry.method, kind)
        if entry.group in index.LEARNING:
            for name in ("masks", "cameras", "captions", "encoder"):
                assert getattr(found, f"wants_{name}") == getattr(own, f"wants_{name}")


def alike(sketch: Any, own: Any) -> bool:
    """Are values of an outline those of the class, as far as they are known?"""
    return all(value in (getattr(own, name), None) for name, value in values(sketch).items())


def test_all_experiments_take_what_their_files_say():
    for entry in EXPERIMENTS:
        found, own = fields.spoken(outline(f"experiments.{entry.home}")), entry.experiment
        assert fields.grammar(found) == fields.grammar(fields.spoken(own)), entry.word
        needs = {
            f.name: Path("a") if f.type == "Path" else "a" for f in fields_of(own) if f.default is f.default_factory
        }
        assert fields.made(own, found(**needs)) == own(**needs), entry.word
        for name, wrong in (("seed", -1), ("n", 0), ("steps", 0), ("guidances", (1.0, 1.0))):
            if name in own.__dataclass_fields__:
                assert refused(found, **needs, **{name: wrong}) == refused(own, **needs, **{name: wrong})
                assert isinstance(refused(found, **needs, **{name: wrong}), str)


def test_values_are_refused_by_a_file_as_by_its_class():
    """Of every number, a value that makes no sense to most: what a class looks at when it is made is in its file."""
    early = late = 0
    for entry in METHODS:
        found, own = outline(f"methods.{entry.home}"), entry.method
        for f in () if any(f.default is f.default_factory for f in fields_of(own)) else fields_of(found):
            for wrong in (
                (-1, 0, 10**6) if isinstance(f.default, int | float) and not isinstance(f.default, bool) else ()
            ):
                made = [refused(kind, **{f.name: type(f.default)(wrong)}) for kind in (found, own)]
                before, after = (each if isinstance(each, str) else "" for each in made)
                assert before in ("", after), (entry.word, f.name, wrong)
                early, late = early + bool(before), late + bool(after)
    assert early > 500 and late - early < 20


def test_what_is_read_of_a_file_is_refused_by_it_in_the_same_words(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"x" * 100)
    (empty := tmp_path / "empty").mkdir()
    (tmp_path / "transforms.json").write_text('{"frames": []}')
    none = tmp_path / "none"
    for home, *args in (
        ("tasks.illusion:view_of", "upside"),
        ("tasks.illusion:view_of", "turn:45"),
        ("tasks.views:words_of", None, "a", ("front",), "{view} of {prompt}"),
        ("tasks.edit_scene:scene_edit", "warp"),
        ("tasks.edit_scene:scene_edit", "dds"),
        ("tasks.learn:listed", (none,)),
        ("tasks.learn:new_word", None, ""),
        ("tasks.train_head:pictures", none, None),
        ("tasks.train_head:given", none),
        ("tasks.segment:examples_in", none),
        ("scene.capture:read_capture", none),
        ("scene.capture:read_capture", empty),
        ("scene.capture:read_capture", tmp_path),
        ("scene.export:kind_of", none.with_suffix(".stl")),
        ("scene.store:load_scene", none),
        ("scene.store:load_scene", broken),
        ("stilllife.weights:export", "still", none),
        ("stilllife.weights:export", "stilllife", tmp_path),
        ("media.meshes:read_mesh", none),
        ("media.meshes:read_mesh", none.with_suffix(".obj")),
        ("media.video:opened", none),
        ("media.video:writes", none.with_suffix(".avi")),
        ("methods.heads:load", none),
        ("methods.heads:load", broken),
        ("methods.perceive.label_efficient:Classifier.load", none),
        ("commands.options:_embedding", str(none)),
        ("commands.options:_concept", f"{none}:duck"),
        ("backbones.loras:listed", ["style:much"]),
        ("backbones.single_file:tensors", broken),
        ("backbones.components:read", {"vae": str(none)}, None, None, True),
        ("backbones.motion:_read", str(none), None, None, True),
    ):
        module, _, name = home.partition(":")
        own = reduce(getattr, name.split("."), import_module(f"sfumato.{module}"))
        said = refused(look, home, *args)
        assert isinstance(said, str) and said == refused(own, *args), home
    shots = refused(look, "tasks.segment:ready", fields.sketch_of("few-shot")(), None, labelled=none)
    assert shots == refused(ready, FewShot(), None, labelled=none) == f"there is no file or folder {none}"
    assert look("media.video:writes", empty) == "folder" and look("stilllife.weights:export", "stilllife", none) is None


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
                before = refused(lambda: fields.methods(segments, "sfumato edit").items)  # noqa: B023
                patched.setattr(fields, "_sketched", lambda *args: None)
                after = refused(lambda: fields.methods(segments, "sfumato edit").items)  # noqa: B023
            assert before == after or isinstance(before, tuple), segments
            sketch = refused(fields._sketched, entry.word, segments[0][1:], "sfumato edit", False)
            assert not isinstance(sketch, str) or sketch == after, segments
            early += isinstance(sketch, str)
    assert early > 30 and len(seen) > 45


def test_a_preset_of_no_name_is_none():
    assert "unknown preset of prompt-to-prompt ''" in refused(fields.methods, [["p2p", "--preset="]], "sfumato edit")


def test_what_is_not_understood_is_left_to_the_class(tmp_path, monkeypatch):
    for text in ("x: int = made()", "x: int = field(default=3, init=False)", "x: unknown.Kind = 3"):
        source = f"from dataclasses import dataclass, field\n\n@dataclass\nclass Own:\n    {text}\n"
        monkeypatch.setattr("sfumato.methods.outline.source_of", lambda module, source=source: source)
        assert outline(f"methods.of_{abs(hash(text))}:Own") is None
    source = (
        "from torch import Tensor\nfrom dataclasses import dataclass\n\n@dataclass\nclass Own:\n    x: Tensor = f()\n"
    )
    monkeypatch.setattr("sfumato.methods.outline.source_of", lambda module: source)
    found = outline("methods.of_tensors:Own")
    assert found is not None and [(f.name, f.default) for f in fields_of(found)] == [("x", None)]
