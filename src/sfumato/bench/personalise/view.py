"""A word of views that is turned: is what only the front shows seen where it should be, and not elsewhere?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.bench.personalise.session import NAME, PersonalSession, painted
from sfumato.bench.report import Figure, Target
from sfumato.bench.units import Row, columns
from sfumato.stilllife.kinds import KINDS, TRAINED
from sfumato.stilllife.oracle import MARK_SEEN, Reading
from sfumato.stilllife.render import Rendering, render
from sfumato.stilllife.scene import COLOURS, GROUNDS, Camera, Scene, Thing
from sfumato.tasks import recipes
from sfumato.tasks.learn import Photographs

MARKED = tuple(name for name in TRAINED if KINDS[name].mark)
TURNS = tuple(45.0 * i for i in range(8))
ELEVATION = 18.0
SUN = -40.0
"""From where light comes, beside the camera: all that the model was trained on is lit from the front."""
PLAIN, VIEWS, RING = "plain", "view-inversion", "azimuth-inversion"

MEANINGS = {
    "view": f"by {VIEWS}, part of 8 azimuths at which the mark of the front is seen or not as in a render of the thing",
    "view_balanced": "the mean of that where it should be seen and where it should not; 0.5 by one answer for all",
    "view_ring": f"the first by {RING}",
    "view_plain": "by the kind's own word, which is turned nowhere",
    "view_renders": "of renders of the thing themselves, as the oracle reads them",
}
TARGETS = {"view": Target(0.7)}


@dataclass(frozen=True)
class Turned:
    """A thing with a front, renders from all around, and whether its mark is seen at each of ``TURNS``."""

    kind: str
    ground: str
    """Of none of the pictures."""
    pictures: Float[Tensor, "n 3 h w"]
    masks: Bool[Tensor, "n h w"]
    """Of the thing in each, outside of which nothing is learned."""
    cameras: Float[Tensor, "n 2"]
    held: Float[Tensor, "n 3 h w"]
    """Others, at ``TURNS``."""
    seen: tuple[bool, ...]
    seed: int


def turned(session: PersonalSession, i: int) -> Turned:
    """The kinds with a mark in turn, learned from between the azimuths that are asked for."""
    rng = session.stream(52, i)
    thing = Thing(MARKED[i % len(MARKED)], str(rng.choice(COLOURS)))
    grounds = [str(g) for g in rng.permutation(GROUNDS)]
    between = [turn + float(rng.uniform(10, 35)) for turn in TURNS]

    def around(turns: Sequence[float], first: int) -> Rendering:
        scenes = [
            Scene((thing,), ground=grounds[(first + k % (len(grounds) - 1)) if first else 0],
                  camera=Camera(turn, ELEVATION, 3.0), sun=turn + SUN)
            for k, turn in enumerate(turns)
        ]  # fmt: skip
        return render(scenes, session.model.size)

    learned, held = around(between, 1), around(TURNS, 0)
    cameras = torch.tensor([[turn, ELEVATION] for turn in between])
    seen, seed = marks(held, thing.kind), int(rng.integers(2**30))
    return Turned(thing.kind, grounds[0], learned.images, learned.thing == 0, cameras, held.images, seen, seed)


def marks(renders: Rendering, kind: str) -> tuple[bool, ...]:
    """In which renders of one thing its mark is seen."""
    mark = KINDS[kind].parts().index(str(KINDS[kind].mark))
    return tuple((((renders.part == mark) & (renders.thing == 0)).sum((1, 2)) >= MARK_SEEN).tolist())


def right(readings: Sequence[Reading], seen: Sequence[bool]) -> Row:
    """Parts of images whose largest thing shows its mark or not as it should; one without a thing is wrong."""
    faces = [max(r.things, key=lambda t: t.pixels).face if r.things else None for r in readings]
    good = np.array([face is not None and face == of for face, of in zip(faces, seen, strict=True)])
    should = np.array(seen)
    each = [good[of].mean() for of in (should, ~should) if of.any()]
    return {"right": float(good.mean()), "balanced": float(np.mean(each))}


def views(session: PersonalSession) -> Mapping[str, Figure]:
    """Both methods on the same things, painted at eight azimuths on a new ground, beside the word of the kind."""
    ways: dict[str, Callable[[Turned], tuple[Row, Tensor]]] = {
        PLAIN: lambda one: _painted(session, session.model, one, [one.kind] * len(TURNS))
    }
    ways |= {word: lambda one, word=word: _learned(session, word, one) for word in (VIEWS, RING)}
    things = [turned(session, i) for i in range(session.n)]
    rows = session.judged("view", ways, {f"thing {i}": one for i, one in enumerate(things)}, "personal-views")
    rows["renders"] = {str(i): right(session.oracle.read(one.held), one.seen) for i, one in enumerate(things)}

    def figure(name: str, key: str = "right") -> Figure:
        return np.array(columns(rows[name], key))

    return {"view": figure(VIEWS), "view_balanced": figure(VIEWS, "balanced"), "view_ring": figure(RING),
            "view_plain": figure(PLAIN), "view_renders": figure("renders")}  # fmt: skip


def _learned(session: PersonalSession, word: str, one: Turned) -> tuple[Row, Tensor]:
    method = recipes.learning(word, "stilllife")[0]
    photographs = Photographs((), one.pictures, one.masks.float(), cameras=one.cameras)
    concept, took = session.learned(NAME, photographs, method, kind=one.kind, seed=one.seed)
    words = [f"{NAME}{i}" for i in range(len(TURNS))]
    cameras = [(turn,) if word == RING else (turn, ELEVATION) for turn in TURNS]
    seen = [concept.seen_from(*away).called(name) for away, name in zip(cameras, words, strict=True)]
    row, image = _painted(session, reduce(lambda model, own: own.on(model), seen, session.model), one, words)
    return {**row, **took}, image


def _painted(session: PersonalSession, model: Any, one: Turned, words: Sequence[str]) -> tuple[Row, Tensor]:
    """One noise for all azimuths, so that nothing but the word differs; beneath renders from there."""
    prompts = [f"a {word} on {one.ground}" for word in words]
    images = painted(model, prompts, [one.seed] * len(prompts))
    both = torch.cat([torch.cat([*some], -1) for some in (images, one.held)], -2)
    return right(session.oracle.read(images), one.seen), both


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), views),
)
