"""Styles: what a photograph of a scene becomes as a pencil sketch, a watercolour or a mosaic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.stilllife.buffers import Buffers
from sfumato.stilllife.scene import Scene

Image = Float[Tensor, "b 3 h w"]


def _blur(x: Tensor, width: int) -> Tensor:
    side = width // 2
    return F.avg_pool2d(F.pad(x, (side,) * 4, mode="replicate"), width, 1)


def _grain(scenes: Sequence[Scene], h: int, w: int, cell: int, device) -> Tensor:
    """Smooth noise in [-1, 1] with bumps of ``cell`` pixels, (b, 2, h, w), from each scene's seed."""
    rows = [
        torch.rand(2, h // cell + 2, w // cell + 2, generator=torch.Generator().manual_seed(s.seed + 1)) for s in scenes
    ]
    return F.interpolate(torch.stack(rows).to(device) * 2 - 1, size=(h, w), mode="bicubic", align_corners=False)


def _outline(buffers: Buffers, which: Tensor) -> Tensor:
    """Contours of things and their parts, and creases, (b, 1, h, w) in [0, 1]."""
    normal = buffers.grid(buffers.normal)[:, which].movedim(1, 0)
    thing = buffers.grid(buffers.thing)[which]
    prim = buffers.grid(buffers.prim)[which]
    crease = torch.zeros_like(thing, dtype=torch.float32)
    for a, b in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        for dim in (1, 2):
            near = (slice(None),) * dim + (a,)
            far = (slice(None),) * dim + (b,)
            turned = (1 - (normal.movedim(1, -1)[near] * normal.movedim(1, -1)[far]).sum(-1)) > 0.35
            differs = (thing[near] != thing[far]) | (prim[near] != prim[far]) | turned
            crease[near] = torch.maximum(crease[near], differs.float())
    return (_blur(crease[:, None], 3) * 1.6).clamp(0, 1)


def _pencil(x: Image, buffers: Buffers, which: Tensor, scenes: Sequence[Scene]) -> Image:
    """Coloured pencil on cream paper: hatching for tone, a dark contour."""
    paper = torch.tensor([0.97, 0.96, 0.92], device=x.device).view(1, 3, 1, 1)
    h, w = x.shape[-2:]
    y, u = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
    dark = 1 - x.mean(1, keepdim=True)
    hatch = 0.5 + 0.5 * torch.sin((u + y) * (2 * torch.pi / 4))
    stroke = 0.5 + 0.5 * hatch * (0.6 + 0.4 * dark)
    grey = x.mean(1, keepdim=True)
    pigment = (1 - (grey + 1.25 * (x - grey))).clamp(0, 1)
    out = paper * (1 - 0.72 * pigment * stroke)
    return out * (1 - 0.75 * _outline(buffers, which))


def _watercolour(x: Image, buffers: Buffers, which: Tensor, scenes: Sequence[Scene]) -> Image:
    """Wet edges: shapes wander a pixel, tones run together and gather at their borders, paper shows through."""
    h, w = x.shape[-2:]
    drift = _grain(scenes, h, w, 12, x.device) * torch.tensor([3 / w, 3 / h], device=x.device).view(1, 2, 1, 1)
    at = F.affine_grid(torch.eye(2, 3, device=x.device).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, at + drift.movedim(1, -1), padding_mode="border", align_corners=False)
    x = _blur(x, 3)
    rim = (x - _blur(x, 9)).abs().mean(1, keepdim=True)
    wash = 1 + 0.10 * _grain(scenes, h, w, 16, x.device)[:, :1]
    pigment = (1 - x) * (0.74 + 2.2 * rim) * wash
    return 0.98 * (1 - pigment)


def _mosaic(x: Image, buffers: Buffers, which: Tensor, scenes: Sequence[Scene]) -> Image:
    """Tiles of four pixels with grout between them, each a little lighter or darker than asked."""
    h, w = x.shape[-2:]
    tile = F.interpolate(F.avg_pool2d(x, 4, ceil_mode=True), scale_factor=4, mode="nearest")[..., :h, :w]
    uneven = F.interpolate(_grain(scenes, h // 4 + 1, w // 4 + 1, 1, x.device)[:, :1], scale_factor=4)[..., :h, :w]
    y, u = torch.meshgrid(torch.arange(h, device=x.device), torch.arange(w, device=x.device), indexing="ij")
    grout = ((y % 4 == 3) | (u % 4 == 3)).float()
    return tile * (1 + 0.08 * uneven) * (1 - 0.4 * grout) + 0.18 * grout


_STYLES: dict[str, Callable[..., Image]] = {"pencil sketch": _pencil, "watercolour": _watercolour, "mosaic": _mosaic}


def apply(images: Image, buffers: Buffers, scenes: Sequence[Scene]) -> Image:
    """Each image in its scene's style, in [0, 1]."""
    out = images.clone()
    for name, paint in _STYLES.items():
        chosen = [i for i, s in enumerate(scenes) if s.style == name]
        which = torch.tensor(chosen, device=images.device, dtype=torch.long)
        if len(which):
            mine = [scenes[i] for i in chosen]
            out[which] = paint(images[which], buffers, which, mine).clamp(0, 1)
    return out
