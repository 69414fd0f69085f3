"""Scenes that move, and what stays where: orbits, clips with exact flow, strips of a wide world, correspondences.

Every visible point is known in the frame of its thing, so where it goes in another image is a matter of geometry, not
of matching. Pixels: x to the right, y down, centres at halves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.stilllife.render import Rendering, render, trace
from sfumato.stilllife.scene import Scene, Thing, Wide, sample_scene
from sfumato.stilllife.sdf import rotation


def orbit(scene: Scene, n: int, elevation: float | None = None, full: float = 360.0) -> list[Scene]:
    """The scene from ``n`` cameras around it, beginning at its own azimuth, over ``full`` degrees.

    A whole turn ends one step before its beginning, a part of one holds both its ends.
    """
    if n < 1:
        raise SfumatoError(f"an orbit has one camera or more, got {n}")
    step = full / n if full % 360 == 0 else full / max(n - 1, 1)
    at = scene.camera
    height = at.elevation if elevation is None else elevation
    return [replace(scene, camera=replace(at, azimuth=at.azimuth + i * step, elevation=height)) for i in range(n)]


def transforms_json(scenes: Sequence[Scene], size: int) -> dict[str, Any]:
    """The cameras as nerfstudio's transforms.json: OpenGL camera-to-world, images named ``images/00000.png`` and on."""
    if len({s.camera.fov for s in scenes}) != 1:
        raise SfumatoError("transforms.json holds one field of view; these cameras have several, or there are none")
    lens = scenes[0].camera.intrinsics(size)
    return {
        "camera_model": "OPENCV",
        "camera_angle_x": math.radians(scenes[0].camera.fov),
        "w": size,
        "h": size,
        "fl_x": float(lens[0, 0]),
        "fl_y": float(lens[1, 1]),
        "cx": float(lens[0, 2]),
        "cy": float(lens[1, 2]),
        "frames": [
            {"file_path": f"images/{i:05d}.png", "transform_matrix": s.camera.to_world().tolist()}
            for i, s in enumerate(scenes)
        ],
    }


def between(start: Scene, end: Scene, n: int) -> list[Scene]:
    """``n`` scenes from one to the other, slow at both ends; camera, places and yaws (the shorter way) may differ.

    Raises ``SfumatoError`` when anything else differs, or when things would pass through one another on the way.
    """
    if n < 2:
        raise SfumatoError(f"a way from one scene to another has two frames or more, got {n}")
    still = replace(end, camera=start.camera, things=start.things)
    kept = [replace(t, x=0, z=0, yaw=0) for t in start.things] == [replace(t, x=0, z=0, yaw=0) for t in end.things]
    if still != start or not kept:
        raise SfumatoError("a clip moves the camera, places and yaws; these scenes differ in more than that")

    def mix(a: float, b: float, s: float) -> float:
        return a + s * (b - a)

    def thing(a: Thing, b: Thing, s: float) -> Thing:
        turn = (b.yaw - a.yaw + 180) % 360 - 180
        return replace(a, x=mix(a.x, b.x, s), z=mix(a.z, b.z, s), yaw=a.yaw + s * turn)

    a, b = start.camera, end.camera
    out = []
    for i in range(n):
        s = i / (n - 1)
        s = s * s * (3 - 2 * s)
        camera = replace(
            a,
            azimuth=mix(a.azimuth, b.azimuth, s),
            elevation=mix(a.elevation, b.elevation, s),
            distance=mix(a.distance, b.distance, s),
            target=tuple(mix(p, q, s) for p, q in zip(a.target, b.target, strict=True)),
            fov=mix(a.fov, b.fov, s),
        )
        things = tuple(thing(p, q, s) for p, q in zip(start.things, end.things, strict=True))
        out.append(replace(start, camera=camera, things=things))
    return out


@dataclass(frozen=True)
class Clip:
    """``n`` frames, and between neighbours where every visible point goes.

    ``forward[i]`` leads from frame i to i + 1, ``backward[i]`` from i + 1 to i, in pixels (x right, y down). A point is
    occluded when it is hidden in the other frame or outside it; its flow is its place all the same.
    """

    rendering: Rendering
    forward: Float[Tensor, "n-1 h w 2"]
    backward: Float[Tensor, "n-1 h w 2"]
    forward_occluded: Bool[Tensor, "n-1 h w"]
    backward_occluded: Bool[Tensor, "n-1 h w"]

    @property
    def frames(self) -> Float[Tensor, "n 3 h w"]:
        return self.rendering.images


def clip(
    scene: Scene, n: int, to: Scene | None = None, size: int = 128, device: str | torch.device | None = None
) -> Clip:
    """A clip of ``n`` frames that ends at ``to``: by default the camera swings 30 degrees around the scene."""
    at = scene.camera
    return film(between(scene, to or replace(scene, camera=replace(at, azimuth=at.azimuth + 30)), n), size, device)


def film(scenes: Sequence[Scene], size: int = 128, device: str | torch.device | None = None) -> Clip:
    """A clip of given scenes, which hold the same things in any places."""
    rendering = render(scenes, size, device)
    i = list(range(len(scenes) - 1))
    j = [k + 1 for k in i]
    forward, hidden = flow(rendering, i, j)
    backward, hidden_back = flow(rendering, j, i)
    return Clip(rendering, forward, backward, hidden, hidden_back)


def project(
    scenes: Sequence[Scene], points: Float[Tensor, "b h w 4"], size: int
) -> tuple[Float[Tensor, "b h w 2"], Float[Tensor, "b h w"]]:
    """Where homogeneous world points (w = 0 for directions) appear in each scene's image, in pixels, and their z-depth.

    What lies behind a camera has a depth <= 0 and a meaningless place.
    """
    view = torch.stack([torch.tensor(np.linalg.inv(s.camera.to_world())) for s in scenes]).to(points)
    lens = torch.stack([torch.tensor(s.camera.intrinsics(size)) for s in scenes]).to(points)[:, None, None]
    x, y, z, _ = torch.einsum("bij,bhwj->ibhw", view, points)
    ahead = torch.where(z < -1e-9, -z, 1e-9)
    at = torch.stack([lens[..., 0, 0] * x / ahead + lens[..., 0, 2], lens[..., 1, 2] - lens[..., 1, 1] * y / ahead], -1)
    return at, -z


def _poses(scenes: Sequence[Scene]) -> Float[Tensor, "b m 4 4"]:
    """Thing to world, without scale; one more, for what does not move, at the end."""
    out = torch.eye(4, dtype=torch.float64).repeat(len(scenes), len(scenes[0].things) + 1, 1, 1)
    for b, s in enumerate(scenes):
        for i, t in enumerate(s.things):
            out[b, i, :3, :3] = rotation("y", t.yaw)
            out[b, i, :3, 3] = torch.tensor([t.x, s.base(i), t.z])
    return out


def flow(
    rendering: Rendering, source: Sequence[int], target: Sequence[int]
) -> tuple[Float[Tensor, "p h w 2"], Bool[Tensor, "p h w"]]:
    """Flow and occlusion from each ``source`` image to its ``target``, two images of the same things.

    Things move rigidly, the ground stays, the sky is infinitely far. A point is hidden where a ray cast
    at the very place it goes to meets something more than a fiftieth of a unit nearer (plus a thousandth of the way).
    """
    a, b = ([rendering.scenes[i] for i in which] for which in (source, target))
    if any([(t.kind, t.shape, t.size) for t in s.things] != [(t.kind, t.shape, t.size) for t in e.things]
           for s, e in zip(a, b, strict=True)):  # fmt: skip
        raise SfumatoError("flow is between images of the same things; these differ in kind, shape or size")
    size, device = rendering.images.shape[-1], rendering.images.device
    if not a:
        none = torch.zeros(0, size, size, 2, device=device)
        return none, none[..., 0] > 0
    here = torch.arange(size, device=device) + 0.5
    pixel = torch.stack(torch.meshgrid(here, here, indexing="xy"), -1).double()
    move = _poses(b) @ torch.linalg.inv(_poses(a))
    which = rendering.thing[source]
    sky = rendering.depth[source].isinf()
    at = torch.where(sky[..., None], _rays(a, pixel.expand(len(a), -1, -1, -1)), rendering.position[source].double())
    point = torch.cat([at, (~sky)[..., None].double()], -1)
    carry = move.to(device)[torch.arange(len(a), device=device)[:, None, None], which]
    point = torch.einsum("bhwij,bhwj->bhwi", carry, point)
    there, depth = project(b, point, size)
    inside = (depth > 0) & (there >= 0).all(-1) & (there < size).all(-1)
    ray = _rays(b, torch.where(inside[..., None], there, pixel))
    eye = torch.tensor(np.stack([s.camera.eye for s in b]), device=device)[:, None, None].expand_as(ray)
    met = trace(b, size, device, (eye.float(), ray.float()))
    nearest = met.grid(met.t)
    seen = torch.where(sky, nearest.isinf(), nearest > depth * 0.999 - 0.02)
    return (there - pixel).float(), ~(inside & seen)


def _rays(scenes: Sequence[Scene], place: Float[Tensor, "b h w 2"]) -> Float[Tensor, "b h w 3"]:
    """World directions through places in the images; a direction's depth component is 1."""
    size = place.shape[1]
    pose = torch.stack([torch.tensor(s.camera.to_world()) for s in scenes]).to(place)
    lens = torch.tensor([s.camera.intrinsics(size)[0, 0] for s in scenes]).to(place)[:, None, None]
    x, y = (place[..., 0] - size / 2) / lens, (size / 2 - place[..., 1]) / lens
    return torch.einsum("bij,bhwj->bhwi", pose[:, :3, :3], torch.stack([x, y, -torch.ones_like(x)], -1))


_FOCAL = 1.375  # in image heights: that of a scene's own camera
_EYE, _AWAY, _HORIZON = 1.6, 3.6, 0.1  # height above ground, distance to the things, and the horizon's row in heights
_APART = 1.5  # between neighbouring things, world units


def strip(
    rng: np.random.Generator,
    width: int = 512,
    height: int = 128,
    device: str | torch.device | None = None,
    row: Sequence[Scene] = (),
) -> Rendering:
    """One wide picture, (1, 3, height, width), of a row of things, as from a train: the eye travels with the columns.

    Across it is a parallel projection, up and down perspective; at the things both have one scale, so that a square
    cut out anywhere looks like a scene. Depth is along z. ``scenes[0]`` is the world, its camera is not used. The first
    things of the scenes of ``row`` stand in it in turn, on the first one's ground; without them they are drawn.
    """
    unit = _FOCAL * height / _AWAY  # pixels
    n = round(width / unit / _APART)
    _room(width, height, n)
    along = (torch.arange(width) + 0.5 - width / 2) / unit
    spots = [((i + 0.5 - n / 2) * _APART + rng.uniform(-0.1, 0.1), rng.uniform(-0.3, 0.3), 0.0) for i in range(n)]
    origin = torch.stack([along, torch.full_like(along, _EYE), torch.full_like(along, _AWAY)], -1)
    up = (_HORIZON * height - torch.arange(height) - 0.5) / (_FOCAL * height)
    ray = torch.stack([torch.zeros(height), up, -torch.ones(height)], -1)[:, None]
    return _wide(rng, spots, origin.expand(height, width, 3), ray.expand(height, width, 3), device, row)


def panorama(
    rng: np.random.Generator, width: int = 1024, height: int = 128, device: str | torch.device | None = None
) -> Rendering:
    """A whole turn, (1, 3, height, width), from the middle of a ring of things: a cylinder, unrolled, that closes.

    Column u looks 360 (u + 0.5) / width degrees to the right of -z; depth is the distance from the cylinder's axis.
    ``scenes[0]`` is the world, its camera is not used.
    """
    focal = width / (2 * math.pi)  # pixels, so that pixels are square at the horizon
    ring = _AWAY * focal / (_FOCAL * height)
    n = round(2 * math.pi * ring / _APART)
    _room(width, height, n)
    spots = []
    for i in range(n):
        turn, far = 2 * math.pi * (i + rng.uniform(-0.05, 0.05)) / n, ring + rng.uniform(-0.2, 0.2)
        spots.append((far * math.sin(turn), -far * math.cos(turn), -math.degrees(turn)))
    turn = (torch.arange(width) + 0.5) * (2 * math.pi / width)
    up = ((_HORIZON * height - torch.arange(height) - 0.5) / focal)[:, None].expand(height, width)
    ray = torch.stack([turn.sin().expand_as(up), up, -turn.cos().expand_as(up)], -1)
    return _wide(rng, spots, torch.tensor([0.0, _EYE, 0.0]).expand_as(ray), ray, device)


def _room(width: int, height: int, n: int) -> None:
    if not 1 <= n <= Wide.most:
        raise SfumatoError(
            f"a strip of {width} x {height} pixels has room for {n} things; choose a width for one to {Wide.most}"
        )


def _wide(
    rng: np.random.Generator,
    spots: Sequence[tuple[float, float, float]],
    origin: Float[Tensor, "h w 3"],
    ray: Float[Tensor, "h w 3"],
    device: str | torch.device | None,
    row: Sequence[Scene] = (),
) -> Rendering:
    """A world with a thing at each (x, z, turn of the onlooker), seen along the rays."""
    drawn = [row[i % len(row)] if row else sample_scene(rng, count=1) for i in range(len(spots))]
    things = tuple(
        replace(s.things[0], x=x, z=z, yaw=s.things[0].yaw + turn) for s, (x, z, turn) in zip(drawn, spots, strict=True)
    )
    first = drawn[0]
    world = Wide(things, first.ground, first.light, first.style, first.camera, first.sun, first.seed)
    return render([world], device=device, rays=(origin[None], ray[None]))


@dataclass(frozen=True)
class Correspondence:
    """For each pixel of the first thing the pixel of the second that shows the same place of their kind.

    ``source`` and ``target`` are (x, y) columns and rows; ``distance`` is in canonical units (a thing is about one
    tall); where it is not ``visible``, the second picture does not show that place and the target is only the nearest.
    """

    source: Int[Tensor, "k 2"]
    target: Int[Tensor, "k 2"]
    distance: Float[Tensor, " k"]
    visible: Bool[Tensor, " k"]


def correspond(
    rendering_a: Rendering,
    rendering_b: Rendering,
    index_a: tuple[int, int],
    index_b: tuple[int, int],
    within: float = 0.05,
) -> Correspondence:
    """Dense correspondence between two things of a kind; each index is (image, thing).

    Nearest in canonical coordinates, part by part; ``visible`` where nearer than ``within``.
    """
    (image_a, thing_a), (image_b, thing_b) = index_a, index_b
    first, second = rendering_a.scenes[image_a].things[thing_a], rendering_b.scenes[image_b].things[thing_b]
    if first.kind != second.kind:
        raise SfumatoError(f"a {first.kind} and a {second.kind} do not correspond; choose two things of one kind")

    def pixels(r: Rendering, image: int, thing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (r.thing[image] == thing).nonzero().flip(1)
        x, y = at.T
        return (v.cpu().numpy() for v in (at, r.part[image, y, x], r.canonical[image, y, x]))  # pyright: ignore[reportReturnType]

    at_a, part_a, where_a = pixels(rendering_a, image_a, thing_a)
    at_b, part_b, where_b = pixels(rendering_b, image_b, thing_b)
    target, distance = np.zeros_like(at_a), np.full(len(at_a), np.inf, np.float32)
    for part in np.intersect1d(part_a, part_b):
        mine, theirs = part_a == part, part_b == part
        distance[mine], nearest = KDTree(where_b[theirs]).query(where_a[mine])
        target[mine] = at_b[theirs][nearest]
    found = torch.from_numpy(distance)
    return Correspondence(torch.from_numpy(at_a), torch.from_numpy(target), found, found < within)
