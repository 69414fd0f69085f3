"""A thing's surface as triangles, with what is known of every vertex: its part and its place on the kind's reference.

By marching tetrahedra (Doi and Koide 1991) of the signed distance, then each vertex brought onto the surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError, unknown, whole
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.sdf import Solid, solid

_CORNERS = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
_TETRAHEDRA = torch.tensor([[0, 1, 3, 7], [0, 1, 5, 7], [0, 2, 3, 7], [0, 2, 6, 7], [0, 4, 5, 7], [0, 4, 6, 7]])
"""Of a cube, by the numbers of its corners: those of two cubes that touch have the same edges on their common side."""


@dataclass(frozen=True)
class Surface:
    """Of a thing in its own coordinates: it stands on y = 0 and looks along +z."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    """Counterclockwise from outside."""
    canonical: Float[Tensor, "v 3"]
    """Where each vertex lies on the reference shape of the kind."""
    prim: Int[Tensor, " v"]
    """Which primitive of the kind it lies on."""


def surface(kind: str, shape: Sequence[float] = (), fine: int = 32) -> Surface:
    """The surface of a thing of a kind with these shape parameters (none: the reference), from ``fine`` cells along its
    longest side. Raises ``SfumatoError`` for an unknown kind and for parameters that are not the kind's."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    whole("cells along a surface's longest side", fine, 4, 256)
    names = KINDS[kind].shape
    values = tuple(shape) or (0.0,) * len(names)
    if len(values) != len(names):
        raise SfumatoError(f"a {kind} has {len(names)} shape parameters ({', '.join(names)}), got {len(values)}")
    body = solid(kind, torch.tensor([values], dtype=torch.float32).view(1, -1))
    low, high = body.low[:, 0], body.high[:, 0]
    cell = float((high - low).max()) / fine
    sides = ((high - low) / cell).ceil().long() + 3
    start = (low + high) / 2 - cell * (sides - 1) / 2 + 0.013 * cell  # off the planes on which primitives begin
    axes = [start[i] + cell * torch.arange(int(sides[i])) for i in range(3)]
    points = torch.cartesian_prod(*axes)
    values = _at(body, points)
    vertices, faces = _marched(points, values, sides)
    for _ in range(4):
        normal = _normals(body, vertices)
        step = _at(body, vertices).clamp(-cell / 2, cell / 2)
        vertices = vertices - step[:, None] * normal
    a, b, c = vertices[faces].unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    sound = across.norm(dim=1) > 1e-6 * cell**2
    faces, across, middles = faces[sound], across[sound], (a + b + c)[sound] / 3
    inward = (across * _normals(body, middles)).sum(1) < 0
    faces = torch.where(inward[:, None], faces.flip(1), faces)
    used, index = faces.unique(return_inverse=True)
    vertices = vertices[used]
    many = body.take(torch.zeros(len(vertices), dtype=torch.long))
    prim = many.nearest(vertices.T)
    return Surface(vertices, index, many.canonical(vertices.T, prim).T, prim)


def _at(body: Solid, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    return body.take(torch.zeros(len(points), dtype=torch.long)).distance(points.T)


def _normals(body: Solid, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    return body.take(torch.zeros(len(points), dtype=torch.long)).normal(points.T).T


def _marched(
    points: Float[Tensor, "n 3"], values: Float[Tensor, " n"], sides: Int[Tensor, "3"]
) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """Triangles through the zeros of values on a grid; which way they face is not said."""
    strides = torch.tensor([int(sides[1] * sides[2]), int(sides[2]), 1])
    cells = torch.cartesian_prod(*(torch.arange(int(n) - 1) for n in sides)) @ strides
    corners = cells[:, None] + _CORNERS @ strides
    mixed = (values[corners] < 0).any(1) & (values[corners] >= 0).any(1)
    four = corners[mixed][:, _TETRAHEDRA].flatten(0, 1)
    inside = values[four] < 0
    order = inside.long().argsort(dim=1, descending=True, stable=True)  # those inside first
    four, many = four.gather(1, order), inside.sum(1)
    edges = []
    for count, triangles in (
        (1, (((0, 1), (0, 2), (0, 3)),)),
        (2, (((0, 2), (0, 3), (1, 3)), ((0, 2), (1, 3), (1, 2)))),
        (3, (((0, 3), (1, 3), (2, 3)),)),
    ):
        mine = four[many == count]
        edges += [torch.stack([mine[:, list(edge)] for edge in triangle], 1) for triangle in triangles]
    ends = torch.cat(edges).sort(-1).values  # (faces, 3 corners, 2 ends)
    pairs, faces = ends.flatten(0, 1).unique(dim=0, return_inverse=True)
    a, b = values[pairs[:, 0]], values[pairs[:, 1]]
    share = (a / (a - b))[:, None]
    return points[pairs[:, 0]] * (1 - share) + points[pairs[:, 1]] * share, faces.view(-1, 3)
