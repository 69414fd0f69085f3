"""``sfumato bench sets``: panoramas, clips, views and shapes, whose images are to agree, on the built-in model.

Each module measures one kind of set: its ``MEASURES``, and of their keys ``MEANINGS`` and ``TARGETS``.
"""

from __future__ import annotations

from pathlib import Path

from sfumato.bench.report import Report, gather
from sfumato.bench.sets import clips, panoramas, shapes, views
from sfumato.io.device import choose

MODULES = (panoramas, views, clips, shapes)
MEANINGS = {key: text for module in MODULES for key, text in module.MEANINGS.items()}
TARGETS = {key: target for module in MODULES for key, target in module.TARGETS.items()}
MEASURES = tuple(measure for module in MODULES for measure in module.MEASURES)


class SetsSession(clips.ClipSession, shapes.ShapesSession):
    """What the measures share."""


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything."""
    session = SetsSession(n, seed, choose(device), out)
    return gather(Report("sets", n, seed, str(session.device), MEANINGS, TARGETS), MEASURES, session, out)
