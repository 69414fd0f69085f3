"""Methods as words of the command line: what is asked for is what is run, and what cannot be is said."""

from __future__ import annotations

import pytest

from sfumato.commands import chain
from sfumato.commands.chain import Chain
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct
from sfumato.inversion.noise_space import Noise
from sfumato.methods import index
from sfumato.methods.edit import LocalBlend, PromptToPrompt
from sfumato.methods.edit.prompt_to_prompt import PIE_BENCH
from sfumato.tasks import recipes

EDIT = ["x.png", "--from", "a red cube", "--to", "a blue cube"]


def parsed(*args: str) -> Chain:
    return chain.parse(chain.split([*EDIT, *args])[1], "edit")


def test_methods_begin_where_their_words_do():
    head, methods = chain.split([*EDIT, "--json", "p2p", "--cross", "0.3", "+", "sdedit", "--strength", "0.5"])
    assert head == [*EDIT, "--json"] and methods == [["p2p", "--cross", "0.3"], ["sdedit", "--strength", "0.5"]]
    assert chain.split(["dense-diffusion", "--seed", "3"]) == (["dense-diffusion", "--seed", "3"], [])  # it is a prompt
    assert chain.split(["--out", "sdedit", "a duck"])[1] == []
    head, methods = chain.split(["a duck", "sdedit", "--box", "a duck", "1,2,3,4", "+", "p2p"])
    assert head == ["a duck", "--box", "a duck", "1,2,3,4"] and methods == [["sdedit"], ["p2p"]]
    assert chain.split(["p2p", "--cross", "1"], positional=False)[1] == [["p2p", "--cross", "1"]]


def test_fields_are_options():
    (method,) = parsed(
        "prompt-to-prompt", "--cross", "0.5", "--words", "blue=0.2,cube=1", "--blend", "cube", "cube", "0.6"
    ).items
    assert method == PromptToPrompt(0.5, words={"blue": 0.2, "cube": 1.0}, blend=LocalBlend("cube", "cube", 0.6))
    assert type(method) is PromptToPrompt
    (method,) = parsed("p2p", "--self", "0.1", "--preset", "pie-bench").items
    assert method == PromptToPrompt(PIE_BENCH.cross, 0.1)


def test_every_method_can_be_asked_for_or_says_why_not(capsys):
    for word in index.words(index.PAINTING + index.DISTILLING, aliases=True):
        try:
            with pytest.raises(SystemExit) as ended:
                chain.parse([[word, "--help"]], "edit")
            assert ended.value.code == 0
            out = capsys.readouterr().out
            assert f"... {word}" in out and "sfumato" in out
        except SfumatoError as e:
            assert "takes a function" in str(e)


def test_what_cannot_be_asked_for():
    with pytest.raises(SfumatoError, match=r"unknown method 'masa'; known: .*masactrl"):
        recipes.default("masa")
    with pytest.raises(SfumatoError, match="unknown preset of prompt-to-prompt 'best'; known: pie-bench"):
        recipes.default("p2p:best")
    with pytest.raises(SfumatoError, match="universal-guidance takes a function"):
        chain.parse([["universal-guidance"]], "edit")
    with pytest.raises(SfumatoError, match=r"a \+ joins two methods"):
        parsed("p2p", "+")
    with pytest.raises(SfumatoError, match="sdedit and diff-edit both say where to start"):
        parsed("sdedit", "+", "diff-edit").starter(Direct())


def test_a_chain_gives_each_its_own():
    both = parsed("sdedit", "--strength", "0.3", "+", "p2p").given(seed=7).stepped(12)
    start = both.starter(Direct())
    assert isinstance(start, Noise) and (start.seed, start.steps, start.strength) == (7, 12, 0.3)
    assert [type(m) for m in both.methods] == [PromptToPrompt]
    assert parsed("p2p").starter(Direct()) == Direct()
    explicit = parsed("sdedit", "--seed", "3").given(seed=7).items[0]
    assert explicit.seed == 3
