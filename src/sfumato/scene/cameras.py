"""Pinhole cameras of any size and focal lengths, the rays through their pixels, and circles of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError
from sfumato.ops import raster

FLIP = (1.0, -1.0, -1.0, 1.0)
"""OpenGL's axes as OpenCV's, and back: y and z change their signs."""


class Rays(NamedTuple):
    """Half lines."""

    origins: Float[Tensor, "*r 3"]
    directions: Float[Tensor, "*r 3"]
    """Of length 1."""

    def at(self, distance: Float[Tensor, "*r s"]) -> Float[Tensor, "*r s 3"]:
        """Points at distances along them."""
        return torch.addcmul(self.origins[..., None, :], distance[..., None], self.directions[..., None, :])


@dataclass(frozen=True)
class Pinholes(Brief):
    """Cameras whose images have one size."""

    poses: Float[Tensor, "n 4 4"]
    """Camera to world."""
    focal: Float[Tensor, "n 2"]
    """In pixels, along x and y."""
    centre: Float[Tensor, "n 2"]
    """Where the axis meets the image, (x, y) in pixels."""
    size: tuple[int, int]
    """Height and width."""

    def __post_init__(self) -> None:
        n = len(self.poses)
        if self.poses.shape != (n, 4, 4) or self.focal.shape != (n, 2) or self.centre.shape != (n, 2):
            shapes = [tuple(x.shape) for x in (self.poses, self.focal, self.centre)]
            raise SfumatoError(f"cameras have poses (n, 4, 4), focal lengths and centres (n, 2), got {shapes}")
        if min(self.size) < 1 or not bool((self.focal > 0).all()):
            raise SfumatoError(
                f"a camera has pixels and a focal length above 0, got {self.size}, {self.focal.tolist()}"
            )

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, some: slice | Sequence[int] | Int[Tensor, " m"]) -> Pinholes:
        return replace(self, poses=self.poses[some], focal=self.focal[some], centre=self.centre[some])

    def to(self, like: Any) -> Pinholes:
        """On a device, or of the type and on the device of a tensor."""
        return replace(self, poses=self.poses.to(like), focal=self.focal.to(like), centre=self.centre.to(like))

    def resized(self, height: int, width: int) -> Pinholes:
        """The same cameras with more or fewer pixels."""
        part = torch.tensor([width / self.size[1], height / self.size[0]]).to(self.focal)
        return replace(self, focal=self.focal * part, centre=self.centre * part, size=(height, width))

    @property
    def eyes(self) -> Float[Tensor, "n 3"]:
        """Where they stand."""
        return self.poses[:, :3, 3]

    def through(self, camera: Int[Tensor, "*r"], pixel: Float[Tensor, "*r 2"]) -> Rays:
        """Each named camera's ray through a place in its image, (x, y) in pixels; the first centre is at 0.5."""
        x, y = ((pixel - self.centre[camera]) / self.focal[camera]).unbind(-1)
        local = F.normalize(torch.stack([x, -y, -torch.ones_like(x)], -1), dim=-1)
        pose = self.poses[camera]
        return Rays(pose[..., :3, 3], (pose[..., :3, :3] @ local[..., None])[..., 0])

    def rays(self) -> Rays:
        """Through all pixel centres, (n, h, w)."""
        h, w = self.size
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        pixel = torch.stack([x, y], -1).to(self.poses).expand(len(self), h, w, 2)
        camera = torch.arange(len(self), device=self.poses.device)[:, None, None].expand(len(self), h, w)
        return self.through(camera, pixel)

    def seen(self, points: Float[Tensor, "v 3"]) -> Float[Tensor, "n v 3"]:
        """(x, y) in pixels and the depth along the axis of points; what lies behind has a depth below 0."""
        local = torch.einsum("nji,nvj->nvi", self.poses[:, :3, :3], points.to(self.poses) - self.poses[:, None, :3, 3])
        depth = -local[..., 2]
        flat = torch.stack([local[..., 0], -local[..., 1]], -1) / depth[..., None]
        return torch.cat([flat * self.focal[:, None] + self.centre[:, None], depth[..., None]], -1)

    def slant(self) -> Float[Tensor, "n h w"]:
        """How much longer the way along each pixel's ray is than along the axis: from z-depth to ours, a factor."""
        h, w = self.size
        x = (torch.arange(w).to(self.poses) + 0.5 - self.centre[:, :1]) / self.focal[:, :1]
        y = (torch.arange(h).to(self.poses) + 0.5 - self.centre[:, 1:]) / self.focal[:, 1:]
        return (1 + x[:, None].square() + y[:, :, None].square()).sqrt()

    def opencv(self) -> tuple[Float[Tensor, "n 4 4"], Float[Tensor, "n 3 3"]]:
        """World to camera with y down and z ahead, and intrinsics: OpenCV's, COLMAP's and gsplat's."""
        views = torch.linalg.inv(self.poses * torch.tensor(FLIP).to(self.poses))
        matrix = torch.zeros(len(self), 3, 3).to(self.poses)
        matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = self.focal[:, 0], self.focal[:, 1], 1
        matrix[:, :2, 2] = self.centre
        return views, matrix

    @classmethod
    def of_opencv(
        cls, views: Float[Tensor, "n 4 4"], matrix: Float[Tensor, "n 3 3"], size: tuple[int, int]
    ) -> Pinholes:
        """From world to camera and intrinsics as OpenCV has them."""
        poses = torch.linalg.inv(views) * torch.tensor(FLIP).to(views)
        return cls(poses, torch.stack([matrix[:, 0, 0], matrix[:, 1, 1]], 1), matrix[:, :2, 2], size)


def looking(poses: Float[Tensor, "n 4 4"], fov: float | Float[Tensor, " n"], size: tuple[int, int]) -> Pinholes:
    """Cameras of poses, whose axes meet the images' middles; ``fov`` is vertical, in degrees."""
    half = torch.as_tensor(fov, dtype=poses.dtype, device=poses.device).deg2rad().expand(len(poses)) / 2
    focal = size[0] / 2 / half.tan()
    middle = torch.tensor([size[1] / 2, size[0] / 2]).to(poses).expand(len(poses), 2)
    return Pinholes(poses, focal[:, None].expand(-1, 2), middle, size)


def towards(
    eyes: Float[Tensor, "n 3"], targets: Float[Tensor, "n 3"], up: Float[Tensor, "n 3"] | None = None
) -> Float[Tensor, "n 4 4"]:
    """Poses of cameras that stand at ``eyes`` and look at ``targets``, upright or with ``up`` up."""
    back = F.normalize(eyes - targets, dim=-1)
    over = torch.tensor([0.0, 1.0, 0.0]).to(eyes).expand_as(eyes) if up is None else up
    right = torch.linalg.cross(over, back)
    if bool((right.norm(dim=-1) < 1e-6).any()) or not bool(back.isfinite().all()):
        raise SfumatoError("a camera looks straight up or down, or at the place where it stands; move it a little")
    right = F.normalize(right, dim=-1)
    poses = torch.eye(4).to(eyes).repeat(len(eyes), 1, 1)
    poses[:, :3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], -1)
    poses[:, :3, 3] = eyes
    return poses


def orbit(
    n: int,
    size: tuple[int, int],
    *,
    elevation: float = 20.0,
    distance: float = 3.0,
    fov: float = 40.0,
    target: Sequence[float] = (0.0, 0.0, 0.0),
    first: float = 0.0,
) -> Pinholes:
    """Cameras all around a target, evenly, the first at azimuth ``first``; angles in degrees."""
    if not n >= 1 or not -90 < elevation < 90 or not distance > 0:
        raise SfumatoError(f"a circle of cameras has one or more above a distance of 0, got {n}, {distance:g}")
    at = torch.tensor([math.radians(first + 360 * i / n) for i in range(n)])
    e, middle = torch.tensor(math.radians(elevation)), torch.tensor([float(t) for t in target])
    out = torch.stack([e.cos() * at.sin(), e.sin().expand(n), e.cos() * at.cos()], 1)
    return looking(towards(middle + distance * out, middle.expand(n, 3)), fov, size)


def as_raster(cameras: Pinholes) -> raster.Cameras:
    """As ``ops.raster`` has them. Raises ``SfumatoError`` for images that are not square or off their axis."""
    h, w = cameras.size
    half = h / 2 / cameras.focal
    middle = torch.tensor([w / 2, h / 2]).to(cameras.centre)
    if h != w or float((half - half[0, 0]).abs().max()) > 1e-4 or float((cameras.centre - middle).abs().max()) > 1e-3:
        raise SfumatoError("meshes are drawn by square cameras of one field of view; resize the cameras first")
    return raster.Cameras(cameras.poses, float(half[0, 0]))
