"""``sfumato bench personalise``: things that the built-in model never saw, learned from five renders of each.

Each module measures one question: its ``MEASURES``, and of their keys ``MEANINGS`` and ``TARGETS``. A thing takes
minutes to learn, so what is painted of it is kept as it comes, and not made again when the bench is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.bench.personalise import cost, encoder, lite, relation, resume, separate, subject, view
from sfumato.bench.personalise.session import PersonalSession
from sfumato.bench.report import Report, gather
from sfumato.io.device import choose

MODULES = (subject, lite, encoder, relation, separate, view, cost, resume)


def run(n: int, seed: int, device: str = "auto", out: Path | None = None, modules: Sequence[Any] = MODULES) -> Report:
    """Measure everything, or what some modules measure."""
    session = PersonalSession(n, seed, choose(device), out)
    meanings, targets = ({k: v for m in modules for k, v in getattr(m, of).items()} for of in ("MEANINGS", "TARGETS"))
    measures = tuple(measure for module in modules for measure in module.MEASURES)
    return gather(Report("personalise", n, seed, str(session.device), meanings, targets), measures, session, out)
