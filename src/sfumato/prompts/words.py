"""The words of a prompt among its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sfumato.errors import SfumatoError

Words = Sequence[tuple[str, slice]]
"""Each word and the tokens that it became, as ``Backbone.words`` tells them."""
_MARKS = ",.;:!?\"'`()[]{}<>*“”‘’«»…"


class WordsRead(list[tuple[str, slice]]):
    """The words of a prompt that a model reads, and those behind them that it does not."""

    def __init__(self, words: Iterable[tuple[str, slice]], cut: Sequence[str] = ()):
        super().__init__(words)
        self.cut = tuple(cut)


def spans(words: Words, wanted: str) -> list[int]:
    """The tokens of a word or phrase, everywhere it occurs.

    Marks and quotes around words are passed over, and a possessive's ending; where there is no such word, its plural is
    meant. Raises ``SfumatoError`` when the prompt has none such, and when what the model reads ends before it.
    """
    have, cut = [word for word, _ in words], list(getattr(words, "cut", ()))
    asked = wanted.lower().split()
    if not asked:
        raise SfumatoError(f"a word or a phrase of the prompt is meant, got {wanted!r}")
    found = _found(have, asked)
    if not found and cut and _found([*have, *cut], asked):
        raise SfumatoError(
            f"{wanted!r} lies in what is cut off: the prompt is read only to {' '.join(have[-3:])!r}; shorten it"
        )
    if not found:
        raise SfumatoError(f"the prompt has no {wanted!r}; its words are: {', '.join(map(_bare, have))}")
    places = [place for at in found for _, place in words[at : at + len(asked)]]
    tokens = [token for place in places for token in range(place.start, place.stop)]
    if not tokens:
        raise SfumatoError(f"{wanted!r} has no tokens of its own in this prompt; ask for what it is part of")
    return tokens


def _found(have: Sequence[str], asked: Sequence[str]) -> list[int]:
    """Where a phrase begins, by the first way of reading words in which it occurs."""
    for forms in (_forms, lambda word: _forms(word) | _singulars(_owner(word))):
        read = [forms(word) for word in have]
        places = range(len(have) - len(asked) + 1)
        if at := [i for i in places if all({w, _bare(w)} & (f - {""}) for w, f in zip(asked, read[i:], strict=False))]:
            return at
    return []


def _forms(word: str) -> set[str]:
    return {word.lower(), _bare(word), _owner(word)}


def _bare(word: str) -> str:
    return word.lower().strip(_MARKS)


def _owner(word: str) -> str:
    """Of "cube's" the cube."""
    return _bare(word).replace("’", "'").removesuffix("'s")


def _singulars(word: str) -> set[str]:
    """What a word may be the plural of."""
    ies = {word[:-3] + "y"} if word.endswith("ies") else set()
    return {word.removesuffix(end) for end in ("s", "es")} | ies
