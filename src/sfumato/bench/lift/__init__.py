"""``sfumato bench lift``: prompts lifted to scenes on the built-in model, by each method's recipe for it.

Each module measures one question: its ``MEASURES``, and of their keys ``MEANINGS`` and ``TARGETS``. A lift takes
minutes, so each is kept as it comes, with its eight views, and is not made again when the bench is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.bench.lift import janus, shapes, success
from sfumato.bench.lift.session import LiftSession
from sfumato.bench.report import Report, gather
from sfumato.io.device import choose

MODULES = (success, janus, shapes)


def run(n: int, seed: int, device: str = "auto", out: Path | None = None, modules: Sequence[Any] = MODULES) -> Report:
    """Measure everything, or what some modules measure."""
    session = LiftSession(n, seed, choose(device), out)
    meanings, targets = ({k: v for m in modules for k, v in getattr(m, of).items()} for of in ("MEANINGS", "TARGETS"))
    measures = tuple(measure for module in modules for measure in module.MEASURES)
    return gather(Report("lift", n, seed, str(session.device), meanings, targets), measures, session, out)
