"""Colour of traced samples: paint and material of things, grounds, lights, sky and haze."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.stilllife.buffers import Buffers, sun
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.scene import COLOURS, GROUNDS, LIGHTS, MATERIALS, Scene

PALETTE = {
    "red": (0.80, 0.09, 0.08),
    "green": (0.09, 0.55, 0.15),
    "blue": (0.10, 0.24, 0.80),
    "yellow": (0.95, 0.83, 0.10),
    "purple": (0.50, 0.14, 0.66),
    "orange": (0.96, 0.46, 0.04),
    "white": (0.93, 0.93, 0.92),
    "black": (0.07, 0.07, 0.08),
    "grey": (0.50, 0.50, 0.52),
    "brown": (0.42, 0.26, 0.13),
    "cream": (0.93, 0.86, 0.70),
    "glass": (0.40, 0.60, 0.70),
}
_PATTERN = {"white": (0.45, 0.46, 0.50), "yellow": (0.50, 0.36, 0.05)}  # the second colour; otherwise a light tint
_GROUND = {
    "grass": ((0.30, 0.50, 0.16), (0.42, 0.62, 0.24)),
    "sand": ((0.80, 0.68, 0.45), (0.90, 0.80, 0.58)),
    "snow": ((0.84, 0.88, 0.95), (0.96, 0.97, 0.99)),
    "stone": ((0.44, 0.44, 0.45), (0.60, 0.59, 0.57)),
    "wood": ((0.46, 0.28, 0.14), (0.62, 0.40, 0.22)),
    "water": ((0.06, 0.26, 0.42), (0.16, 0.46, 0.60)),
}
# sun, ambient, sky at the zenith, sky at the horizon
_LIGHT = {
    "day": ((0.78, 0.75, 0.68), (0.42, 0.45, 0.50), (0.30, 0.55, 0.90), (0.78, 0.88, 0.97)),
    "sunset": ((0.86, 0.60, 0.38), (0.40, 0.34, 0.37), (0.42, 0.34, 0.56), (1.00, 0.62, 0.36)),
    "night": ((0.36, 0.42, 0.56), (0.24, 0.26, 0.38), (0.01, 0.02, 0.09), (0.08, 0.10, 0.24)),
    "fog": ((0.26, 0.26, 0.26), (0.66, 0.67, 0.69), (0.72, 0.74, 0.77), (0.80, 0.81, 0.83)),
}
_HAZE = {"day": 0.0015, "sunset": 0.0015, "night": 0.0015, "fog": 0.014}  # per squared unit of depth


def _table(rows: dict, names: Sequence[str], device) -> Tensor:
    return torch.tensor([rows[n] for n in names], dtype=torch.float32, device=device)


def _paints() -> Tensor:
    """(kind, primitive) -> row of the palette, -1 where the thing's own colour goes."""
    names = list(PALETTE)
    rows = [[-1 if p.paint == "main" else names.index(p.paint) for p in k.reference()] for k in KINDS.values()]
    width = max(map(len, rows))
    return torch.tensor([r + [-1] * (width - len(r)) for r in rows])


_PAINTS = _paints()


def _soft(x: Tensor, edge: float, width: Tensor | float) -> Tensor:
    """0 below ``edge``, 1 above, over ``width``."""
    return ((x - edge) / width + 0.5).clamp(0, 1)


class _Noise:
    """Smooth noise on the ground, one table a scene, drawn from the scene's seed; repeats every 64 cells."""

    side = 64

    def __init__(self, scenes: Sequence[Scene], image: Tensor, device) -> None:
        tables = [torch.rand(self.side**2, generator=torch.Generator().manual_seed(s.seed)) for s in scenes]
        self.table = torch.cat(tables).to(device)
        self.base = image * self.side**2

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        ix, iz = x.floor(), z.floor()
        fx, fz = x - ix, z - iz
        fx, fz = fx * fx * (3 - 2 * fx), fz * fz * (3 - 2 * fz)
        ix, iz = ix.long(), iz.long()

        def at(dx: int, dz: int) -> Tensor:
            return self.table[self.base + ((iz + dz) % self.side) * self.side + (ix + dx) % self.side]

        low = at(0, 0) + fx * (at(1, 0) - at(0, 0))
        return low + fz * (at(0, 1) + fx * (at(1, 1) - at(0, 1)) - low)

    def part(self, keep: Tensor) -> _Noise:
        out = object.__new__(_Noise)
        out.table, out.base = self.table, self.base[keep]
        return out


def _pattern(material: Tensor, p: Tensor, n: Tensor, blur: Tensor) -> Tensor:
    """Share of the pattern's second colour at canonical points, for each of striped, dotted, checkered."""
    out = torch.zeros_like(blur)
    width = blur.clamp(0.01, 0.2)
    x, y, z = p
    # triangle waves: 0 in the middle of a cell, 1 on its border
    striped = material == MATERIALS.index("striped")
    band = (((y + 0.45 * x + 0.3 * z) / 0.24) % 1 * 2 - 1).abs()[striped]
    out[striped] = _soft(band, 0.62, width[striped] * 8)
    dotted = material == MATERIALS.index("dotted")
    axis = n.abs().argmax(0)
    u = torch.where(axis == 0, z, x)[dotted] / 0.23
    v = torch.where(axis == 1, z, y)[dotted] / 0.23
    u = u + 0.5 * (v.floor() % 2)
    spot = torch.hypot(u % 1 - 0.5, v % 1 - 0.5)
    out[dotted] = 1 - _soft(spot, 0.27, width[dotted] * 5)
    checkered = material == MATERIALS.index("checkered")
    wave = torch.stack([x, y, z])[:, checkered] / 0.25 + torch.tensor([0.5, 0.13, 0.5], device=p.device)[:, None]
    sides = _soft((wave % 2 - 1).abs(), 0.5, width[checkered] * 8) * 2 - 1
    out[checkered] = (1 - sides.prod(0)) / 2
    return out


def _ground(scenes: Sequence[Scene], image: Tensor, p: Tensor, footprint: Tensor, noise: _Noise) -> Tensor:
    """Albedo of ground points, (3, n)."""
    device = p.device
    ground = torch.tensor([GROUNDS.index(s.ground) for s in scenes], device=device)[image]
    dark, light = (_table({k: v[i] for k, v in _GROUND.items()}, GROUNDS, device) for i in range(2))
    mix = torch.zeros_like(footprint)
    cut = torch.ones_like(footprint)
    for g, name in enumerate(GROUNDS):
        at = (ground == g).nonzero()[:, 0]
        if len(at) == 0:
            continue
        x, z, width, own = p[0, at], p[2, at], footprint[at], noise.part(at)

        def fine(
            rate: float, width: Tensor = width
        ) -> Tensor:  # detail fades where a pixel holds more than half a cell
            return (1.2 - 2 * width * rate).clamp(0, 1)

        if name == "grass":
            m = 0.5 + 0.6 * (own(x * 1.5, z * 1.5) - 0.5) + 0.7 * fine(7) * (own(x * 7, z * 5) - 0.5)
        elif name == "sand":
            m = 0.5 + 0.25 * fine(3) * torch.sin(9 * z + 5 * own(x, z * 0.5)) + 0.4 * (own(x * 2, z * 2) - 0.5)
        elif name == "snow":
            m = 0.6 + 0.9 * (own(x * 1.1, z * 1.1) - 0.5)
        elif name == "stone":
            row = (z / 0.7).floor()
            u, v = (x / 0.9 + 0.5 * (row % 2)) % 1, (z / 0.7) % 1
            seam = torch.minimum(torch.minimum(u, 1 - u) * 0.9, torch.minimum(v, 1 - v) * 0.7)
            cut[at] = 1 - 0.45 * fine(3) * (1 - _soft(seam, 0.025, width.clamp(0.02, 0.3)))
            m = 0.5 + 0.8 * (own((x / 0.9 + 0.5 * (row % 2)).floor() * 3.7, row * 5.3) - 0.5)
        elif name == "wood":
            board = (x / 0.45).floor()
            u = (x / 0.45) % 1
            cut[at] = 1 - 0.5 * fine(4) * (1 - _soft(torch.minimum(u, 1 - u) * 0.45, 0.018, width.clamp(0.02, 0.3)))
            m = own(board * 3.7, board * 1.3) * 0.7 + 0.45 * fine(5) * own(x * 9, z * 0.9)
        else:  # water
            m = (
                0.45
                + 0.3 * fine(2) * torch.sin(6 * z + 4 * own(x * 0.8, z * 0.8))
                + 0.5 * (own(x * 0.7, z * 1.6) - 0.5)
            )
        mix[at] = m.clamp(0, 1)
    out = dark[ground] + (light[ground] - dark[ground]) * mix[:, None]
    return (out * cut[:, None]).T


def colour(buffers: Buffers, scenes: Sequence[Scene]) -> Float[Tensor, "3 n"]:
    """Colour of every sample, not clipped."""
    device = buffers.t.device
    _, h, w = buffers.shape
    image = buffers.pixel // (h * w)
    light = torch.tensor([LIGHTS.index(s.light) for s in scenes], device=device)
    sun_colour, ambient, zenith, horizon = (
        _table({k: v[i] for k, v in _LIGHT.items()}, LIGHTS, device)[light][image].T for i in range(4)
    )
    haze = _table(_HAZE, LIGHTS, device)[light][image]
    sky = buffers.t.isinf()
    on_thing, on_ground = (buffers.thing >= 0).nonzero()[:, 0], ((buffers.thing < 0) & ~sky).nonzero()[:, 0]

    albedo = torch.ones(3, len(image), device=device)
    gloss = torch.zeros_like(buffers.t)
    noise = _Noise(scenes, image[on_ground], device)
    albedo[:, on_ground] = _ground(
        scenes, image[on_ground], buffers.position[:, on_ground], buffers.footprint[on_ground], noise
    )
    water = torch.tensor([s.ground == "water" for s in scenes], device=device)[image[on_ground]]
    gloss[on_ground] = water * 0.35
    albedo[:, on_thing], gloss[on_thing] = _paint(buffers, scenes, image, on_thing)

    towards = torch.stack([sun(s) for s in scenes]).to(device).T[:, image]
    n = buffers.normal
    diffuse = (n * towards).sum(0).clamp_min(0) * buffers.light
    hemisphere = (0.75 + 0.25 * n[1]) * buffers.ambient
    out = albedo * (sun_colour * diffuse + ambient * hemisphere)
    # specular and, on glossy surfaces, a reflection of the sky, stronger at grazing angles
    mirror = buffers.direction - 2 * (buffers.direction * n).sum(0) * n
    shine = (mirror * towards).sum(0).clamp_min(0).pow(24) * buffers.light
    out += sun_colour * shine * (0.08 + 0.9 * gloss)
    grazing = (1 + (buffers.direction * n).sum(0)).clamp(0, 1).pow(3)
    above = mirror[1].clamp(0, 1)
    seen = horizon + (zenith - horizon) * above
    reflect = gloss * (0.25 + 0.6 * grazing) * (0.3 + 0.7 * (mirror[1] > 0)) * buffers.ambient
    out += (seen - out) * reflect
    # haze towards the horizon, and the sky itself
    depth = torch.where(sky, 0, buffers.t)
    veil = 1 - torch.exp(-haze * depth.square())
    out += (horizon - out) * veil
    up = (buffers.direction[1].clamp(0, 1) * 2.2).clamp(0, 1).sqrt()
    return torch.where(sky, horizon + (zenith - horizon) * up, out)


def _paint(buffers: Buffers, scenes: Sequence[Scene], image: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Albedo (3, n) and gloss (n,) of samples on things."""
    device = buffers.t.device
    most = max(len(s.things) for s in scenes)

    def per_thing(names: Sequence[str], field: str) -> Tensor:
        rows = [[names.index(getattr(t, field)) for t in s.things] + [0] * (most - len(s.things)) for s in scenes]
        return torch.tensor(rows, device=device)[image[at], buffers.thing[at]]

    named = list(PALETTE)
    palette = _table(PALETTE, named, device)
    fixed = _PAINTS.to(device)[buffers.kind[at], buffers.prim[at]]
    main = per_thing(COLOURS, "colour")
    first = palette[torch.where(fixed >= 0, fixed, main)]
    tint = palette + (torch.tensor([0.95, 0.95, 0.93], device=device) - palette) * 0.82
    for c, rgb in _PATTERN.items():
        tint[named.index(c)] = torch.tensor(rgb, device=device)
    second = tint[[named.index(c) for c in COLOURS]]
    material = torch.where(fixed >= 0, 0, per_thing(MATERIALS, "material"))
    share = _pattern(material, buffers.canonical[:, at], buffers.own_normal[:, at], buffers.footprint[at])
    albedo = first + (second[main] - first) * share[:, None]
    glass = fixed == named.index("glass")
    gloss = 0.75 * (material == MATERIALS.index("shiny")) + 0.5 * glass
    return albedo.T, gloss
