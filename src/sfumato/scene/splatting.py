"""3D Gaussians as cameras see them, in plain torch (Zwicker et al. 2001; Kerbl et al. 2023), or by ``gsplat`` on CUDA.

Both roads share conventions, which are gsplat's: covariances are projected by the perspective's Jacobian, whose place
is held within 1.3 of the image, and grow by 0.3 of a pixel squared; alpha is at most 0.999, below 1/255 it is nothing,
and a pixel is done before its transmittance falls to 0.0001. The plain one is the reference and runs everywhere.

Work follows covered pixels: images fall into tiles of a few pixels, each with a list of the Gaussians that reach it;
all tiles go from front to back at once, a place in their lists at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.scene.cameras import Pinholes

Backend = Literal["auto", "torch", "gsplat"]
BLUR = 0.3
"""Pixels squared that covariances grow by: none falls between pixel centres."""
NEAR = 0.01
"""Depth along the axis from which on Gaussians are seen, unless a scene says another."""
MARGIN = 0.3
"""Part of half of the image by which the Jacobian's place may lie beside it."""
OPAQUE = 0.999
FAINT = 1 / 255
DONE = 1e-4
SIDE = 4
"""Pixels a tile's side has; smaller ones waste fewer pixels, larger ones have fewer lists."""


class Splats(NamedTuple):
    """3D Gaussians as they are seen, all activations done."""

    means: Float[Tensor, "g 3"]
    quaternions: Float[Tensor, "g 4"]
    """(w, x, y, z), of any length above 0."""
    scales: Float[Tensor, "g 3"]
    """Standard deviations along their own axes."""
    opacities: Float[Tensor, " g"]


class Projected(NamedTuple):
    """What cameras see of Gaussians, a row for each that reaches an image."""

    camera: Int[Tensor, " m"]
    gaussian: Int[Tensor, " m"]
    means: Float[Tensor, "m 2"]
    """In pixels; its gradient tells where more Gaussians are needed."""
    conics: Float[Tensor, "m 3"]
    """The inverse covariance: its xx, xy, yy."""
    depth: Float[Tensor, " m"]
    """Along the axis."""
    radii: Float[Tensor, "m 2"]
    """Half of the box outside of which alpha is nothing, in pixels."""


class Blended(NamedTuple):
    """Images of Gaussians, before nothing."""

    values: Float[Tensor, "n c h w"]
    opacity: Float[Tensor, "n 1 h w"]


def rotations(quaternions: Float[Tensor, "*g 4"]) -> Float[Tensor, "*g 3 3"]:
    """Of (w, x, y, z), of any length."""
    w, x, y, z = F.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def project(splats: Splats, cameras: Pinholes, backend: Backend = "torch", near_plane: float = NEAR) -> Projected:
    """What reaches the cameras' images, camera by camera, Gaussians in their order.

    Of what lies at ``near_plane`` along the axis or nearer nothing is seen.
    """
    if _by_gsplat(backend, splats.means):
        return _project_by_gsplat(splats, cameras, near_plane)
    means, (height, width) = splats.means, cameras.size
    views, _ = cameras.to(means).opencv()
    local = torch.einsum("nij,gj->ngi", views[:, :3, :3], means) + views[:, None, :3, 3]
    strong = splats.opacities.detach() >= FAINT
    camera, gaussian = torch.nonzero((local.detach()[..., 2] > near_plane) & strong, as_tuple=True)
    local = local[camera, gaussian]
    focal, centre = cameras.focal.to(means)[camera], cameras.centre.to(means)[camera]
    depth = local[:, 2]
    flat = local[:, :2] / depth[:, None]
    place = flat * focal + centre
    size = torch.tensor([width, height]).to(means)
    beside = MARGIN * size / (2 * focal)
    at = torch.maximum(torch.minimum(flat, (size - centre) / focal + beside), -centre / focal - beside)
    scaled = rotations(splats.quaternions[gaussian]) * splats.scales[gaussian][:, None]
    axes = views[camera, :3, :3] @ scaled
    rows = (focal / depth[:, None])[:, :, None] * (axes[:, :2] - at[:, :, None] * axes[:, 2:])
    covariance = rows @ rows.mT
    xx, xy, yy = covariance[:, 0, 0] + BLUR, covariance[:, 0, 1], covariance[:, 1, 1] + BLUR
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], 1) / determinant[:, None]
    with torch.no_grad():
        reach = (2 * (splats.opacities[gaussian] / FAINT).log()).clamp_min(0).sqrt()
        radii = reach[:, None] * torch.stack([xx, yy], 1).sqrt()
        inside = ((place + radii > 0) & (place - radii < size)).all(1) & (determinant > 0)
        seen = torch.nonzero(inside)[:, 0]
    return Projected(camera[seen], gaussian[seen], place[seen], conics[seen], depth[seen], radii[seen])


def blend(
    seen: Projected,
    opacities: Float[Tensor, " m"],
    values: Float[Tensor, "m c"],
    n: int,
    size: tuple[int, int],
    backend: Backend = "torch",
    side: int = SIDE,
) -> Blended:
    """Images of ``n`` cameras, from front to back; rows of ``opacities`` and ``values`` are those of ``seen``."""
    if _by_gsplat(backend, values):
        return _blend_by_gsplat(seen, opacities, values, n, size)
    tiles = _tiles(seen, opacities.detach(), n, size, side)
    shapes = torch.cat([seen.means, seen.conics, opacities[:, None]], 1)
    out = _Blend.apply(shapes, values, tiles)
    c, (down, across) = values.shape[1] + 1, _grid(size, side)
    image = out.view(c, n, down, across, side, side).permute(1, 0, 2, 4, 3, 5)  # pyright: ignore[reportOptionalMemberAccess]
    image = image.reshape(n, c, down * side, across * side)[..., : size[0], : size[1]]
    return Blended(image[:, :-1], image[:, -1:])


class Tiles(NamedTuple):
    """Lists of the Gaussians that reach tiles, by place in the lists: all first ones, all second ones and so on."""

    row: Int[Tensor, " i"]
    """Which row of ``Projected``."""
    place: Int[Tensor, " i"]
    """Of the tile, among those that are reached; the longer a list, the earlier its tile."""
    corner: Float[Tensor, "i 2"]
    """The tile's, (x, y) in pixels."""
    ranks: Sequence[tuple[int, int]]
    """From where to where each place of the lists goes."""
    tile: Int[Tensor, " t"]
    """Which tiles these are."""
    all: int
    """Tiles that there are."""
    side: int


def _grid(size: tuple[int, int], side: int) -> tuple[int, int]:
    return -(-size[0] // side), -(-size[1] // side)


@torch.no_grad()
def _tiles(seen: Projected, opacities: Tensor, n: int, size: tuple[int, int], side: int) -> Tiles:
    """Which Gaussians reach which tiles, front to back."""
    device, (down, across) = seen.means.device, _grid(size, side)
    last = torch.tensor([size[1] - 1, size[0] - 1], device=device)
    low = (seen.means - seen.radii - 0.5).ceil().clamp_min(0).long()
    high = torch.minimum((seen.means + seen.radii - 0.5).floor().clamp_min(-1).long(), last)
    low, many = low // side, high // side - low // side + 1
    many = many.where((high >= low * side).all(1, keepdim=True), torch.zeros_like(many)).clamp_min(0)
    order = torch.sort(seen.depth, stable=True).indices
    low, many = low[order], many[order]
    count = many.prod(1)
    row = torch.repeat_interleave(count)
    nth = torch.arange(len(row), device=device) - (count.cumsum(0) - count)[row]
    wide = many[row, 0]
    x, y = low[row, 0] + nth % wide, low[row, 1] + nth // wide
    row = order[row]
    near = _nearest(seen, row, torch.stack([x, y], 1) * side, side) < (opacities / FAINT).log()[row]
    row, x, y = row[near], x[near], y[near]
    tile = (seen.camera[row] * down + y) * across + x
    tile, back = torch.sort(tile, stable=True)
    row, corner = row[back], torch.stack([x[back], y[back]], 1) * side
    tiles, which, length = torch.unique_consecutive(tile, return_inverse=True, return_counts=True)
    rank = torch.arange(len(tile), device=device) - (length.cumsum(0) - length)[which]
    longest = torch.sort(length, descending=True, stable=True).indices
    place = torch.empty_like(longest)
    place[longest] = torch.arange(len(longest), device=device)
    width = torch.bincount(rank)
    ends = width.cumsum(0)
    to = (ends - width)[rank] + place[which]
    back = torch.empty_like(to)
    back[to] = torch.arange(len(to), device=device)
    starts = [0, *ends.tolist()]
    ranks = list(itertools.pairwise(starts))
    return Tiles(
        row[back], place[which][back], corner[back].to(seen.means), ranks, tiles[longest], n * down * across, side
    )


def _nearest(seen: Projected, row: Tensor, corner: Tensor, side: int) -> Tensor:
    """The least exponent within each tile, from its first pixel's centre to its last one's."""
    a, b, c = seen.conics[row].unbind(1)
    low = corner + 0.5 - seen.means[row]
    high = low + side - 1
    best = torch.full_like(a, torch.inf)
    for x in (low[:, 0], high[:, 0]):
        y = torch.maximum(torch.minimum(-b / c * x, high[:, 1]), low[:, 1])
        best = torch.minimum(best, 0.5 * (a * x * x + c * y * y) + b * x * y)
    for y in (low[:, 1], high[:, 1]):
        x = torch.maximum(torch.minimum(-b / a * y, high[:, 0]), low[:, 0])
        best = torch.minimum(best, 0.5 * (a * x * x + c * y * y) + b * x * y)
    inside = ((low <= 0) & (high >= 0)).all(1)
    return torch.where(inside, torch.zeros_like(best), best * (1 - 1e-5) - 1e-5)


class _Blend(torch.autograd.Function):
    """Values and opacity of tiles, (c + 1, tiles, pixels), with gradients by hand: autograd would keep every step."""

    @staticmethod
    def forward(ctx: Any, shapes: Tensor, values: Tensor, tiles: Tiles) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        row, side = tiles.row, tiles.side
        rows = shapes[row]
        x, y = _offsets(rows, tiles)
        a, b, c, o = (rows[:, i, None] for i in range(2, 6))
        exponent = (0.5 * a * x * x)[:, None, :] + y[:, :, None] * ((0.5 * c * y)[:, :, None] + (b * x)[:, None, :])
        alpha = exponent.flatten(1).neg_().exp_().mul_(o).clamp_max_(OPAQUE)
        alpha.mul_(alpha >= FAINT)
        before, rest = torch.empty_like(alpha), 1 - alpha
        light = torch.ones(len(tiles.tile), side * side).to(alpha)
        for start, end in tiles.ranks:
            n = end - start
            before[start:end] = light[:n]
            light[:n].mul_(rest[start:end])
        before.mul_(before * rest > DONE)
        weight = alpha * before
        out = alpha.new_zeros(values.shape[1] + 1, len(tiles.tile), side * side)
        mine = values[row]
        for k in range(values.shape[1]):
            out[k].index_add_(0, tiles.place, weight * mine[:, k, None])
        out[-1].index_add_(0, tiles.place, weight)
        ctx.save_for_backward(shapes, values, alpha, before)
        ctx.tiles = tiles
        whole = alpha.new_zeros(values.shape[1] + 1, tiles.all, side * side)
        whole[:, tiles.tile] = out
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        shapes, values, alpha, before = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        row, side = tiles.row, tiles.side
        rows, mine, weight = shapes[row], values[row], alpha * before
        by_tile = gradient[:, tiles.tile]
        worth = by_tile[-1][tiles.place]
        by_values = torch.empty_like(mine)
        for k in range(values.shape[1]):
            this = by_tile[k][tiles.place]
            by_values[:, k] = torch.einsum("ip,ip->i", weight, this)
            worth.addcmul_(this, mine[:, k, None])
        share = weight * worth
        behind = torch.empty_like(share)
        total = torch.zeros(len(tiles.tile), side * side).to(share)
        for start, end in reversed(tiles.ranks):
            n = end - start
            behind[start:end] = total[:n]
            total[:n].add_(share[start:end])
        free = (before > 0) & (alpha < OPAQUE)
        pull = (share - alpha * behind / (1 - alpha)).mul_(free)  # the gradient of alpha, times alpha
        u = torch.arange(side).to(rows) + 0.5
        one = torch.ones_like(u)
        v, u = torch.outer(u, one).flatten(), torch.outer(one, u).flatten()
        sums = pull @ torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], 1)
        s, su, sv, suu, suv, svv = sums.unbind(1)
        x, y = (rows[:, :2] - tiles.corner).unbind(1)
        a, b, c, o = (rows[:, i] for i in range(2, 6))
        sx, sy = x * s - su, y * s - sv
        xx, xy, yy = x * x * s - 2 * x * su + suu, x * y * s - x * sv - y * su + suv, y * y * s - 2 * y * sv + svv
        by_rows = torch.stack([-(a * sx + b * sy), -(b * sx + c * sy), -xx / 2, -xy, -yy / 2, s / o], 1)
        by_shapes = torch.zeros_like(shapes).index_add_(0, row, by_rows)
        return by_shapes, torch.zeros_like(values).index_add_(0, row, by_values), None


def _offsets(rows: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """How far Gaussians lie to the right of a tile's columns, and below its rows."""
    centre = torch.arange(tiles.side).to(rows) + 0.5
    return (rows[:, :2] - tiles.corner)[:, :, None].sub(centre).unbind(1)  # pyright: ignore[reportReturnType]


def _by_gsplat(backend: Backend, like: Tensor) -> bool:
    """Is the work gsplat's? Raises ``SfumatoError`` where it is asked for and cannot be."""
    if backend == "torch" or (backend == "auto" and not like.is_cuda):
        return False
    from importlib.util import find_spec

    found = find_spec("gsplat") is not None
    if backend == "gsplat" and not (found and like.is_cuda):
        reason = "is not installed; pip install 'sfumato[gaussians]'" if not found else f"needs CUDA, got {like.device}"
        raise SfumatoError(f"gsplat {reason}, or take the backend torch")
    return found


def _project_by_gsplat(splats: Splats, cameras: Pinholes, near_plane: float) -> Projected:
    from gsplat.cuda import _wrapper as gsplat  # pyright: ignore[reportMissingImports]

    views, matrix = (x.to(splats.means).contiguous() for x in cameras.to(splats.means).opencv())
    height, width = cameras.size
    found = gsplat.fully_fused_projection(
        splats.means, None, splats.quaternions, splats.scales, views, matrix, width, height, eps2d=BLUR,
        near_plane=near_plane, packed=True, opacities=splats.opacities,
    )  # fmt: skip
    *_, camera, gaussian, radii, means, depth, conics, _ = found
    return Projected(camera.long(), gaussian.long(), means, conics, depth, radii)


def _blend_by_gsplat(seen: Projected, opacities: Tensor, values: Tensor, n: int, size: tuple[int, int]) -> Blended:
    from gsplat.cuda import _wrapper as gsplat  # pyright: ignore[reportMissingImports]

    side = 16
    down, across = _grid(size, side)
    _, pairs, flat = gsplat.isect_tiles(
        seen.means, seen.radii, seen.depth, side, across, down, packed=True, n_images=n, image_ids=seen.camera,
        gaussian_ids=seen.gaussian,
    )  # fmt: skip
    offsets = gsplat.isect_offset_encode(pairs, n, across, down)
    image, opacity = gsplat.rasterize_to_pixels(
        seen.means, seen.conics, values, opacities, size[1], size[0], side, offsets, flat, packed=True
    )
    return Blended(image.permute(0, 3, 1, 2), opacity.permute(0, 3, 1, 2))
