"""``sfumato bench sets``: panoramas, clips and views that are painted together, on the built-in model.

Each module measures one kind of set: its ``MEASURES``, and of their keys ``MEANINGS`` and ``TARGETS``.
"""

from __future__ import annotations

from pathlib import Path

from sfumato.bench.report import Report, gather
from sfumato.bench.session import Session
from sfumato.bench.sets import panoramas
from sfumato.io.device import choose

MODULES = (panoramas,)
MEANINGS = {key: text for module in MODULES for key, text in module.MEANINGS.items()}
TARGETS = {key: target for module in MODULES for key, target in module.TARGETS.items()}
MEASURES = tuple(measure for module in MODULES for measure in module.MEASURES)


class SetsSession(Session):
    """What the measures share."""


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything."""
    session = SetsSession(n, seed, choose(device), out)
    return gather(Report("sets", n, seed, str(session.device), MEANINGS, TARGETS), MEASURES, session, out)
