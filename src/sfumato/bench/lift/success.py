"""Is what was asked for there from all around? Eight views of each lifted thing, as the oracle reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from sfumato.bench.lift.session import FEW, OF_GAUSSIANS, RECIPES, LiftSession
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.units import Row, columns
from sfumato.errors import SfumatoError
from sfumato.io.progress import progress
from sfumato.stilllife.kinds import TRAINED
from sfumato.tasks.lift_recipes import MEASURED

WAYS = tuple(RECIPES)
"""Methods that are compared, by their words."""
KEYS = ("right", "whole", "seconds", "peak_mb", "diverged")

MEANINGS = {
    "lift_success": "part of eight views of a lifted thing whose kind and colour the oracle reads right, best method",
    "lift_success_sdi": "the same, of SDI",
    "lift_success_sds": "the same, of SDS",
    "lift_success_sir": "the same, of score-based iterative reconstruction",
    "lift_success_sir_gaussians": "the same, of Gaussians in place of voxels",
    "lift_minutes": "minutes of a lift by the best method",
    "peak_mb": "memory that it takes beside the model",
    "diverged": "part of all lifts that ended empty, full, or not finite",
}
TARGETS = {
    "lift_success": Target(0.8),
    "lift_success_sdi": Target(0.6),
    "lift_minutes": Target(6.0, at_least=False),
    "diverged": Target(0.0, at_least=False),
}


def success(session: LiftSession) -> Mapping[str, Figure]:
    """All methods, the same prompts and seeds; fewer of those whose recipes were not found by measuring."""
    found: dict[str, dict[str, Row]] = {}
    asked = session.asked(41, TRAINED)
    of = {word: asked if RECIPES[word].source == MEASURED else asked[:FEW] for word in WAYS}
    with progress("bench: lifts", sum(map(len, of.values()))) as advance:
        for word in WAYS:
            rows = []
            for i, one in enumerate(of[word]):
                row, views = session.lifted(word, one, RECIPES[word])
                found.setdefault(word, {})[f"lift {i}"] = row
                rows.append(views)
                advance()
            for i, views in enumerate(rows[:8]):
                session.keep(f"lift-{word}-{i}", views[None], 1)
            session.methods[f"lift: {word}"] = {
                key: float(np.mean(values)) for key in KEYS if (values := columns(found[word], key))
            }
    session.compared["lift"] = Comparison(KEYS, found)

    session.found = found
    every = np.concatenate([_of(session, word, "diverged") for word in found])
    return {"lift_success": _of(session, _best(session)), "diverged": every}


def single(session: LiftSession, key: str, word: str) -> Mapping[str, Figure]:
    """The success of one method."""
    return {key: _of(session, word)}


def taken(session: LiftSession) -> Mapping[str, Figure]:
    """Time and memory of the best method."""
    best = _best(session)
    return {"lift_minutes": _of(session, best, "seconds") / 60, "peak_mb": _of(session, best, "peak_mb")}


def _best(session: LiftSession) -> str:
    """The way with most views right; of equals the quickest."""

    def rank(way: str) -> tuple[float, float]:
        seconds = columns(session.found[way], "seconds")
        return float(_of(session, way).mean()), -float(np.mean(seconds)) if len(seconds) else -np.inf

    return max(session.found, key=rank)


def _of(session: LiftSession, word: str, key: str = "right") -> np.ndarray:
    values = np.array(columns(session.found.get(word, {}), key))
    if not len(values):
        raise SfumatoError(f"there is no {key} of a lift by {word}")
    return values


MEASURES: tuple[tuple[tuple[str, ...], Callable[[LiftSession], Mapping[str, Figure]]], ...] = (
    (("lift_success", "diverged"), success),
    *(
        ((key,), partial(single, key=key, word=word))
        for key, word in (
            ("lift_success_sdi", "score-distillation-via-inversion"),
            ("lift_success_sds", "score-distillation"),
            ("lift_success_sir", "score-iterative-reconstruction"),
            ("lift_success_sir_gaussians", OF_GAUSSIANS),
        )
    ),
    (("lift_minutes", "peak_mb"), taken),
)
