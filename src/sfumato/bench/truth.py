"""What is known of fresh renders, in the forms that recognition is measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.moves import correspond
from sfumato.stilllife.render import Rendering, keypoints, render
from sfumato.stilllife.scene import TRAINED, sample_scene


def renders(rng: np.random.Generator, n: int, size: int = 128, **scene: Any) -> Rendering:
    """``n`` fresh scenes; ``scene`` is for ``sample_scene``."""
    return render([sample_scene(rng, **scene) for _ in range(n)], size)


def regions(rendering: Rendering, image: int) -> Int[Tensor, "h w"]:
    """0 the backdrop, 1 the ground, from 2 on the things one by one."""
    return torch.where(rendering.thing[image] >= 0, rendering.thing[image] + 2, rendering.ground[image].long())


def parts(rendering: Rendering, image: int) -> Int[Tensor, "h w"]:
    """Of a scene whose things are of one kind: 0 what is no thing, from 1 on the kind's parts."""
    return rendering.part[image] + 1


@dataclass(frozen=True)
class Pair:
    """Two things of one kind, in two images, and points of them that correspond."""

    kind: str
    images: Float[Tensor, "2 3 h w"]
    points: Float[Tensor, "2 n 2"]
    """(x, y) in pixels, centres at halves: in the first image, and the same in the second."""
    masks: Int[Tensor, "2 h w"]
    """Where the thing is."""
    named: tuple[str, ...] = ()
    """What the points are, of keypoints."""

    @property
    def box(self) -> float:
        """Longer side of the thing's box in the second image, in pixels."""
        y, x = self.masks[1].nonzero().T
        return float(max(x.max() - x.min(), y.max() - y.min()) + 1)


def pairs(rng: np.random.Generator, n: int, points: int = 8, named: bool = False, size: int = 128) -> list[Pair]:
    """Pairs of single things of one kind: other shapes, colours, cameras, grounds, lights and styles.

    ``points`` of those that both images show, drawn from the dense correspondence, or the kind's keypoints (``named``).
    Pairs with fewer than two are drawn again.
    """
    out: list[Pair] = []
    while len(out) < n:
        kind = str(rng.choice([k for k in TRAINED if KINDS[k].keypoints or not named]))
        both = renders(rng, 2, size, count=1, kinds=(kind,))
        names: tuple[str, ...] = ()
        if named:
            first, second = (keypoints(both.scenes[i], both, i)[0] for i in range(2))
            names = tuple(k for k in first if first[k][2] and second[k][2])
            at = torch.tensor([[side[k][:2] for k in names] for side in (first, second)]).view(2, -1, 2)
        else:
            dense = correspond(both, both, (0, 0), (1, 0))
            seen = dense.visible.nonzero()[:, 0].numpy()
            some = rng.choice(seen, min(points, len(seen)), replace=False) if len(seen) else seen
            at = torch.stack([dense.source[some], dense.target[some]]).float() + 0.5
        if at.shape[1] >= 2:
            out.append(Pair(kind, both.images, at, (both.thing == 0).long(), names))
    return out
