"""From a prompt to a layout: a box for each thing that it names, by a grammar of our own or by any chat model.

The grammar reads the things (``prompts.grammar``), how many there are, and what stands between them ("to the left of",
"on", "behind"). Things get columns and heights that obey all of it; boxes never overlap, and the same prompt always
gives the same ones. A chat is asked for JSON; what it answers is checked, and said back to it once if it does not do.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise, permutations
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.prompts.chat import Chat, Message
from sfumato.prompts.grammar import Parser, Phrase, bare, noun_phrases
from sfumato.prompts.layout import Box, Layout, Region
from sfumato.prompts.weights import plain

CANVAS = 512
MOST = 9
"""Things that get a box each; of more there is one box for all."""

_ARTICLES = ("a", "an", "the")
_NUMBERS = {w: n for n, w in enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine"), 2)}
_NUMBERS |= {"both": 2, "pair": 2, "couple": 2, "several": 3, "few": 3, "many": 4} | {str(n): n for n in range(2, 10)}
_IRREGULAR = {
    "people": "person", "men": "man", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot",
    "teeth": "tooth", "cacti": "cactus", "leaves": "leaf", "wolves": "wolf", "knives": "knife", "shelves": "shelf",
    "loaves": "loaf", "sheep": "sheep", "fish": "fish", "deer": "deer", "shoes": "shoe",
}  # fmt: skip
_GROUNDS = {
    "grass", "sand", "snow", "stone", "wood", "water", "ground", "floor", "beach", "field", "meadow", "forest", "woods",
    "street", "road", "park", "garden", "room", "kitchen", "bedroom", "bathroom", "office", "studio", "desert", "sea",
    "ocean", "lake", "river", "sky", "space", "city", "town", "village", "mountains", "hills", "wall", "landscape",
    "background", "air", "rain", "fog", "mist", "moonlight", "sunlight", "light", "darkness",
}  # fmt: skip
"""They are what things are on or in, also with an article."""
_STUFF = ("stone", "wall", "light", "field", "lake", "river")
"""Of them, those that with "a" may be things."""
_BEFORE_GROUNDS = ("on", "in", "at", "by", "against", "inside", "amid", "under", "through", "across")

# what is said between two things -> how the first is to the second; longer wordings first
_RELATIONS = {
    "left of": "left", "left side of": "left", "right of": "right", "right side of": "right",
    "in front of": "front", "in back of": "behind", "behind": "behind",
    "on top of": "above", "on": "above", "onto": "above", "upon": "above", "atop": "above", "above": "above",
    "over": "above", "under": "below", "underneath": "below", "below": "below", "beneath": "below",
    "next to": "beside", "close to": "beside", "beside": "beside", "alongside": "beside", "near": "beside",
    "by": "beside", "between": "between",
}  # fmt: skip
_PLACES = {"on the left": 0, "at the left": 0, "on the right": 2, "at the right": 2, "in the middle": 1}
_PLACES |= {"in the center": 1, "in the centre": 1, "to the left": 0, "to the right": 2}

_SEEN = ("seen", "from", "the", "front", "back", "left", "right", "side", "above", "below", "behind")


@dataclass(frozen=True)
class Planned:
    """What a prompt's picture is to look like."""

    layout: Layout
    background: str = ""
    """What is around the things: "{} on grass" with the place for a thing, or words that are followed by one."""

    def thing(self, phrase: str, prompt: str) -> str:
        """What one region of a phrase holds: "a red cube", also for "two red cubes" with a region each."""
        return single(phrase) if self.layout.phrases.count(phrase) > 1 else _with_article(phrase, prompt)

    def alone(self, phrase: str, prompt: str) -> str:
        """A prompt for that by itself: "a red cube on grass"."""
        thing = self.thing(phrase, prompt)
        if "{}" in self.background:
            return self.background.replace("{}", thing)
        return f"{self.background} with {thing}" if self.background else thing


def planned(prompt: str, chat: Chat | None = None, parser: Parser | None = None) -> Planned:
    """Where things go. ``chat`` None: by the grammar, whose phrases may come from another ``parser``.

    Raises ``SfumatoError`` when the prompt names nothing, contradicts itself, or the chat gives no layout.
    """
    prompt = plain(prompt)
    return _by_grammar(prompt, parser) if chat is None else _by_chat(prompt, chat)


def single(phrase: str) -> str:
    """One of what a phrase means, with an article: "two red cubes" are each "a red cube"."""
    words = phrase.split()
    if len(words) > 1 and bare(words[0]) in (*_NUMBERS, *_ARTICLES):
        words = words[1:]
    return _a(" ".join([*words[:-1], _one(words[-1])]))


def _a(thing: str) -> str:
    return f"{'an' if thing[0].lower() in 'aeiou' else 'a'} {thing}"


def _with_article(phrase: str, prompt: str) -> str:
    """A phrase as the prompt has it: with its article, if it has one there."""
    found = re.search(rf"\b(?:(?:a|an|the)\s+)?{re.escape(phrase)}(?!\w)", prompt, re.IGNORECASE)
    return found.group() if found else _a(phrase)


def _one(noun: str) -> str:
    """A noun's singular."""
    word = noun.lower()
    for ending, to in _IRREGULAR.items():
        if word.endswith(ending):
            return noun[: len(noun) - len(ending)] + to
    if word.endswith("ies"):
        return noun[:-3] + "y"
    if word.endswith(("sses", "xes", "zes", "ches", "shes", "buses", "oes")):
        return noun[:-2]
    return noun[:-1] if word.endswith("s") and not word.endswith("ss") else noun


# ---- by grammar ----


def _by_grammar(prompt: str, parser: Parser | None) -> Planned:
    words = prompt.split()
    bares = [bare(w) for w in words]
    phrases = noun_phrases(prompt, parser)
    mentions = [p for p in phrases if not _is_ground(p, bares)]
    if not mentions:
        raise SfumatoError(f"{prompt!r} names no thing that could be given a box; say what is there, or give a layout")
    things, whose = _distinct(mentions)
    counts = [_count(p) for p in things]
    if sum(counts) > MOST:
        counts = [1] * len(things)
    facts, places = _facts(bares, mentions, phrases)
    facts = [(relation, *(whose[n] for n in others)) for relation, *others in facts]
    boxes = _boxes(counts, facts, {whose[n]: place for n, place in places.items()}, [_name(p) for p in things])
    layout = Layout(tuple(Region(_name(p), box) for p, some in zip(things, boxes, strict=True) for box in some))
    try:
        layout.check(disjoint=True)
    except SfumatoError:
        raise SfumatoError(f"where {_listed(layout.phrases)} are is more than boxes can show; give a layout") from None
    return Planned(layout, _around(words, mentions, phrases))


def _distinct(mentions: Sequence[Phrase]) -> tuple[list[Phrase], list[int]]:
    """The things, and for each mention which of them it is: "the cube" is the cube there was."""
    things: list[Phrase] = []
    whose = []
    for phrase in mentions:
        again = bare(phrase.text.split()[0]) in ("the", "this", "that")
        same = [n for n, t in enumerate(things) if t.head == phrase.head and set(phrase.modifiers) <= set(t.modifiers)]
        whose.append(same[0] if again and same else len(things))
        if whose[-1] == len(things):
            things.append(phrase)
    return things, whose


def _around(words: Sequence[str], mentions: Sequence[Phrase], phrases: Sequence[Phrase]) -> str:
    """The prompt with "{}" instead of the things and what is said between them, but for grounds."""
    first, last = mentions[0].words, mentions[-1].words
    grounds = [p.words for p in phrases if p not in mentions and first.start < p.words.start < last.start]
    tail = words[last.stop :]
    while tail and any([bare(w) for w in tail[:3]] == place.split() for place in _PLACES):
        tail = tail[3:]  # "on the right" is not of the background
    if tail[:2] == ["seen", "from"] and len(mentions) > 1:  # it is of the last thing
        tail = list(dropwhile(lambda word: bare(word) in _SEEN, tail))
    mark = words[last.stop - 1][-1:]
    out = [*words[: first.start], "{}", *(w for at in grounds for w in words[at.start - 1 : at.stop])]
    out[-1] = out[-1].rstrip(",.;:") + (mark if mark in ",.;:" and tail else "")
    return " ".join([*out, *tail])


def _is_ground(phrase: Phrase, words: Sequence[str]) -> bool:
    """Is this what things are on or in, and not a thing with a place of its own?"""
    at = phrase.words.start
    before = words[at - 1] if at else ""
    articled = words[at] not in (phrase.head, *phrase.modifiers)
    if before in _BEFORE_GROUNDS:
        return phrase.head in _GROUNDS or not articled
    return phrase.head in _GROUNDS and not (phrase.head in _STUFF and words[at] in ("a", "an", *_NUMBERS))


def _count(phrase: Phrase) -> int:
    words = [bare(w) for w in phrase.text.split()]
    return next((_NUMBERS[w] for w in words[:2] if w in _NUMBERS and w not in phrase.modifiers), 1)


def _name(phrase: Phrase) -> str:
    first, *others = phrase.text.split()
    return " ".join(others) if others and bare(first) in _ARTICLES else phrase.text


def _facts(
    words: Sequence[str], things: Sequence[Phrase], phrases: Sequence[Phrase]
) -> tuple[list[tuple[Any, ...]], dict[int, int]]:
    """How things are to each other, as (relation, one, other or others); and columns that are said outright."""
    facts: list[tuple[Any, ...]] = []
    places: dict[int, int] = {}
    joined = [words[a.words.stop : b.words.start] == ["and"] for a, b in pairwise(things)]
    for n, thing in enumerate(things):
        stop = things[n + 1].words.start if n + 1 < len(things) else len(words)
        between = " ".join(words[max(p.words.stop for p in phrases if p.words.stop <= stop) : stop])
        after = " ".join(words[thing.words.stop : stop])
        for place, column in _PLACES.items():
            if re.search(rf"\b{place}\b(?! of| side of)", after):
                places[n] = column
        found = [r for r in _RELATIONS if re.search(rf"\b{r}\b", between)]
        if n + 1 == len(things) or not found or (n in places and not between.endswith(" of")):
            continue
        relation = _RELATIONS[max(found, key=len)]
        if relation == "between":
            facts += [(relation, n, n + 1, n + 2)] if n + 2 < len(things) else []
            continue
        facts.append((relation, n, n + 1))
        while n and joined[n - 1] and not any(n - 1 in others[1:] for _, *others in facts):
            n -= 1  # "a cup and a mug on a table": both are
            facts.append((relation, n, facts[-1][2]))
    return facts, places


_Height = tuple[int, int]  # how many things are below, how many in front
_BACK = 0.3  # of the image: how much higher the foot of what is behind is


def _boxes(
    counts: Sequence[int], facts: Sequence[tuple[Any, ...]], places: Mapping[int, int], names: Sequence[str]
) -> list[list[Box]]:
    """For each thing its boxes, one a copy.

    What is above something shares its column; of the orders of the columns the first that obeys all that is said is
    taken, that of mention before others. What is behind something is higher in the picture, and beside it.
    """
    column = list(range(len(counts)))
    for relation, *two in facts:
        if relation in ("above", "below"):
            a, b = (column[n] for n in two)
            column = [b if c == a else c for c in column]
    heights = _heights(len(counts), facts, names)
    groups = sorted(set(column), key=column.index)

    def mates(n: int) -> list[int]:
        """Things in the same column at the same height, which share its width."""
        return [m for m in range(len(counts)) if (column[m], heights[m]) == (column[n], heights[n])]

    wide = {g: max(sum(counts[m] for m in mates(n)) for n in range(len(counts)) if column[n] == g) for g in groups}
    if len(groups) > 7:
        raise SfumatoError(f"{len(groups)} things side by side are too many to plan; give a layout")
    for order in permutations(groups):
        if _obeys([order.index(c) for c in column], facts, places, len(groups)):
            break
    else:
        raise _contradiction(names)
    slot = 0.92 / sum(wide.values())
    side = min(0.4, slot - 0.03, *((0.88 - _BACK * back) / (below + 1) for below, back in heights))
    if side < 0.05:
        raise SfumatoError(f"{_listed(names)} are too many, one behind the other, to plan; give a layout")
    ground = 0.54 + max((below + 1) * side + _BACK * back for below, back in heights) / 2
    out: list[list[Box]] = []
    for n, count in enumerate(counts):
        left = 0.04 + slot * sum(wide[g] for g in order[: order.index(column[n])])
        each = slot * wide[column[n]] / sum(counts[m] for m in mates(n))
        first = sum(counts[m] for m in mates(n) if m < n)
        bottom = ground - heights[n][0] * side - heights[n][1] * _BACK
        middles = [left + each * (first + k + 0.5) for k in range(count)]
        half = (each - slot + side) / 2  # what carries several is as wide as they are
        out.append([_rounded(m - half, bottom - side, m + half, bottom) for m in middles])
    return out


def _rounded(x0: float, y0: float, x1: float, y1: float) -> Box:
    return round(x0, 3), round(y0, 3), round(x1, 3), round(y1, 3)


def _heights(n: int, facts: Sequence[tuple[Any, ...]], names: Sequence[str]) -> list[_Height]:
    over = [(a, b, (1, 0)) for r, a, b, *_ in facts if r == "above"] + [
        (b, a, (1, 0)) for r, a, b, *_ in facts if r == "below"
    ]
    over += [(a, b, (0, 1)) for r, a, b, *_ in facts if r == "behind"]
    over += [(b, a, (0, 1)) for r, a, b, *_ in facts if r == "front"]
    heights = [(0, 0)] * n
    for _ in range(n + 1):
        before = list(heights)
        for upper, lower, (below, back) in over:
            reached = heights[lower][0] + below, heights[lower][1] + back
            heights[upper] = max(heights[upper], reached, key=lambda h: 0.4 * h[0] + _BACK * h[1])
        if heights == before:
            return heights
    raise _contradiction(names)


def _obeys(at: Sequence[int], facts: Sequence[tuple[Any, ...]], places: Mapping[int, int], columns: int) -> bool:
    """Do these columns of the things obey all that is said?"""
    holds = {
        "left": lambda a, b: at[a] < at[b],
        "right": lambda a, b: at[a] > at[b],
        "beside": lambda a, b: abs(at[a] - at[b]) == 1,
        "between": lambda a, b, c: min(at[b], at[c]) < at[a] < max(at[b], at[c]),
        "front": lambda a, b: at[a] != at[b],
        "behind": lambda a, b: at[a] != at[b],
        "above": lambda a, b: at[a] == at[b],
        "below": lambda a, b: at[a] == at[b],
    }
    middle = (columns - 1) / 2
    stands = {0: lambda c: c < middle, 1: lambda c: abs(c - middle) < 1, 2: lambda c: c > middle}
    placed = columns == 1 or all(stands[place](at[n]) for n, place in places.items())
    return placed and all(holds[relation](*others) for relation, *others in facts)


def _contradiction(names: Sequence[str]) -> SfumatoError:
    return SfumatoError(f"what the prompt says of where {_listed(names)} are contradicts itself; give a layout")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# ---- by a chat ----

_TASK = f"""You plan pictures. For a caption you say where each thing in it goes, on a canvas {CANVAS} units wide and \
{CANVAS} high whose origin is the top left corner.

Answer with one JSON object and nothing else:
{{"things": [{{"phrase": "...", "box": [left, top, right, bottom]}}, ...], "background": "..."}}

- One entry for each single thing: two cats are two entries with the same phrase.
- A phrase is copied from the caption word by word, without its article: "two cats" stays "two cats".
- Boxes lie inside the canvas, are as large as the things would be, overlap only if the things do, and show what the \
caption says: what is left is left, what stands on something is right above it, what is nearer is lower and larger.
- What fills the picture (grass, sky, a room) is no entry. The background is a short caption of the picture without \
the things; it may be empty."""

_EXAMPLES = (
    (
        "a photo of a brown dog to the right of an old bicycle in the park",
        {
            "things": [
                {"phrase": "brown dog", "box": [310, 250, 490, 450]},
                {"phrase": "old bicycle", "box": [30, 190, 270, 440]},
            ],
            "background": "a photo of the park",
        },
    ),
    (
        "two green apples on a wooden table, a watercolour",
        {
            "things": [
                {"phrase": "two green apples", "box": [120, 150, 240, 270]},
                {"phrase": "two green apples", "box": [270, 150, 390, 270]},
                {"phrase": "wooden table", "box": [40, 270, 470, 480]},
            ],
            "background": "a watercolour",
        },
    ),
)


def conversation(prompt: str) -> list[Message]:
    """What a chat is asked for a prompt's layout."""
    out: list[Message] = [{"role": "system", "content": _TASK}]
    for caption, answer in _EXAMPLES:
        out.append({"role": "user", "content": f"Caption: {caption}"})
        out.append({"role": "assistant", "content": json.dumps(answer)})
    return [*out, {"role": "user", "content": f"Caption: {prompt}"}]


def _by_chat(prompt: str, chat: Chat) -> Planned:
    messages = conversation(prompt)
    answer = chat(messages)
    try:
        return read_answer(answer, prompt)
    except SfumatoError as e:
        wrong = f"That does not do: {e}. Answer once more, with the JSON object alone."
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": wrong})
    answer = chat(messages)
    try:
        return read_answer(answer, prompt)
    except SfumatoError as e:
        shown = " ".join(answer.split())[:120]
        raise SfumatoError(f"the chat gave no layout in two tries: {e}; it said {shown!r}") from None


def read_answer(answer: str, prompt: str) -> Planned:
    """The layout in what a chat said.

    Text and fences around the JSON are passed over, Python's quotes and other common names of the fields understood;
    boxes are in parts of the image if no number is above 1, else on the canvas of 512. Raises ``SfumatoError`` that the
    chat can put right: no JSON, no boxes, boxes outside, phrases that the prompt does not have.
    """
    found = _object(answer)
    entries, background = found, ""
    if isinstance(found, dict):
        entries = _field(found, "things", "boxes", "objects", "regions", "layout")
        background = _field(found, "background", "background prompt", "background_prompt") or ""
    if isinstance(entries, dict):
        entries = list(entries.items())
    if not isinstance(entries, list) or not entries:
        raise SfumatoError('the answer has no list of "things" with a box each')
    named = [_entry(e) for e in entries]
    parts = max(abs(v) for _, box in named for v in box) <= 1
    caption = " ".join(bare(w) for w in prompt.split())
    regions = []
    for phrase, box in named:
        words = [bare(w) for w in phrase.split()]
        name = " ".join(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)
        if not name or not re.search(rf"(?<!\S){re.escape(name)}(?!\S)", caption):
            raise SfumatoError(f"the caption has no {phrase!r}; phrases are copied from it word by word")
        regions.append(Region(name, _checked(phrase, [v if parts else v / CANVAS for v in box])))
    return Planned(Layout(tuple(regions)), " ".join(str(background).replace("{", "(").replace("}", ")").split()))


def _checked(phrase: str, box: Sequence[float]) -> Box:
    x0, y0, x1, y1 = box
    if min(box) < -0.01 or max(box) > 1.01:
        raise SfumatoError(f"the box of {phrase!r} is not inside the canvas of {CANVAS} x {CANVAS}")
    x0, y0, x1, y1 = (min(max(v, 0.0), 1.0) for v in (x0, y0, x1, y1))
    if x1 - x0 < 0.02 or y1 - y0 < 0.02:
        raise SfumatoError(f"the box of {phrase!r} has no area; boxes are [left, top, right, bottom]")
    return (x0, y0, x1, y1)


def _object(answer: str) -> Any:
    """The first JSON object or list in a text that holds something."""
    decoder = json.JSONDecoder()
    for start in re.finditer(r"[{\[]", answer):
        text = answer[start.start() :]
        try:
            found, _ = decoder.raw_decode(text)
        except ValueError:
            found = _literal(text)
        if found:
            return found
    raise SfumatoError("the answer holds no JSON")


def _literal(text: str) -> Any:
    """A Python literal at the start of a text, or None."""
    depth = 0
    for end, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if not depth:
            try:
                return ast.literal_eval(text[: end + 1])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
    return None


def _field(entry: Mapping[str, Any], *names: str) -> Any:
    small = {str(k).lower(): v for k, v in entry.items()}
    return next((small[n] for n in names if n in small), None)


def _entry(entry: Any) -> tuple[str, list[float]]:
    """Phrase and numbers of one entry, whichever form it has."""
    phrase = box = None
    if isinstance(entry, dict):
        phrase = _field(entry, "phrase", "name", "label", "object", "thing", "caption")
        box = _field(entry, "box", "bbox", "bounding_box", "bounding box", "bbox_2d")
    elif isinstance(entry, (list, tuple)) and len(entry) == 2:
        phrase, box = entry
    if isinstance(box, dict):
        box = _corners(box)
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(_number(v) for v in box)
    if not isinstance(phrase, str) or not numbers:
        raise SfumatoError('each thing has a "phrase" and a "box" of four numbers')
    return phrase, [float(v) for v in _iterable(box)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _iterable(box: Any) -> Iterable[Any]:
    return box


def _corners(box: Mapping[str, Any]) -> list[Any] | None:
    for names in (("left", "top", "right", "bottom"), ("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"),
                  ("xmin", "ymin", "xmax", "ymax")):  # fmt: skip
        if all(n in box for n in names):
            return [box[n] for n in names]
    for names in (("x", "y", "w", "h"), ("x", "y", "width", "height")):
        if all(n in box and _number(box[n]) for n in names):
            x, y, w, h = (box[n] for n in names)
            return [x, y, x + w, y + h]
    return None
