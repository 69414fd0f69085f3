"""Fewer faces for a mesh, by quadric error (Garland and Heckbert 1997), and how much of its shape is left.

By ``fast-simplification`` (the ``3d`` extra), which is imported when faces are taken away. It takes edges away in
rounds, in each those whose error is below a bound, and a rougher one's bound grows faster. The gentler it is, the
better is the shape for the same number of faces, but the sooner it finds nothing more that it may take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch

from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh, areas
from sfumato.metrics.geometry import silhouette_iou
from sfumato.scene.cameras import orbit
from sfumato.scene.mesh import Surface, check, closed
from sfumato.scene.mesh_scene import MeshScene, around

FEWEST = 4
"""Faces of a tetrahedron; no closed surface has fewer."""
ROUGH = (3, 4, 5, 6, 7)
"""How rough to be, gentlest first; 7 is the library's own."""


@dataclass(frozen=True)
class Kept:
    """What is left of a mesh's shape."""

    faces_before: int
    area: float
    """Part of it."""
    iou: float
    """Of silhouettes from eight sides, mean."""


def fewer(found: Surface, faces: int) -> tuple[Surface, Kept | None]:
    """A surface with at most ``faces`` faces, see ``decimated``, and what is left of it, which its notes say as well.

    None where it has no more than those: nothing is changed then.
    """
    whole = found.mesh
    if len(whole.faces) <= faces:
        return replace(found, notes=(*found.notes, f"the surface has {len(whole.faces):,} faces, and all stay")), None
    mesh = decimated(whole, faces)
    checks, left = check(mesh), kept(mesh, whole)
    now = "watertight" if checks.watertight else "open: it has edges of one face, or of more than two"
    words = [
        f"{len(whole.faces):,} faces became {len(mesh.faces):,}, which have {100 * left.area:.1f} % of the area and "
        f"silhouettes of an IoU of {left.iou:.3f}; the surface is {now}"
    ]
    if len(mesh.faces) > faces:
        words.append(f"{faces:,} faces are too few for this surface; {len(mesh.faces):,} are as few as can be")
    return replace(found, mesh=mesh, checks=checks, notes=(*found.notes, *words)), left


def decimated(mesh: Mesh, faces: int) -> Mesh:
    """With at most ``faces`` faces, or as few as can be; a mesh that has no more than those is itself.

    Of the ways that come as near, the gentlest is taken whose mesh is closed, if it was closed before, or else the
    gentlest. Raises ``SfumatoError`` for a number below 4, and where ``fast-simplification`` is missing.
    """
    if faces < FEWEST:
        raise SfumatoError(f"a surface has {FEWEST} faces or more, got {faces}")
    if len(mesh.faces) <= faces:
        return mesh
    library, found = simplification(), []
    points, triangles = mesh.vertices.double().numpy(), mesh.faces.int().numpy()
    for rough in ROUGH:
        v, f = library.simplify(points, triangles, target_count=faces, agg=rough)
        found.append(Mesh(torch.from_numpy(v).float(), torch.from_numpy(f.astype(np.int64))))
    was = closed(mesh.faces)
    return min(found, key=lambda made: (max(len(made.faces), faces), was and not closed(made.faces)))


def kept(mesh: Mesh, whole: Mesh) -> Kept:
    """How much ``mesh`` has of the one that it was made of."""
    cameras = orbit(8, (128, 128), elevation=20.0, first=10.0, **around(whole))
    seen = [MeshScene(m, torch.zeros_like(m.vertices), finer=1).view(cameras).alpha for m in (mesh, whole)]
    there, was = (x[:, 0] for x in seen if x is not None)
    return Kept(
        len(whole.faces), float(areas(mesh).sum() / areas(whole).sum()), float(silhouette_iou(there, was).mean())
    )


def simplification() -> ModuleType:
    """``fast-simplification``. Raises ``SfumatoError`` where it is missing."""
    try:
        import fast_simplification
    except ImportError:
        raise SfumatoError(
            "faces are taken away by fast-simplification; pip install 'sfumato[3d]', or leave faces out"
        ) from None
    return fast_simplification
