"""What suits a model: every row is a method with its own fields, and a name finds it wherever methods are asked for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from sfumato.errors import SfumatoError
from sfumato.methods import index
from sfumato.methods.edit.masactrl import MasaCtrl
from sfumato.methods.edit.prompt_to_prompt import PIE_BENCH
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.tasks import recipes
from sfumato.tasks.recipes import RECIPES, Recipe


def test_every_row_is_a_method_as_the_paper_has_it_but_for_its_settings():
    for (model, word), row in RECIPES.items():
        entry = index.find(word)
        assert entry.word == word and row.model == model
        kind = entry.learner if row.head else entry.method
        assert type(row.method) is kind
        for f in fields(row.method):
            assert getattr(row.method, f.name) == row.settings.get(f.name, getattr(kind(), f.name))


def test_only_what_reads_has_a_side_and_only_what_paints_a_guidance():
    for row in RECIPES.values():
        group = index.find(row.word).group
        assert row.side is None or group in index.READING
        assert (row.guidance, row.start) == (None, None) or group in index.PAINTING


def test_a_preset_is_the_methods_own_or_else_a_recipes(monkeypatch):
    assert recipes.default("masactrl:still-life") == MasaCtrl(layer=0.0)
    assert recipes.default("masactrl") == MasaCtrl()
    p2p = index.find("p2p")
    assert list(recipes.presets(p2p)) == ["pie-bench", "edit-friendly", "still-life"]
    other = Recipe("prompt-to-prompt", {"cross": 0.1}, preset="pie-bench")
    monkeypatch.setitem(RECIPES, ("other", "prompt-to-prompt"), other)
    assert recipes.default("p2p:pie-bench") is index.default("p2p:pie-bench") is PIE_BENCH
    with pytest.raises(SfumatoError, match=r"preset of prompt-to-prompt 'best'; known: pie-bench, .*, still-life$"):
        recipes.default("p2p:best")
    with pytest.raises(SfumatoError, match="preset of masactrl 'still-life'; known: none"):
        index.default("masactrl:still-life")


def test_a_model_without_a_recipe_reads_as_published_at_the_side_that_was_asked_for():
    assert recipes.suited("diff-seg", "stilllife", None) == (DiffSeg(threshold=0.07, least=1.0), 256)
    assert recipes.suited("diff-seg", "stilllife", 64)[1] == 64
    assert recipes.suited("diff-seg", "sd-1.5", None) == (DiffSeg(), None)
    with pytest.raises(SfumatoError, match=r"unknown recipe for sd-1.5 'diff-seg'"):
        recipes.find("diff-seg", "sd-1.5")


def test_a_method_that_is_named_is_the_only_one_that_is_imported():
    code = (
        "import sys; from sfumato.tasks import recipes; assert 'torch' not in sys.modules; "
        "recipes.default('masactrl:still-life'); "
        "print(*sorted(m for m in sys.modules if m.startswith('sfumato.methods.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "sfumato.methods.edit.masactrl" in out
    assert not {m for m in out if m.startswith(("sfumato.methods.control", "sfumato.methods.perceive"))}
