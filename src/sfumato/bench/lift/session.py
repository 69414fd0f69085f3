"""A lift as a unit of the bench: made once, read by the oracle, kept with its views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, timed
from sfumato.errors import SfumatoError
from sfumato.stilllife.captions import Said, SaidThing
from sfumato.stilllife.oracle import Reading, ReadThing
from sfumato.stilllife.scene import COLOURS, GROUNDS
from sfumato.tasks.lift import TURN, Lifted, lift
from sfumato.tasks.lift_recipes import STILL_LIFE, Lift

OF_GAUSSIANS = "score-iterative-reconstruction of Gaussians"
RECIPES = {row.word: row for row in STILL_LIFE}
RECIPES[OF_GAUSSIANS] = RECIPES["score-iterative-reconstruction"].of("gaussians")
FEW = 1
"""Lifts by a method whose recipe nobody has looked for; by one that was found by measuring n."""


@dataclass(frozen=True)
class Asked:
    """What is lifted."""

    colour: str
    kind: str
    ground: str
    seed: int

    @property
    def prompt(self) -> str:
        return Said((SaidThing(self.kind, self.colour),), ground=self.ground).phrase()


@dataclass
class LiftSession(Session):
    """What the measures share."""

    found: dict[str, dict[str, Row]] = field(default_factory=dict)
    """Method -> lift -> figures, of ``success``."""

    @cached_property
    def units(self) -> Units:
        return Units(None if self.out is None else self.out / "lift-units.jsonl")

    def asked(self, stream: int, kinds: Sequence[str]) -> list[Asked]:
        """A thing a prompt: its kind, colour and ground at random."""
        out = []
        for i in range(self.n):
            rng = self.stream(stream, i)
            kind, colour, ground = (str(rng.choice(words)) for words in (list(kinds), COLOURS, GROUNDS))
            out.append(Asked(colour, kind, ground, int(rng.integers(2**30))))
        return out

    def lifted(
        self, name: str, asked: Asked, recipe: Lift, judge: Callable[[Lifted], Row] | None = None
    ) -> tuple[Row, Float[Tensor, "3 h w"]]:
        """Its figures and its views, made now where they are not kept; a scene that diverged has no views right.

        What is kept are a lift's views, and they are read each time.
        """

        def measure() -> tuple[Row, Tensor]:
            size = self.model.size
            try:
                done, took = timed(lambda: lift(self.model, asked.prompt, recipe, seed=asked.seed), self.device)
            except SfumatoError:
                return {"diverged": 1.0, "seconds": None}, torch.zeros(3, size, TURN * size)
            own = {} if judge is None else judge(done)
            return {"diverged": 0.0, **took, **own}, torch.cat(list(done.views), -1)

        row, sheet = self.units.get(f"{name} {asked.prompt} {asked.seed}", measure)
        if row["diverged"]:
            return {**row, "right": 0.0, "whole": 0.0, "faces": None}, sheet
        views = (sheet * 255).round() / 255  # as they are kept
        return {**row, **judged(self.oracle.read(torch.stack(views.chunk(TURN, -1))), asked.kind, asked.colour)}, sheet


def largest(reading: Reading) -> ReadThing | None:
    """Of the things that stand in the picture, whole: what runs out of it is ground or sky that is taken for one."""
    high, wide = reading.mask.shape
    standing = [thing for thing in reading.things if _inside(thing.box, high, wide)]
    return max(standing, key=lambda thing: thing.pixels, default=None)


def _inside(box: tuple[int, int, int, int], high: int, wide: int) -> bool:
    left, top, right, bottom = box
    return left > 0 and top > 0 and right < wide and bottom < high


def judged(readings: Sequence[Reading], kind: str, colour: str) -> Row:
    """Of eight views: the share whose largest thing is read right, whether all are, and in how many a front is seen."""
    seen = [largest(reading) for reading in readings]
    right = [thing is not None and (thing.kind, thing.colour) == (kind, colour) for thing in seen]
    faces = sum(thing is not None and thing.face for thing in seen)
    return {"right": float(np.mean(right)), "whole": float(all(right)), "faces": float(faces)}
