"""The things that a prompt names: a small grammar of English noun phrases, and a place for a real parser.

Prompts are mostly noun phrases strung together, so closed classes of words carry far: what starts a phrase
(determiners, numbers), what ends one (prepositions, conjunctions, verbs, pronouns, marks), and which adjectives may
stand alone. What is left between them is a phrase; its last word is the head. It knows no nouns, so it is wrong where
only meaning decides ("a man eating fish"); ``Parser`` is the way to ask something that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sfumato.errors import SfumatoError

_MARKS = ",.;:!?"
_QUOTES = "\"'()[]{}“”‘’"


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_DETERMINERS = _set(
    "a an the this these those my your his her its our their some any each every no another several many few both "
    "all one two three four five six seven eight nine ten dozen"
)
_DEGREES = _set("very really quite rather extremely so too")
_MEASURES = _set("pair couple group bunch lot set number piece slice kind type pile stack row")
"""With "of" behind them they count: "a pair of red shoes" is about shoes."""
_PREPOSITIONS = _set(
    "about above across after against along alongside amid among around as at atop before behind below beneath beside "
    "besides between beyond by down during for from in inside into like near next of off on onto opposite out outside "
    "over past per through to toward towards under underneath until up upon via with within without"
)
_JOINING = _set("and or but nor plus &")
_OTHERS = _set(
    "it he she they them him i you we us me who whom whose which that there here where when while because if then "
    "not only just also together away"
)
_BEING = _set("is are was were be been being am has have had does do did can will would may must")
_VERBS = _set(
    "sits sit sat stands stand stood lies lie lay wears wear wore holds hold held rides ride rode runs run ran eats "
    "eat ate plays play played looks look looked flies fly flew jumps jump jumped sleeps sleep slept walks walk walked "
    "carries carry carried drives drive drove drinks drink drank hangs hang hung swims swim swam reads read watches "
    "watch makes make makes made shows show seen shown worn taken built filled contains contain surrounds faces "
    "turn turns put puts add adds remove removes replace replaces move moves change changes give gives take takes "
    "bring brings"
)
"""Nouns behind a determiner or an adjective: "a golden watch"."""
_ADJECTIVES = _set(
    "red green blue yellow purple orange white black pink brown grey gray golden silver violet cyan magenta turquoise "
    "beige crimson scarlet teal maroon bronze colourful colorful bright dark light pale vivid dull plain striped "
    "dotted checkered spotted shiny matte glossy small medium large big tiny huge little giant tall short long wide "
    "narrow thick thin round square flat old new young ancient modern wooden metal metallic plastic leather "
    "rusty fluffy furry soft hard rough smooth wet dry hot cold warm cool cute pretty beautiful ugly happy sad angry "
    "clean dirty empty full broken open closed heavy fat slim sharp transparent different larger smaller taller "
    "shorter wider narrower longer thicker thinner rounder"
)
_PLACES = _set(
    "left right top bottom front back rear side middle center centre foreground background distance half above below "
    "overhead one"
)
_PICTURES = _set(
    "photo photograph picture image painting drawing sketch watercolour watercolor mosaic render rendering view style "
    "illustration cartoon portrait closeup close-up shot scene"
)
"""They name the picture and not a thing in it, where they have no article or "of" behind them."""
_TIMES = _set(
    "day daytime daylight sunlight moonlight night nighttime dawn dusk sunrise sunset noon midnight morning evening "
    "afternoon twilight fog mist"
)
_NOT_DOING = _set(
    "building painting drawing ring king string wing thing swing spring ceiling evening morning wedding clothing "
    "earring sibling pudding duckling railing awning sling"
)
_NOT_DONE = _set("bed seed shed sled weed reed steed breed speed")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: "a pink spotted horse"."""

    text: str
    """As in the prompt, without the marks around it."""
    head: str
    """What it is about, in small letters: "horse"."""
    modifiers: tuple[str, ...]
    """The adjectives and nouns before the head: "pink", "spotted"."""
    words: range
    """Which of ``prompt.split()`` it is."""

    def at(self, prompt: str, word: str) -> int:
        """Which of ``prompt.split()`` its head or a modifier is; ``SfumatoError`` for a word that it does not have."""
        parts = prompt.split()
        found = [i for i in self.words if bare(parts[i]) == word]
        if not found:
            raise SfumatoError(f"the phrase {self.text!r} has no {word!r} among its words in {prompt!r}")
        return found[-1]


Parser = Callable[[str], Sequence[Phrase]]
"""Gives a prompt's phrases in their order, such as a wrapper of spaCy's ``doc.noun_chunks``."""


def noun_phrases(prompt: str, parser: Parser | None = None, *, nested: bool = False) -> tuple[Phrase, ...]:
    """The noun phrases of a prompt in their order, by this grammar or by ``parser``.

    Left out is what names no thing: places ("to the left of", "in front of"), times and light ("at night", "in fog"),
    and words for the picture itself ("a photo of", ", front view", "in the style of a mosaic"). With ``nested``,
    phrases that "of", "with" or "in" joins follow as a whole as well ("a bowl of red apples").
    """
    if parser is not None:
        return tuple(parser(prompt))
    words = prompt.split()
    return _Reading(words).phrases(nested)


def bare(word: str) -> str:
    """A word as the grammar compares it: small, without marks and quotes around it."""
    return word.strip(_MARKS + _QUOTES).lower()


class _Reading:
    def __init__(self, words: Sequence[str]):
        self.words = words
        self.bare = [bare(w) for w in words]
        self.closed = [w.rstrip(_QUOTES)[-1:] in _MARKS or w[-1:] in ")]}" for w in words]

    def phrases(self, nested: bool) -> tuple[Phrase, ...]:
        found, at = [], 0
        while at < len(self.words):
            end = self.end(at)
            if end > at and (phrase := self.phrase(range(at, end))) is not None:
                found.append(phrase)
            doing = end > at and end < len(self.words) and not self.closed[end - 1] and self.acts(at, end)
            at = end + 1 if doing or end == at else end
        return tuple(found + (self.joined(found) if nested else []))

    def ends(self, i: int) -> bool:
        """Is this word outside of every phrase, wherever it stands?"""
        word = self.bare[i]
        sideways = word in ("left", "right") and self.follows(i, "of")
        verb = word in _VERBS and not (i and not self.closed[i - 1] and self.bare[i - 1] in _DETERMINERS | _ADJECTIVES)
        return not word or sideways or verb or any(word in c for c in (_PREPOSITIONS, _JOINING, _OTHERS, _BEING))

    def end(self, start: int) -> int:
        """One past the phrase that starts here; ``start`` where none does."""
        at, content = start, False
        while at < len(self.words):
            word = self.bare[at]
            if word in _MEASURES and self.follows(at, "of") and not content:
                at += 2
                continue
            if content and self.words[at][0] in "([{" and not self.adjectives(start, at):
                return at
            if self.ends(at) or (at > start and word in _DETERMINERS and (content or word in ("a", "an", "the"))):
                if not (content and word in _JOINING and self.adjectives(start, at) and self.goes_on(at)):
                    return at
            elif content and self.acts(start, at):
                return at
            content |= word not in _DETERMINERS and word not in _JOINING
            at += 1
            if self.closed[at - 1] and not (content and self.adjectives(start, at) and self.goes_on(at - 1)):
                return at
        return at

    def follows(self, i: int, word: str) -> bool:
        return not self.closed[i] and self.bare[i + 1 : i + 2] == [word]

    def adjectives(self, start: int, stop: int) -> bool:
        """Is a phrase so far adjectives alone, that need a noun behind them?"""
        return all(w in _ADJECTIVES | _DETERMINERS | _JOINING | _DEGREES for w in self.bare[start:stop])

    def goes_on(self, i: int) -> bool:
        """Does a list of adjectives go on to a noun behind this word: "red and blue cube", "small, red cube"?"""
        at = i + 1
        while at < len(self.words) and self.bare[at] in _ADJECTIVES | _JOINING | _DEGREES:
            at += 1
        nouns = []
        while at < len(self.words) and not self.ends(at) and self.bare[at] not in _DETERMINERS:
            nouns.append(self.bare[at])
            at += 1
            if self.closed[at - 1]:
                break
        return bool(nouns) and nouns[-1] not in _PICTURES

    def acts(self, start: int, i: int) -> bool:
        """Is this word, behind the noun, what the thing does or is: "running", "covered with"?"""
        word = self.bare[i]
        if self.adjectives(start, i):
            return False
        doing = word.endswith("ing") and word not in _NOT_DOING
        done = word.endswith("ed") and word not in _NOT_DONE | _ADJECTIVES and not self.closed[i]
        return doing or (done and self.bare[i + 1 : i + 2] != [] and self.bare[i + 1] in _PREPOSITIONS)

    def phrase(self, at: range) -> Phrase | None:
        """These words as a phrase; None for determiners alone and for what names no thing."""
        content = [
            i
            for i in at
            if self.bare[i] not in _DETERMINERS | _JOINING | _DEGREES | {"of"}
            and not (self.bare[i] in _MEASURES and self.follows(i, "of"))
        ]
        if not content:
            return None
        content_words = [self.bare[i] for i in content]
        before = self.bare[at.start - 1] if at.start and not self.closed[at.start - 1] else ""
        article = any(self.bare[i] in _DETERMINERS for i in at)
        placed = all(w in _PLACES for w in content_words) and (before in _PREPOSITIONS or self.follows(at[-1], "of"))
        timed = len(content_words) == 1 and content_words[0] in _TIMES and before in _PREPOSITIONS
        shown = content_words[-1] in _PICTURES and (not article or self.follows(at[-1], "of"))
        styled = self.bare[max(at.start - 2, 0) : at.start] == ["style", "of"]
        copula = not article and before in ("is", "are", "was", "were") and self.adjectives(at.start, at.stop)
        if placed or timed or shown or styled or copula:
            return None
        text = " ".join(self.words[i] for i in at).strip(_MARKS + _QUOTES)
        return Phrase(text, content_words[-1], tuple(content_words[:-1]), at)

    def joined(self, found: Sequence[Phrase]) -> list[Phrase]:
        """Neighbours with one joining word between them, as one phrase each: its head is the first one's."""
        out = []
        for a, b in pairwise(found):
            between = self.bare[a.words.stop : b.words.start]
            if len(between) == 1 and between[0] in ("of", "with", "in") and not self.closed[a.words.stop - 1]:
                at = range(a.words.start, b.words.stop)
                text = " ".join(self.words[i] for i in at).strip(_MARKS + _QUOTES)
                out.append(Phrase(text, a.head, a.modifiers, at))
        return out
