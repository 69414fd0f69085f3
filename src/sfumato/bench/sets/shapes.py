"""Diff3F against truth: vertices of one shape found on another, where every vertex' true match is known.

Two things of a kind of Still Life, of different shapes, whose vertices' places on the kind's reference are known; the
second is turned about the vertical, as no two meshes from different hands look the same way. And a man and a woman
whose meshes have the same faces, who stand alike. Beside Diff3F as it suits the built-in model: its features without
places, their means alone, the nearest place once they have turned one shape onto the other, up block 1 as published,
and a network of random weights; the nearest place as the shapes stand, the nearest normal, matches at random.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sfumato.bench.perceive import untrained
from sfumato.bench.real import real
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.session import Session
from sfumato.bench.units import Row, columns
from sfumato.core.backbone import Backbone
from sfumato.io.progress import progress
from sfumato.media.images import tensor
from sfumato.media.meshes import Mesh, read_mesh
from sfumato.methods.perceive.diff3f import Diff3F
from sfumato.metrics.shapes import WITHIN, euclidean, geodesic, within
from sfumato.ops import surfaces
from sfumato.stilllife.kinds import KINDS, TRAINED
from sfumato.stilllife.surfaces import surface
from sfumato.tasks import shapes as task
from sfumato.tasks.recipes import find

MEANINGS = {
    "diff3f_error": "vertices of things found on others of their kind, turned: distance to the true ones over the "
    "diameter",
    "diff3f_error_over_baselines": "the same less the better of random matches and positions",
    "diff3f_man_woman": "the same of a man's vertices on a woman who stands alike",
    "diff3f_man_woman_over_baselines": "the same less the better of random matches and positions",
}
TARGETS = {
    "diff3f_error_over_baselines": Target(0.0, at_least=False),
    "diff3f_man_woman_over_baselines": Target(0.0, at_least=False),
}
FINE = 20
"""Cells along a thing: two to six thousand vertices."""
SURE = 0.6
"""How near two vertices lie on the reference, in cells, to be one."""
PAIRS = 200
"""Of vertices, whose distances along the surface are measured."""
KEYS = ("error", "geodesic", *(f"within_{100 * part:g}" for part in WITHIN))


@dataclass(frozen=True)
class Pair:
    """Two shapes; ``true[i]`` is the second's vertex for the first's i-th, where ``known``."""

    name: str
    first: Mesh
    second: Mesh
    true: Int[Tensor, " v"]
    known: Bool[Tensor, " v"]


class ShapesSession(Session):
    """What the measures share."""

    @cached_property
    def untrained(self) -> Backbone:
        return untrained(self.model)


def of_a_kind(rng: np.random.Generator, kind: str) -> Pair:
    """Two things of a kind, each of a random shape, the second turned about the vertical."""
    shapes = [surface(kind, rng.uniform(-1, 1, len(KINDS[kind].shape)).tolist(), FINE) for _ in range(2)]
    a, b = rng.uniform(-math.pi, math.pi) * torch.ones(1), shapes[1].vertices
    turn = torch.tensor([[float(a.cos()), 0, float(a.sin())], [0, 1, 0], [-float(a.sin()), 0, float(a.cos())]])
    places = [torch.cat([s.canonical, 10.0 * s.prim[:, None]], 1) for s in shapes]  # primitives are far from each other
    true = surfaces.nearest(*places)
    known = (places[0] - places[1][true]).norm(dim=1) < SURE / FINE
    first, second = Mesh(shapes[0].vertices, shapes[0].faces), Mesh(b @ turn.T, shapes[1].faces)
    return Pair(kind, first.unit(), second.unit(), true, known)


def man_and_woman() -> Pair:
    """Raises ``SfumatoError`` where the meshes are missing."""
    with ZipFile(real("meshes.zip")) as archive, tempfile.TemporaryDirectory() as place:
        files = [archive.extract(f"d3f_{who}.obj", place) for who in ("man", "woman")]
        man, woman = (read_mesh(file).unit() for file in files)
    every = torch.arange(len(man.vertices))
    return Pair("man and woman", man, woman, every, every >= 0)


def matches(session: ShapesSession, pair: Pair) -> Iterator[tuple[str, Tensor]]:
    """By what the first's vertices are found on the second, and what is found."""
    suited: Diff3F = find("diff3f").method
    mean = replace(suited, sided=False, places=0.0)

    def by(model: Backbone, method: Diff3F) -> Tensor:
        return task.match_shapes(model, pair.first, pair.second, method).index

    done = task.match_shapes(session.model, pair.first, pair.second, suited)
    yield "Diff3F", done.index
    one, two = (replace(shape, places=0.0) for shape in (done.first, done.second))
    index = one.match(two)
    yield "Diff3F without places", index
    yield "Diff3F, means alone", replace(one, changes=None).match(replace(two, changes=None))
    yield "Diff3F, the pose alone", surfaces.nearest(one.shape.vertices, two.shape.vertices @ one.turn(two, index).T)
    yield "Diff3F, up block 1", by(session.model, replace(mean, t=Diff3F.t, layers=(), standard=False))
    yield "Diff3F, random weights", by(session.untrained, suited)
    yield "positions", surfaces.nearest(pair.first.vertices, pair.second.vertices)
    normals = [surfaces.vertex_normals(s.vertices, s.faces) for s in (pair.first, pair.second)]
    yield "normals", surfaces.nearest(normals[0], normals[1])
    draws = torch.Generator().manual_seed(session.seed)
    yield "random", torch.randint(len(pair.second.vertices), (len(pair.first.vertices),), generator=draws)


def figures(pair: Pair, found: Int[Tensor, " v"]) -> Row:
    """How far what was found lies from the truth."""
    found, true = found[pair.known], pair.true[pair.known]
    errors = euclidean(pair.second, found, true)
    along = geodesic(pair.second, found, true, PAIRS)
    return dict(zip(KEYS, [float(errors.mean()), float(along.mean()), *within(errors)], strict=True))


def _compared(session: ShapesSession, what: str, pairs: Mapping[str, Pair]) -> dict[str, dict[str, Row]]:
    rows: dict[str, dict[str, Row]] = {}
    with progress(f"bench: {what}", len(pairs)) as advance:
        for unit, pair in pairs.items():
            for name, found in matches(session, pair):
                rows.setdefault(name, {})[unit] = figures(pair, found)
                if session.out is not None and name == "Diff3F":
                    colours = task.by_place(pair.second)
                    shown = task.sheet([(pair.first, colours[found]), (pair.second, colours)])
                    session.keep(f"shapes-{unit.replace(' ', '-')}", tensor(shown)[None], 1)
            advance()
    for name, units in rows.items():
        session.methods[f"{what}: {name}"] = {key: float(np.mean(columns(units, key))) for key in KEYS}
    session.compared[what] = Comparison(KEYS, rows)
    return rows


def _over(rows: Mapping[str, Mapping[str, Row]]) -> tuple[np.ndarray, float]:
    """Errors of each pair, and their mean less the better baseline's."""
    errors = {name: np.array(columns(units, "error")) for name, units in rows.items()}
    return errors["Diff3F"], float(errors["Diff3F"].mean() - min(errors[k].mean() for k in ("random", "positions")))


def things(session: ShapesSession) -> Mapping[str, Figure]:
    """n pairs of things that have a front, so that a vertex has one match."""
    rng, kinds = session.stream(31), [kind for kind in TRAINED if KINDS[kind].front]
    pairs = {f"{i} {kinds[i % len(kinds)]}": of_a_kind(rng, kinds[i % len(kinds)]) for i in range(session.n)}
    errors, over = _over(_compared(session, "shapes", pairs))
    return {"diff3f_error": errors, "diff3f_error_over_baselines": over}


def people(session: ShapesSession) -> Mapping[str, Figure]:
    errors, over = _over(_compared(session, "man and woman", {"man and woman": man_and_woman()}))
    return {"diff3f_man_woman": errors, "diff3f_man_woman_over_baselines": over}


MEASURES = (
    (("diff3f_error", "diff3f_error_over_baselines"), things),
    (("diff3f_man_woman", "diff3f_man_woman_over_baselines"), people),
)
