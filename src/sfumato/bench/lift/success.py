"""Is what was asked for there from all around? Eight views of each lifted thing, as the oracle reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sfumato.bench.lift.session import RECIPES, LiftSession
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.units import Row, columns
from sfumato.io.progress import progress
from sfumato.stilllife.kinds import TRAINED

WAYS = tuple(RECIPES)
"""Methods that are compared, by their words."""
KEYS = ("right", "whole", "seconds", "peak_mb", "diverged")

MEANINGS = {
    "lift_success": "part of eight views of a lifted thing whose kind and colour the oracle reads right, best method",
    "lift_success_sdi": "the same, of SDI",
    "lift_success_sds": "the same, of SDS",
    "lift_success_sir": "the same, of score-based iterative reconstruction",
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
    """All methods, the same prompts and seeds."""
    found: dict[str, dict[str, Row]] = {}
    asked = session.asked(41, TRAINED)
    with progress("bench: lifts", len(WAYS) * len(asked)) as advance:
        for word in WAYS:
            rows = []
            for i, one in enumerate(asked):
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

    def of(word: str, key: str = "right") -> np.ndarray:
        return np.array(columns(found.get(word, {}), key))

    best = max(found, key=lambda word: (of(word).mean(), -of(word, "diverged").mean()))
    out: dict[str, Figure] = {
        "lift_success": of(best),
        "lift_success_sdi": of("score-distillation-via-inversion"),
        "lift_success_sds": of("score-distillation"),
        "lift_success_sir": of("score-iterative-reconstruction"),
        "lift_minutes": of(best, "seconds") / 60,
        "peak_mb": of(best, "peak_mb"),
        "diverged": np.concatenate([of(word, "diverged") for word in found]),
    }
    return {k: v for k, v in out.items() if not isinstance(v, np.ndarray) or len(v)}


MEASURES: tuple[tuple[tuple[str, ...], Callable[[LiftSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), success),
)
