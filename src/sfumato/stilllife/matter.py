"""A still life's things as a field: what a perfect reconstruction of them would be, and their true shape as a mesh."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.media.meshes import Mesh
from sfumato.scene.fields import Field, Matter
from sfumato.scene.mesh import surface
from sfumato.scene.regions import Box
from sfumato.stilllife.scene import Scene
from sfumato.stilllife.sdf import Solid, rotation, solid
from sfumato.stilllife.shading import PALETTE


class Solids(Field):
    """The things of a scene without its ground, in their own colours, unlit and without patterns.

    Density falls from ``dense`` to 0 over ``soft`` units of length at the surface, where it is one half.
    """

    def __init__(self, scene: Scene, dense: float = 200.0, soft: float = 0.004, region: Box | None = None):
        super().__init__()
        self.scene, self.dense, self.soft = scene, dense, soft
        self.things: list[tuple[Solid, Tensor, Tensor, float, Tensor]] = []
        lows, highs = [], []
        for i, thing in enumerate(scene.things):
            body = solid(thing.kind, torch.tensor([thing.shape]))
            place = torch.tensor([thing.x, scene.base(i), thing.z])
            paints = [p.paint if p.paint != "main" else thing.colour for p in body.kind.reference()]
            colours = torch.tensor([PALETTE[name] for name in paints])
            self.things.append((body, place, rotation("y", thing.yaw), thing.scale, colours))
            reach = body.low.abs().maximum(body.high.abs())[:, 0]
            flat = float(torch.hypot(reach[0], reach[2])) * thing.scale
            lows.append(place + torch.tensor([-flat, float(body.low[1]) * thing.scale, -flat]))
            highs.append(place + torch.tensor([flat, float(body.high[1]) * thing.scale, flat]))
        low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
        x, y, z = ((low + high) / 2).tolist()
        self.box = Box((x, y, z), float((high - low).max()) * 0.55)
        """Around them all, whichever way they are turned."""
        self.region = region or self.box

    def forward(self, points: Float[Tensor, "p 3"], directions: Float[Tensor, "p 3"] | None = None) -> Matter:
        apart, colours = [], []
        for body, place, turn, scale, paint in self.things:
            local = turn.T @ (points - place).T / scale
            apart.append(body.distance(local) * scale)
            colours.append(paint[body.nearest(local)])
        nearest = torch.stack(apart).min(0)
        some = nearest.indices[None, :, None].expand(1, -1, 3)
        return Matter(self._dense(nearest.values), torch.stack(colours).gather(0, some)[0])

    def density(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, " p"]:
        apart = (body.distance(turn.T @ (points - place).T / s) * s for body, place, turn, s, _ in self.things)
        return self._dense(torch.stack([*apart]).amin(0))

    def _dense(self, apart: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        return self.dense * torch.sigmoid(-apart / self.soft)


def true_mesh(scene: Scene, resolution: int = 96) -> Mesh:
    """The surface of its things, in the world."""
    field = Solids(scene)
    field.soft = field.box.half / resolution  # as wide as half a cell, so that it lies between cells where it is
    return surface(field, resolution, field.dense / 2, least=0.0).mesh
