"""The small grammar of noun phrases: prompts as people write them, and all that Still Life says."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import SfumatoError
from sfumato.prompts.grammar import Phrase, noun_phrases
from sfumato.stilllife.captions import PLURALS, caption, parse
from sfumato.stilllife.scene import sample_scene

CASES = {
    "a red cube to the left of a blue sphere on grass": ["a red cube", "a blue sphere", "grass"],
    "a pink spotted horse and a shiny golden watch": ["a pink spotted horse", "a shiny golden watch"],
    "a cat": ["a cat"],
    "cat": ["cat"],
    "": [],
    "  ": [],
    "and, with.": [],
    "it": [],
    "the two": [],
    # what joins things
    "a red cube, a blue sphere, and a green duck": ["a red cube", "a blue sphere", "a green duck"],
    "glass bottle, wooden spoon; metal fork": ["glass bottle", "wooden spoon", "metal fork"],
    "a horse and rider": ["a horse", "rider"],
    "a bowl of red apples with a spoon": ["a bowl", "red apples", "a spoon"],
    "a cat & a dog": ["a cat", "a dog"],
    # adjectives
    "a small, red cube": ["a small, red cube"],
    "a red and blue ball": ["a red and blue ball"],
    "red, green and blue cubes on a table": ["red, green and blue cubes", "a table"],
    "a red hat and blue shoes": ["a red hat", "blue shoes"],
    "an orange and a banana": ["an orange", "a banana"],
    "a black-and-white cat": ["a black-and-white cat"],
    "a very large cat": ["a very large cat"],
    # numbers and measures
    "two red cubes": ["two red cubes"],
    "a pair of red shoes": ["a pair of red shoes"],
    # what things do and are
    "a man riding a horse": ["a man", "a horse"],
    "a young sleeping cat on a red sofa": ["a young sleeping cat", "a red sofa"],
    "a table covered with snow": ["a table", "snow"],
    "a cat sits on a mat": ["a cat", "a mat"],
    "a man walks a dog": ["a man", "a dog"],
    "a man and a woman play chess": ["a man", "a woman", "chess"],
    "a cube that is red and a sphere": ["a cube", "a sphere"],
    "a golden watch on a table": ["a golden watch", "a table"],
    "a tall building on a hill": ["a tall building", "a hill"],
    "a red bed in a room": ["a red bed", "a room"],
    # places, times and the picture name no things
    "a white cat on the left and a black dog on the right": ["a white cat", "a black dog"],
    "a cube in front of a duck": ["a cube", "a duck"],
    "a cube in the middle of a field": ["a cube", "a field"],
    "the left shoe": ["the left shoe"],
    "a city at night": ["a city"],
    "a night sky over a city": ["a night sky", "a city"],
    "a photo of a cat": ["a cat"],
    "a photo on a wall": ["a photo", "a wall"],
    "a painting of a cat wearing a hat": ["a cat", "a hat"],
    "a red cube in the style of a mosaic": ["a red cube"],
    # marks
    "A Red Cube.": ["A Red Cube"],
    'a "big" cat (a fat rat)': ['a "big" cat', "a fat rat"],
    "a cat [red]": ["a cat", "red"],
    "the dog's ball": ["the dog's ball"],
    "make the cube larger and put a hat on it": ["the cube larger", "a hat"],
}


@pytest.mark.parametrize(("prompt", "wanted"), CASES.items())
def test_phrases_of_prompts(prompt, wanted):
    found = noun_phrases(prompt)
    assert [p.text for p in found] == wanted
    for p in found:
        said = prompt.split()[p.words.start : p.words.stop]
        assert p.text in " ".join(said) and p.head in said[-1].lower()
        assert all(any(m in w.lower() for w in said[:-1]) for m in p.modifiers)
    ends = [0, *(n for p in found for n in (p.words.start, p.words.stop))]
    assert ends == sorted(ends)  # in order, none inside another


def test_heads_and_their_modifiers():
    horse, watch = noun_phrases("a pink spotted horse and a shiny golden watch")
    assert horse == Phrase("a pink spotted horse", "horse", ("pink", "spotted"), range(4))
    assert watch == Phrase("a shiny golden watch", "watch", ("shiny", "golden"), range(5, 9))

    def modifiers(prompt: str) -> tuple[str, ...]:
        return noun_phrases(prompt)[0].modifiers

    assert modifiers("Two Small, Red cubes") == ("small", "red")
    assert modifiers("a red and blue ball") == ("red", "blue")
    assert modifiers("a pair of very old glass bottles") == ("old", "glass")
    assert modifiers("the cat") == ()
    red = noun_phrases("A (red) cube, a red, red duck")
    assert red[0].at("A (red) cube, a red, red duck", "red") == 1
    assert red[1].at("A (red) cube, a red, red duck", "duck") == 6
    with pytest.raises(SfumatoError, match="'A \\(red\\) cube' has no 'blue'"):
        red[0].at("A (red) cube, a red, red duck", "blue")


def test_longer_phrases_on_request():
    prompt = "a bowl of red apples on a table with a cloth, by a pond"
    short, all_ = noun_phrases(prompt), noun_phrases(prompt, nested=True)
    assert all_[: len(short)] == short
    assert all_[len(short) :] == (
        Phrase("a bowl of red apples", "bowl", (), range(5)),
        Phrase("a table with a cloth", "table", (), range(6, 11)),
    )


def test_a_parser_takes_its_place():
    mine = Phrase("cat", "cat", (), range(1, 2))
    assert noun_phrases("a cat on a mat", lambda prompt: [mine] * prompt.count("mat")) == (mine,)


def test_every_caption_of_still_life_is_read():
    """Things with their adjectives, then the ground; never a view, a place, a light or a style."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(400):
        text = caption(sample_scene(rng), rng)
        said = parse(text)
        names = {t.kind if t.count == 1 else PLURALS[t.kind] for t in said.things}
        found = noun_phrases(text)
        things = [p for p in found if p.head in names]
        wanted = [tuple(w for w in (t.size, t.material, t.colour) if w) for t in said.things]
        assert [p.modifiers for p in things] == wanted, text
        rest = [p.head for p in found if p.head not in names]
        assert rest == ([said.ground] if said.ground else []), text
        seen += len(things)
    assert seen > 500
