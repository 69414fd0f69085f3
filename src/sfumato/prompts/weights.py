"""Weights in a prompt, by the grammar of A1111's Stable Diffusion web UI.

``(word)`` counts 1.1 times as much, ``[word]`` 1 / 1.1, ``(some words:1.3)`` 1.3; nested ones multiply. A backslash
makes a bracket a letter. One that is not closed reaches to the end, one that was not opened is a letter. What else
that grammar knows is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import chain

from sfumato.errors import SfumatoError

ROUND = 1.1
"""What ``( )`` multiplies by; ``[ ]`` divides."""
_PART = re.compile(r"\\[()\[\]\\]|\\|[(\[\])]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_CHANGE = re.compile(r":\s*[+-]?[.\d]+\s*$")
_REFUSED = {
    r"<\w+:[^>]*>": "is a file to load; give it by --lora FILE:WEIGHT, or --embedding FILE for a word of its own",
    r"\bBREAK\b": "cuts a prompt in two that are read one by one, which is not supported; give what is behind it as a "
    "further prompt, by --and or Composed, or leave it out",
    r"\bAND\b": "joins prompts; give the second one by --and or Composed, or write a small 'and'",
}


@dataclass(frozen=True)
class Piece:
    """Some letters of a prompt, and what they count."""

    text: str
    weight: float = 1.0


def pieces(prompt: str) -> tuple[Piece, ...]:
    """A prompt's text in pieces of one weight.

    Raises ``SfumatoError`` for a weight that is no number from 0, and for what of A1111's grammar is not supported:
    words that change at a step (``[a:b:0.5]``) or take turns (``[a|b]``), ``BREAK``, ``AND`` and ``<lora:...>``; and
    for what is no Unicode.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise SfumatoError(f"a prompt is text in UTF-8, got {prompt!r}") from None
    for pattern, what in _REFUSED.items():
        if found := re.search(pattern, prompt):
            raise SfumatoError(f"{found[0]} {what}")
    texts: list[str] = []
    weights: list[float] = []
    round_, square = [], []  # where brackets opened: number of the piece, place in the prompt

    def multiply(first: int, by: float) -> None:
        weights[first:] = [weight * by for weight in weights[first:]]

    for found in _PART.finditer(prompt):
        part, number = found[0], found[1]
        if part in ("(", "["):
            (round_ if part == "(" else square).append((len(texts), found.end()))
        elif round_ and (part == ")" or number is not None):
            multiply(round_.pop()[0], ROUND if number is None else _number(number, prompt))
        elif part == "]" and square:
            first, opened = square.pop()
            _check(prompt[opened : found.start()])
            multiply(first, 1 / ROUND)
        else:
            texts.append(part[1:] if part[0] == "\\" else part)
            weights.append(1.0)
    for first, _ in round_:
        multiply(first, ROUND)
    for first, _ in square:
        multiply(first, 1 / ROUND)
    out: list[Piece] = []
    for text, weight in zip(texts, weights, strict=True):
        if out and out[-1].weight == weight:
            text = out.pop().text + text
        out.append(Piece(text, weight))
    return tuple(out)


def plain(prompt: str) -> str:
    """A prompt without its weights, as encoders read it."""
    return "".join(piece.text for piece in pieces(prompt))


def letters(prompt: str) -> list[float]:
    """The weight of each letter of ``plain(prompt)``."""
    return [*chain.from_iterable([piece.weight] * len(piece.text) for piece in pieces(prompt))]


def escaped(text: str) -> str:
    """Plain text as a prompt that says the same."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


def _number(text: str, prompt: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise SfumatoError(
            f"a weight is a number from 0, got {text} in {prompt!r}; what should not be there is a negative prompt"
        )
    return weight


def _check(inside: str) -> None:
    """Refuse what square brackets stand for beside a smaller weight."""
    bare = re.sub(r"\\.", "", inside)
    kind = "change at a step" if _CHANGE.search(bare) else "take turns" if "|" in bare else ""
    if kind:
        raise SfumatoError(
            f"[{inside}] are words that {kind}, which is not supported; paint a prompt each, or edit one into the "
            r"other (sfumato edit); to weigh words write (word:0.5), and \[ \] where brackets are meant"
        )
