"""``sfumato bench scene``: fields learned from views of still lifes and of a real capture, and how fast they render.

Each module measures one thing: its ``MEASURES``, and of their keys ``MEANINGS`` and ``TARGETS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.bench.report import Report, gather
from sfumato.bench.scene import edits, exports, features, injected, reconstruct, speed, splats
from sfumato.bench.session import Session
from sfumato.io.device import choose

MODULES = (reconstruct, speed, splats, exports, features, injected, edits)


def run(n: int, seed: int, device: str = "auto", out: Path | None = None, modules: Sequence[Any] = MODULES) -> Report:
    """Measure everything, or what some modules measure."""
    session = Session(n, seed, choose(device), out)
    meanings, targets = ({k: v for m in modules for k, v in getattr(m, of).items()} for of in ("MEANINGS", "TARGETS"))
    measures = tuple(measure for module in modules for measure in module.MEASURES)
    return gather(Report("scene", n, seed, str(session.device), meanings, targets), measures, session, out)
