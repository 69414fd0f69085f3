"""Weights against the examples that A1111 gives for its own grammar, and what of it is refused."""

from __future__ import annotations

import math

import pytest

from sfumato.errors import SfumatoError
from sfumato.prompts.weights import Piece, escaped, letters, pieces, plain

EXAMPLES = {
    "normal text": [("normal text", 1)],
    "an (important) word": [("an ", 1), ("important", 1.1), (" word", 1)],
    "(unbalanced": [("unbalanced", 1.1)],
    "to the [end": [("to the ", 1), ("end", 1 / 1.1)],
    r"\(literal\]": [("(literal]", 1)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a) plain] bracket": [("a) plain] bracket", 1)],
    "a face :) and 1:2)": [("a face :) and 1:2)", 1)],
    "a (red:1.4) cube": [("a ", 1), ("red", 1.4), (" cube", 1)],
    "( red : 0.5 )": [(" red ", 0.5)],
    "(gone:0) here": [("gone", 0), (" here", 1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1), ("house", 1.3 * 1.1**2), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
        ("sky", 1.1**4), (".", 1.1),
    ],
    "[a:b] and (a|b)": [("a:b", 1 / 1.1), (" and ", 1), ("a|b", 1.1)],
    r"[a\|b] [(a:1.2)]": [("a|b", 1 / 1.1), (" ", 1), ("a", 1.2 / 1.1)],
}  # fmt: skip


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_pieces_have_the_weights_of_a1111(prompt):
    found = pieces(prompt)
    assert [p.text for p in found] == [text for text, _ in EXAMPLES[prompt]]
    assert all(math.isclose(p.weight, w) for p, (_, w) in zip(found, EXAMPLES[prompt], strict=True)), found
    assert plain(prompt) == "".join(text for text, _ in EXAMPLES[prompt])
    assert len(letters(prompt)) == len(plain(prompt))


@pytest.mark.parametrize("text", ["a red cube", "(a) [b] \\ c:1.2", "one :)", ""])
def test_escaped_text_says_itself(text):
    assert plain(escaped(text)) == text and all(p.weight == 1 for p in pieces(escaped(text)))
    assert pieces("a red cube") == (Piece("a red cube"),)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a [red:blue:0.5] cube", "change at a step"),
        ("a [red:0.5] cube", "change at a step"),
        ("a [(red:1.2)::10] cube", "change at a step"),
        ("a [cow|horse] here", "take turns"),
        ("a cube BREAK a duck", "BREAK cuts"),
        ("a cube AND a duck", "AND joins"),
        ("a cube <lora:style:0.8>", "--lora FILE:WEIGHT"),
        ("a (red:-1) cube", "from 0, got -1"),
        ("a (red:1.2.3) cube", "from 0, got 1.2.3"),
        (f"a (red:{'9' * 400}) cube", "from 0"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(prompt, says):
    with pytest.raises(SfumatoError, match=says):
        pieces(prompt)
