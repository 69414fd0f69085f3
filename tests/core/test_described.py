"""``help()`` of a class tells of its fields."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest

from sfumato.core.described import Described, strings
from sfumato.core.results import Sample
from sfumato.methods import index
from sfumato.methods.edit.prompt_to_prompt import PromptToPrompt
from sfumato.methods.perceive.prompt_embeddings import PromptEmbeddings


def test_help_has_the_fields_of_a_method():
    text = pydoc.render_doc(PromptToPrompt, renderer=pydoc.plaintext)  # pyright: ignore[reportAttributeAccessIssue]
    assert "The run's first stream is the source, all others are its edits.\n |  \n |  Parameters\n" in text
    meaning = "Part of the steps in which self-attention is the source's."
    assert f" |  self : float in [0, 1], or int steps, default 0.4\n |      {meaning}\n" in text
    assert "words : Mapping[str, float], default {}\n" in text and "requires :" not in text
    assert "seed" in strings(index.find("blended-latents").method), "also those of a class that it derives from"
    assert "latents : Float[Tensor, 'b c h w']\n    prompts : " in str(Sample.__doc__).replace(" " * 8, "    ")
    bounded = str(PromptEmbeddings.__doc__)
    assert "margin : float in [0, 0.5), default" in bounded and "found : int from 4, default" in bounded
    assert PromptToPrompt(self=0.1).self == 0.1 and [*inspect.signature(PromptToPrompt).parameters][:2] == [
        "cross",
        "self",
    ]


def test_all_methods_tell_of_their_fields():
    for entry in (entry for entry in index.METHODS if not entry.is_function):
        texts = strings(entry.method)
        bare = {f.name for f in fields(entry.method) if f.init} - {*texts}
        assert bare <= {"steps", "seed", "scale"}, entry.word


def test_nothing_is_read_before_somebody_asks():
    @dataclass
    class Late(Described):
        """One line."""

        n: int = 3

    lazily = vars(Late)["__doc__"]
    assert not lazily.whole and "n : int, default 3" in str(Late.__doc__) == lazily.whole


def test_a_class_without_fields_or_source_says_what_it_says(monkeypatch):
    @dataclass
    class Plain(Described):
        """One line."""

        kept: ClassVar[int] = 3

    @dataclass
    class Unread(Described):
        """Another."""

        n: int = field(default=3)

    def missing(cls: object) -> str:
        raise OSError

    monkeypatch.setattr(inspect, "getsource", missing)
    monkeypatch.setattr(Unread, "__module__", "sfumato.nowhere")
    assert Plain.__doc__ == "One line." and Unread.__doc__ == Unread().__doc__ == "Another."


@pytest.mark.parametrize("text", ["", None])
def test_a_class_without_a_docstring_gets_what_dataclasses_give_it(text):
    Bare = dataclass(type("Bare", (Described,), {"__doc__": text, "__annotations__": {"n": int}}))
    assert (Bare.__doc__ or "").startswith("Bare(n: int)")
