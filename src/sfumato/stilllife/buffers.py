"""What a trace found at each pixel, and where the sun stands: what shading and styles are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.stilllife.scene import Scene

SUN_ELEVATION = 45.0  # degrees; the same in every light, so that a change of light keeps the shadows' place


@dataclass(frozen=True)
class Buffers:
    """What the rays met, one entry a sample: the pixel centres first, then the extra samples on edges."""

    scenes: tuple[Scene, ...]
    shape: tuple[int, int, int]  # images, height, width
    pixel: Int[Tensor, "n"]  # flat index into (images, height, width)
    t: Float[Tensor, "n"]  # z-depth; inf for sky
    thing: Int[Tensor, "n"]  # index into the scene's things, -1 for none
    prim: Int[Tensor, "n"]
    kind: Int[Tensor, "n"]
    position: Float[Tensor, "3 n"]
    direction: Float[Tensor, "3 n"]  # unit, from the eye
    normal: Float[Tensor, "3 n"]
    canonical: Float[Tensor, "3 n"]
    own_normal: Float[Tensor, "3 n"]  # in the thing's frame
    light: Float[Tensor, "n"]  # 0 in full shadow, 1 in full light
    ambient: Float[Tensor, "n"]  # 0 fully occluded, 1 open
    footprint: Float[Tensor, "n"]  # width of a pixel on the surface, world units

    def grid(self, values: Tensor) -> Tensor:
        """The values at pixel centres, (images, height, width, ...)."""
        b, h, w = self.shape
        return values[..., : b * h * w].reshape(*values.shape[:-1], b, h, w)


def sun(scene: Scene) -> Float[Tensor, "3"]:
    """Unit vector towards the light."""
    a, e = math.radians(scene.sun), math.radians(SUN_ELEVATION)
    return torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
