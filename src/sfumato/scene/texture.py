"""Colours of a surface: of each vertex, or a texture for a mesh that is unwrapped onto a picture.

Unwrapping is ``xatlas``'s (the ``3d`` extra). The picture's pixels that lie on the surface are found by drawing the
mesh in the plane of the picture, and each asks for the colour of its own place; what lies between the charts takes the
colour of the nearest pixel that has one, so that seams do not bleed, however the picture is filtered or made smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh, Texture
from sfumato.ops import raster
from sfumato.scene import volume
from sfumato.scene.cameras import Rays
from sfumato.scene.mesh import BLOCK, vertex_normals
from sfumato.scene.render import FieldScene

Colour = Callable[[Float[Tensor, "p 3"], Float[Tensor, "p 3"]], Float[Tensor, "p 3"]]
"""Colours of points of a surface, of the points and the normals there."""
PADDING = 4
"""Pixels around a chart, at least, that are its own."""


@dataclass(frozen=True)
class Unwrapped:
    """A mesh cut open along seams: a vertex on a seam is there once for each side of it."""

    mesh: Mesh
    places: Float[Tensor, "v 2"]
    """In the picture: right and up, in [0, 1]."""
    origin: Int[Tensor, " v"]
    """Which vertex of the whole mesh each was."""


def unwrap(mesh: Mesh, size: int) -> Unwrapped:
    """Onto a picture of ``size`` pixels a side. Raises ``SfumatoError`` where ``xatlas`` is missing or finds no way."""
    xatlas = _xatlas()
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.numpy().astype(np.float32), mesh.faces.numpy().astype(np.uint32))
    charts, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = size, PADDING, True
    atlas.generate(charts, pack)
    if atlas.mesh_count != 1 or atlas.atlas_count != 1:
        raise SfumatoError(f"the mesh does not fit onto one picture of {size} pixels; take a larger one")
    origin, faces, places = atlas[0]
    which = torch.from_numpy(origin.astype(np.int64))
    return Unwrapped(
        Mesh(mesh.vertices[which], torch.from_numpy(faces.astype(np.int64))), torch.from_numpy(places), which
    )


@dataclass(frozen=True)
class Texels:
    """The pixels of a texture that lie on the surface, row by row."""

    there: Bool[Tensor, "s s"]
    points: Float[Tensor, "p 3"]
    normals: Float[Tensor, "p 3"]
    """Of length 1, smooth across faces and seams."""
    more: Float[Tensor, "p 3"]
    """What was given for vertices, or 0."""


def texels(unwrapped: Unwrapped, whole: Mesh, size: int, more: Float[Tensor, "v 3"] | None = None) -> Texels:
    """Where the pixels of a picture of ``size`` a side lie on the surface; ``more``: of the whole mesh's vertices."""
    flat = torch.cat([unwrapped.places * 2 - 1, torch.zeros(len(unwrapped.places), 1)], 1)
    pose = torch.eye(4, dtype=torch.float64)[None]
    pose[0, 2, 3] = 2.0
    seen = raster.rasterise(flat, unwrapped.mesh.faces, raster.Cameras(pose, 1.0, pinhole=False), size)
    there = seen.there[0]
    more = torch.zeros_like(whole.vertices) if more is None else more
    known = torch.cat([vertex_normals(whole), more], 1)[unwrapped.origin]
    values = seen.of(torch.cat([unwrapped.mesh.vertices, known], 1), unwrapped.mesh.faces)[0][there]
    return Texels(there, values[:, :3], F.normalize(values[:, 3:6], dim=1), values[:, 6:])


def baked(
    mesh: Mesh, colour: Colour, size: int = 1024, more: Float[Tensor, "v 3"] | None = None
) -> tuple[Mesh, Texture]:
    """The mesh cut open along seams, and a texture of what ``colour`` says of each of its pixels.

    ``more``: what is added to that, of each vertex, and between vertices what lies between.
    """
    opened = unwrap(mesh, size)
    on = texels(opened, mesh, size, more)
    colours = (coloured(colour, on.points, on.normals) + on.more).clamp(0, 1)
    return opened.mesh, Texture(opened.places, spread(on.there, colours))


@torch.no_grad()
def coloured(colour: Colour, points: Float[Tensor, "p 3"], normals: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
    """In blocks."""
    parts = zip(points.split(BLOCK), normals.split(BLOCK), strict=True)
    return torch.cat([colour(p, n).cpu() for p, n in parts]).clamp(0, 1)


def spread(there: Bool[Tensor, "h w"], values: Float[Tensor, "p c"]) -> Float[Tensor, "c h w"]:
    """Pixels as an image; those that are not ``there`` take the nearest's."""
    from scipy.ndimage import distance_transform_edt

    if not bool(there.any()):
        raise SfumatoError("no pixel of the texture lies on the surface; take a larger texture")
    image = torch.zeros(*there.shape, values.shape[1])
    image[there] = values
    nearest = distance_transform_edt(~there.numpy(), return_distances=False, return_indices=True)
    y, x = torch.from_numpy(nearest.astype(np.int64))
    return image[y, x].permute(2, 0, 1)


def at_surface(scene: FieldScene) -> Colour:
    """The field's own colour at the point, seen from straight above."""
    device = next(scene.parameters(), torch.zeros(())).device

    def colour(points: Tensor, normals: Tensor) -> Tensor:
        return scene.field(points.to(device), -normals.to(device)).values

    return colour


def inwards(scene: FieldScene, reach: float, samples: int = 12) -> Colour:
    """What a ray sees that comes straight down to the point: from ``reach`` above it to twice as far below."""
    device = next(scene.parameters(), torch.zeros(())).device

    def colour(points: Tensor, normals: Tensor) -> Tensor:
        rays = Rays((points + reach * normals).to(device), -normals.to(device))
        at = ((torch.arange(samples) + 0.5) / samples * 3 * reach).to(device).expand(len(points), -1)
        places = rays.at(at).flatten(0, 1)
        matter = scene.field(places, rays.directions[:, None].expand(-1, samples, -1).flatten(0, 1))
        w = volume.weights(matter.density.view(at.shape), torch.full_like(at, 3 * reach / samples))
        values = matter.values.view(*at.shape, -1)
        seen = volume.composite(w, values)
        middle = values[:, samples // 3]  # of rays that meet next to nothing, as it is at the surface
        part = w.opacity[:, None]
        return torch.where(part > 1e-3, seen / part.clamp_min(1e-3), middle)

    return colour


def _xatlas() -> ModuleType:
    try:
        import xatlas
    except ImportError:
        raise SfumatoError(
            "a mesh is unwrapped for its texture by xatlas; pip install 'sfumato[3d]', or take --no-texture"
        ) from None
    return xatlas


def can_unwrap() -> bool:
    """Is xatlas there?"""
    try:
        _xatlas()
    except SfumatoError:
        return False
    return True
