"""Are two things of one picture told apart? And are two that were learned one by one both there in one picture?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.bench.personalise.session import HELD_OUT, PersonalSession, painted
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.units import Row, columns
from sfumato.learning.composing import apart
from sfumato.learning.concepts import Concept
from sfumato.stilllife.oracle import Reading
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import COLOURS, GROUNDS, Camera, Scene, Thing
from sfumato.tasks import recipes
from sfumato.tasks.learn import Photographs

WORDS = ("<left>", "<right>")
RARE = ("sks", "ktn")
"""Words that theirs begin as, which LoRA does not learn."""
SEEDS = 4
"""Pictures of each prompt."""
RENDERS = 3
"""Of each thing alone, for what is learned one by one."""
KEYS = ("alone", "together")
PAIRED = {"break-a-scene": "separate", "textual-inversion": "separate_textual_inversion"}
ALONE = {"sum": "composed_sum", "apart": "composed_apart"}

MEANINGS = {
    "separate": "break-a-scene, from one picture of two things: paintings of one with its colour and not the other's, "
    "and of both with both colours; mean of the two parts",
    "separate_textual_inversion": "the same of textual inversion, each word in the mask of its thing",
    "separate_gain": "what break-a-scene's is above that",
    "composed_sum": "two things that LoRA learned one by one, in one picture with both colours: changes added up",
    "composed_apart": "the same, each change where its word looks",
}
TARGETS = {"separate_gain": Target(0.01)}


@dataclass(frozen=True)
class Pair:
    """Two things of kinds that were held out, of other colours."""

    things: tuple[Thing, Thing]
    ground: str
    """Of no picture that they are learned from."""
    picture: Float[Tensor, "1 3 h w"]
    """Both, side by side."""
    masks: Bool[Tensor, "1 2 h w"]
    grounds: tuple[str, ...]
    """Others."""
    seed: int


def pair(session: PersonalSession, i: int) -> Pair:
    rng = session.stream(53, i)
    colours = rng.permutation(COLOURS[:6])
    things = [Thing(HELD_OUT[(i + k) % len(HELD_OUT)], str(colours[k])) for k in range(2)]
    ground, *others = (str(g) for g in rng.permutation(GROUNDS))
    beside = tuple(replace(thing, x=x) for thing, x in zip(things, (-0.6, 0.6), strict=True))
    seen = render([Scene(beside, ground=others[0], camera=Camera(0.0, 18.0, 3.4))], session.model.size)
    masks = torch.stack([seen.thing == k for k in range(2)], 1)
    return Pair((things[0], things[1]), ground, seen.images, masks, tuple(others[1:]), int(rng.integers(2**30)))


def pairs(session: PersonalSession) -> dict[str, Pair]:
    return {f"pair {i}": pair(session, i) for i in range(session.n)}


def alone(session: PersonalSession, of: Pair) -> list[Float[Tensor, "n 3 h w"]]:
    """Renders of each thing without the other, from here and there."""
    views = [Camera(360.0 * k / RENDERS, 15.0 + 5 * k, 3.0) for k in range(RENDERS)]
    return [
        render([Scene((thing,), ground=of.grounds[k], camera=view) for k, view in enumerate(views)], session.model.size)
        .images
        for thing in of.things
    ]  # fmt: skip


def prompts(of: Pair) -> tuple[str, str, str]:
    """Each thing alone and both, on a new ground."""
    left, right = WORDS
    return f"a {left} on {of.ground}", f"a {right} on {of.ground}", f"a {left} next to a {right} on {of.ground}"


def right(readings: Sequence[Reading], of: Pair) -> Row:
    """Of so many readings of each prompt, one after the other, the parts that are read right."""
    colours = [thing.colour for thing in of.things]
    found = [{thing.colour for thing in reading.things} for reading in readings]
    n = len(found) // 3
    one = [colours[k] in seen and colours[1 - k] not in seen for k in range(2) for seen in found[k * n : (k + 1) * n]]
    return {"alone": float(np.mean(one)), "together": float(np.mean([seen >= set(colours) for seen in found[2 * n :]]))}


def _painted(model: object, of: Pair, which: Sequence[str]) -> Float[Tensor, "b 3 h w"]:
    asked = [prompt for prompt in which for _ in range(SEEDS)]
    return painted(model, asked, [of.seed + k for _ in which for k in range(SEEDS)])


def _learned(session: PersonalSession, word: str, of: Pair) -> list[Concept]:
    """From the picture of both."""
    method, kind = recipes.learning(word, "stilllife")
    if method.tells_apart:
        seen = Photographs((), of.picture, of.masks.float())
        return [session.learned(WORDS[0], seen, method, kind=kind, others={WORDS[1]: kind}, seed=of.seed)[0]]
    seen = [Photographs((), of.picture, of.masks[:, k].float()) for k in range(2)]
    method = replace(method, batch=2)
    return [
        session.learned(name, each, method, kind=kind, seed=of.seed)[0] for name, each in zip(WORDS, seen, strict=True)
    ]


def separated(session: PersonalSession) -> Mapping[str, Figure]:
    """Break-A-Scene, and a word for each thing by textual inversion in its mask, from the same picture."""

    def unit(word: str, of: Pair) -> tuple[Row, Tensor]:
        model = session.model
        for concept in _learned(session, word, of):
            model = concept.on(model)
        images = _painted(model, of, prompts(of))
        return right(session.oracle.read(images), of), torch.cat([of.picture[0], *images[::SEEDS]], -1)

    found = session.judged("pair", {word: partial(unit, word) for word in PAIRED}, pairs(session))
    session.compared["separate"] = Comparison(KEYS, found)
    figures = {key: np.mean([columns(found[word], part) for part in KEYS], axis=0) for word, key in PAIRED.items()}
    return {**figures, "separate_gain": float(np.mean(figures["separate"] - figures["separate_textual_inversion"]))}


def composed(session: PersonalSession) -> Mapping[str, Figure]:
    """Two things that LoRA learned apart, painted together in both ways."""

    def unit(of: Pair) -> tuple[Row, Tensor]:
        method, kind = recipes.learning("lora", "stilllife")
        shown, row = alone(session, of), {}
        each = [(word, Photographs((), own), rare) for word, own, rare in zip(WORDS, shown, RARE, strict=True)]
        concepts = [
            session.learned(word, seen, replace(method, identifier=rare), kind=kind, seed=of.seed)[0]
            for word, seen, rare in each
        ]
        shown = [pictures[0] for pictures in shown]
        summed = session.model
        for concept in concepts:
            summed = concept.on(summed)
        for how, model in (("sum", summed), ("apart", apart(session.model, concepts))):
            images = _painted(model, of, prompts(of)[2:])
            colours = {thing.colour for thing in of.things}
            seen = [{thing.colour for thing in reading.things} for reading in session.oracle.read(images)]
            row[how] = float(np.mean([colours <= each for each in seen]))
            shown += [*images[:2]]
        return row, torch.cat(shown, -1)

    rows = session.judged("composed", {"lora": unit}, pairs(session))["lora"]
    return {key: np.array(columns(rows, how)) for how, key in ALONE.items()}


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (("separate", "separate_textual_inversion", "separate_gain"), separated),
    (("composed_sum", "composed_apart"), composed),
)
