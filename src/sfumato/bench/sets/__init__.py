"""``sfumato bench sets``: panoramas, clips, views, shapes, wide edits: images that are to agree, on the built-in model.

Each module measures one kind of set: its ``MEASURES``, and of their keys ``MEANINGS`` and ``TARGETS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.bench.report import Report, gather
from sfumato.bench.sets import clips, motion, panoramas, shapes, views, wide
from sfumato.io.device import choose

MODULES = (panoramas, views, clips, motion, shapes, wide)


class SetsSession(clips.ClipSession, motion.MotionSession, shapes.ShapesSession):
    """What the measures share."""


def run(n: int, seed: int, device: str = "auto", out: Path | None = None, modules: Sequence[Any] = MODULES) -> Report:
    """Measure everything, or what some modules measure."""
    session = SetsSession(n, seed, choose(device), out)
    meanings, targets = ({k: v for m in modules for k, v in getattr(m, of).items()} for of in ("MEANINGS", "TARGETS"))
    measures = tuple(measure for module in modules for measure in module.MEASURES)
    return gather(Report("sets", n, seed, str(session.device), meanings, targets), measures, session, out)
