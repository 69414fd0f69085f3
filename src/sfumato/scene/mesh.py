"""From a field to a closed surface: marching cubes at a level that the field itself chooses, and a check of the result.

By ``scikit-image`` (the ``3d`` extra), which is imported when a surface is made. Density is read in blocks at the
middles of a grid's cells; around the grid nothing is, so that what reaches its border is closed there. Between two
cells the surface lies by the part of light that a cell stops, 1 - 2^(-density / level), which is one half at the level
and does not move outwards where matter is very dense.

threestudio's "auto" level, the mean of what is above 0, is the usual cause of empty meshes and of meshes with holes.
Here rays are cast through the field from a few sides, and the level is the one whose first crossings agree best with
what the rays show: where there is something, and how far away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError, finite
from sfumato.media.meshes import Mesh, areas
from sfumato.scene.cameras import Pinholes, Rays, orbit
from sfumato.scene.fields import Field
from sfumato.scene.regions import Box, Region

BLOCK = 2**16
"""Points at once."""
SIDES = (("left", "right"), ("bottom", "top"), ("back", "front"))
"""Of a box, along x, y and z, towards less and towards more."""
LEVELS = 48
"""Levels that are tried, each a constant times the one before."""
HAZE = 0.75
"""Below this agreement of silhouettes a field is called a haze."""
FULL = 0.98
"""Part of a box that is full of matter, from which on the surface would be the box."""


@dataclass(frozen=True)
class Checks:
    """What is wrong with a mesh, or not."""

    watertight: bool
    """Every edge belongs to two faces, which pass it in opposite directions."""
    pieces: int
    """That do not touch."""
    volume: float
    """Enclosed; below 0 where faces look inwards. It means little of an open mesh."""
    area: float


@dataclass(frozen=True)
class Surface:
    """A mesh of a field, in the world, with faces that look outwards."""

    mesh: Mesh
    level: float
    """Of density."""
    notes: tuple[str, ...]
    """What a person should know of it, a line each."""
    checks: Checks


def surface(
    field: Field,
    resolution: int = 128,
    level: float | None = None,
    box: Box | None = None,
    least: float = 0.01,
) -> Surface:
    """The surface of a field on ``resolution`` cells a side of ``box``, or of the field's own region.

    ``level``: of density, one that the field chooses if not given. ``least``: pieces whose area is a smaller part of
    the largest piece's are floaters and left out, as are walls of hollows, which nobody sees.

    Raises ``SfumatoError`` for a field without a surface: one that is empty, full, or not finite.
    """
    measure = _skimage()
    if not 8 <= resolution <= 512:
        raise SfumatoError(f"a surface is found on 8 to 512 cells a side, got {resolution}")
    box = box or inner(field.region)
    notes = []
    if box != field.region:
        notes.append(f"the surface is of the cube of half side {box.half:.3g} about {_place(box.centre)} alone")
    if level is None:
        chosen = chosen_level(field, box)
        level = chosen.level
        if chosen.agreement < HAZE:
            notes.append(
                f"the field is a haze: no level of density has its silhouettes (their IoU is {chosen.agreement:.2f} at "
                "best); losses on opacity or distortion make it solid"
            )
    if not (math.isfinite(level) and level > 0):
        raise SfumatoError(f"a surface lies at a level of density above 0, got {level:g}")
    density = sampled(field, box, resolution)
    above = density > level
    part = float(above.float().mean())
    if not part:
        raise SfumatoError(
            f"there is no surface: density is at most {float(density.max()):.3g} on {resolution} cells a side, and the "
            f"level is {level:.3g}; take a lower level or more cells"
        )
    if part > FULL:
        raise SfumatoError(
            f"there is no surface: {100 * part:.0f} % of the region are denser than {level:.3g}, so it would be the "
            "whole box; take a higher level, or make the scene again with a loss on opacity or sparsity"
        )
    notes += _cut(above)
    stops = F.pad(-torch.expm1(density * (-math.log(2) / level)), (1,) * 6).numpy()
    places, faces, *_ = measure.marching_cubes(stops, 0.5, gradient_direction="ascent", allow_degenerate=False)
    side = 2 * box.half / resolution
    vertices = torch.from_numpy(places).double() * side + torch.tensor(box.centre).double() - box.half - side / 2
    whole = Mesh(vertices.float(), torch.from_numpy(faces.astype(np.int64)))
    mesh, dropped = cleaned(whole, least)
    checks = check(mesh)
    notes += dropped
    if not checks.watertight:
        notes.append("the surface is open: it has edges of one face")
    if checks.pieces > 1:
        notes.append(f"the surface has {checks.pieces} pieces that do not touch")
    return Surface(mesh, level, tuple(notes), checks)


def inner(region: Region) -> Box:
    """The box itself; of all space the cube that is not drawn near."""
    return region if isinstance(region, Box) else Box(region.centre, region.radius)


@torch.no_grad()
def sampled(field: Field, box: Box, resolution: int) -> Float[Tensor, "x y z"]:
    """Density at the middles of cells, on the CPU, along the world's axes. ``SfumatoError`` where it is not finite."""
    device = next(field.parameters(), torch.zeros(())).device
    at = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1) * box.half
    x, y, z = (at + c for c in box.centre)
    slab = max(1, BLOCK // resolution**2)  # along x
    parts = []
    for some in x.split(slab):
        points = torch.stack(torch.meshgrid(some, y, z, indexing="ij"), -1).view(-1, 3)
        found = [field.density(p.to(device)).cpu() for p in points.split(BLOCK)]
        parts.append(torch.cat(found).view(len(some), resolution, resolution))
    density = torch.cat(parts)
    finite(density, "the field's density", "the scene is broken; make it again with a smaller rate")
    return density


@dataclass(frozen=True)
class Choice:
    """A level, and how well its surface has the field's silhouettes: their IoU."""

    level: float
    agreement: float


@torch.no_grad()
def chosen_level(field: Field, box: Box, cameras: Pinholes | None = None, samples: int = 160) -> Choice:
    """The level of density whose surface shows what the field shows, from cameras around the box.

    Of each ray: whether more than half of its light is stopped, and where half of it is. Of a level: whether density
    ever is above it, and where first. Of the levels whose silhouettes have nearly the best IoU, the one is taken for
    which 1 - IoU plus the mean difference of those places, in sides of the box, is least; of equals the middle one.
    """
    if cameras is None:
        high, low = (orbit(4, (40, 40), elevation=e, distance=4.2 * box.half, fov=46, target=box.centre, first=f)
                     for e, f in ((35, 20), (-10, 65)))  # fmt: skip
        cameras = replace(high, poses=torch.cat([high.poses, low.poses]), focal=torch.cat([high.focal, low.focal]),
                          centre=torch.cat([high.centre, low.centre]))  # fmt: skip
    device = next(field.parameters(), torch.zeros(())).device
    rays = Rays(*(x.flatten(0, -2) for x in cameras.rays()))
    start, end = box.span(rays, 0.0)
    meets = end > start
    rays, start, end = Rays(rays.origins[meets], rays.directions[meets]), start[meets], end[meets]
    parts = (torch.arange(samples) + 0.5) / samples
    at = start[:, None] + parts * (end - start)[:, None]
    points = rays.at(at).view(-1, 3)
    density = torch.cat([field.density(p.to(device)).cpu() for p in points.split(BLOCK)]).view(at.shape)
    finite(density, "the field's density", "the scene is broken; make it again with a smaller rate")
    lengths = ((end - start) / samples)[:, None].expand_as(at)
    stopped = 1 - (-(density * lengths).cumsum(1)).exp()
    shown = stopped[:, -1] > 0.5
    most = float(density.max())
    if not bool(shown.any()):
        raise SfumatoError(
            f"there is no surface: the scene is empty or nearly so, no ray of {len(shown)} loses more than "
            f"{100 * float(stopped[:, -1].max()):.0f} % of its light in it"
        )
    there = _first(stopped > 0.5, at)
    lowest = max(float(density[shown].amax(1).min()) / 4, most / 1e4)
    levels = torch.logspace(math.log10(lowest), math.log10(most * 0.98), LEVELS).tolist()
    highest = density.amax(1)
    errors, ious = [], []
    for level in levels:
        found = highest > level
        both = found & shown
        iou = float(both.sum()) / max(1, int((found | shown).sum()))
        apart = (_first(density[both] > level, at[both]) - there[both]).abs()
        errors.append(1 - iou + (float(apart.mean()) / (2 * box.half) if len(apart) else 1.0))
        ious.append(iou)
    error = torch.tensor(errors)
    error[torch.tensor(ious) < 0.9 * max(ious)] = torch.inf
    good = (error <= error.min() + 2e-3).nonzero()[:, 0].tolist()
    best = good[len(good) // 2]
    return Choice(levels[best], ious[best])


def _first(where: Bool[Tensor, "r s"], at: Float[Tensor, "r s"]) -> Float[Tensor, " r"]:
    """The first distance at which something holds, of rays on which it does."""
    return at.gather(1, where.int().argmax(1, keepdim=True))[:, 0]


def check(mesh: Mesh) -> Checks:
    """Of any mesh."""
    corners = mesh.corners.double()
    corners = corners - corners.mean((0, 1))
    inside = float((corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum()) / 6
    labels = pieces(mesh)
    return Checks(closed(mesh.faces), int(labels[mesh.faces[:, 0]].unique().numel()), inside, float(areas(mesh).sum()))


def closed(faces: Int[Tensor, "f 3"]) -> bool:
    """Is every edge passed once in each direction?"""
    one, two = faces.flatten(), faces[:, [1, 2, 0]].flatten()
    many = int(faces.max()) + 1
    there, back = (one * many + two).sort().values, (two * many + one).sort().values
    return torch.equal(there, back) and bool((there[1:] != there[:-1]).all())


def pieces(mesh: Mesh) -> Int[Tensor, " v"]:
    """Which piece each vertex belongs to; vertices are together that an edge joins."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    one, two = mesh.faces.flatten().numpy(), mesh.faces[:, [1, 2, 0]].flatten().numpy()
    n = len(mesh.vertices)
    graph = coo_matrix((np.ones(len(one), bool), (one, two)), (n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))


def cleaned(mesh: Mesh, least: float = 0.01) -> tuple[Mesh, list[str]]:
    """Without floaters and walls of hollows (closed pieces that look inwards), and what was left out."""
    labels = pieces(mesh)
    of = labels[mesh.faces[:, 0]]
    n = int(labels.max()) + 1
    size = torch.zeros(n, dtype=torch.float64).index_add_(0, of, areas(mesh))
    corners = mesh.corners.double()
    corners = corners - corners.mean((0, 1))
    parts = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum(1) / 6
    inside = torch.zeros(n, dtype=torch.float64).index_add_(0, of, parts)
    hollow = inside < 0
    if bool(hollow.all()):  # an open mesh, or one that looks inwards throughout: nothing is a hollow in it
        hollow = torch.zeros_like(hollow)
    largest = float(size[~hollow].max())
    floats = ~hollow & (size < least * largest)
    keep = ~(hollow | floats)
    words = []
    if n_float := int(floats.sum()):
        part = 100 * float(size[floats].sum() / size[~hollow].sum())
        words.append(f"{n_float} floaters are left out, {part:.2g} % of the area")
    if n_hollow := int((hollow & (size > 0)).sum()):
        words.append(f"{n_hollow} hollows inside are filled, which nobody sees")
    faces = mesh.faces[keep[of]]
    used, faces = faces.unique(return_inverse=True)
    return Mesh(mesh.vertices[used], faces), words


def vertex_normals(mesh: Mesh) -> Float[Tensor, "v 3"]:
    """Means of the faces around, by their areas, of length 1; 0 where no face is."""
    a, b, c = mesh.corners.unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    out = torch.zeros_like(mesh.vertices)
    for k in range(3):
        out.index_add_(0, mesh.faces[:, k], across)
    return F.normalize(out, dim=1, eps=1e-20)


def _cut(above: Bool[Tensor, "x y z"]) -> list[str]:
    """Where matter reaches the border."""
    words = []
    for axis, names in enumerate(SIDES):
        for end, name in zip((0, -1), names, strict=True):
            part = float(above.select(axis, end).float().mean())
            if part:
                words.append(f"{name} ({100 * part:.0f} %)" if part >= 0.01 else f"{name} (below 1 %)")
    return [f"it is cut off and closed at the region's border: {', '.join(words)}"] if words else []


def _place(at: Sequence[float]) -> str:
    return "(" + ", ".join(f"{x:.3g}" for x in at) + ")"


def _skimage() -> ModuleType:
    try:
        from skimage import measure
    except ImportError:
        raise SfumatoError(
            "surfaces are found by scikit-image's marching cubes; pip install 'sfumato[3d]', or write a .mp4 or .gif"
        ) from None
    return measure
