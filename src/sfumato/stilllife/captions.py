"""Sentences about scenes: a small grammar that writes captions, and the parser that reads them back.

What is said and how it is worded are apart: ``Said`` holds the statements, ``Said.phrase`` words them, ``parse``
inverts every wording, ``truth`` holds statements against a scene. Kinds and colours have one word each, so that a small
model can learn them; only function words vary. The tables below are the whole lexicon: the writer, the parser and the
tokenizer's ``WORDS`` all read them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, NoReturn, TypeVar

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.scene import (
    COLOURS,
    GROUNDS,
    INVERSE,
    MATERIALS,
    RELATIONS,
    SIZES,
    STYLES,
    VIEWS,
    Scene,
    relation,
    view,
)

T = TypeVar("T")

# The lexicon: every value and its wordings, the plainest first. A leading comma is written but need not be read.
_IRREGULAR = {"snowman": "snowmen", "cactus": "cacti"}
PLURALS = {kind: _IRREGULAR.get(kind, f"{kind}s") for kind in KINDS}
_NUMBER = {1: ("a", "an", "the"), 2: ("two",), 3: ("three",)}
_ADJECTIVES = {
    slot: {word: (word,) for word in words}
    for slot, words in (("size", SIZES), ("material", MATERIALS), ("colour", COLOURS))
}
_NOUN = {(k, False): (k,) for k in KINDS} | {(k, True): (PLURALS[k],) for k in KINDS}
_VIEW_FIRST = {v: (f"{v} view of",) for v in VIEWS}
_VIEW_LAST = {v: (f", {v} view", "seen from above" if v == "overhead" else f"seen from the {v}") for v in VIEWS}
_RELATION = {r: (f"to the {r}", r) if r in ("left of", "right of") else (r,) for r in RELATIONS}
_GROUND = {g: (f"on {g}", f"on the {g}") for g in GROUNDS}
_LIGHT = {
    "day": ("by day", "in daylight"),
    "sunset": ("at sunset",),
    "night": ("at night",),
    "fog": ("in fog", "in the fog"),
}
_STYLE_FIRST = {s: (f"a {s} of",) for s in STYLES}
_STYLE_LAST = {s: (f", {s}",) if s == "photo" else (f", {s}", f"in the style of a {s}") for s in STYLES}

INSTRUCTION_WORDS: tuple[str, ...] = (
    *("make", "turn", "add", "remove", "replace", "put", "move", "change", "give", "take", "bring", "place", "paint"),
    *("it", "its", "them", "this", "that", "thing", "ground", "light", "style", "scene", "picture", "colour", "shape"),
    *("with", "into", "to", "around", "away", "out", "up", "down", "forwards", "backwards", "closer", "further", "as"),
    *("larger", "smaller", "taller", "shorter", "wider", "narrower", "longer", "thicker", "thinner", "rounder"),
    *("different", "another", "half", "quarter", "all", "beside", "next", "is", "be", "for", "one", "middle"),
)
"""What instructions ("turn the robot around") need beyond the words of captions."""


@dataclass(frozen=True)
class Odds:
    """How often a caption says a fact. Unsaid should mostly mean the commonest: plain, medium, day, photo."""

    colour: float = 0.95
    material: float = 0.85
    size: float = 0.6
    view: float = 0.6
    relation: tuple[float, float] = (0.75, 0.25)  # of two things, of three
    count: float = 0.7  # "two red cubes", when all things share kind and colour
    ground: float = 0.75
    day: float = 0.25
    light: float = 0.75
    photo: float = 0.3
    style: float = 0.95


ODDS = Odds()


@dataclass(frozen=True)
class SaidThing:
    """What a caption says of a thing, or of ``count`` things alike. None: not said."""

    kind: str
    colour: str | None = None
    material: str | None = None
    size: str | None = None
    view: str | None = None
    count: int = 1

    def noun(self) -> str:
        """Its name and adjectives: "large striped red cube"."""
        name = self.kind if self.count == 1 else PLURALS[self.kind]
        return " ".join([w for w in (self.size, self.material, self.colour, name) if w])

    def phrase(self) -> str:
        """The noun with its article or number: "an orange duck", "two red cubes"."""
        noun = self.noun()
        article = "an" if noun[0] in "aeiou" else "a"
        return f"{article if self.count == 1 else _NUMBER[self.count][0]} {noun}"


@dataclass(frozen=True)
class Said:
    """What a caption says. ``relation`` is that of the first thing to the second. None: not said."""

    things: tuple[SaidThing, ...]
    relation: str | None = None
    ground: str | None = None
    light: str | None = None
    style: str | None = None

    def phrase(self, rng: np.random.Generator | None = None) -> str:
        """One wording of these statements, without ``rng`` the plainest; ``parse`` gives the statements back."""

        def pick(options: Sequence[T]) -> T:
            return options[0] if rng is None else options[int(rng.random() * len(options))]

        opens = self.style is not None and pick((True, False))
        alone = len(self.things) == 1
        parts = []
        for thing in self.things:
            text = thing.phrase()
            if thing.view is not None:
                if not alone:  # in a list the loose forms would seem to belong to all
                    text = _join(text, _VIEW_LAST[thing.view][1])
                elif not opens and pick((False, True)):
                    text = f"{_VIEW_FIRST[thing.view][0]} {text}"
                else:
                    text = _join(text, pick(_VIEW_LAST[thing.view]))
            parts.append(text)
        if self.relation is not None:
            wordings = _RELATION[self.relation]  # never "seen from the front left of"
            text = f"{parts[0]} {wordings[0] if self.things[0].view else pick(wordings)} {parts[1]}"
            text += "".join(f", and {p}" for p in parts[2:])
        else:
            text = " and ".join([p for p in (", ".join(parts[:-1]), parts[-1]) if p])
        tail = [pick(_GROUND[self.ground])] if self.ground is not None else []
        if self.light is not None:
            tail.insert(pick((1, 1, 0)), pick(_LIGHT[self.light]))
        if self.style is not None and opens:
            text = f"{_STYLE_FIRST[self.style][0]} {text}"
        elif self.style is not None:
            tail.append(pick(_STYLE_LAST[self.style]))
        for clause in tail:
            text = _join(text, clause)
        return text


def _join(text: str, clause: str) -> str:
    """Append a clause; a view set off by a comma is closed by one."""
    if clause[0] == ",":
        return text + clause
    return f"{text}, {clause}" if text.endswith(" view") else f"{text} {clause}"


def facts(scene: Scene) -> Said:
    """All that a caption could say of a scene's first three things; plain, medium and absent views are None."""
    n = min(len(scene.things), Scene.most)
    order = list(range(n))
    for i in order:
        if (on := scene.things[i].on) is not None and on < n:  # what stands on something leads, then its support
            order = [i, on, *(j for j in order if j not in (i, on))]
            break
    return Said(
        tuple([_thing(scene, i) for i in order]),
        relation(scene, order[0], order[1]) if n > 1 else None,
        scene.ground,
        scene.light,
        scene.style,
    )


def _thing(scene: Scene, index: int) -> SaidThing:
    t = scene.things[index]
    material = None if t.material == "plain" else t.material
    return SaidThing(t.kind, t.colour, material, None if t.size == "medium" else t.size, view(scene, index))


def plain(scene: Scene) -> str:
    """The fullest caption of a scene, always in the same words."""
    return facts(scene).phrase()


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Some facts of a scene in some wording. Every thing is named, of a wide world the first three."""
    return _some(facts(scene), rng).phrase(rng)


def _some(stated: Said, rng: np.random.Generator) -> Said:
    """Drop facts at random, and tell pairs and lists from either end."""

    def keep(value: T, odds: float) -> T | None:
        return value if value is not None and rng.random() < odds else None

    things, where = stated.things, stated.relation
    stands = where == "on top of"
    alike = len({(t.kind, t.colour) for t in things}) == 1
    if len(things) > 1 and alike and not stands and rng.random() < ODDS.count:
        same = {f: getattr(things[0], f) for f in ("material", "size", "view")}
        same = {f: v if all(getattr(t, f) == v for t in things) else None for f, v in same.items()}
        things, where = (replace(things[0], count=len(things), **same),), None
    elif len(things) > 1:
        where = where if stands else keep(where, ODDS.relation[len(things) - 2])
        if (where is None or where in INVERSE) and rng.random() < 0.5:
            things, where = (things[1], things[0], *things[2:]), INVERSE.get(where) if where else None
        if where is None and len(things) > 2 and rng.random() < 0.5:
            things = things[::-1]
    return Said(
        tuple(
            [
                SaidThing(
                    t.kind,
                    keep(t.colour, ODDS.colour),
                    keep(t.material, ODDS.material),
                    keep(t.size, ODDS.size),
                    keep(t.view, ODDS.view),
                    t.count,
                )
                for t in things
            ]
        ),
        where,
        keep(stated.ground, ODDS.ground),
        keep(stated.light, ODDS.day if stated.light == "day" else ODDS.light),
        keep(stated.style, ODDS.photo if stated.style == "photo" else ODDS.style),
    )


def truth(scene: Scene, stated: Said) -> list[str]:
    """The statements that do not hold of a scene, in words; empty when the caption is true.

    Things are matched with the scene's things as favourably as possible. A caption need not name everything, but a
    number is exact: "two red cubes" is false of three.
    """
    single = [i for i, t in enumerate(stated.things) if t.count == 1]
    lacking = max(0, len(single) - len(scene.things))
    seats = [*range(len(scene.things)), *[None] * lacking]
    wrong = min(
        (
            list(_false(scene, stated, dict(zip(single, chosen, strict=True))))
            for chosen in permutations(seats, len(single))
        ),
        key=lambda found: sum(weight for weight, _ in found),
    )
    for what, is_, says in (
        ("ground", scene.ground, stated.ground),
        ("light", scene.light, stated.light),
        ("style", scene.style, stated.style),
    ):
        if says not in (None, is_):
            wrong.append((1, f"the {what} is {says}"))
    return [statement for _, statement in wrong]


def _false(scene: Scene, stated: Said, seat: Mapping[int, int | None]) -> Iterator[tuple[int, str]]:
    """(weight, statement) of what is false when the said things take these seats; a missing thing weighs most."""
    for i, t in enumerate(stated.things):
        if t.count > 1:
            if sum(_agrees(t, _thing(scene, j)) for j in range(len(scene.things))) != t.count:
                yield 10, f"there are {t.phrase()}"
            continue
        at = seat[i]
        if at is None or scene.things[at].kind != t.kind:
            yield 10, f"there is {t.phrase()}"
            continue
        real = scene.things[at]
        for says, is_ in ((t.colour, real.colour), (t.material, real.material), (t.size, real.size)):
            if says not in (None, is_):
                yield 1, f"the {t.kind} is {says}"
        if t.view not in (None, view(scene, at)):
            yield 1, f"the {t.kind} is in {t.view} view"
    if stated.relation is not None:
        a, b = seat.get(0), seat.get(1)
        if a is None or b is None or relation(scene, a, b) != stated.relation:
            yield 1, f"the {stated.things[0].noun()} is {stated.relation} the {stated.things[1].noun()}"


def _agrees(says: SaidThing, real: SaidThing) -> bool:
    real = replace(real, material=real.material or "plain", size=real.size or "medium")
    return all(getattr(says, f) in (None, getattr(real, f)) for f in ("kind", "colour", "material", "size", "view"))


def _split(text: str) -> list[str]:
    return re.findall(r"[^\s,.]+|[,.]", unicodedata.normalize("NFC", text).lower())


class _Table:
    """Wordings to values, longest wording first."""

    def __init__(self, wordings: Mapping[Any, Sequence[str]]):
        rows = [(tuple(w for w in _split(text) if w != ","), value) for value, row in wordings.items() for text in row]
        self.rows = sorted(rows, key=lambda row: -len(row[0]))

    def words(self) -> Iterator[str]:
        for words, _ in sorted(self.rows, key=lambda row: row[0]):
            yield from words


_TABLES = {
    "number": _Table(_NUMBER),
    **{name: _Table(words) for name, words in _ADJECTIVES.items()},
    "noun": _Table(_NOUN),
    "view first": _Table(_VIEW_FIRST),
    "view last": _Table(_VIEW_LAST),
    "relation": _Table(_RELATION),
    "ground": _Table(_GROUND),
    "light": _Table(_LIGHT),
    "style first": _Table(_STYLE_FIRST),
    "style": _Table(_STYLE_LAST),
}

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys((",", ".", "and", *(w for t in _TABLES.values() for w in t.words()), *INSTRUCTION_WORDS))
)
"""Every word and mark that captions and instructions use, in a fixed order."""
_KNOWN = frozenset(WORDS)


def unknown_words(text: str) -> list[str]:
    """The words of a prompt that the grammar does not have, each once, in order; punctuation is passed over."""
    marks = {
        c: " " for c in set(text) if c != "'" and (unicodedata.category(c)[0] == "P" or (c < "~" and not c.isalnum()))
    }
    words = unicodedata.normalize("NFC", text.translate(str.maketrans(marks))).lower().split()
    return list(dict.fromkeys(w for w in (w.strip("'") for w in words) if w and w not in _KNOWN))


def parse(text: str) -> Said:
    """What a caption says. Reads every wording that ``caption`` writes, and is lenient about commas and articles.

    Raises ``SfumatoError`` for a sentence outside the grammar, naming the words it stopped at.
    """
    return _Reader(text).sentence()


class _Reader:
    def __init__(self, text: str):
        self.text = text
        self.words = _split(text.rstrip(" .!\n"))
        self.at = 0

    def fail(self, why: str) -> NoReturn:
        short = self.text if len(self.text) <= 120 else self.text[:117] + "..."
        raise SfumatoError(f"cannot read the caption {short!r}: {why}")

    def rest(self) -> str:
        left = self.words[self.at :]
        return repr(" ".join(left[:6]) + (" ..." if len(left) > 6 else "")) if left else "the end"

    def take(self, table: str, *, comma: bool = False, unless: str | None = None) -> Any:
        """The value of the wording that comes next (after a comma, if it may), or None; not if ``unless`` follows."""
        start = self.at + (comma and self.words[self.at : self.at + 1] == [","])
        for words, value in _TABLES[table].rows:
            end = start + len(words)
            if tuple(self.words[start:end]) == words and self.words[end : end + 1] != [unless]:
                self.at = end
                return value
        return None

    def skip(self, word: str) -> bool:
        found = self.words[self.at : self.at + 1] == [word]
        self.at += found
        return found

    def sentence(self) -> Said:
        if not self.words:
            self.fail("it is empty; say for example 'a red cube on grass'")
        if strange := unknown_words(self.text):
            self.fail(f"unknown {', '.join(map(repr, strange[:8]))}; things are {', '.join(KINDS)}")
        slots: dict[str, Any] = {"style": self.take("style first")}
        things = [self.thing()]
        where = self.take("relation")
        if where is not None:
            things.append(self.thing())
        while self.another():
            things.append(self.thing())
        if sum(t.count for t in things) > Scene.most:
            self.fail(f"it names {sum(t.count for t in things)} things; a still life holds one to {Scene.most}")
        if where is not None and things[0].count + things[1].count > 2:
            self.fail(f"{where!r} stands between single things")
        while self.at < len(self.words):
            for slot in ("ground", "light", "style"):
                value = self.take(slot, comma=True)
                if value is None:
                    continue
                if slots.get(slot) is not None:
                    self.fail(f"it says the {slot} twice, {slots[slot]} and {value}")
                slots[slot] = value
                break
            else:
                self.fail(f"stopped at {self.rest()}; expected a ground, a light, a style or the end")
        return Said(tuple(things), where, **slots)

    def another(self) -> bool:
        """Step over the comma or "and" before another thing; a comma may belong to what follows the things."""
        start = self.at
        comma, joined = self.skip(","), self.skip("and")
        if joined or (comma and not any(self.take(slot) for slot in ("ground", "light", "style"))):
            return True
        self.at = start
        return False

    def thing(self) -> SaidThing:
        start = self.at
        seen = self.take("view first")
        count = self.take("number") or 1
        slots: dict[str, str] = {}
        while (noun := self.take("noun")) is None:
            for slot in _ADJECTIVES:
                if (word := self.take(slot)) is not None:
                    if slot in slots:
                        self.fail(f"a thing has one {slot}, not {slots[slot]} and {word}")
                    slots[slot] = word
                    break
            else:
                self.at = start
                self.fail(f"stopped at {self.rest()}; expected a thing such as 'a red cube'")
        kind, plural = noun
        if plural != (count > 1):
            self.fail(f"say 'a {kind}' or 'two {PLURALS[kind]}'")
        if seen is None:
            seen = self.take("view last", comma=True, unless="of")
        if seen is not None and not KINDS[kind].front:
            self.fail(f"a {kind} has no front, so it has no {seen} view")
        return SaidThing(kind, view=seen, count=count, **slots)
