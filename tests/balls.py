"""Fields of balls, whose surface is known."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.scene.backgrounds import Plain
from sfumato.scene.fields import Field, Matter, Voxels
from sfumato.scene.regions import Box, Region
from sfumato.scene.render import FieldScene, Sampling

UNIT = Box()


class Balls(Field):
    """Balls (x, y, z, radius) of a density, whose border has a width; colours are places."""

    def __init__(self, *balls: tuple[float, float, float, float], region: Region = UNIT, dense=60.0, soft=0.02):
        super().__init__()
        self.region, self.balls, self.dense, self.soft = region, torch.tensor(balls), dense, soft

    def forward(self, points: Tensor, directions: Tensor | None = None) -> Matter:
        apart = (torch.cdist(points, self.balls[:, :3]) - self.balls[:, 3]).amin(1)
        return Matter(self.dense * torch.sigmoid(-apart / self.soft), self.region.local(points) / 2 + 0.5)


def coloured_ball(dense: float = 60.0, latent: bool = False) -> FieldScene:
    """Red, and blue in the half towards +x, around a black core; its outermost shell, which is thin, is grey."""
    field = Voxels(40, 4 if latent else 3, latent=latent)
    at = (torch.arange(40) + 0.5) / 20 - 1
    z, y, x = torch.meshgrid(at, at, at, indexing="ij")
    r = (x**2 + y**2 + z**2).sqrt()
    red, blue = (torch.tensor(c).view(3, 1, 1, 1) for c in ([4.0, -4, -4], [-4.0, -4, 4]))
    with torch.no_grad():
        field.grid[0, 0] = torch.where(r < 0.6, dense, -10.0)
        field.grid[0, 1:4] = torch.where(r < 0.45, -9.0, torch.where(x > 0, blue, red) * (r < 0.6))
    return FieldScene(field, None if latent else Plain(), sampling=Sampling(96))
