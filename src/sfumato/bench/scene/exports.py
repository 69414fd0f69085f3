"""Scenes as files, read back by another program: whole, coloured, of the true shape, and how large."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.bench.geometry import geometry, shape_seen
from sfumato.bench.report import Figure, Target
from sfumato.bench.session import Session
from sfumato.distill.generators import Rendering
from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh, read_mesh
from sfumato.metrics.geometry import depth_error, silhouette_iou
from sfumato.scene.backgrounds import Plain
from sfumato.scene.cameras import Pinholes, orbit
from sfumato.scene.export import REACH, Exported, export
from sfumato.scene.mesh import sampled, surface
from sfumato.scene.mesh_scene import MeshScene
from sfumato.scene.regions import Box
from sfumato.scene.render import FieldScene
from sfumato.scene.sampling import Sampling
from sfumato.scene.texture import baked, inwards
from sfumato.stilllife.matter import Solids
from sfumato.stilllife.scene import sample_scene

CELLS, TEXTURE, VIEW, VIEWS, FACES = 64, 256, 64, 3, 2000
MOST = 3 * 2**20
"""Bytes of an asset of so many cells and such a texture, at most."""
SOFT, DENSE = 0.02, 40.0
"""What a fitted field is like: surfaces some cells thick, which hold back most of the light."""

MEANINGS = {
    "glb_valid": f"exports (GLB with a texture, also of {FACES} faces, GLB without, OBJ, PLY) of n still lifes' "
    f"things, {CELLS} cells a side, that trimesh reads back: watertight, or named as open; colours or the texture "
    f"there and not of one tone; all faces; at most {MOST >> 20} MiB",
    "glb_kb": "KiB of a GLB with a texture",
    "decimated_kb": f"KiB of a GLB with a texture and {FACES} faces",
    "decimated_iou": "silhouettes of that GLB against those of all faces, from unseen views",
    "export_iou": "silhouettes of the surface at the level that the field chooses against what the field shows, from "
    "unseen views",
    "export_iou_mean_level": "the same at threestudio's automatic level, the mean of the density above 0",
    "export_depth": "error of depth of the chosen level's surface against what the field shows, in sides of the box",
    "export_depth_mean_level": "the same at the mean",
    "export_psnr": "the textured mesh against the field's own rendering, from unseen views, where the mesh fills a "
    "pixel",
}
WRITTEN = ("glb_valid", "glb_kb", "decimated_kb", "decimated_iou")
SHAPED = ("export_iou", "export_iou_mean_level", "export_depth", "export_depth_mean_level", "export_psnr")
TARGETS = {"glb_valid": Target(1.0)}


def written(session: Session) -> Mapping[str, Figure]:
    rows: dict[str, list[float]] = {key: [] for key in WRITTEN}
    for i in range(session.n):
        scene = _scene(session, i)
        with tempfile.TemporaryDirectory() as folder:
            kinds = ((".glb", TEXTURE, None), (".glb", TEXTURE, FACES), (".glb", None, None), (".obj", TEXTURE, None),
                     (".ply", None, None))  # fmt: skip
            done = [
                export(scene, Path(folder) / f"{k}{kind}", resolution=CELLS, faces=faces, texture=texture)
                for k, (kind, texture, faces) in enumerate(kinds)
            ]
            rows["glb_valid"] += [float(sound(each)) for each in done]
            every, few = done[:2]
            rows["glb_kb"].append(every.bytes / 1024)
            rows["decimated_kb"].append(few.bytes / 1024)
            rows["decimated_iou"].append(geometry(read_mesh(few.files[0]), read_mesh(every.files[0]))["iou"])
    return {key: np.array(values) for key, values in rows.items()}


def sound(done: Exported) -> bool:
    """Is a mesh that was written all there, as another program reads it?"""
    import trimesh

    found: Any = trimesh.load(done.files[0], force="mesh", process=False)
    whole = _merged(found)
    closed = whole.is_watertight and whole.volume > 0
    named = any("open" in line for line in done.notes)
    return closed != named and len(found.faces) == done.about["faces"] and _spread(found) > 0.02 and done.bytes <= MOST


def _merged(found: Any) -> Any:
    """Its vertices by their places alone: a texture's seams cut a mesh open."""
    whole = found.copy()
    whole.merge_vertices(merge_tex=True, merge_norm=True)
    return whole


def _spread(found: Any) -> float:
    """How much its colours differ, as a program that draws it would see them."""
    colours = np.asarray(found.visual.to_color().vertex_colors if hasattr(found.visual, "uv") else
                         found.visual.vertex_colors)[:, :3] / 255  # fmt: skip
    return float(colours.std())


def shaped(session: Session) -> Mapping[str, Figure]:
    rows: dict[str, list[float]] = {key: [] for key in SHAPED}
    for i in range(session.n):
        scene = _scene(session, i)
        field = scene.field
        box = field.region
        assert isinstance(box, Box)
        cameras = orbit(VIEWS, (VIEW, VIEW), elevation=23, first=11, target=box.centre, distance=3.4 * box.half)
        own = scene.view(cameras)
        found = surface(field, CELLS)
        iou, depth = _apart(found.mesh, own, cameras, box)
        density = sampled(field, box, CELLS)
        try:
            by_mean = surface(field, CELLS, float(density[density > 0].mean())).mesh
            mean_iou, mean_depth = _apart(by_mean, own, cameras, box)
        except SfumatoError:  # nothing is there
            mean_iou, mean_depth = 0.0, 1.0
        mesh, texture = baked(found.mesh, inwards(scene, REACH * 2 * box.half / CELLS), TEXTURE)
        shown = MeshScene(mesh, texture).view(cameras)
        assert shown.alpha is not None
        full = (shown.alpha > 0.999).expand_as(shown.images)
        psnr = -10 * float((shown.images - own.images)[full].square().mean().log10())
        for key, value in zip(SHAPED, (iou, mean_iou, depth, mean_depth, psnr), strict=True):
            rows[key].append(value)
        session.keep(f"export-{i}", torch.cat([shown.images, own.images]), VIEWS)
    return {key: np.array(values) for key, values in rows.items()}


def _apart(mesh: Mesh, own: Rendering, cameras: Pinholes, box: Box) -> tuple[float, float]:
    """IoU of silhouettes and error of depths of a mesh against what its field shows."""
    assert own.alpha is not None and own.depth is not None
    there, depth = shape_seen(mesh, cameras)
    is_there, is_deep = own.alpha[:, 0] > 0.5, own.depth[:, 0]
    both = there & is_there
    some = both.any((1, 2))
    error = torch.ones(len(cameras), dtype=torch.float64)
    error[some] = depth_error((depth * both)[some], is_deep[some]) / (2 * box.half)
    return float(silhouette_iou(there, is_there).mean()), float(error.mean())


def _scene(session: Session, i: int) -> FieldScene:
    """The things of a still life as a soft field."""
    drawn = sample_scene(session.stream(61, i), style="photo")
    return FieldScene(Solids(drawn, DENSE, SOFT), Plain(), Sampling(96))


MEASURES = ((WRITTEN, written), (SHAPED, shaped))
