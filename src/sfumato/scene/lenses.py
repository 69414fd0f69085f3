"""Lenses: how a real camera bends what a pinhole would see, and images made straight again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STEPS = 30
"""Of Newton's method at most; two or three do for a camera's corners."""


@dataclass(frozen=True)
class Lens:
    """Intrinsics of one image with its distortion, in OpenCV's terms (COLMAP and nerfstudio mean the same by them).

    With x, y of what is seen divided by its depth and r^2 = x^2 + y^2, the image has it at focal * (x', y') + centre:

        x' = x * f + 2 p1 x y + p2 (r^2 + 2 x^2),  y' = y * f + p1 (r^2 + 2 y^2) + 2 p2 x y,
        f = (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6)

    and of a fisheye (x', y') = (x, y) / r * a (1 + k1 a^2 + k2 a^4 + k3 a^6 + k4 a^8) for its angle a = atan r.
    """

    size: tuple[int, int]
    """Height and width."""
    focal: tuple[float, float]
    """In pixels, along x and y."""
    centre: tuple[float, float]
    """(x, y) in pixels; the first pixel's centre is at 0.5."""
    radial: tuple[float, ...] = ()
    """k1, k2, ...: up to six, or four of a fisheye."""
    tangential: tuple[float, float] = (0.0, 0.0)
    """p1, p2."""
    fisheye: bool = False

    @property
    def straight(self) -> bool:
        """Is it a pinhole?"""
        return not self.fisheye and not any(self.radial) and not any(self.tangential)

    def resized(self, height: int, width: int) -> Lens:
        """The same lens before more or fewer pixels."""
        y, x = height / self.size[0], width / self.size[1]
        focal, centre = (self.focal[0] * x, self.focal[1] * y), (self.centre[0] * x, self.centre[1] * y)
        return replace(self, size=(height, width), focal=focal, centre=centre)

    def bent(self, flat: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """Where (x, y) divided by depth comes to lie, before focal length and centre."""
        x, y = flat.unbind(-1)
        r2 = x.square() + y.square()
        if self.fisheye:
            r = r2.clamp_min(1e-24).sqrt()  # whose gradient at 0 is 0, not nan
            angle = r.atan()
            part = angle / r * _polynomial(angle.square(), self.radial)
            return flat * part[..., None]
        part = _polynomial(r2, self.radial[:3]) / _polynomial(r2, self.radial[3:])
        p1, p2 = self.tangential
        dx = 2 * p1 * x * y + p2 * (r2 + 2 * x.square())
        dy = p1 * (r2 + 2 * y.square()) + 2 * p2 * x * y
        return flat * part[..., None] + torch.stack([dx, dy], -1)

    def unbent(self, bent: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """The way back, by Newton's method; nan where no (x, y) within ``reach`` comes to lie there."""
        flat = bent
        for _ in range(STEPS):
            with torch.enable_grad():
                flat = flat.detach().requires_grad_()
                at = self.bent(flat)
                dx, dy = (torch.autograd.grad(at[..., i].sum(), flat, retain_graph=not i)[0] for i in (0, 1))
            flat, off = flat.detach(), at.detach() - bent
            det = dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]
            step = torch.stack([
                dy[..., 1] * off[..., 0] - dx[..., 1] * off[..., 1],
                dx[..., 0] * off[..., 1] - dy[..., 0] * off[..., 0],
            ], -1) / det[..., None]  # fmt: skip
            size = step.norm(dim=-1, keepdim=True)
            step = step / (size / (0.5 * (1 + flat.norm(dim=-1, keepdim=True)))).clamp_min(1)  # no leaps
            flat = flat - step
            if float(size.nan_to_num(0).max()) < 4 * torch.finfo(bent.dtype).eps:
                break
        off = (self.bent(flat) - bent).norm(dim=-1)
        there = (off < 1e-5 * (1 + bent.norm(dim=-1))) & (flat.norm(dim=-1) <= self.reach)
        return torch.where(there[..., None], flat, torch.nan)

    @property
    def reach(self) -> float:
        """The greatest r up to which what lies farther out comes to lie farther out; the fit says nothing beyond."""
        r = torch.linspace(0, 10, 20001, dtype=torch.float64)
        line = replace(self, tangential=(0.0, 0.0)).bent(torch.stack([r, torch.zeros_like(r)], -1))[:, 0]
        falls = ((line.diff() <= 0) | ~line.diff().isfinite()).nonzero()
        return float(r[falls[0, 0]]) if len(falls) else float("inf")

    def places(self) -> tuple[Float[Tensor, "h w 2"], Bool[Tensor, "h w"]]:
        """For every pixel of a pinhole of the same focal lengths and centre: where the lens has it (x, y), and if."""
        (h, w), focal, centre = self.size, torch.tensor(self.focal).double(), torch.tensor(self.centre).double()
        y, x = torch.meshgrid(torch.arange(h).double() + 0.5, torch.arange(w).double() + 0.5, indexing="ij")
        flat = (torch.stack([x, y], -1) - centre) / focal
        at = self.bent(flat) * focal + centre
        inside = ((at >= 0.5) & (at <= torch.tensor([w, h]) - 0.5)).all(-1)  # among the centres of pixels
        return at, inside & (flat.norm(dim=-1) <= self.reach)

    def straightened(
        self, images: Float[Tensor, "n c h w"], nearest: bool = False
    ) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, "h w"]]:
        """Images of this lens as a pinhole has them, and the pixels that the lens has seen.

        They are read by Catmull and Rom's cubics, which leave even slopes as they are, or the nearest pixel of each.
        """
        at, there = _places(self)
        read = sampled(images, at, nearest)
        return read, there


def sampled(
    images: Float[Tensor, "n c h w"], at: Float[Tensor, "y x 2"], nearest: bool = False
) -> Float[Tensor, "n c y x"]:
    """Images at places (x, y) in pixels, by cubics or the nearest pixel; beyond a border is what is on it."""
    n, c, h, w = images.shape
    place = at.nan_to_num(0) - 0.5
    if nearest:
        x, y = place.round().long().unbind(-1)
        return images[..., y.clamp(0, h - 1), x.clamp(0, w - 1)]
    first, part = place.floor().long(), (place - place.floor()).to(images)
    out = images.new_zeros(n, c, *at.shape[:2])
    across, down = _cubic(part[..., 0]), _cubic(part[..., 1])
    for j, v in enumerate(down, -1):
        row = (first[..., 1] + j).clamp(0, h - 1)
        for i, u in enumerate(across, -1):
            out += u * v * images[..., row, (first[..., 0] + i).clamp(0, w - 1)]
    return out


def _cubic(t: Float[Tensor, "y x"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shares of four neighbours of a place, t beyond the second (Catmull and Rom 1974)."""
    return (
        t * (-0.5 + t * (1 - 0.5 * t)),
        1 + t * t * (1.5 * t - 2.5),
        t * (0.5 + t * (2 - 1.5 * t)),
        t * t * (0.5 * t - 0.5),
    )


@lru_cache(maxsize=2)  # most captures have one lens
def _places(lens: Lens) -> tuple[Tensor, Tensor]:
    return lens.places()


def _polynomial(x: Tensor, terms: tuple[float, ...]) -> Tensor:
    """1 + terms[0] x + terms[1] x^2 + ..."""
    out = torch.ones_like(x)
    for i, term in enumerate(terms):
        out = out + term * x ** (i + 1)
    return out
