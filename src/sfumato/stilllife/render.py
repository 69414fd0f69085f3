"""The renderer: batched sphere tracing of scenes in plain torch, with everything that is known of every pixel.

``trace`` finds what each ray meets and how much light reaches it; that is the costly part and depends on the geometry
only. ``shade`` paints it: the same trace serves every colour, material, ground, light and style. Rays are cast at pixel
centres, and at three more places in pixels where an edge passes, so edges are smooth at little cost.

A thing's distance is traced alone, in its own frame, by the rays that meet its box; the nearest wins, the darkest
shadow wins. So the cost follows the pixels that things cover, not the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError
from sfumato.stilllife import shading, styles
from sfumato.stilllife.buffers import Buffers, sun
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.scene import Scene
from sfumato.stilllife.sdf import Solid, rotation, solid

_EDGE_OFFSETS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
_HIT = 1e-3  # a ray this near (canonical units, about a twentieth of a pixel) has met the surface
_NAMES = tuple(KINDS)


@dataclass(frozen=True)
class _World:
    """The things of a batch of scenes, one after the other, grouped by kind."""

    image: Int[Tensor, "t"]  # the scene a thing belongs to
    kind: Int[Tensor, "t"]
    place: Float[Tensor, "3 t"]
    scale: Float[Tensor, "t"]
    turn: Float[Tensor, "t 3 3"]  # canonical to world
    slots: Int[Tensor, "b m"]  # image -> its things, -1 for none
    solids: dict[int, Solid]
    column: Int[Tensor, "t"]  # thing -> its column in the solid of its kind
    centre: Float[Tensor, "3 t"]  # bounding sphere, in the world
    radius: Float[Tensor, "t"]

    def local(self, thing: Tensor, p: Tensor, point: bool = True) -> Float[Tensor, "3 n"]:
        """World points (or directions) in the frames of ``thing``."""
        q = p - self.place[:, thing] if point else p
        return torch.einsum("nji,jn->in", self.turn[thing], q) / self.scale[thing]


def _world(scenes: Sequence[Scene], device: torch.device) -> _World:
    things = [(b, s, i, t) for b, s in enumerate(scenes) for i, t in enumerate(s.things)]
    kind = torch.tensor([_NAMES.index(t.kind) for *_, t in things], device=device)
    scale = torch.tensor([t.scale for *_, t in things], device=device)
    place = torch.tensor([[t.x, s.base(i), t.z] for _, s, i, t in things], device=device).T.contiguous()
    turn = torch.stack([rotation("y", t.yaw) for *_, t in things]).to(device)
    slots = torch.full((len(scenes), max(len(s.things) for s in scenes)), -1, device=device)
    for n, (b, _, i, _) in enumerate(things):
        slots[b, i] = n
    column = torch.zeros(len(things), dtype=torch.long, device=device)
    centre, radius = torch.zeros(3, len(things), device=device), torch.zeros(len(things), device=device)
    solids = {}
    for k in sorted(set(kind.tolist())):
        mine = (kind == k).nonzero()[:, 0]
        column[mine] = torch.arange(len(mine), device=device)
        body = solid(_NAMES[k], torch.tensor([things[i][3].shape for i in mine.tolist()], device=device))
        solids[k] = body
        middle = (body.low + body.high) / 2
        centre[:, mine] = place[:, mine] + torch.einsum("nij,jn->in", turn[mine], middle) * scale[mine]
        radius[mine] = (body.high - body.low).norm(dim=0) / 2 * scale[mine]
    image = torch.tensor([b for b, *_ in things], device=device)
    return _World(image, kind, place, scale, turn, slots, solids, column, centre, radius)


@dataclass(frozen=True)
class Rendering(Brief):
    """Images and, for every pixel centre, what is there.

    ``thing`` is the index of the thing or -1; ``part`` an index into ``KINDS[kind].parts()`` or -1; ``ground`` is true
    on the ground; ``depth`` is the z-depth in world units (inf for sky); ``canonical`` is nan off the things.
    """

    scenes: tuple[Scene, ...]
    images: Float[Tensor, "b 3 h w"]
    thing: Int[Tensor, "b h w"]
    part: Int[Tensor, "b h w"]
    ground: Bool[Tensor, "b h w"]
    depth: Float[Tensor, "b h w"]
    normal: Float[Tensor, "b h w 3"]
    position: Float[Tensor, "b h w 3"]
    canonical: Float[Tensor, "b h w 3"]


def pinhole(scenes: Sequence[Scene], size: int) -> tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]]:
    """Origins and directions of the rays through the pixel centres; a direction's depth component is 1."""
    pose = torch.tensor([s.camera.to_world().tolist() for s in scenes], dtype=torch.float32)
    focal = torch.tensor([1 / math.tan(math.radians(s.camera.fov) / 2) for s in scenes])
    at = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-at, at, indexing="ij")
    xy = torch.stack([x, y], -1) / focal[:, None, None, None]
    ray = torch.cat([xy, -torch.ones(len(scenes), size, size, 1)], -1)
    return pose[:, None, None, :3, 3].expand_as(ray), torch.einsum("bij,bhwj->bhwi", pose[:, :3, :3], ray)


@torch.no_grad()
def trace(
    scenes: Sequence[Scene],
    size: int = 128,
    device: str | torch.device | None = None,
    rays: tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]] | None = None,
) -> Buffers:
    """Find what the rays of each scene's camera meet, in square images of ``size`` pixels.

    ``rays`` (origins and directions, world) replaces the cameras; depth is then in units of the directions' length.
    """
    if not scenes or size < 8:
        raise SfumatoError(
            f"nothing to render: {len(scenes)} scenes at {size} pixels; give a scene and 8 pixels or more"
        )
    device = torch.device(device or "cpu")
    world = _world(scenes, device)
    origin, ray = (r.to(device, torch.float32) for r in (rays or pinhole(scenes, size)))
    b, h, w, _ = ray.shape
    shape = (b, h, w)
    pixel = torch.arange(b * h * w, device=device)
    first = _cast(world, pixel // (h * w), origin.reshape(-1, 3).T.contiguous(), ray.reshape(-1, 3).T.contiguous())
    edge = _edges(first[1].view(shape), first[2].view(shape), first[0].view(shape)).flatten().nonzero()[:, 0]
    # three more samples where an edge passes, by the rays' own differences from pixel to pixel
    dx, dy = ((torch.gradient(ray, dim=d)[0]).reshape(-1, 3)[edge] for d in (2, 1))
    ox, oy = ((torch.gradient(origin, dim=d)[0]).reshape(-1, 3)[edge] for d in (2, 1))
    o0, r0 = origin.reshape(-1, 3)[edge], ray.reshape(-1, 3)[edge]
    extra_o = torch.cat([o0 + x * ox + y * oy for x, y in _EDGE_OFFSETS]).T.contiguous()
    extra_r = torch.cat([r0 + x * dx + y * dy for x, y in _EDGE_OFFSETS]).T.contiguous()
    pixel = torch.cat([pixel, *[edge] * len(_EDGE_OFFSETS)])
    image = pixel // (h * w)
    more = _cast(world, image[b * h * w :], extra_o, extra_r)
    t, thing, prim = (torch.cat([p, q]) for p, q in zip(first, more, strict=True))
    origin = torch.cat([origin.reshape(-1, 3).T, extra_o], 1)
    ray = torch.cat([ray.reshape(-1, 3).T, extra_r], 1)
    length = ray.norm(dim=0)
    position = origin + ray * torch.where(t.isinf(), 0, t)
    on_thing = (thing >= 0).nonzero()[:, 0]
    normal = torch.zeros_like(position)
    normal[1] = 1.0
    own_normal, canonical = normal.clone(), torch.full_like(position, torch.nan)
    kind = torch.full_like(thing, -1)
    for k, body in world.solids.items():
        at = on_thing[world.kind[thing[on_thing]] == k]
        mine = thing[at]
        taken = body.take(world.column[mine])
        p = world.local(mine, position[:, at])
        n = taken.normal(p)
        kind[at] = k
        canonical[:, at] = taken.canonical(p, prim[at])
        own_normal[:, at] = n
        normal[:, at] = torch.einsum("nij,jn->in", world.turn[mine], n)
    seen = (~t.isinf()).nonzero()[:, 0]
    light, ambient = torch.ones_like(t), torch.ones_like(t)
    light[seen], ambient[seen] = _lighting(world, scenes, image[seen], thing[seen], position[:, seen], normal[:, seen])
    cosine = -(normal * ray).sum(0) / length
    footprint = t * length * _angles((ray / length)[:, : b * h * w].view(3, b, h, w))[image] / cosine.clamp_min(0.05)
    local = torch.where(thing >= 0, thing - world.slots[image, 0], -1)
    return Buffers(
        tuple(scenes), shape, pixel, t, local, prim, kind, position, ray / length, normal, canonical, own_normal,
        light, ambient, footprint,
    )  # fmt: skip


def _angles(unit: Tensor) -> Tensor:
    """Angle between neighbouring rays in the middle of each image, (b,): across or down, whichever is larger."""
    y, x = unit.shape[2] // 2, unit.shape[3] // 2
    middle = unit[:, :, y, x]
    return torch.maximum((middle - unit[:, :, y, x - 1]).norm(dim=0), (middle - unit[:, :, y - 1, x]).norm(dim=0))


def _edges(thing: Tensor, prim: Tensor, t: Tensor) -> Tensor:
    """Pixels where thing or primitive differs from a neighbour's, or the sky begins."""
    key = (thing * 64 + prim) * 2 + t.isinf()
    out = torch.zeros_like(key, dtype=torch.bool)
    across, down = key[:, :, 1:] != key[:, :, :-1], key[:, 1:] != key[:, :-1]
    out[:, :, 1:] |= across
    out[:, :, :-1] |= across
    out[:, 1:] |= down
    out[:, :-1] |= down
    return out


def _pairs(world: _World, image: Tensor, origin: Tensor, ray: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """(ray, thing) for the rays that pass within ``margin`` of the thing's bounding sphere, ahead of their origin."""
    rays, things = [], []
    for slot in world.slots.T:
        thing = slot[image]
        at = (thing >= 0).nonzero()[:, 0] if (thing < 0).any() else torch.arange(len(image), device=image.device)
        mine = thing[at]
        r, o = ray[:, at], origin[:, at]
        to = world.centre[:, mine] - o
        along = (to * r).sum(0)
        reach = (world.radius[mine] + margin).square()
        apart = to.square().sum(0)
        near = (apart - along * along / r.square().sum(0) <= reach) & ((along > 0) | (apart <= reach))
        rays.append(at[near])
        things.append(mine[near])
    return torch.cat(rays), torch.cat(things)


def _enter(body: Solid, o: Tensor, d: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the things' boxes."""
    inverse = 1 / torch.where(d.abs() < 1e-9, 1e-9, d)
    a, b = (body.low - margin - o) * inverse, (body.high + margin - o) * inverse
    return torch.minimum(a, b).amax(0), torch.maximum(a, b).amin(0)


def _cast(world: _World, image: Tensor, origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First hits: (t, thing or -1, primitive or -1); the ground is y = 0."""
    t = torch.where(ray[1] < -1e-6, -origin[1] / ray[1].clamp_max(-1e-6), torch.inf)
    thing, prim = torch.full_like(image, -1), torch.full_like(image, -1)
    rays, things = _pairs(world, image, origin, ray, 0.0)
    found = []
    for k, body in world.solids.items():
        chosen = world.kind[things] == k
        r, mine = rays[chosen], things[chosen]
        if len(r) == 0:
            continue
        o = world.local(mine, origin[:, r])
        d = world.local(mine, ray[:, r], point=False)
        taken = body.take(world.column[mine])
        begin, end = _enter(taken, o, d, 0.0)
        ahead = ((end > begin) & (end > 0)).nonzero()[:, 0]
        r, mine, o, d, taken = r[ahead], mine[ahead], o[:, ahead], d[:, ahead], taken.take(ahead)
        hit = _march(taken, o, d, begin[ahead].clamp_min(0), end[ahead])
        at = (~hit.isinf()).nonzero()[:, 0]
        t.scatter_reduce_(0, r[at], hit[at], "amin")
        found.append((r[at], mine[at], hit[at], taken.take(at).nearest(o[:, at] + d[:, at] * hit[at])))
    for r, mine, hit, which in found:
        wins = hit <= t[r]
        thing[r[wins]], prim[r[wins]] = mine[wins], which[wins]
    return t, thing, prim


def _march(body: Solid, o: Tensor, d: Tensor, t: Tensor, end: Tensor, steps: int = 64) -> Tensor:
    """Step along rays by the distance until they hit, inf where they leave the box first. Rays that end are dropped."""
    out = torch.full_like(t, torch.inf)
    alive = torch.arange(len(t), device=t.device)
    pace = 0.96 / d.norm(dim=0)
    for step in range(steps):
        near = body.distance(o + d * t)
        t = t + near * pace
        hit = near < _HIT
        if step % 3 == 2 or step == steps - 1:
            out[alive[hit]] = t[hit]
            on = (~hit & (t < end)).nonzero()[:, 0]
            if len(on) == 0:
                break
            alive, t, end, pace = alive[on], t[on], end[on], pace[on]
            o, d, body = o[:, on], d[:, on], body.take(on)
    return out


def _lighting(
    world: _World, scenes: Sequence[Scene], image: Tensor, thing: Tensor, p: Tensor, n: Tensor
) -> tuple[Tensor, Tensor]:
    """Soft shadow (the narrowest passage of the ray to the sun, after Quilez) and ambient occlusion of points."""
    to_sun = torch.stack([sun(s) for s in scenes]).to(p.device).T[:, image]
    facing = (n * to_sun).sum(0)
    light = (facing > 0).to(p.dtype)
    lit = light.nonzero()[:, 0]
    start = p + n * 0.02
    rays, things = _pairs(world, image[lit], start[:, lit], to_sun[:, lit], 0.0)
    rays = lit[rays]
    for k, body in world.solids.items():
        chosen = world.kind[things] == k
        r, mine = rays[chosen], things[chosen]
        if len(r):
            o, d = world.local(mine, start[:, r]), world.local(mine, to_sun[:, r], point=False)
            taken = body.take(world.column[mine])
            begin, end = _enter(taken, o, d, 0.06)
            ahead = ((end > begin) & (end > 0)).nonzero()[:, 0]
            passage = _narrowest(taken.take(ahead), o[:, ahead], d[:, ahead], begin[ahead].clamp_min(0), end[ahead])
            light.scatter_reduce_(0, r[ahead], passage, "amin")
    # things above the ground: how much of two short ways along the normal is free, of the ground and of every thing
    high = torch.where(thing >= 0, ((p[1] + n[1] * 0.3) / 0.3).clamp(0, 1), 1.0)
    ambient = 0.4 + 0.6 * high
    near, things = [], []
    for slot in world.slots.T:
        t = slot[image]
        close = (p - world.centre[:, t]).square().sum(0) < (world.radius[t] + 0.3).square()
        at = ((t >= 0) & close).nonzero()[:, 0]
        near.append(at)
        things.append(t[at])
    near, things = torch.cat(near), torch.cat(things)
    free = torch.zeros(len(near), device=p.device)
    for k, body in world.solids.items():
        at = (world.kind[things] == k).nonzero()[:, 0]
        if len(at):
            mine = things[at]
            taken, scale = body.take(world.column[mine]), world.scale[mine]
            for far in (0.08, 0.25):
                q = world.local(mine, p[:, near[at]] + n[:, near[at]] * far)
                free[at] += (taken.distance(q) * scale / far).clamp(0, 1) / 2
    ambient.scatter_reduce_(0, near, 0.3 + 0.7 * free, "prod")
    return light, ambient


def _narrowest(body: Solid, o: Tensor, d: Tensor, t: Tensor, end: Tensor, steps: int = 24) -> Tensor:
    """The least ratio of free space to way along rays, scaled so that 0 is blocked and 1 is free."""
    out = torch.ones_like(t)
    alive = torch.arange(len(t), device=t.device)
    length = d.norm(dim=0)
    for step in range(steps):
        near = body.distance(o + d * t)
        out[alive] = torch.minimum(out[alive], 10 * near / (t * length + 0.05)).clamp_min(0)
        t = t + near.clamp(0.02, 0.3) / length
        if step % 3 == 2:
            on = ((t < end) & (out[alive] > 0.01)).nonzero()[:, 0]
            if len(on) == 0:
                break
            alive, t, end, length = alive[on], t[on], end[on], length[on]
            o, d, body = o[:, on], d[:, on], body.take(on)
    return out


@torch.no_grad()
def shade(buffers: Buffers, scenes: Sequence[Scene] | None = None) -> Float[Tensor, "b 3 h w"]:
    """Paint what was traced, in [0, 1]. ``scenes`` may differ from the traced ones in appearance, not in geometry."""
    scenes = tuple(scenes or buffers.scenes)
    if len(scenes) != len(buffers.scenes) or any(
        [t.kind for t in a.things] != [t.kind for t in b.things] or a.camera != b.camera
        for a, b in zip(scenes, buffers.scenes, strict=False)
    ):
        raise SfumatoError("these scenes differ from the traced ones in more than appearance; trace them anew")
    colour = shading.colour(buffers, scenes)
    b, h, w = buffers.shape
    total = torch.zeros(3, b * h * w, device=colour.device).index_add_(1, buffers.pixel, colour)
    count = torch.zeros(b * h * w, device=colour.device).index_add_(0, buffers.pixel, torch.ones_like(buffers.t))
    images = (total / count).clamp(0, 1).view(3, b, h, w).movedim(1, 0).contiguous()
    return styles.apply(images, buffers, scenes)


def render(
    scenes: Scene | Sequence[Scene],
    size: int = 128,
    device: str | torch.device | None = None,
    rays: tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]] | None = None,
) -> Rendering:
    """Render scenes with all that is known of every pixel."""
    buffers = trace([scenes] if isinstance(scenes, Scene) else scenes, size, device, rays)
    return Rendering(scenes=buffers.scenes, images=shade(buffers), **labels(buffers))


def labels(buffers: Buffers) -> dict[str, Tensor]:
    """The ground truth of a trace, as in ``Rendering``."""
    thing, t = buffers.grid(buffers.thing), buffers.grid(buffers.t)
    return {
        "thing": thing,
        "part": _PARTS.to(t.device)[buffers.grid(buffers.kind), buffers.grid(buffers.prim)],
        "ground": (thing < 0) & ~t.isinf(),
        "depth": t,
        **{k: buffers.grid(getattr(buffers, k)).movedim(0, -1) for k in ("normal", "position", "canonical")},
    }


def kinds_of(rendering: Rendering, image: int, of: Sequence[str]) -> Int[Tensor, "h w"]:
    """0 the backdrop, 1 the ground, from 2 on the kinds in the order of ``of``."""
    out = rendering.ground[image].long()
    for i, thing in enumerate(rendering.scenes[image].things):
        out[rendering.thing[image] == i] = 2 + of.index(thing.kind)
    return out


def words_of(rendering: Rendering, image: int, words: Sequence[str]) -> Int[Tensor, "h w"]:
    """The place in ``words`` of what each pixel is: a kind, or its ground; -1 where it is the backdrop or none."""

    def place(word: str) -> int:
        return words.index(word) if word in words else -1

    scene = rendering.scenes[image]
    out = torch.where(rendering.ground[image], place(scene.ground), -1)
    for i, thing in enumerate(scene.things):
        out[rendering.thing[image] == i] = place(thing.kind)
    return out


def things_of(rendering: Rendering, image: int) -> tuple[Int[Tensor, "h w"], tuple[str, ...]]:
    """0 the ground, from 1 on each thing, -1 the backdrop; and what they are, such as "red cube"."""
    scene = rendering.scenes[image]
    out = rendering.ground[image].long() - 1
    for i in range(len(scene.things)):
        out[rendering.thing[image] == i] = 1 + i
    return out, (scene.ground, *(f"{thing.colour} {thing.kind}" for thing in scene.things))


def _parts() -> Tensor:
    """(kind, primitive) -> part; the last row and column stand for no kind and no primitive, and hold -1."""
    rows = [[k.parts().index(p.part) for p in k.reference()] for k in KINDS.values()]
    width = max(map(len, rows)) + 1
    return torch.tensor([r + [-1] * (width - len(r)) for r in rows] + [[-1] * width])


_PARTS = _parts()


def keypoints(scene: Scene, rendering: Rendering, index: int = 0) -> list[dict[str, tuple[float, float, bool]]]:
    """Per thing, name -> (x, y, visible) in pixels (pixel centres at halves), for image ``index`` of a rendering."""
    depth = rendering.depth[index].cpu()
    h, w = depth.shape
    pose = torch.tensor(scene.camera.to_world(), dtype=torch.float32)
    lens = torch.tensor(scene.camera.intrinsics(w), dtype=torch.float32)
    out = []
    for i, thing in enumerate(scene.things):
        prims = KINDS[thing.kind].build(list(thing.shape))
        turn = rotation("y", thing.yaw)
        named = {}
        for name, (which, unit) in KINDS[thing.kind].keypoints.items():
            prim = prims[which]
            q = torch.tensor(unit) * torch.tensor([float(v) for v in prim.half])
            q = (q if prim.turn is None else rotation(*prim.turn) @ q) + torch.tensor([float(v) for v in prim.centre])
            p = turn @ q * thing.scale + torch.tensor([thing.x, scene.base(i), thing.z])
            c = pose[:3, :3].T @ (p - pose[:3, 3])
            z = float(-c[2])
            x, y = float(lens[0, 0] * c[0] / z + lens[0, 2]), float(lens[1, 2] - lens[1, 1] * c[1] / z)
            inside = z > 0 and 0 <= x < w and 0 <= y < h
            visible = False
            if inside:
                # the point lies on a surface, often on an edge: look for that depth among the nearest pixels
                window = depth[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
                visible = bool(
                    ((window - z).abs() < 0.06 * thing.scale).any() and window.min() > z - 0.12 * thing.scale
                )
            named[name] = (x, y, visible)
        out.append(named)
    return out
