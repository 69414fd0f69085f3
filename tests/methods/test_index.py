"""The list of methods is what the files hold, and the documents and packages tell of the same ones."""

from __future__ import annotations

import ast
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from sfumato import methods
from sfumato.errors import SfumatoError
from sfumato.inversion import Inversion
from sfumato.learning.heads import HeadMethod
from sfumato.methods import control, edit, index, sets

ROOT = Path(methods.__path__[0])
PAGES = Path(__file__).parents[2] / "docs" / "methods"
GROUPS = index.PAINTING + index.READING + index.DISTILLING + index.LEARNING


def test_every_file_and_every_page_of_a_method_is_in_the_list():
    found = set()
    for group in GROUPS:
        for file in (ROOT / group).glob("*.py"):
            nodes = ast.parse(file.read_text(encoding="utf-8")).body
            classes = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
            same = [name for name in classes if name.lower() == file.stem.replace("_", "")]
            found |= {f"{group}.{file.stem}:{name}" for name in same}
    assert found == {entry.home for entry in index.METHODS if not entry.is_function}
    assert {page.stem for page in PAGES.glob("*.md")} - {"README"} == {entry.word for entry in index.METHODS}


def test_every_entry_is_a_method_with_its_own_word_and_page():
    words = [word for entry in index.METHODS for word in (entry.word, entry.alias) if word]
    assert len(set(words)) == len(words)
    for entry in index.METHODS:
        assert entry.word == entry.home.partition(":")[0].partition(".")[2].replace("_", "-")
        assert entry.group in GROUPS
        assert callable(entry.method) and is_dataclass(entry.method) != entry.is_function
        assert all(isinstance(preset, entry.method) for preset in entry.presets.values())


@pytest.mark.parametrize("package", [edit, control, sets])
def test_a_package_offers_the_methods_of_its_group(package):
    group = package.__name__.rpartition(".")[2]
    wanted = {entry.method.__name__ for entry in index.METHODS if entry.group == group}
    assert wanted <= set(package.__all__)


def test_words_find_methods():
    assert index.find("p2p") is index.find("prompt-to-prompt") and index.find("p2p").group == "edit"
    assert "open-vocabulary" not in index.words(GROUPS) and "pnp" in index.words(aliases=True)
    with pytest.raises(SfumatoError, match=r"unknown method 'open-vocabulary'; known: .*diff-seg"):
        index.find("open-vocabulary")


def test_a_method_says_which_commands_take_it():
    """Each that reads takes the pictures of one command or two; those with a start of their own need a picture."""
    for entry in index.METHODS:
        if entry.group in index.READING and not entry.is_function:
            assert entry.commands and (not issubclass(entry.method, HeadMethod) or entry.commands == ("train-head",))
        elif entry.group in index.PAINTING:
            assert entry.commands == (index.STARTING if issubclass(entry.method, Inversion) else ()), entry.word
    assert "sdedit" not in index.words(command="generate") and "sdedit" in index.words(command="edit")
    assert index.words(index.READING, command="match") == ["dift", "optimal-transport", "prompt-embeddings"]
    for command, word, others in (("match", "diff-seg", "segment"), ("segment", "dift", "match and train-head")):
        with pytest.raises(SfumatoError, match=f"{word} does not {command}; it is a method of sfumato {others}"):
            index.check(command, word)
    index.check("segment", "label-efficient")
    index.check("train-head", "label-efficient")


def test_a_method_of_other_commands_is_said_to_be_theirs():
    assert index.takers("p2p") == "sfumato generate, panorama, illusion, edit, video and show plan"
    assert (
        index.takers("sdedit") == "sfumato edit, video and show plan" and index.takers("stego") == "sfumato train-head"
    )
    assert index.takers("spatext").endswith("show plan and train-head") and not index.takers("p2q")
    assert str(index.none_of("sds", ["dift"])) == (
        "sds is a method of sfumato distill2d and lift; those of this command: dift"
    )
    assert str(index.none_of("difd", ["dift"])) == "unknown method 'difd'; did you mean dift? known: dift"
    assert "there is no file or folder lora" in str(index.none_there("lora", []))
    assert "lora is a method of sfumato learn" in str(index.none_there("lora", ["dift"]))
    assert "there is no file or folder a.png" in str(index.none_there("a.png", ["dift"]))
