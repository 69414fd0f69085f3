"""Annotated landmarks from frozen features, learned from renders whose landmarks are known exactly.

Beside the regressor stand what the same features find untrained, the cell that is most like a landmark's own in any of
the renders that it was learned from, and each landmark's mean place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.bench import truth
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.units import Row, columns
from sfumato.io.progress import progress
from sfumato.learning.heads import Examples, Head, train
from sfumato.methods.perceive.landmark_regression import LandmarkRegression
from sfumato.ops.correspondence import middles
from sfumato.reading.reader import read
from sfumato.stilllife.render import Rendering, keypoints
from sfumato.tasks.recipes import find

KIND, LEARNED, METHOD = "robot", 24, LandmarkRegression(virtual=8, batch=8, steps=150, rate=3e-2)
NEAR = 0.05
"""Parts of the image's side within which a landmark is found."""
MEANINGS = {
    "landmark_error": "landmarks regressed from features of annotated renders: mean distance over the image's side",
    "landmark_over_matching": "what matching the same features to those of the annotated landmarks errs more",
}
TARGETS = {"landmark_over_matching": Target(0.0)}


def regressed(session: Any) -> Mapping[str, Figure]:
    """Robots from the front, of a session with units: learned on some, found in others, in one read of each."""
    draw: dict[str, Any] = {"kinds": (KIND,), "count": 1, "view": "front"}
    many, tests = (truth.renders(session.stream(i), n, **draw) for i, n in ((61, LEARNED), (62, session.n)))
    taught, wanted = annotated(many), annotated(tests)
    shown = taught.isfinite().all(-1).any(0)  # of the back there may be nothing to learn
    taught, wanted = taught[:, shown], wanted[:, shown]
    source = replace(find("dift").method, ensemble=1)

    @cache
    def learned() -> tuple[Head, list[Tensor]]:
        examples = Examples.of(METHOD, session.model, source, list(many.images), points=taught)
        maps, there = examples.maps(range(LEARNED)), taught.isfinite().all(-1)
        own = [torch.stack([at_place(maps[i], taught[i, k]) for i in range(LEARNED) if there[i, k]])
               for k in range(taught.shape[1])]  # fmt: skip
        return train(METHOD, examples, model=session.model, source=source), own

    rows: dict[str, dict[str, Row]] = {"regressed": {}, "matched": {}, "mean place": {}}
    with progress("bench: landmarks", session.n) as advance:
        for i, image in enumerate(tests.images):

            def measure(i: int = i, image: Tensor = image) -> tuple[Row, Tensor]:
                head, own = learned()
                with read(session.model, image) as reader:
                    map = head.features(reader)[0]
                places = head.of([map], (1, 1)), matched(own, map).cpu(), taught.nanmean(0)
                row: Row = {}
                for name, found in zip(rows, places, strict=True):
                    away = (found - wanted[i]).norm(dim=-1)
                    away = away[away.isfinite()]
                    row |= {f"{name} error": float(away.mean()), f"{name} pck": float((away <= NEAR).float().mean())}
                return row, image

            row, _ = session.units.get(f"{session.seed} landmarks {i} {METHOD!r} {source!r} {LEARNED}", measure)
            for name, units in rows.items():
                units[f"image {i}"] = {key: row[f"{name} {key}"] for key in ("error", "pck")}
            advance()
    session.compared["landmarks"] = Comparison(("error", "pck"), rows)
    error = {name: np.array(columns(units, "error")) for name, units in rows.items()}
    return {"landmark_error": error["regressed"], "landmark_over_matching": error["matched"] - error["regressed"]}


def annotated(shown: Rendering) -> Float[Tensor, "n m 2"]:
    """Landmarks of the first thing of each render in parts of the sides; not numbers where they are hidden."""
    each = [keypoints(scene, shown, i)[0].values() for i, scene in enumerate(shown.scenes)]
    at = torch.tensor([[(x, y) if seen else (torch.nan, torch.nan) for x, y, seen in of] for of in each])
    return at / shown.images.shape[-1]


def at_place(map: Float[Tensor, "c h w"], place: Float[Tensor, " 2"]) -> Float[Tensor, " c"]:
    """The feature at a place in parts of the sides, between the cells around it."""
    grid = (2 * place - 1).to(map)[None, None, None]
    return F.grid_sample(map[None], grid, padding_mode="border", align_corners=False)[0, :, 0, 0]


def matched(features: Sequence[Float[Tensor, "k c"]], map: Float[Tensor, "c h w"]) -> Float[Tensor, "m 2"]:
    """For each landmark the cell, in parts of the sides, whose feature is most like any of its own, by cosine."""
    of = F.normalize(map.flatten(1), dim=0)
    best = torch.stack([(F.normalize(own.to(of), dim=1) @ of).amax(0).argmax() for own in features])
    return middles((map.shape[1], map.shape[2])).to(map)[best]


MEASURE = (tuple(MEANINGS), regressed)
