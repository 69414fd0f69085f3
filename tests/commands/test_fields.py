"""Fields as options of the command line: what is asked for is what is run, and what cannot be is said."""

from __future__ import annotations

import pytest

from sfumato.commands import fields
from sfumato.errors import SfumatoError
from sfumato.methods import index
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.methods.edit.prompt_to_prompt import PIE_BENCH
from sfumato.tasks import recipes
from sfumato.tasks.chain import Chain


def parsed(*args: str) -> Chain:
    return fields.methods([args], "sfumato edit")


def test_fields_are_options():
    (method,) = parsed(
        "prompt-to-prompt", "--cross", "0.5", "--words", "blue=0.2,cube=1", "--blend", "cube", "cube", "0.6"
    ).items
    assert method == PromptToPrompt(0.5, words={"blue": 0.2, "cube": 1.0}, blend=LocalBlend("cube", "cube", 0.6))
    assert type(method) is PromptToPrompt
    for text, res in (("24", 24), ("0.5", 0.5)):
        (method,) = parsed("p2p", "--blend", "cube", "cube", "0.6", text, "--self-res", text).items
        assert (method.blend.res, method.self_res) == (res, res) and type(method.blend.res) is type(res)
    (method,) = parsed("p2p", "--self", "0.1", "--preset=pie-bench").items
    assert method == PromptToPrompt(PIE_BENCH.cross, 0.1)


def test_every_method_can_be_asked_for_or_says_why_not(capsys):
    for word in index.words(index.PAINTING + index.DISTILLING, aliases=True):
        try:
            with pytest.raises(SystemExit) as ended:
                fields.methods([[word, "--help"]], "sfumato edit")
            assert ended.value.code == 0
            out = capsys.readouterr().out
            assert f"sfumato edit ... {word}" in out
        except SfumatoError as e:
            assert "takes a function" in str(e)


def test_what_cannot_be_asked_for():
    with pytest.raises(SfumatoError, match=r"unknown method 'masa'; did you mean masactrl\? known: .*masactrl"):
        recipes.default("masa")
    with pytest.raises(SfumatoError, match="unknown preset of prompt-to-prompt 'best'; known: pie-bench"):
        recipes.default("p2p:best")
    with pytest.raises(SfumatoError, match="universal-guidance takes a function"):
        parsed("universal-guidance")
