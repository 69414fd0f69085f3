"""Has a lifted sphere the shape of a sphere? Outlines and depths of lifted solids against the true ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from sfumato.bench.geometry import aligned, geometry
from sfumato.bench.lift.session import RECIPES, LiftSession
from sfumato.bench.report import Comparison, Figure
from sfumato.bench.units import Row, columns
from sfumato.errors import SfumatoError
from sfumato.io.progress import progress
from sfumato.learning.annealing import Ramp, piecewise
from sfumato.scene.mesh import surface
from sfumato.scene.render import FieldScene
from sfumato.stilllife.matter import true_mesh
from sfumato.stilllife.scene import Scene, Thing
from sfumato.tasks.lift import Lifted

WORD = "score-iterative-reconstruction"
KINDS = ("sphere", "cube", "cylinder")
CONVEX: Ramp = piecewise((0.0, 0.1), (0.4, 0.0), shape="steps")
"""Lukoianov et al. 2024, section 5.2."""
KEYS = ("iou", "depth", "right", "seconds")

MEANINGS = {
    "geometry_iou": "IoU of silhouettes of a lifted sphere, cube, cylinder from unseen views, aligned by turning",
    "geometry_depth": "error of its depths, in parts of its diagonal",
    "geometry_iou_convex": "IoU with the loss that favours convex shapes",
    "geometry_depth_convex": "error of depths with it",
}
TARGETS: dict = {}


def against_truth(kind: str) -> Callable[[Lifted], Row]:
    """What a lift's surface is to the true one, of a thing of the reference's size."""

    def judge(done: Lifted) -> Row:
        true = true_mesh(Scene((Thing(kind),)))
        assert isinstance(done.scene, FieldScene), "Gaussians have no surface"
        try:
            found = surface(done.scene.field, 64).mesh
            return dict(geometry(*aligned(found, true)))
        except SfumatoError:  # it has no surface
            return {"iou": 0.0, "depth": 1.0}

    return judge


def shapes(session: LiftSession) -> Mapping[str, Figure]:
    """Three solids, with and without the loss."""
    found: dict[str, dict[str, Row]] = {}
    plain = RECIPES[WORD]
    ways = {"plain": plain, "convex": replace(plain, losses={**plain.losses, "convexity": CONVEX})}
    asked = [replace(one, kind=kind) for one, kind in zip(session.asked(43, KINDS) * 3, KINDS, strict=False)]
    with progress("bench: shapes", len(ways) * len(asked)) as advance:
        for name, recipe in ways.items():
            for one in asked:
                row, views = session.lifted(f"shapes {name}", one, recipe, against_truth(one.kind))
                found.setdefault(name, {})[one.kind] = row
                session.keep(f"shapes-{name}-{one.kind}", views[None], 1)
                advance()
    session.compared["shapes"] = Comparison(KEYS, found)
    return {
        f"geometry_{key}{tail}": np.array(columns(found[name], key))
        for name, tail in (("plain", ""), ("convex", "_convex"))
        for key in ("iou", "depth")
    }


MEASURES: tuple[tuple[tuple[str, ...], Callable[[LiftSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), shapes),
)
