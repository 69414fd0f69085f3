"""How far away what a capture's images show is, by the other images: a plane sweep, held together across pixels.

A plane sweep (Collins 1996) compares images at many distances; where they show nothing that differs, such as snow or
sky, many distances agree, and those of the pixels beside decide (Hirschmueller 2008, semi-global matching).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.ops.blur import blur
from sfumato.scene.cameras import Pinholes, Rays
from sfumato.scene.capture import Capture

NEAREST = 0.4
"""What is looked at begins at this part of a camera's distance to the scene's middle."""
DEPTHS = 64
"""Distances that are compared along a ray, even in their inverse."""
SIDE = 64
"""Pixels that the longer side of what is compared has, at most."""
BESIDE = 6
"""Cameras that each is compared with: those that look most nearly its way."""
SOFT = 1.5
"""Images are compared as they are and blurred by so many pixels."""
UNSEEN = (0.3, 0.03)
"""What it costs, as a mean difference of colours, to be where no other camera sees it: nearest, and farthest.

What is near and seen by one camera alone is mist; what is far often is not in other images."""
NEARER = 0.02
"""What the nearest distance costs more than the farthest: of those that agree, what is farther hides less."""
STEP, LEAP = 0.003, 0.03
"""What it costs that a pixel beside has the next distance, or any other; less where colours change."""
EDGE = 0.05
"""A change of colour by which both costs are halved."""
SAME, ENOUGH = 0.06, 2
"""A part by which distances of one place differ at most, and cameras that have to find it beside one's own."""


class Swept(NamedTuple):
    """What a sweep finds, in images of ``SIDE`` pixels."""

    away: Float[Tensor, "n h w"]
    """Along the rays."""
    sure: Bool[Tensor, "n h w"]
    """Do ``ENOUGH`` other cameras find the same place?"""
    close: Float[Tensor, " n"]
    """Each camera's nearest distance that was looked at."""


@torch.no_grad()
def sweep(capture: Capture) -> Swept:
    """Distances along the rays of a capture's cameras, each compared with those that look most nearly its way.

    They lie between ``NEAREST`` of a camera's distance to the scene's middle and the scene's far end. What masks leave
    out is compared with nothing.
    """
    h, w = capture.cameras.size
    part = min(1.0, SIDE / max(h, w))
    small = capture.resized(max(1, round(h * part)), max(1, round(w * part)))
    cameras, images = small.cameras.to("cpu"), small.images.cpu()
    far = capture.span[1]
    close = NEAREST * (cameras.eyes - capture.middle.cpu()).norm(dim=1).clamp(1e-3 * far, far)
    features = torch.cat([images, blur(images, SOFT)], 1)
    beside, rays = _beside(cameras), cameras.rays()
    near = torch.linspace(1, 0, DEPTHS)
    inverse = torch.lerp(torch.full_like(close, 1 / far)[:, None], 1 / close[:, None], near)
    alone = torch.lerp(torch.tensor(UNSEEN[1]), torch.tensor(UNSEEN[0]), near)
    costs = []
    for i, others in enumerate(beside):
        points = Rays(rays.origins[i], rays.directions[i]).at((1 / inverse[i]).expand(*cameras.size, -1))
        each = torch.stack([_apart(small, features, i, other, points) for other in others])
        costs.append(_agreed(each, alone) + NEARER * near)
    place = _lowest(together(torch.stack(costs), images))
    away = 1 / torch.lerp(inverse[:, :1, None], inverse[:, -1:, None], place / (DEPTHS - 1))
    return Swept(away, _sure(cameras, away, beside), close)


def _beside(cameras: Pinholes) -> list[list[int]]:
    ahead = cameras.poses[:, :3, 2]
    alike = ahead @ ahead.T
    alike.fill_diagonal_(-2)
    return alike.topk(min(BESIDE, len(cameras) - 1), dim=1).indices.tolist()


def _sure(cameras: Pinholes, away: Float[Tensor, "n h w"], beside: list[list[int]]) -> Bool[Tensor, "n h w"]:
    """Do other cameras, of those beside, find the places that each finds?"""
    rays, (h, w) = cameras.rays(), cameras.size
    sure = []
    for i, others in enumerate(beside):
        points = rays.origins[i] + away[i, ..., None] * rays.directions[i]
        x, y, depth = cameras[others].seen(points.flatten(0, 1)).unflatten(1, (h, w)).unbind(-1)
        inside = (depth > 0) & (x > 0) & (y > 0) & (x < w) & (y < h)
        own = torch.tensor(others)[:, None, None]
        theirs = away[own, y.nan_to_num(0).clamp(0, h - 1).long(), x.nan_to_num(0).clamp(0, w - 1).long()]
        real = (points - cameras.eyes[others][:, None, None]).norm(dim=-1)
        sure.append((inside & ((theirs / real - 1).abs() < SAME)).sum(0) >= min(ENOUGH, len(others)))
    return torch.stack(sure)


def _apart(
    capture: Capture, features: Float[Tensor, "n c h w"], one: int, other: int, points: Float[Tensor, "h w d 3"]
) -> Float[Tensor, "h w d"]:
    """How differently another camera sees points along a camera's rays; inf where it does not see them."""
    h, w = capture.cameras.size
    x, y, depth = capture.cameras.to("cpu")[[other]].seen(points.flatten(0, 2))[0].view(h, w, -1, 3).unbind(-1)
    inside = (depth > 0) & (x > 0) & (y > 0) & (x < w) & (y < h)
    at = torch.stack([2 * x / w - 1, 2 * y / h - 1], -1).clamp(-2, 2).nan_to_num(2.0)
    if capture.masks is not None:
        inside &= _read(capture.masks[other].cpu()[None].to(features), at)[0] > 0.999
    off = (_read(features[other], at) - features[one, :, :, :, None]).abs().mean(0)
    return torch.where(inside, off, torch.inf)


def _read(image: Float[Tensor, "c h w"], at: Float[Tensor, "h w d 2"]) -> Float[Tensor, "c h w d"]:
    found = F.grid_sample(image[None], at.flatten(0, 1)[None], align_corners=False, padding_mode="border")
    return found[0].view(len(image), *at.shape[:3])


def _agreed(each: Float[Tensor, "k h w d"], alone: Float[Tensor, " d"]) -> Float[Tensor, "h w d"]:
    """Of the cameras that see a point the better half counts, since something may stand in the way of the others."""
    each = each.sort(0).values
    half = (each.isfinite().sum(0) + 1) // 2
    counts = torch.arange(len(each))[:, None, None, None] < half
    mean = torch.where(counts, each, 0.0).sum(0) / half.clamp_min(1)
    return torch.where(half > 0, mean, alone)


def together(costs: Float[Tensor, "v h w d"], images: Float[Tensor, "v c h w"]) -> Float[Tensor, "v h w d"]:
    """Costs with those of the cheapest ways to each pixel from the left, the right, above and below (eq. 13)."""
    total = torch.zeros_like(costs)
    for axis in (1, 2):
        rows, colours = costs.movedim(axis, 0), images.movedim(axis + 1, 0)
        change = colours.diff(dim=0).abs().mean(2)[..., None]
        for backward in (False, True):
            order = range(len(rows))[:: -1 if backward else 1]
            last, found = rows[order[0]], {order[0]: rows[order[0]]}
            for before, k in itertools.pairwise(order):
                less = 1 / (1 + change[min(before, k)] / EDGE)
                least = last.amin(-1, keepdim=True)
                beside = F.pad(last, (1, 1), value=torch.inf)
                beside = torch.minimum(beside[..., :-2], beside[..., 2:]) + STEP * less
                last = rows[k] + torch.minimum(torch.minimum(last, beside), least + LEAP * less) - least
                found[k] = last
            total += torch.stack([found[k] for k in range(len(rows))]).movedim(0, axis)
    return total


def _lowest(costs: Float[Tensor, "v h w d"]) -> Float[Tensor, "v h w"]:
    """Where costs are lowest, between two places by a parabola through three."""
    best = costs.argmin(-1, keepdim=True)
    inner = best.clamp(1, costs.shape[-1] - 2)
    left, middle, right = (costs.gather(-1, inner + k) for k in (-1, 0, 1))
    off = ((left - right) / (2 * (left - 2 * middle + right)).clamp_min(1e-9)).clamp(-0.5, 0.5)
    return (best + torch.where(best == inner, off, 0.0))[..., 0]
