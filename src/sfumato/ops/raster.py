"""Triangles as cameras see them, in plain torch: for every pixel the nearest face, where in it, and how far.

No gradients. Every face is tried on the pixels of its own box alone, of all views at once, and the nearest wins: the
work follows the pixels that faces cover, not faces times pixels. An edge is computed from the same two differences by
both faces that share it, so that no ray slips between them; of faces at one depth the first has the pixel.

Cameras are OpenGL's: x to the right, y up, a camera looks along its -z. Depth is along that axis, not along the ray.
Pixel centres lie at halves, rows go down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.ops.memory import BUDGET

NEAR = 1e-3
"""In front of a pinhole all vertices lie at least so far, in parts of the farthest."""


@dataclass(frozen=True)
class Cameras:
    """Views, one after the other."""

    poses: Float[Tensor, "n 4 4"]
    """Camera to world."""
    half: float
    """Half of the image's height: of a pinhole at depth 1, of an orthographic camera everywhere, in world units."""
    pinhole: bool = True

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, some: slice) -> Cameras:
        return Cameras(self.poses[some], self.half, self.pinhole)

    def seen(self, points: Float[Tensor, "v 3"], size: int) -> Float[Tensor, "n v 3"]:
        """(x, y) in pixels of a square image and depth of points."""
        poses = self.poses.to(points)
        local = torch.einsum("nji,nvj->nvi", poses[:, :3, :3], points - poses[:, None, :3, 3])
        depth = -local[..., 2]
        scale = size / 2 / self.half / (depth if self.pinhole else torch.ones_like(depth))
        return torch.stack([size / 2 + local[..., 0] * scale, size / 2 - local[..., 1] * scale, depth], -1)

    def pixel(self, depth: Float[Tensor, "..."], size: int) -> Float[Tensor, "..."]:
        """Side of a pixel in world units, of what faces the camera at a depth."""
        return 2 * self.half / size * (depth if self.pinhole else torch.ones_like(depth))

    def rays(self, size: int) -> tuple[Float[Tensor, "n h w 3"], Float[Tensor, "n h w 3"]]:
        """Origins and directions through the pixel centres; a direction's part along the axis is 1."""
        at = ((torch.arange(size).to(self.poses) + 0.5) / size * 2 - 1) * self.half
        y, x = torch.meshgrid(-at, at, indexing="ij")
        flat, deep = torch.stack([x, y, torch.zeros_like(x)], -1), torch.tensor([0.0, 0.0, -1.0]).to(self.poses)
        turned = torch.einsum("nij,hwj->nhwi", self.poses[:, :3, :3], flat + deep if self.pinhole else flat)
        eye = self.poses[:, None, None, :3, 3].expand_as(turned)
        if self.pinhole:
            return eye, turned
        return eye + turned, (self.poses[:, :3, :3] @ deep)[:, None, None].expand_as(turned)


def around(
    azimuths: Sequence[float], elevations: Sequence[float], distance: float, fov: float | None = None
) -> Cameras:
    """Cameras on a sphere about 0 that look at its middle, a pair of angles in degrees each.

    Azimuth 0 looks from +z, 90 from +x; an elevation is above the plane y = 0, at any angle: beyond 90 a camera stands
    on its head. ``fov``: of a pinhole; without, orthographic, and the unit ball fills the image.
    """
    if len(azimuths) != len(elevations) or not len(azimuths):
        raise SfumatoError(f"views have an azimuth and an elevation each, got {len(azimuths)} and {len(elevations)}")
    if fov is not None and not 0 < fov < 180:
        raise SfumatoError(f"a field of view lies between 0 and 180 degrees, got {fov:g}")
    if not distance > 1:
        raise SfumatoError(f"cameras stand outside of the unit ball, farther than 1; got {distance:g}")
    a, e = (torch.deg2rad(torch.tensor(list(angles), dtype=torch.float64)) for angles in (azimuths, elevations))
    zero = torch.zeros_like(a)
    right = torch.stack([a.cos(), zero, -a.sin()], 1)
    back = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], 1)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(a), 1, 1)
    poses[:, :3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], 2)
    poses[:, :3, 3] = distance * back
    return Cameras(poses, 1.0 if fov is None else math.tan(math.radians(fov) / 2), fov is not None)


@dataclass(frozen=True)
class Seen:
    """What cameras see, for every pixel."""

    face: Int[Tensor, "n h w"]
    """Which face, -1 for none."""
    within: Float[Tensor, "n h w 3"]
    """Where in the face: weights of its three corners, which sum to 1; 0 where there is none."""
    depth: Float[Tensor, "n h w"]
    """Along the camera's axis in world units, inf where there is nothing."""
    normal: Float[Tensor, "n h w 3"]
    """Of the face, in the world, of length 1 and turned to the camera; 0 where there is none."""

    @property
    def there(self) -> Bool[Tensor, "n h w"]:
        return self.face >= 0

    def of(self, values: Float[Tensor, "v c"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "n h w c"]:
        """What vertices have, as the pixels see it; 0 where there is nothing."""
        corners = values[faces[self.face.clamp_min(0)]]
        return (corners * self.within.to(values)[..., None]).sum(-2)


@torch.no_grad()
def rasterise(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], cameras: Cameras, size: int) -> Seen:
    """Faces as cameras see them in square images of ``size`` pixels; both sides of a face are seen.

    Raises ``SfumatoError`` for a pinhole that stands inside of the shape or behind a part of it.
    """
    if size < 1:
        raise SfumatoError(f"an image has at least a pixel, got {size}")
    device = vertices.device
    points = cameras.seen(vertices.double(), size)  # in double precision: edges then are as sharp as their numbers
    if cameras.pinhole and float(points[..., 2].min()) < NEAR * float(points[..., 2].max()):
        raise SfumatoError("a camera stands inside of the shape or with a part of it behind; put it farther away")
    if cameras.pinhole:  # 1 / depth is what is linear in an image
        points = torch.cat([points[..., :2], 1 / points[..., 2:]], -1)
    views, pixels = len(cameras), size * size
    corner = points[:, faces].flatten(0, 1)  # (views * faces, 3 corners, 3)
    low = (corner[..., :2].amin(1) - 0.5).ceil().clamp(0, size).long()
    high = (corner[..., :2].amax(1) - 0.5).floor().clamp(-1, size - 1).long() + 1
    sides = (high - low).clamp_min(0)
    count = sides[:, 0] * sides[:, 1]
    a, b, c = corner[..., :2].unbind(1)
    turned = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    mine = ((count > 0) & (turned != 0)).nonzero()[:, 0]  # faces seen from their edge cover nothing
    count, ends = count[mine], count[mine].cumsum(0)
    nearest = torch.full((views * pixels,), torch.inf, dtype=torch.float64, device=device)
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for part in _parts(ends, BUDGET // 16):
        which = mine[part].repeat_interleave(count[part])
        first = (ends[part] - count[part]).repeat_interleave(count[part])
        step = torch.arange(len(which), device=device) + first[:1] - first if len(which) else which
        wide = sides[which, 0]
        x, y = low[which, 0] + step % wide, low[which, 1] + step // wide
        offset = corner[which, :, :2] - torch.stack([x, y], 1)[:, None] - 0.5
        one, two = offset[:, [1, 2, 0]], offset[:, [2, 0, 1]]
        edges = one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]  # exactly opposite for the face beyond an edge
        inside = (edges >= 0).all(1) | (edges <= 0).all(1)
        which, edges = which[inside], edges[inside]
        total = edges.sum(1, keepdim=True)
        sound = total[:, 0] != 0
        which, edges, total = which[sound], edges[sound], total[sound]
        at = (which // len(faces)) * pixels + (y * size + x)[inside][sound]
        weights = edges / total
        along = (weights * corner[which, :, 2]).sum(1)
        depth = 1 / along if cameras.pinhole else along
        if cameras.pinhole:
            weights = weights * corner[which, :, 2] * depth[:, None]
        before = nearest[at]
        front = depth <= before
        which, at, weights, depth = which[front], at[front], weights[front], depth[front]
        nearest.scatter_reduce_(0, at, depth, "amin")
        wins = depth == nearest[at]
        kept.append((which[wins], at[wins], weights[wins], depth[wins]))
    which, at, weights, depth = (torch.cat(parts) for parts in zip(*kept, strict=True))
    wins = depth == nearest[at]
    which, at, weights = which[wins], at[wins], weights[wins]
    none = len(faces) * views
    best = torch.full((views * pixels,), none, device=device).scatter_reduce_(0, at, which, "amin")
    wins = which == best[at]
    face = torch.where(best == none, -1, best % len(faces))
    within = torch.zeros(views * pixels, 3, dtype=torch.float64, device=device)
    within[at[wins]] = weights[wins]
    normal = _towards(vertices, faces, cameras, face.view(views, pixels))
    shape = (views, size, size)
    return Seen(face.view(shape), within.float().view(*shape, 3), nearest.float().view(shape), normal.view(*shape, 3))


def _parts(ends: Int[Tensor, " m"], most: int) -> list[slice]:
    """Neighbours together, as many as have at most so many pixels; a face that has more is a part of its own."""
    out, start, last = [], 0, len(ends)
    while start < last:
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, done + most, right=True)))
        out.append(slice(start, stop))
        start = stop
    return out or [slice(0, 0)]


def _towards(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], cameras: Cameras, face: Int[Tensor, "n p"]
) -> Float[Tensor, "n p 3"]:
    """Normals of the faces that pixels see, turned to the camera."""
    corner = vertices.double()[faces]
    a, b, c = corner.unbind(1)
    unit = F.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-300)
    there = face.clamp_min(0)
    normal = unit[there]
    poses = cameras.poses.to(normal)
    away = corner[:, 0][there] - poses[:, None, :3, 3] if cameras.pinhole else -poses[:, None, :3, 2]
    normal = torch.where((normal * away).sum(-1, keepdim=True) > 0, -normal, normal)
    return torch.where((face >= 0)[..., None], normal, 0).float()


def visible(
    seen: Seen, cameras: Cameras, vertices: Float[Tensor, "v 3"]
) -> tuple[Float[Tensor, "n v 2"], Bool[Tensor, "n v"]]:
    """Where vertices lie in each view, (x, y) in parts of its sides, and whether they are seen there.

    A vertex is seen if it lies no deeper than what its pixel shows: than the plane of the face there goes on to the
    vertex's own place in the pixel. Faces bend within a pixel, so half of its diagonal is forgiven, which is a bend of
    45 degrees. On outlines, where its pixel shows nothing, the nearest pixels that show something are asked.
    """
    size = seen.face.shape[-1]
    points = cameras.seen(vertices.double(), size)
    at, depth = points[..., :2].nan_to_num(), points[..., 2]
    inside = ((at >= 0) & (at < size)).all(-1)
    view = torch.arange(len(cameras), device=vertices.device)[:, None]
    forgiven = math.sqrt(0.5) * cameras.pixel(depth, size)
    poses = cameras.poses.to(points)
    axis, eye = -poses[:, None, :3, 2], poses[:, None, :3, 3]
    ray = (vertices.double() - eye) / depth[..., None] if cameras.pinhole else axis
    slopes = [poses[:, None, :3, i] * sign for i, sign in ((0, 1), (1, -1))]  # right, down

    def passes(cell: Int[Tensor, "n v 2"]) -> tuple[Bool[Tensor, "n v"], Bool[Tensor, "n v"]]:
        """Does a pixel show anything, and is the vertex no deeper?"""
        x, y = cell.clamp(0, size - 1).unbind(-1)
        shown, normal = seen.depth[view, y, x].double(), seen.normal[view, y, x].double()
        facing = (normal * ray).sum(-1)  # below 0, as normals are turned to the camera
        aside = (at - cell - 0.5) * cameras.pixel(shown, size)[..., None]
        rise = aside[..., 0] * (normal * slopes[0]).sum(-1) + aside[..., 1] * (normal * slopes[1]).sum(-1)
        return shown.isfinite(), depth <= shown + rise / -facing.clamp_max(-STEEPEST) + forgiven

    there, found = passes(at.long())
    found = found & there
    corner = (at - 0.5).floor().long()
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        shows, no_deeper = passes(corner + torch.tensor(step, device=corner.device))
        found = torch.where(there, found, found | (shows & no_deeper))
    return (points[..., :2] / size).float(), inside & found


STEEPEST = 0.1
"""Cosine below which a face's plane goes no deeper: about six degrees from its edge."""
