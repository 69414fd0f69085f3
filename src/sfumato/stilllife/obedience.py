"""Classes of prompts that a model can be asked, and whether a painting is what was asked: the oracle reads it.

Prompts are drawn from the grammar by seeds that no training run uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sfumato.stilllife.captions import Said, SaidThing
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.oracle import Reading, matches
from sfumato.stilllife.scene import COLOURS, GROUNDS, LIGHTS, RELATIONS, STYLES, SUPPORTS


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _thing(rng: np.random.Generator, kinds: Sequence[str] = TRAINED) -> SaidThing:
    return SaidThing(_pick(rng, kinds), _pick(rng, COLOURS))


def _two(rng: np.random.Generator, second: Sequence[str] = TRAINED) -> tuple[SaidThing, SaidThing]:
    b = _thing(rng, second)
    a = _thing(rng)
    while a.kind == b.kind or a.colour == b.colour:  # else there is nothing to bind
        a = _thing(rng)
    return a, b


def _related(rng: np.random.Generator, i: int) -> Said:
    relation = RELATIONS[i % len(RELATIONS)]
    return Said(_two(rng, SUPPORTS if relation == "on top of" else TRAINED), relation)


PROMPTS: dict[str, Callable[[np.random.Generator, int], Said]] = {
    "single": lambda rng, i: Said((_thing(rng),)),
    "single_scene": lambda rng, i: Said((_thing(rng),), ground=_pick(rng, GROUNDS), light=_pick(rng, LIGHTS)),
    "pair": lambda rng, i: Said(_two(rng)),
    "relation": _related,
    "view": lambda rng, i: Said((SaidThing("robot", _pick(rng, COLOURS), view=("front", "back")[i % 2]),)),
    "style": lambda rng, i: Said((_thing(rng),), style=STYLES[i % len(STYLES)]),
}
JUDGED = {  # which verdicts of ``oracle.matches`` must all be true
    "single": ("things",),
    "single_scene": ("things", "ground", "light"),
    "pair": ("things",),
    "relation": ("things", "relation"),
    "view": ("view",),
    "style": ("style",),
}


def obeyed(key: str, readings: Sequence[Reading], statements: Sequence[Said]) -> np.ndarray:
    """1 for each painting of the class ``key`` in which the oracle sees what was said, else 0."""
    verdicts = (matches(r, s) for r, s in zip(readings, statements, strict=True))
    return np.array([all(v[judged] is True for judged in JUDGED[key]) for v in verdicts], float)
