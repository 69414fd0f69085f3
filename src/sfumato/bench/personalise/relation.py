"""Does a word that was learned for a relation put things into it that no picture showed?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.personalise.session import PersonalSession, painted
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.units import Row, columns
from sfumato.stilllife.captions import Said, SaidThing
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.oracle import Reading, matches
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import COLOURS, GROUNDS, SUPPORTS, Scene, sample_scene
from sfumato.tasks import recipes
from sfumato.tasks.learn import Photographs

KEYS = ("relation", "things", "seconds", "peak_mb")
WORD, METHOD = "<like this>", "reversion"
RELATIONS = ("on top of", "behind")
SEEN, PAIRS = 8, 6
"""Pictures that a relation is learned from, and pairs of other things that are painted in it."""
PLAIN, WORDS = "plain", "its words"

MEANINGS = {
    "relation": "part of new pairs whose relation is read right, under a word that ReVersion learned for it",
    "relation_plain": "the same under the word that it began with",
    "relation_words": "the same under the relation's own words, which the model was trained on",
    "relation_above": "what was learned above the word that it began with",
}
TARGETS = {"relation_above": Target(0.05)}


@dataclass(frozen=True)
class Related:
    """A relation between things of some kinds, and pairs of others."""

    relation: str
    pictures: Float[Tensor, "n 3 h w"]
    captions: tuple[str, ...]
    """Of the pictures, with {} for the relation."""
    pairs: tuple[tuple[SaidThing, SaidThing], ...]
    grounds: tuple[str, ...]
    seed: int

    def prompts(self, between: str) -> list[str]:
        """Of the pairs, with what stands between both."""
        each = zip(self.pairs, self.grounds, strict=True)
        return [f"{a.phrase()} {between} {b.phrase()} on {ground}" for (a, b), ground in each]


def related(session: PersonalSession, i: int) -> Related:
    """The i-th: the relations take turns, and so do the supports of what is seen and of what is new."""
    rng, relation = session.stream(52, i), RELATIONS[i % len(RELATIONS)]
    kinds = [str(kind) for kind in rng.permutation([kind for kind in TRAINED if kind not in SUPPORTS])]
    seen = [SUPPORTS[i // 2 % 2], *kinds[: len(kinds) // 2]]
    new = [SUPPORTS[1 - i // 2 % 2], *kinds[len(kinds) // 2 :]]
    scenes = [_scene(rng, seen, relation) for _ in range(SEEN)]
    pairs = []
    for _ in range(PAIRS):
        lower = new[0] if relation == "on top of" else str(rng.choice(new[1:]))
        upper = str(rng.choice([kind for kind in new[1:] if kind != lower]))
        pairs.append(
            tuple(SaidThing(kind, str(c)) for kind, c in zip((upper, lower), rng.permutation(COLOURS), strict=False))
        )
    grounds = tuple(str(ground) for ground in rng.choice(GROUNDS, PAIRS))
    pictures = render(scenes, session.model.size).images
    return Related(relation, pictures, tuple(map(_caption, scenes)), tuple(pairs), grounds, int(rng.integers(2**30)))


def _scene(rng: np.random.Generator, kinds: Sequence[str], relation: str) -> Scene:
    scene = sample_scene(rng, count=2, kinds=kinds, style="photo", relation=relation, same=False)
    return replace(scene, light="day")


def _caption(scene: Scene) -> str:
    first, second = (SaidThing(thing.kind, thing.colour).phrase() for thing in scene.things)
    return f"{first} {{}} {second} on {scene.ground}"


def judged(readings: Sequence[Reading], of: Related) -> Row:
    """Pairs that are read as both things, whatever their colours, and of all pairs those in the relation as well."""
    wanted = [Said(tuple(SaidThing(thing.kind) for thing in pair), of.relation) for pair in of.pairs]
    found = [matches(reading, each) for reading, each in zip(readings, wanted, strict=True)]
    return {key: float(np.mean([verdict[key] is True for verdict in found])) for key in ("relation", "things")}


def relations(session: PersonalSession) -> Mapping[str, Figure]:
    """The word that was learned, that with which it began, and the relation's own words, on the same pairs."""
    ways: dict[str, Callable[[Related], tuple[Row, Tensor]]] = {
        PLAIN: lambda of: _painted(session, session.model, of, recipes.learning(METHOD, "stilllife")[1]),
        WORDS: lambda of: _painted(session, session.model, of, of.relation),
        METHOD: lambda of: _learned(session, of),
    }
    each = [related(session, i) for i in range(session.n)]
    found = session.judged("relation", ways, {f"{of.relation} {i}": of for i, of in enumerate(each)})
    session.compared["relation"] = Comparison(KEYS, found)
    plain, words, own = (np.array(columns(found[name], "relation")) for name in ways)
    session.methods[METHOD] = {k: float(np.mean(v)) for k in KEYS if (v := columns(found[METHOD], k))}
    return {
        "relation": own, "relation_plain": plain, "relation_words": words,
        "relation_above": float(own.mean() - plain.mean()),
    }  # fmt: skip


def _painted(session: PersonalSession, model: object, of: Related, between: str) -> tuple[Row, Tensor]:
    images = painted(model, of.prompts(between), range(of.seed, of.seed + PAIRS))
    return judged(session.oracle.read(images), of), torch.cat([*of.pictures[:2], *images], -1)


def _learned(session: PersonalSession, of: Related) -> tuple[Row, Tensor]:
    method, kind = recipes.learning(METHOD, "stilllife")
    photographs = Photographs((), of.pictures, captions=tuple((caption,) for caption in of.captions))
    concept, took = session.learned(WORD, photographs, method, kind=kind, seed=of.seed)
    row, image = _painted(session, concept.on(session.model), of, WORD)
    return {**row, **took}, image


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), relations),
)
