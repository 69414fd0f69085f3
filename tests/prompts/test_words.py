"""Words are found as people write them."""

from __future__ import annotations

import pytest

from sfumato.errors import SfumatoError
from sfumato.prompts.words import WordsRead, spans


def read(prompt: str, cut: str = "") -> WordsRead:
    """A token a word."""
    return WordsRead([(word, slice(i + 1, i + 2)) for i, word in enumerate(prompt.split())], cut.split())


@pytest.mark.parametrize(
    ("prompt", "wanted", "tokens"),
    [
        ('a "cube" here', "cube", [2]),
        ("a cube, red", "Cube", [2]),
        ("the cube's top", "cube", [2]),
        ("the cube’s top", "cube", [2]),
        ("the “cube”!", "cube", [2]),
        ("two cubes and boxes", "cube", [2]),
        ("two cubes and boxes", "box", [4]),
        ("two cherries", "cherry", [2]),
        ("two red cubes", "red cube", [2, 3]),
        ("cubes and a cube", "cube", [4]),
        ("a <toy> on grass", "<toy>", [2]),
        ("a cube's cube", "cube's", [2]),
        ("a glass", "glass", [2]),
        ("red, cube", "red cube", [1, 2]),
    ],
)
def test_marks_quotes_possessives_and_plurals(prompt, wanted, tokens):
    assert spans(read(prompt), wanted) == tokens


@pytest.mark.parametrize("wanted", ["cub", "duck", "cube red", '",', ""])
def test_what_is_not_there_is_refused(wanted):
    with pytest.raises(SfumatoError):
        spans(read('a red cube - " here'), wanted)


def test_what_is_cut_off_is_refused_by_saying_so():
    words = read("a red cube", "on a blue duck")
    with pytest.raises(SfumatoError, match=r"'duck' lies in what is cut off: the prompt is read only to 'a red cube'"):
        spans(words, "duck")
    with pytest.raises(SfumatoError, match="the prompt has no 'horse'"):
        spans(words, "horse")
    assert spans(words, "a") == [1]
