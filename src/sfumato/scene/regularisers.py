"""Losses on what a scene shows: where its surfaces turn, how much of a view it fills, how sharp it is along rays.

Each takes a ``Rendering`` and gives a mean over its pixels (its rays), whatever their number; the published weights of
threestudio go with means as well. What each reads of ``Rendering.extra`` is what ``FieldScene.render`` puts there:
``weights`` (b, h, w, s), ``edges`` and ``parts`` (b, h, w, s + 1) of samples along rays, ``rays`` (b, 3, h, w), their
directions, ``poses`` (b, 4, 4), and with normals ``turned`` (b, h, w, s, 3), the samples' own, in the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.distill.generators import Rendering
from sfumato.errors import SfumatoError
from sfumato.scene import volume

Loss = Float[Tensor, ""]


@dataclass(frozen=True)
class Regulariser:
    """A loss and its weight."""

    weight: float = 1.0

    def __call__(self, rendering: Rendering) -> Loss:
        return self.weight * self.loss(rendering)

    def loss(self, rendering: Rendering) -> Loss:
        raise NotImplementedError


def _of(rendering: Rendering, who: object, *names: str) -> list[Any]:
    """What a loss reads of a rendering, or one line on what is missing."""
    has = {"alpha": rendering.alpha, "depth": rendering.depth, "normals": rendering.normals, **rendering.extra}
    missing = [name for name in names if has.get(name) is None]
    if missing:
        raise SfumatoError(
            f"{type(who).__name__} reads {', '.join(missing)}, which this rendering does not have; render a field, "
            "with normals=True where they are read"
        )
    return [has[name] for name in names]


class Orientation(Regulariser):
    """Surfaces that are seen face who sees them (Verbin et al. 2022, Ref-NeRF, eq. 11): sum_i w_i max(0, n_i . d)^2.

    The weights are detached: a surface turns rather than fades. threestudio's mean is over opaque rays, here over all.
    """

    def loss(self, rendering: Rendering) -> Loss:
        w, turned, rays = _of(rendering, self, "weights", "turned", "rays")
        away = (turned * rays.permute(0, 2, 3, 1)[..., None, :]).sum(-1).clamp_min(0)
        return (w.detach() * away.square()).sum(-1).mean()


class Opacity(Regulariser):
    """How much of the view is filled: the mean opacity."""

    def loss(self, rendering: Rendering) -> Loss:
        (alpha,) = _of(rendering, self, "alpha")
        return alpha.mean()


class Sparsity(Regulariser):
    """sqrt(opacity^2 + 0.01): the same, gentle near nothing (threestudio)."""

    def loss(self, rendering: Rendering) -> Loss:
        (alpha,) = _of(rendering, self, "alpha")
        return (alpha.square() + 0.01).sqrt().mean()


@dataclass(frozen=True)
class Emptiness(Regulariser):
    """log(1 + ``scale`` w), a mean over samples: haze costs most for what it shows (Wang et al. 2022, SJC)."""

    scale: float = 10.0

    def loss(self, rendering: Rendering) -> Loss:
        (w,) = _of(rendering, self, "weights")
        return (self.scale * w).log1p().mean()


class Opaque(Regulariser):
    """The entropy of opacities: each ray sees a thing or none (threestudio: BCE(o, o) of o in [0.001, 0.999])."""

    def loss(self, rendering: Rendering) -> Loss:
        (alpha,) = _of(rendering, self, "alpha")
        o = alpha.clamp(1e-3, 1 - 1e-3)
        return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


class ZVariance(Regulariser):
    """How far along a ray what is seen is spread (Zhu and Zhuang 2024, HiFA, eq. 12): the variance of its distance.

    Weights are made to sum to 1; rays of an opacity below a half do not count, as in threestudio.
    """

    def loss(self, rendering: Rendering) -> Loss:
        w, edges, alpha = _of(rendering, self, "weights", "edges", "alpha")
        at = (edges[..., 1:] + edges[..., :-1]) / 2
        part = w / w.sum(-1, keepdim=True).clamp_min(1e-6)
        mean = (part * at).sum(-1, keepdim=True)
        spread = (part * (at - mean).square()).sum(-1)
        seen = (alpha[:, 0] > 0.5).to(spread)
        return (spread * seen).sum() / seen.sum().clamp_min(1)


class Distortion(Regulariser):
    """How spread weights are along rays (mip-NeRF 360, eq. 15), of distances as parts of the ray's way."""

    def loss(self, rendering: Rendering) -> Loss:
        return volume.distortion(*_of(rendering, self, "weights", "parts")).mean()


class NormalSmoothness(Regulariser):
    """How much normals differ from pixel to pixel: squared differences to the right and down, where both are seen."""

    def loss(self, rendering: Rendering) -> Loss:
        normals, alpha = _of(rendering, self, "normals", "alpha")
        seen = alpha.detach()
        right, down = seen[..., :, 1:] * seen[..., :, :-1], seen[..., 1:, :] * seen[..., :-1, :]
        dx = (normals[..., :, 1:] - normals[..., :, :-1]).square().sum(1, keepdim=True)
        dy = (normals[..., 1:, :] - normals[..., :-1, :]).square().sum(1, keepdim=True)
        return (dx * right).mean() + (dy * down).mean()


@dataclass(frozen=True)
class Convexity(Regulariser):
    """Against hollow faces (Lukoianov et al. 2024, section 5.2): from left to right and from top to bottom, normals of
    a convex thing turn outwards.

    The sine between neighbouring normals, as little as it may be: in the camera's axes a convex surface's normals
    turn to the right as pixels go right, and down as they go down. It is taken of raw normals in the camera's frame
    (the authors' code takes the world's, mapped to [0, 1], which leaves the vertical part without effect), on
    normals reduced to ``side`` pixels, as theirs. The mean lies between -2 and 2, below 0 for what is convex.
    """

    side: int = 8

    def loss(self, rendering: Rendering) -> Loss:
        normals, alpha, poses = _of(rendering, self, "normals", "alpha", "poses")
        local = torch.einsum("bji,bjhw->bihw", poses[:, :3, :3].to(normals), normals * alpha)
        if min(local.shape[-2:]) > self.side:
            local = F.adaptive_avg_pool2d(local, self.side)
        one, two = local[..., :, :-1], local[..., :, 1:]
        across = one[:, 2] * two[:, 0] - one[:, 0] * two[:, 2]  # of the turn to the right, about the axis that is up
        one, two = local[..., :-1, :], local[..., 1:, :]
        along = one[:, 1] * two[:, 2] - one[:, 2] * two[:, 1]  # of the turn down, about the axis to the right
        return -across.mean() - along.mean()


def total_variation(grid: Float[Tensor, "1 k *n"]) -> Loss:
    """Of a dense grid or image: the mean squared difference to the next cell, summed over the axes."""
    steps = [grid.diff(dim=axis).square().mean() for axis in range(2, grid.ndim)]
    return torch.stack(steps).sum()
