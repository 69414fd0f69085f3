"""Correspondence of feature maps: nearest cells, soft positions, optimal transport, and what is carried over by them.

Pure functions of tensors. Places are (x, y) in parts of an image's sides, so maps of any grid go together.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.ops.memory import chunks
from sfumato.ops.warps import warp

Refine = Literal["none", "local", "image"]


def sampled(map: Float[Tensor, "c h w"], at: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
    """A map at places, bilinear; beyond the outermost cells' middles it goes on as it is."""
    return warp(map[None], at[None, None])[0, :, 0].T


def cosines(queries: Float[Tensor, "n c"], map: Float[Tensor, "c h w"]) -> Float[Tensor, "n h w"]:
    """How alike each query is to each cell, from -1 to 1."""
    return (F.normalize(queries, dim=1) @ F.normalize(map.flatten(1), dim=0)).unflatten(1, map.shape[1:])


def matches(
    queries: Float[Tensor, "n c"], map: Float[Tensor, "c h w"], size: tuple[int, int], refine: Refine = "local"
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """The places whose features are most like the queries, and their cosines.

    ``none``: the best cell's middle. ``image``: of all pixels of an image of this size, with features made larger
    bilinearly, as papers have it; no such features are made, as dot products with them are dot products with the cells
    made larger, and their lengths are the same for all queries. ``local``: of the pixels within a cell's width of the
    best cell's middle.
    """
    if refine not in ("none", "local", "image"):
        raise SfumatoError(f"a match is refined none, local or image, not {refine!r}")
    queries, map = queries.float(), map.float()
    lengths = lengthened(map, size) if refine == "image" else None
    each = math.prod(size) if refine == "image" else math.prod(map.shape[1:])
    places, scores = [], []
    for some in chunks(queries, each):
        if lengths is None:
            found = cosines(some, map)
        else:
            dots = torch.einsum("nc,chw->nhw", F.normalize(some, dim=1), map)
            found = _larger(dots[None], size)[0] / lengths.clamp_min(1e-12)
        best, cells = found.flatten(1).max(1)
        at = place(cells, (found.shape[1], found.shape[2]))
        if refine == "local":
            at, best = _around(some, map, at, size)
        places.append(at)
        scores.append(best)
    return torch.cat(places), torch.cat(scores)


def lengthened(map: Float[Tensor, "c h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """Lengths of the feature vectors of a map made larger, some channels after the others."""
    squares = torch.zeros(size, device=map.device)
    for some in chunks(map, math.prod(size)):
        squares += _larger(some[None], size)[0].square().sum(0)
    return squares.sqrt()


def _larger(maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _around(
    queries: Float[Tensor, "n c"], map: Float[Tensor, "c h w"], at: Float[Tensor, "n 2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """The best of the pixels within a cell's width of each place."""
    wide, high = size[1], size[0]
    reach = [math.ceil(n / cells) for n, cells in zip((wide, high), (map.shape[2], map.shape[1]), strict=True)]
    dy, dx = torch.meshgrid(*(torch.arange(-r, r + 1, device=at.device) for r in reversed(reach)), indexing="ij")
    steps, sides = torch.stack([dx, dy], -1).view(-1, 2), torch.tensor([wide, high], device=at.device)
    places, scores = [], []
    each = len(steps) * len(map)
    for q, here in zip(chunks(queries, each), chunks(at, each), strict=True):
        pixels = ((here * sides).floor()[:, None] + steps).clamp(torch.zeros_like(sides), sides - 1)
        near = (pixels + 0.5) / sides
        features = F.normalize(sampled(map, near.flatten(0, 1)), dim=1).unflatten(0, near.shape[:2])
        best, which = torch.einsum("nc,nkc->nk", F.normalize(q, dim=1), features).max(1)
        places.append(near[torch.arange(len(near)), which])
        scores.append(best)
    return torch.cat(places), torch.cat(scores)


def weights(scores: Float[Tensor, "n m"], temperature: float, topk: int = 0) -> Float[Tensor, "n m"]:
    """Softmax of scores over their temperature, of the ``topk`` highest alone where that is not 0."""
    if temperature <= 0 or topk < 0:
        raise SfumatoError(f"a temperature is above 0 and topk at least 0, got {temperature} and {topk}")
    if 0 < topk < scores.shape[1]:
        least = scores.topk(topk).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    return (scores / temperature).softmax(1)


def soft_argmax(scores: Float[Tensor, "n h w"], temperature: float, topk: int = 0) -> Float[Tensor, "n 2"]:
    """The mean place under ``weights``."""
    h, w = scores.shape[1:]
    return weights(scores.flatten(1), temperature, topk) @ middles((h, w)).to(scores)


def peak(scores: Float[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
    """The mean place of scores (0 or more) of the highest cell and the eight around it."""
    h, w = scores.shape[1:]
    all_cells = middles((h, w)).to(scores)
    best = all_cells[scores.flatten(1).argmax(1)]
    cell = torch.tensor([1 / w, 1 / h]).to(scores)
    near = ((all_cells - best[:, None]).abs() < 1.5 * cell).all(-1)
    part = scores.flatten(1) * near
    return part @ all_cells / part.sum(1, keepdim=True).clamp_min(1e-30)


def middles(grid: tuple[int, int]) -> Float[Tensor, "cells 2"]:
    """Of all cells, row by row."""
    return place(torch.arange(grid[0] * grid[1]), grid)


def returned(
    back: Float[Tensor, "n 2"], at: Float[Tensor, "n 2"], size: tuple[int, int], within: float
) -> Bool[Tensor, " n"]:
    """Do matches matched back lie within a part of the image's longer side of where they started?"""
    sides = torch.tensor([size[1], size[0]], device=at.device)
    return ((back - at) * sides).norm(dim=1) <= within * max(size)


def sinkhorn(
    cost: Float[Tensor, "m n"],
    epsilon: float = 0.05,
    iterations: int = 100,
    rows: Float[Tensor, " m"] | None = None,
    columns: Float[Tensor, " n"] | None = None,
    dustbin: float | None = None,
) -> Float[Tensor, "_ _"]:
    """The plan that costs least less ``epsilon`` times its entropy, of given marginals (uniform unless given).

    In logarithms (Peyre and Cuturi 2019, section 4.4), so no ``epsilon`` is too small. Columns are right after every
    iteration, rows in the limit. With a ``dustbin``, the cost of what is matched to nothing, the plan has a row and a
    column more, which may take all of the other side (Sarlin et al. 2020, arXiv 1911.11763, section 3.2).
    """
    if epsilon <= 0 or iterations < 1:
        raise SfumatoError(f"transport has an epsilon above 0 and at least one iteration, got {epsilon}, {iterations}")
    m, n = cost.shape
    sides = [
        torch.full((k,), 1 / k).to(cost) if given is None else given.to(cost) for k, given in ((m, rows), (n, columns))
    ]
    for what, k in zip(sides, (m, n), strict=True):
        if what.shape != (k,) or (what < 0).any() or not float(what.sum()) > 0:
            raise SfumatoError(f"marginals are {k} numbers of 0 or more, not all 0; got {tuple(what.shape)}")
    a, b = (what / what.sum() for what in sides)
    if dustbin is not None:
        cost = F.pad(cost, (0, 1, 0, 1), value=dustbin)
        a, b = (torch.cat([what, what.sum(0, keepdim=True)]) / 2 for what in (a, b))
    log_a, log_b = a.clamp_min(1e-30).log(), b.clamp_min(1e-30).log()
    kernel = -cost / epsilon
    u, v = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(iterations):
        u = log_a - (kernel + v).logsumexp(1)
        v = log_b - (kernel + u[:, None]).logsumexp(0)
    return (kernel + u[:, None] + v).exp()


def flow(
    target: Float[Tensor, "c h w"], source: Float[Tensor, "c H W"], temperature: float | None = None, topk: int = 0
) -> tuple[Float[Tensor, "h w 2"], Float[Tensor, "h w"]]:
    """For each cell of the target the place in the source that is most like it, and how much (the highest cosine).

    With a temperature the mean place under ``weights``.
    """
    places, scores = [], []
    for some in chunks(target.flatten(1).T, math.prod(source.shape[1:])):
        found = cosines(some, source)
        best, cells = found.flatten(1).max(1)
        soft = temperature is not None
        places.append(
            soft_argmax(found, temperature, topk) if soft else place(cells, (source.shape[1], source.shape[2]))
        )
        scores.append(best)
    grid = target.shape[1:]
    return torch.cat(places).unflatten(0, grid), torch.cat(scores).unflatten(0, grid)


def along(image: Float[Tensor, "c H W"], flow: Float[Tensor, "h w 2"], size: tuple[int, int]) -> Tensor:
    """An image carried to another one of this size: the pixels of each cell go along with it. (c, *size)"""
    h, w = flow.shape[:2]
    y, x = ((torch.arange(n, device=flow.device) + 0.5) / n for n in size)
    row, column = (y * h).long(), (x * w).long()
    inside = torch.stack(torch.broadcast_tensors((x - (column + 0.5) / w), (y - (row + 0.5) / h)[:, None]), -1)
    return warp(image[None], (flow[row][:, column] + inside)[None])[0]


def spread(
    maps: Float[Tensor, "k H W"],
    target: Float[Tensor, "c h w"],
    source: Float[Tensor, "c hs ws"],
    temperature: float = 0.2,
    topk: int = 15,
) -> Float[Tensor, "k h w"]:
    """Masks, or any maps, of the source image as the target's cells have them: means under ``weights``.

    As labels go through a video (Jabri et al. 2020, arXiv 2006.14613, section 3), from one frame to one other.
    """
    small = F.interpolate(maps[None].float(), source.shape[1:], mode="area")[0].flatten(1).to(source)
    parts = [
        weights(cosines(some, source).flatten(1), temperature, topk) @ small.T
        for some in chunks(target.flatten(1).T, math.prod(source.shape[1:]))
    ]
    return torch.cat(parts).T.unflatten(1, target.shape[1:])


def transferred(
    edited: Float[Tensor, "c H W"],
    mask: Float[Tensor, "H W"],
    target: Float[Tensor, "c h w"],
    flow: Float[Tensor, "hf wf 2"],
) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "h w"]]:
    """The edit of a region in one image, its pixels or its latents, laid on what corresponds to it in another.

    And where that is, from 0 to 1.
    """
    if mask.shape != edited.shape[1:]:
        raise SfumatoError(f"a mask of {tuple(mask.shape)} does not lie on an image of {tuple(edited.shape[1:])}")
    size = (target.shape[1], target.shape[2])
    where = along(mask[None].to(edited), flow, size)[0]
    return where * along(edited, flow, size) + (1 - where) * target, where


def place(cells: Int[Tensor, " n"], grid: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Middles of cells (row by row) as (x, y) in parts of the image's sides."""
    y, x = cells // grid[1], cells % grid[1]
    return torch.stack([(x + 0.5) / grid[1], (y + 0.5) / grid[0]], -1)
