"""Are four views one thing, and is a picture two: views painted together and apart, pictures that read in two ways.

The oracle reads what was painted. All ways to paint start from the same seeds. Things of the views have a front that
can be seen; the two things of an illusion have one colour and stand on one ground.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.session import Session
from sfumato.bench.units import Row, columns, timed
from sfumato.core.denoising import denoise
from sfumato.core.guidance import Composed
from sfumato.io.progress import progress
from sfumato.media.images import tensor
from sfumato.stilllife.kinds import KINDS, TRAINED
from sfumato.stilllife.oracle import Reading, ReadThing
from sfumato.stilllife.scene import COLOURS, GROUNDS
from sfumato.tasks.illusion import illusion, view_of
from sfumato.tasks.views import Viewed, paint_grid, paint_views

STEPS, GUIDANCE = 30, 7.5
VIEWS = ("front", "right", "back", "left")
CONTRAST = 6.0
TURNS = ("turn", "flip", "circle:135")

MEANINGS = {
    "views_identity": "four views as sfumato views paints them, a set whose images read each other: one kind, one "
    "colour and one ground in all, a front seen in the front view and none in the back view",
    "views_identity_grid": "the same views as the tiles of one picture",
    "views_identity_apart": "the same views painted each by itself, from the same words and noise",
    "illusion_success": "a picture is read as one prompt, and seen otherwise as the other: kind and colour",
    "illusion_one_prompt": "the same of pictures of the first prompt alone",
    "illusion_both_prompts": "the same of pictures of both prompts at once, in one view",
}
TARGETS: dict[str, Target] = {}
"""``views_identity`` is to be above ``views_identity_apart``."""


@dataclass(frozen=True)
class Thing:
    """What is asked for: a colour and a kind, or two of that colour, from a seed."""

    colour: str
    kinds: tuple[str, ...]
    ground: str
    seed: int

    def prompt(self, kind: int, ground: bool = True) -> str:
        return f"a {self.colour} {self.kinds[kind]}" + (f" on {self.ground}" if ground else "")


def things(session: Session, stream: int, kinds: Sequence[str], each: int) -> list[Thing]:
    """``each`` kinds of one colour on a ground."""
    out = []
    for i in range(session.n):
        rng = session.stream(stream, i)
        some = tuple(str(k) for k in rng.choice(np.array(kinds, dtype=object), each, replace=False))
        out.append(Thing(str(rng.choice(COLOURS)), some, str(rng.choice(GROUNDS)), int(rng.integers(2**30))))
    return out


def _options() -> dict[str, Any]:
    return {"guide": GUIDANCE, "steps": STEPS}


def largest(reading: Reading) -> ReadThing | None:
    return max(reading.things, key=lambda thing: thing.pixels, default=None)


def viewed(readings: Sequence[Reading], kind: str, colour: str) -> Row:
    """Four views' readings: ``asked``: kind and colour in each; ``one``: they are the same in all, ``world`` too."""
    seen = [largest(reading) for reading in readings]
    there = [thing for thing in seen if thing is not None]
    whole = len(there) == len(seen)
    asked = whole and all((thing.kind, thing.colour) == (kind, colour) for thing in there)
    one = whole and len({(thing.kind, thing.colour) for thing in there}) == 1
    world = len({(r.ground, r.light, r.style) for r in readings}) == 1
    views = whole and there[0].face and not there[2].face
    every = one and views and len({r.ground for r in readings}) == 1
    return {k: float(v) for k, v in
            {"asked": asked, "one": one, "world": world, "views": views, "identity": every}.items()}  # fmt: skip


def identity(session: Session) -> Mapping[str, Figure]:
    """Views of things with a front: as a set, also away from their opposites' words, as a grid, apart."""
    kinds = [kind for kind in TRAINED if KINDS[kind].mark is not None]
    ways: dict[str, Callable[..., Viewed]] = {
        "set": paint_views,
        "set, contrast": partial(paint_views, contrast=CONTRAST),
        "grid": paint_grid,
        "apart": partial(paint_views, methods=()),
    }
    found: dict[str, dict[str, Row]] = {name: {} for name in ways}
    images: dict[str, list[Tensor]] = {name: [] for name in found}
    asked = things(session, 31, kinds, 1)
    with progress("bench: views", len(ways) * len(asked)) as advance:
        for i, thing in enumerate(asked):
            # no ground is named, so that one is found together or not
            prompt = thing.prompt(0, ground=False)
            for name, way in ways.items():
                painted, cost = timed(
                    lambda way=way, p=prompt, s=thing.seed: way(session.model, p, VIEWS, [s], **_options()),
                    session.device,
                )
                tiles = torch.stack([tensor(tile) for tile in painted.views[0]])
                row = viewed(session.oracle.read(tiles), thing.kinds[0], thing.colour)
                found[name][f"views {i}"] = {**row, **cost}
                images[name].append(tiles)
                advance()
    keys = ("identity", "one", "asked", "views", "world", "seconds")
    _noted(session, "views", found, images, keys, 4)
    return {
        "views_identity": np.array(columns(found["set"], "identity")),
        "views_identity_grid": np.array(columns(found["grid"], "identity")),
        "views_identity_apart": np.array(columns(found["apart"], "identity")),
    }


def read_as(reading: Reading, colour: str, kind: str) -> bool:
    return any((thing.kind, thing.colour) == (kind, colour) for thing in reading.things)


def illusions(session: Session) -> Mapping[str, Figure]:
    """Two things of one colour in one picture, in views by turns."""
    ways: dict[str, Callable[[Session, Thing, str], Float[Tensor, "2 3 h w"]]] = {
        "illusion": _illusion, "one prompt": _one, "both prompts": _both,
    }  # fmt: skip
    found: dict[str, dict[str, Row]] = {name: {} for name in ways}
    images: dict[str, list[Tensor]] = {name: [] for name in ways}
    asked = things(session, 32, TRAINED, 2)
    with progress("bench: illusions", len(ways) * len(asked)) as advance:
        for i, thing in enumerate(asked):
            word = TURNS[i % len(TURNS)]
            for name, way in ways.items():
                both, cost = timed(lambda way=way, t=thing, w=word: way(session, t, w), session.device)
                first, second = (
                    read_as(reading, thing.colour, kind)
                    for reading, kind in zip(session.oracle.read(both), thing.kinds, strict=True)
                )
                row = {"upright": float(first), "other": float(second), "success": float(first and second)}
                found[name][f"illusion {i} {word}"] = {**row, **cost}
                images[name].append(both)
                advance()
    _noted(session, "illusions", found, images, ("success", "upright", "other", "seconds"), 2)
    return {
        "illusion_success": np.array(columns(found["illusion"], "success")),
        "illusion_one_prompt": np.array(columns(found["one prompt"], "success")),
        "illusion_both_prompts": np.array(columns(found["both prompts"], "success")),
    }


def _illusion(session: Session, thing: Thing, word: str) -> Float[Tensor, "2 3 h w"]:
    prompts = thing.prompt(0), thing.prompt(1)
    found = illusion(session.model, prompts, view_of(word), [thing.seed], **_options())
    return torch.stack([tensor(found.painted.pictures[0]), tensor(found.others[0])])


def _one(session: Session, thing: Thing, word: str, guide: Any = GUIDANCE) -> Float[Tensor, "2 3 h w"]:
    options = {**_options(), "guide": guide}
    image = denoise(session.model, thing.prompt(0), seed=thing.seed, **options).images
    return torch.cat([image, view_of(word).in_pixels().project(image)])


def _both(session: Session, thing: Thing, word: str) -> Float[Tensor, "2 3 h w"]:
    return _one(session, thing, word, Composed(((thing.prompt(1), GUIDANCE),), GUIDANCE))


def _noted(
    session: Session, what: str, found: dict[str, dict[str, Row]], images: dict[str, list[Tensor]],
    keys: Sequence[str], across: int,
) -> None:  # fmt: skip
    for name, rows in found.items():
        session.methods[f"{what}: {name}"] = {key: float(np.mean(columns(rows, key))) for key in keys}
        session.keep(f"{what}-{name}".replace(" ", "-"), torch.cat(images[name])[:64], 2 * across)
    session.compared[what] = Comparison(keys, found)


MEASURES: tuple[tuple[tuple[str, ...], Callable[[Session], Mapping[str, Figure]]], ...] = (
    (("views_identity", "views_identity_grid", "views_identity_apart"), identity),
    (("illusion_success", "illusion_one_prompt", "illusion_both_prompts"), illusions),
)
