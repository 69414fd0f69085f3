"""Meshes of triangles: read from OBJ, OFF, PLY and GLB, checked, brought to a unit ball, written with colours.

A texture is written into a GLB as its material's colour (PBR, not metallic, rough), or beside an OBJ as a PNG.

By ``trimesh`` (the ``3d`` extra), which is imported when a file is read or written. Nothing is unpickled, no
material or texture is opened, and nothing beside the file itself is looked for.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError, finite, first_line
from sfumato.io.files import atomic
from sfumato.io.terminal import note
from sfumato.media import pictures
from sfumato.media.opening import MESHES as FORMATS

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

COLOURED = (".ply", ".glb")
"""Formats that hold a colour for every vertex."""
TEXTURED = (".glb", ".obj")
"""Formats that hold a texture; an OBJ is three files."""
MOST = 2_000_000
"""Faces that are read at most."""
BYTES_A_FACE = 600
"""What reading takes, roughly: text, numbers, normals, and a face's part of its vertices' features."""
LARGEST = 2**30
"""Bytes of a file that is opened at all."""


def is_mesh(path: str | Path) -> bool:
    """Does a file's name say that it is a mesh?"""
    return Path(path).suffix.lower() in FORMATS


@dataclass(frozen=True)
class Mesh:
    """Triangles. Vertices are in the file's order, so that what is known of its i-th vertex is known here."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    """Counterclockwise seen from outside, where the file keeps to that."""
    parts: int = 1
    """How many meshes of the file were joined."""

    def __post_init__(self) -> None:
        v, f = self.vertices, self.faces
        if v.ndim != 2 or v.shape[1] != 3 or f.ndim != 2 or f.shape[1] != 3:
            raise SfumatoError(f"a mesh has vertices (v, 3) and faces (f, 3), got {tuple(v.shape)}, {tuple(f.shape)}")
        if not len(v) or not len(f):
            raise SfumatoError(f"a mesh without faces: {len(v)} vertices, {len(f)} faces; a cloud of points is none")
        if int(f.min()) < 0 or int(f.max()) >= len(v):
            raise SfumatoError(f"a face names vertex {int(f.max())} (or one below 0) of {len(v)}; the mesh is broken")
        finite(v, "a mesh's vertices", "the file is broken")

    @property
    def corners(self) -> Float[Tensor, "f 3 3"]:
        """The three points of each face."""
        return self.vertices[self.faces]

    def unit(self) -> Mesh:
        """The same shape in the ball of radius 1 about 0: the middle of its box, and its farthest vertex at 1.

        Vertices that no face uses do not count. Raises ``SfumatoError`` for a shape without extent.
        """
        used = self.vertices[self.faces.flatten().unique()].double()
        middle = (used.amin(0) + used.amax(0)) / 2
        radius = (used - middle).norm(dim=1).max()
        if not float(radius) > 0:
            raise SfumatoError("all vertices of a mesh lie in one point")
        return replace(self, vertices=((self.vertices.double() - middle) / radius).float())


def read_mesh(path: str | Path, most: int = MOST) -> Mesh:
    """A mesh file. Polygons become triangles, several meshes of a file are joined where they stand, faces without area
    are left out (with a note).

    Raises ``SfumatoError`` for a file that is missing, broken, of another format, without faces, not finite, or of more
    than ``most`` faces.
    """
    path = Path(path).expanduser()
    if not is_mesh(path):
        raise SfumatoError(f"{path} is no mesh by its name; read are {', '.join(FORMATS)}")
    if not path.is_file():
        raise SfumatoError(f"there is no file {path}")
    if (size := path.stat().st_size) > LARGEST:
        raise SfumatoError(f"{path} has {size / 2**30:.1f} GiB, and at most {LARGEST / 2**30:.0f} are read; {LESS}")
    trimesh = _trimesh()
    try:
        with path.open("rb") as file, warnings.catch_warnings():  # a file and no name: nothing beside it is found
            warnings.simplefilter("ignore", RuntimeWarning)  # of textures, which are not read
            found = trimesh.load(
                file, file_type=path.suffix[1:].lower(), process=False, maintain_order=True, skip_materials=True
            )
    except Exception as e:  # what trimesh raises for a broken file is of many kinds
        raise SfumatoError(f"{path} cannot be read as a mesh: {first_line(e)}") from e
    pieces = [piece for piece in _pieces(found, trimesh) if len(piece[1])]
    if not pieces:
        raise SfumatoError(f"{path} has no faces; a cloud of points or lines is no mesh")
    vertices = np.concatenate([v for v, _ in pieces])
    starts = np.cumsum([0, *(len(v) for v, _ in pieces)])
    faces = np.concatenate([f + start for (_, f), start in zip(pieces, starts, strict=False)])
    if len(faces) > most:
        raise SfumatoError(
            f"{path} has {len(faces)} faces, which takes about {len(faces) * BYTES_A_FACE / 2**30:.1f} GiB; at most "
            f"{most} are read; {LESS}"
        )
    try:
        mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(faces), len(pieces))
    except SfumatoError as e:
        raise SfumatoError(f"{path}: {e}") from e
    sound = areas(mesh) > 0
    if not sound.any():
        raise SfumatoError(f"{path}: none of its {len(faces)} faces has an area")
    if not sound.all():
        note(f"{path}: {int((~sound).sum())} of {len(faces)} faces have no area and are left out")
    return replace(mesh, vertices=mesh.vertices.float(), faces=mesh.faces[sound])


LESS = "make it smaller first, such as by quadric decimation"


def areas(mesh: Mesh) -> Float[Tensor, " f"]:
    a, b, c = mesh.corners.double().unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=1) / 2


@dataclass(frozen=True)
class Texture:
    """A picture and where each vertex lies in it."""

    places: Float[Tensor, "v 2"]
    """Right and up, in [0, 1] from the picture's lower left corner."""
    image: Float[Tensor, "3 h w"]
    """In [0, 1], rows go down."""


def write_mesh(path: str | Path, mesh: Mesh, colours: Float[Tensor, "v 3"] | Texture) -> Path:
    """Write a PLY or GLB with a colour in [0, 1] for every vertex, or a GLB or OBJ with a texture.

    An OBJ has its material and its texture beside it, under its own name; all three get their names together, once all
    is on the disk. Raises ``SfumatoError`` where it cannot be.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if isinstance(colours, Texture):
        if kind not in TEXTURED:
            raise SfumatoError(f"a mesh with a texture is written as {' or '.join(TEXTURED)}, not as {path.name}")
        return _write_textured(path, mesh, colours)
    if kind not in COLOURED:
        raise SfumatoError(f"a coloured mesh is written as {' or '.join(COLOURED)}, not as {path.name}")
    if colours.shape != mesh.vertices.shape:
        raise SfumatoError(f"{len(mesh.vertices)} vertices have a colour each, got {tuple(colours.shape)}")
    finite(colours, "a mesh's colours")
    made = _trimesh().Trimesh(
        mesh.vertices.double().cpu().numpy(), mesh.faces.cpu().numpy(), vertex_colors=_bytes(colours), process=False
    )
    data = made.export(file_type=kind[1:])
    with atomic(path) as part:
        Path(part).write_bytes(data)
    return path


def _write_textured(path: Path, mesh: Mesh, texture: Texture) -> Path:
    if texture.places.shape != (len(mesh.vertices), 2):
        places = tuple(texture.places.shape)
        raise SfumatoError(f"{len(mesh.vertices)} vertices have a place in a texture each, got {places}")
    finite(texture.places, "places in a texture")
    picture = pictures.picture(texture.image)
    if path.suffix.lower() == ".obj":
        return _write_obj(path, mesh, texture.places, picture)
    trimesh = _trimesh()
    material = trimesh.visual.material.PBRMaterial(
        name=path.stem, baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=1.0
    )
    visual = trimesh.visual.TextureVisuals(uv=texture.places.double().cpu().numpy(), material=material)
    made = trimesh.Trimesh(mesh.vertices.double().cpu().numpy(), mesh.faces.cpu().numpy(), visual=visual, process=False)
    data = made.export(file_type="glb")
    with atomic(path) as part:
        Path(part).write_bytes(data)
    return path


def beside(path: Path) -> tuple[Path, Path]:
    """An OBJ's material and its texture."""
    name = re.sub(r"[^\w.-]", "_", path.stem, flags=re.ASCII)  # a name with a space would end at it
    return path.with_name(f"{name}.mtl"), path.with_name(f"{name}.png")


def _write_obj(path: Path, mesh: Mesh, places: Float[Tensor, "v 2"], picture: Picture) -> Path:
    material, image = beside(path)
    name = material.stem
    lines = [f"mtllib {material.name}", f"usemtl {name}"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vt {u:.7g} {v:.7g}" for u, v in places.tolist()]
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in (mesh.faces + 1).tolist()]
    about = f"newmtl {name}\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {image.name}\n"
    for file in (path, material, image):
        if file.is_dir():
            raise SfumatoError(f"cannot write {file}: it is a folder")
    with atomic(path) as one, atomic(material) as two, atomic(image) as three:
        one.write_text("\n".join(lines) + "\n", encoding="ascii")
        two.write_text(about, encoding="utf-8")
        picture.save(three, format="PNG")
    return path


def _bytes(values: Float[Tensor, "*n c"]) -> Any:
    return (values.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def _pieces(found: Any, trimesh: ModuleType) -> list[tuple[Any, Any]]:
    """Vertices and faces of all meshes in what was read, where they stand."""
    if isinstance(found, trimesh.Trimesh):
        return [(np.asarray(found.vertices, np.float64), np.asarray(found.faces, np.int64))]
    if not isinstance(found, trimesh.Scene):
        return []
    out = []
    for node in found.graph.nodes_geometry:
        place, name = found.graph[node]
        piece = found.geometry[name]
        if isinstance(piece, trimesh.Trimesh):
            v = np.asarray(piece.vertices, np.float64) @ place[:3, :3].T + place[:3, 3]
            f = np.asarray(piece.faces, np.int64)
            out.append((v, f[:, ::-1].copy() if np.linalg.det(place[:3, :3]) < 0 else f))
    return out


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError:
        raise SfumatoError("meshes are read and written by trimesh; pip install 'sfumato[3d]'") from None
    return trimesh
