"""A shape against the true one, as cameras see both from where nobody looked: outlines and depths."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.media.meshes import Mesh, areas
from sfumato.metrics.geometry import depth_error, silhouette_iou
from sfumato.ops.raster import rasterise
from sfumato.scene.cameras import Pinholes, as_raster, orbit

Shape = Mesh | Generator


def shape_seen(shape: Shape, cameras: Pinholes) -> tuple[Bool[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Where cameras see it at all, and how far along the ray, 0 where they do not."""
    if isinstance(shape, Mesh):
        each = [_drawn(shape, cameras[i : i + 1]) for i in range(len(cameras))]
        depth = torch.cat(each) / torch.einsum("nhwi,ni->nhw", cameras.rays().directions, -cameras.poses[:, :3, 2])
        return depth > 0, depth
    with torch.no_grad():
        view = getattr(shape, "view", shape.render)
        shown = view(cameras)
    if shown.alpha is None or shown.depth is None:
        raise SfumatoError(f"{type(shape).__name__} renders no opacity or no depth, so its shape cannot be measured")
    return shown.alpha[:, 0] > 0.5, shown.depth[:, 0]


def _drawn(mesh: Mesh, camera: Pinholes) -> Float[Tensor, "1 h w"]:
    """Depth along the axis, 0 where nothing is; without faces that lie behind the camera, wholly or in part."""
    ahead = camera.seen(mesh.vertices)[0, :, 2] > 0.05
    faces = mesh.faces[ahead[mesh.faces].all(1)]
    used, faces = faces.unique(return_inverse=True)
    if not len(used):
        return torch.zeros(1, *camera.size)
    depth = rasterise(mesh.vertices[used], faces, as_raster(camera), camera.size[0]).depth
    return torch.where(depth.isfinite(), depth, 0)


def unseen(mesh: Mesh, n: int = 6, size: int = 96) -> Pinholes:
    """Cameras around a mesh's box at two heights, turned away from the round azimuths that captures begin with."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    middle, radius = (low + high) / 2, float((high - low).norm()) / 2
    place = {"distance": 3.2 * radius, "fov": 40.0, "target": middle.tolist()}
    one, two = (orbit(-(-n // 2), (size, size), elevation=e, first=f, **place) for e, f in ((25.0, 13.0), (55.0, 49.0)))
    poses, focal, centre = (
        torch.cat([getattr(ring, of) for ring in (one, two)]) for of in ("poses", "focal", "centre")
    )
    return Pinholes(poses, focal, centre, (size, size))[:n]


def geometry(found: Shape, true: Mesh, cameras: Pinholes | None = None) -> dict[str, float]:
    """``iou`` of silhouettes and ``depth``, the mean error in parts of the true box's diagonal, both in one world.

    What shares no pixel with the truth in some view has an IoU, and a ``depth`` of 1: as wrong as can be.
    """
    cameras = cameras or unseen(true)
    there, depth = shape_seen(found, cameras)
    is_there, is_deep = shape_seen(true, cameras)
    iou = silhouette_iou(there, is_there)
    both = there & is_there
    some = both.any((1, 2))
    size = float((true.vertices.amax(0) - true.vertices.amin(0)).norm())
    errors = torch.ones(len(cameras), dtype=torch.float64)
    if bool(some.any()):
        errors[some] = depth_error((depth * both)[some], is_deep[some]) / size
    return {"iou": float(iou.mean()), "depth": float(errors.mean())}


def aligned(found: Mesh, true: Mesh, turns: int = 16) -> tuple[Mesh, Mesh]:
    """Both about 0, of one size and upright, ``found`` turned about y as agrees best: for shapes without a place.

    What a model makes of words stands anywhere, at any size, and looks anywhere; its shape is compared, not its pose.
    The middle of the surface goes to 0, and its root mean square distance from there becomes 1, which no turn changes.
    """
    one, two = _placed(found), _placed(true)
    cameras = unseen(two, 4, 48)
    best, most = one, -1.0
    for k in range(turns):
        a = torch.tensor(2 * torch.pi * k / turns)
        turn = torch.eye(3)
        turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = a.cos(), a.sin(), -a.sin(), a.cos()
        turned = replace(one, vertices=one.vertices @ turn.T)
        iou = float(silhouette_iou(shape_seen(turned, cameras)[0], shape_seen(two, cameras)[0]).mean())
        if iou > most + 1e-6:
            best, most = turned, iou
    return best, two


def _placed(mesh: Mesh) -> Mesh:
    weight = areas(mesh)[:, None] / areas(mesh).sum()
    at = mesh.corners.double().mean(1)
    middle = (weight * at).sum(0)
    size = (weight * (at - middle).square()).sum().sqrt()
    return replace(mesh, vertices=((mesh.vertices.double() - middle) / size).float())
