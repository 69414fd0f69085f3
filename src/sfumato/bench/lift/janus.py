"""How many faces has a robot? Eight views of lifted robots, and in how many the oracle sees the front's mark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from sfumato.bench.lift.session import RECIPES, LiftSession, largest
from sfumato.bench.report import Comparison, Figure
from sfumato.bench.units import Row, columns
from sfumato.io.progress import progress
from sfumato.scene.view_words import Way
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import Camera, Scene, Thing
from sfumato.tasks.lift import TURN

METHODS = ("score-iterative-reconstruction", "score-distillation")
WAYS: tuple[Way, ...] = ("off", "word", "perp-neg")
KEYS = ("faces", "right", "seconds")
MOST = 2
"""Robots of each way, whatever n is."""

MEANINGS = {
    "janus_truth": "in how many of eight views of true robots the oracle sees the face",
    "janus": "the same of robots lifted by SIR, with views told by words",
    "janus_off": "the same without words for views",
    "janus_perp_neg": "the same away from other views' words as well (Perp-Neg)",
    "janus_sds": "robots lifted by SDS, with views told by words",
    "janus_sds_off": "the same without words for views",
    "janus_sds_perp_neg": "the same with Perp-Neg",
}
TARGETS: dict = {}
"""Fewer with words than without."""


def truth(session: LiftSession) -> float:
    """Faces that the oracle sees of eight views of the true robots, in the mean."""
    counts = []
    for one in session.asked(42, ("robot",))[:MOST]:
        scene = Scene((Thing("robot", one.colour),), ground=one.ground)
        around = [replace(scene, camera=Camera(360.0 * i / TURN, 20.0, 3.05)) for i in range(TURN)]
        seen = [largest(reading) for reading in session.oracle.read(render(around, session.model.size).images)]
        counts.append(sum(thing is not None and thing.face for thing in seen))
    return float(np.mean(counts))


def janus(session: LiftSession) -> Mapping[str, Figure]:
    """Each method, each way to tell views."""
    found: dict[str, dict[str, Row]] = {}
    asked = session.asked(42, ("robot",))[:MOST]
    with progress("bench: faces", len(METHODS) * len(WAYS) * len(asked)) as advance:
        for word in METHODS:
            for way in WAYS:
                name = f"{word}, {way}"
                for i, one in enumerate(asked):
                    row, views = session.lifted(f"janus {name}", one, RECIPES[word].by_way(way))
                    found.setdefault(name, {})[f"robot {i}"] = row
                    session.keep(f"janus-{word}-{way}-{i}", views[None], 1)
                    advance()
    session.compared["faces"] = Comparison(KEYS, found)
    out: dict[str, Figure] = {"janus_truth": truth(session)}
    for word, key in zip(METHODS, ("janus", "janus_sds"), strict=True):
        for way in WAYS:
            tail = {"word": "", "off": "_off", "perp-neg": "_perp_neg"}[way]
            out[key + tail] = np.array(columns(found[f"{word}, {way}"], "faces"))
    return out


MEASURES: tuple[tuple[tuple[str, ...], Callable[[LiftSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), janus),
)
