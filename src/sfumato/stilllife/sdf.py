"""Signed distances to the kinds of thing, for many points at once.

Everything is laid out with the points last: positions are (3, n), a kind's primitives are (p, 3, n). A distance is
never larger than the true one by more than a few per cent, so that a ray may step by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.stilllife.kinds import KINDS, Kind, Prim, reach


def _ellipsoid(q: Tensor, h: Tensor) -> Tensor:
    u = q / h
    k0, k1 = u.square().sum(1).sqrt(), (u / h).square().sum(1).sqrt()
    return k0 * (k0 - 1) / k1.clamp_min(1e-6)


def _box(q: Tensor, h: Tensor) -> Tensor:
    d = q.abs() - h
    return d.clamp_min(0).square().sum(1).sqrt() + d.amax(1).clamp_max(0)


def _cylinder(q: Tensor, h: Tensor) -> Tensor:
    side = torch.hypot(q[:, 0], q[:, 2]) - h[:, 0]
    lid = q[:, 1].abs() - h[:, 1]
    return torch.hypot(side.clamp_min(0), lid.clamp_min(0)) + torch.maximum(side, lid).clamp_max(0)


def _tapered(q: Tensor, h: Tensor, across: Tensor, top: float, width: Tensor) -> Tensor:
    """Between two lids a side whose normalised distance ``across`` shrinks from 1 to ``top``: a lower bound."""
    shrink = (1 - top) / 2
    slope = (width.square().reciprocal() + (shrink / h[:, 1]).square()).rsqrt()
    side = (across - (1 - shrink * (q[:, 1] / h[:, 1] + 1))) * slope
    return torch.maximum(side, q[:, 1].abs() - h[:, 1])


def _cone(q: Tensor, h: Tensor, top: float = 0.0) -> Tensor:
    return _tapered(q, h, torch.hypot(q[:, 0] / h[:, 0], q[:, 2] / h[:, 2]), top, torch.minimum(h[:, 0], h[:, 2]))


def _frustum(q: Tensor, h: Tensor) -> Tensor:
    return _cone(q, h, 0.55)


def _prism(q: Tensor, h: Tensor) -> Tensor:
    return torch.maximum(_tapered(q, h, q[:, 2].abs() / h[:, 2], 0.0, h[:, 2]), q[:, 0].abs() - h[:, 0])


def _ring(q: Tensor, h: Tensor) -> Tensor:
    tube = h[:, 1]
    return torch.hypot(torch.hypot(q[:, 0], q[:, 2]) - (h[:, 0] - tube), q[:, 1]) - tube


def _dome(q: Tensor, h: Tensor) -> Tensor:
    return torch.maximum(_ellipsoid(q, h), -q[:, 1] - 0.4 * h[:, 1])


_FORMS = {
    "ellipsoid": _ellipsoid,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "frustum": _frustum,
    "prism": _prism,
    "ring": _ring,
    "dome": _dome,
}


def rotation(axis: str, degrees: float) -> Float[Tensor, "3 3"]:
    """Right-handed rotation about a coordinate axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return torch.tensor(rows[axis], dtype=torch.float32)


@dataclass(frozen=True)
class Batch:
    """The primitives of one form (all turned or none), one column a point: ``prims`` are their places in the kind."""

    form: str
    prims: tuple[int, ...]
    centre: Float[Tensor, "p 3 n"]
    half: Float[Tensor, "p 3 n"]
    turn: Float[Tensor, "p 3 3"] | None

    def own(self, p: Float[Tensor, "3 n"]) -> Float[Tensor, "p 3 n"]:
        """Points in each primitive's own axes."""
        q = p - self.centre
        return q if self.turn is None else self.turn.mT @ q

    def distance(self, p: Float[Tensor, "3 n"]) -> Float[Tensor, "p n"]:
        return _FORMS[self.form](self.own(p), self.half)


@dataclass(frozen=True)
class Solid:
    """Things of one kind, a column each; ``take`` repeats columns so that there is one for every point."""

    kind: Kind
    batches: tuple[Batch, ...]
    low: Float[Tensor, "3 n"]
    high: Float[Tensor, "3 n"]

    def take(self, index: Int[Tensor, "m"]) -> Solid:
        batches = tuple(replace(b, centre=b.centre[:, :, index], half=b.half[:, :, index]) for b in self.batches)
        return Solid(self.kind, batches, self.low[:, index], self.high[:, index])

    def distance(self, p: Float[Tensor, "3 n"]) -> Float[Tensor, "n"]:
        """Signed distance in canonical units."""
        out = self.batches[0].distance(p).amin(0)
        for b in self.batches[1:]:
            out = torch.minimum(out, b.distance(p).amin(0))
        return out

    def nearest(self, p: Float[Tensor, "3 n"]) -> Int[Tensor, "n"]:
        """Which primitive of the kind each point is nearest to."""
        prims = torch.tensor([i for b in self.batches for i in b.prims], device=p.device)
        return prims[torch.cat([b.distance(p) for b in self.batches]).argmin(0)]

    def normal(self, p: Float[Tensor, "3 n"], step: float = 2e-3) -> Float[Tensor, "3 n"]:
        """Unit gradient of the distance, by four differences."""
        out = torch.zeros_like(p)
        for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
            e = torch.tensor(corner, dtype=p.dtype, device=p.device)[:, None]
            out += e * self.distance(p + e * step)
        return torch.nn.functional.normalize(out, dim=0)

    def canonical(self, p: Float[Tensor, "3 n"], prim: Int[Tensor, "n"]) -> Float[Tensor, "3 n"]:
        """Points carried, within their primitive, to the reference shape of the kind."""
        reference = solid(self.kind.name, torch.zeros(1, len(self.kind.shape), device=p.device))
        out = torch.full_like(p, torch.nan)
        for mine, theirs in zip(self.batches, reference.batches, strict=True):
            q = mine.own(p) / mine.half * theirs.half
            q = (q if mine.turn is None else mine.turn @ q) + theirs.centre
            for row, i in enumerate(mine.prims):
                out = torch.where(prim == i, q[row], out)
        return out


def _column(values: tuple, n: int, like: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(v, dtype=like.dtype, device=like.device).expand(n) for v in values])


def solid(name: str, shape: Float[Tensor, "n k"]) -> Solid:
    """The things of one kind with the given shape parameters."""
    kind, n = KINDS[name], len(shape)
    prims: list[Prim] = kind.build(list(shape.unbind(1)))
    groups: dict[tuple[str, bool], list[int]] = {}
    for i, p in enumerate(prims):
        groups.setdefault((p.form, p.turn is not None), []).append(i)
    batches = []
    for (form, turned), ids in groups.items():
        centre = torch.stack([_column(prims[i].centre, n, shape) for i in ids])
        half = torch.stack([_column(prims[i].half, n, shape) for i in ids])
        turns = [rotation(*t) for i in ids if (t := prims[i].turn)]
        turn = torch.stack(turns).to(shape) if turned else None
        batches.append(Batch(form, tuple(ids), centre, half, turn))
    centres = torch.stack([_column(p.centre, n, shape) for p in prims])
    extent = torch.stack([_column(reach(p), n, shape) for p in prims])
    return Solid(kind, tuple(batches), (centres - extent).amin(0), (centres + extent).amax(0))
