"""ALIKE's keypoints and descriptors (Zhao et al. 2022), from the weights among the real data."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

WIDTHS, POOLS = (16, 32, 64, 128), (2, 4, 4)


class Alike:
    """The small network, run as its weights say."""

    def __init__(self, file: Path):
        self.w = load_file(file)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        w = [self.w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *w)

    def _block(self, x: Tensor, i: int) -> Tensor:
        name = f"block{i}"
        y = F.relu(self._norm(F.conv2d(x, self.w[f"{name}.conv1.weight"], padding=1), f"{name}.bn1"))
        y = self._norm(F.conv2d(y, self.w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if i > 1:
            y = y + F.conv2d(x, self.w[f"{name}.downsample.weight"], self.w[f"{name}.downsample.bias"])
        return F.relu(y)

    @torch.no_grad()
    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors and scores of every pixel of an image (3, h, w)."""
        h, w = image.shape[-2:]
        x = F.pad(image[None], (0, -w % 32, 0, -h % 32))
        size, parts = x.shape[-2:], []
        for i in range(1, 5):
            x = self._block(x if i == 1 else F.max_pool2d(x, POOLS[i - 2]), i)
            part = F.relu(F.conv2d(x, self.w[f"conv{i}.weight"]))
            parts.append(F.interpolate(part, size, mode="bilinear", align_corners=True))
        out = F.conv2d(torch.cat(parts, 1), self.w["convhead2.weight"])[0, :, :h, :w]
        return F.normalize(out[:-1], dim=0), out[-1].sigmoid()

    def points(self, image: Tensor, most: int = 800, border: int = 6) -> tuple[Tensor, Tensor]:
        """The strongest places (x, y), pixel centres at halves, and their descriptors."""
        features, score = self.maps(image)
        best = F.max_pool2d(score[None], 5, 1, 2)[0]
        inner = torch.zeros_like(score)
        inner[border:-border, border:-border] = 1
        at = ((score == best).float() * score * inner).flatten().topk(most).indices
        h, w = score.shape
        y, x = at // w, at % w
        step = torch.arange(-2, 3)
        dy, dx = (d.flatten() for d in torch.meshgrid(step, step, indexing="ij"))
        near = (score[(y[:, None] + dy), (x[:, None] + dx)] / 0.1).softmax(1)
        place = torch.stack([x + near @ dx.float(), y + near @ dy.float()], 1) + 0.5
        grid = (2 * place / torch.tensor([w, h]) - 1)[None, None]
        read = F.grid_sample(features[None], grid, align_corners=False)[0, :, 0].T
        return place, F.normalize(read, dim=1)


def matches(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], least: float = 0.9) -> tuple[Tensor, Tensor]:
    """Places in one and in two whose descriptors are each other's nearest."""
    alike = one[1] @ two[1].T
    there, back = alike.argmax(1), alike.argmax(0)
    mine = (back[there] == torch.arange(len(there))) & (alike.amax(1) > least)
    return one[0][mine], two[0][there[mine]]


def off_the_line(cameras: object, i: int, j: int, one: Tensor, two: Tensor) -> Tensor:
    """How far, in pixels, places in image j lie from the line on which camera j sees what camera i has there."""
    rays = cameras.through(torch.full((len(one),), i), one.to(cameras.poses))  # type: ignore[attr-defined]
    a, b = (cameras[[j]].seen(rays.origins + t * rays.directions)[0, :, :2] for t in (0.3, 3.0))  # type: ignore[attr-defined]
    way = F.normalize(b - a, dim=1)
    off = two.to(a) - a
    return (off[:, 0] * way[:, 1] - off[:, 1] * way[:, 0]).abs()
