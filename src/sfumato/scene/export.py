"""A scene as files that other programs open: meshes with textures, splats, films that go around it, sheets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError, whole
from sfumato.io.progress import progress
from sfumato.media import meshes, pictures, video
from sfumato.scene import texture as textures
from sfumato.scene.cameras import Pinholes, orbit
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.mesh import inner, surface, vertex_normals
from sfumato.scene.mesh_decimate import FEWEST, fewer, simplification
from sfumato.scene.mesh_scene import MeshScene, around, refined
from sfumato.scene.render import FieldScene
from sfumato.scene.splat_files import write_splats

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MESHES = (".glb", ".obj", ".ply")
FILMS = (*video.FILMS, *video.MOVING)
SHEETS = (".png",)
REACH = 3.0
"""Cells above and half of those below a surface that its colours are read from; see docs/export.md."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    """The one that was asked for first, then what belongs to it."""
    notes: tuple[str, ...] = ()
    """What a person should know of it, a line each."""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def kind_of(path: str | Path, scene: Generator | None = None) -> str:
    """``mesh``, ``splats``, ``film`` or ``sheet``: what a file of this name holds. ``SfumatoError`` for other names."""
    suffix = Path(path).suffix.lower()
    if suffix in FILMS:
        video.writes(Path(path))
        return "film"
    if suffix in SHEETS:
        return "sheet"
    if suffix not in MESHES:
        known = ", ".join((*MESHES, *FILMS, *SHEETS))
        raise SfumatoError(f"a scene is written as {known}, not as {Path(path).name or path}")
    if isinstance(scene, Gaussians):
        if suffix != ".ply":
            raise SfumatoError(f"a scene of Gaussians has no surface; write its splats as .ply, not {Path(path).name}")
        return "splats"
    return "mesh"


def export(
    scene: Generator,
    path: str | Path,
    *,
    resolution: int = 128,
    level: float | None = None,
    faces: int | None = None,
    texture: int | None = 1024,
    refine: int = 0,
    frames: int = 48,
    size: int = 256,
    elevation: float = 15.0,
    distance: float | None = None,
) -> Exported:
    """Write a scene as what the file's name says, see ``kind_of``.

    ``faces``: of a mesh, at most, before it is coloured; None leaves all. ``texture``: pixels a side; None is colours
    of vertices, which a PLY has in any case. ``refine``: steps in which colours of a mesh are brought nearer to what
    the scene shows. ``frames``, ``size``, ``elevation`` (degrees), ``distance`` (one from which all is seen, if not
    given): of the cameras around it, in films and sheets.
    """
    path = Path(path).expanduser()
    kind = kind_of(path, scene)
    if faces is not None and kind != "mesh":
        raise SfumatoError(f"{path.name} has no faces that could be fewer; leave faces out, or write a mesh (.glb)")
    if kind == "splats":
        assert isinstance(scene, Gaussians)
        return Exported((write_splats(path, scene),), (), {"kind": kind, "splats": len(scene)})
    if kind == "mesh":
        return _export_mesh(scene, path, resolution, level, faces, texture, refine)
    if scene.space == "latent":
        raise SfumatoError("the scene shows a model's latents, which are no pictures; write a mesh of it (.glb)")
    whole("frames", frames, 2, 1000)
    whole("the size of pictures", size, 16, 2048)
    if kind == "sheet":
        sheet = pictures.grid(list(turntable(scene, 8, size, elevation, distance)), 4)
        return Exported((pictures.write(sheet, path),), (), {"kind": kind, "views": 8})
    video.write(turntable(scene, frames, size, elevation, distance), path, Fraction(24))
    return Exported((path,), (), {"kind": kind, "frames": frames})


def turntable(
    scene: Generator, frames: int = 48, size: int = 256, elevation: float = 15.0, distance: float | None = None
) -> Iterator[Picture]:
    """Pictures from all around, evenly, beginning at the front."""
    place = stand(scene)
    place |= {} if distance is None else {"distance": distance}
    cameras = orbit(frames, (size, size), elevation=elevation, **place)
    with progress("turning", frames) as advance:
        for i in range(frames):
            yield pictures.picture(seen(scene, cameras[i : i + 1])[0])
            advance()


@torch.no_grad()
def seen(scene: Generator, cameras: Pinholes) -> torch.Tensor:
    """Pictures in [0, 1] without gradients, of any scene that cameras see."""
    view = getattr(scene, "view", scene.render)
    return view(cameras).images.clamp(0, 1).cpu()


def stand(scene: Generator) -> dict[str, Any]:
    """Where ``orbit`` stands to see all of a scene that this package has."""
    if isinstance(scene, FieldScene):
        box = inner(scene.field.region)
        return {"target": box.centre, "distance": 3.4 * box.half}
    if isinstance(scene, MeshScene):
        return around(scene.mesh)
    if isinstance(scene, Gaussians):
        there = scene.means[scene.opacities > 0].detach() if bool((scene.opacities > 0).any()) else scene.means.detach()
        low, high = torch.quantile(there.cpu()[:: max(1, len(there) // 100_000)], torch.tensor([0.02, 0.98]), dim=0)
        return {"target": ((low + high) / 2).tolist(), "distance": max(3.2 * float((high - low).norm()) / 2, 1e-3)}
    return {}


def _export_mesh(
    scene: Generator, path: Path, resolution: int, level: float | None, faces: int | None, texture: int | None,
    refine: int,
) -> Exported:  # fmt: skip
    if not isinstance(scene, FieldScene):
        raise SfumatoError(f"{type(scene).__name__} has no density, so there is no surface in it; write a film (.gif)")
    notes = []
    if faces is not None:
        whole("faces", faces, FEWEST, meshes.MOST)
        simplification()
    if texture is not None:
        whole("the texture's size", texture, 16, 8192)
        if path.suffix.lower() == ".ply":
            texture = None
        elif not textures.can_unwrap():
            texture = None
            notes.append("xatlas is not installed, so vertices have colours and there is no texture: sfumato[3d]")
    if texture is None and path.suffix.lower() == ".obj":
        raise SfumatoError("an OBJ has no colours of vertices; write .glb or .ply, or a texture (sfumato[3d])")
    latent = scene.space == "latent"
    with progress("surface", 2 if latent else 3) as advance:
        found = surface(scene.field, resolution, level)
        found, kept = (found, None) if faces is None else fewer(found, faces)
        advance(what="colours")
        notes += found.notes
        mesh, worn = found.mesh, torch.full_like(found.mesh.vertices, 0.5)
        colour = textures.inwards(scene, REACH * 2 * inner(scene.field.region).half / resolution)
        if latent:
            notes.append("the scene shows a model's latents, which are no colours, so the mesh is grey")
        else:
            worn = before = textures.coloured(colour, mesh.vertices, vertex_normals(mesh))
            if refine:
                worn = _refined(scene, MeshScene(mesh, before), refine, resolution).colours.detach()
            advance(what="texture")
            if texture is not None:
                mesh, worn = textures.baked(mesh, colour, texture, worn - before)
        meshes.write_mesh(path, mesh, worn)
        advance()
    files = [path, *(meshes.beside(path) if path.suffix.lower() == ".obj" else ())]
    checks = found.checks
    about = {
        "kind": "mesh", "faces": len(mesh.faces), "vertices": len(found.mesh.vertices), "level": found.level,
        "watertight": checks.watertight, "pieces": checks.pieces, "volume": checks.volume, "area": checks.area,
        "texture": texture if isinstance(worn, meshes.Texture) else None,
        "decimated": None if kept is None else vars(kept),
    }  # fmt: skip
    return Exported(tuple(files), tuple(notes), about)


def _refined(scene: FieldScene, mesh: MeshScene, steps: int, resolution: int) -> MeshScene:
    """Against 24 views of the scene, from three heights, as fine as the surface is."""
    side = min(max(resolution, 32), 128)
    place = around(mesh.mesh)
    rings = [
        orbit(8, (side, side), elevation=e, first=f, **place) for e, f in ((-12.0, 10.0), (15.0, 25.0), (50.0, 0.0))
    ]
    poses, focal, centre = (torch.cat([getattr(ring, of) for ring in rings]) for of in ("poses", "focal", "centre"))
    cameras = Pinholes(poses, focal, centre, (side, side))
    return refined(mesh, seen(scene, cameras), cameras, steps)
