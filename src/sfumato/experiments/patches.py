"""Do patches that show the same place agree, in pixels and in latents? (Jambon 2023, figure 4.4)

Normalised cross-correlation of patches around matched points of several views, against the angle and the distance
between the cameras. The source finds that it falls with both in pixels, and that latents hardly correlate at any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between
from sfumato.errors import SfumatoError
from sfumato.experiments.experiment import Experiment, Findings, Seed
from sfumato.io.files import named
from sfumato.media import plots
from sfumato.ops.warps import warp

CELLS = 3
"""Side of a patch in cells of the latents; in pixels it is as many times the cell's side."""


@dataclass(frozen=True)
class Matched:
    """Points of the first view and where another shows them, and how far apart their cameras are."""

    view: int
    source: Float[Tensor, "n 2"]
    target: Float[Tensor, "n 2"]
    """(x, y) in pixels, centres at halves."""
    angle: float
    """Between the viewing directions, in degrees."""
    distance: float
    """Between the cameras, in the scene's units."""


def patches(
    maps: Float[Tensor, "c h w"], points: Float[Tensor, "n 2"], side: int, size: tuple[int, int]
) -> Float[Tensor, "n c s s"]:
    """Square patches of ``side`` samples, a cell apart, around points in the pixels of an image of ``size``."""
    h, w = maps.shape[-2:]
    offset = torch.arange(side) - (side - 1) / 2
    dy, dx = torch.meshgrid(offset / h, offset / w, indexing="ij")
    share = points / torch.tensor([size[1], size[0]])
    at = share[:, None, None] + torch.stack([dx, dy], -1)
    whole = maps[None].expand(len(points), -1, -1, -1)
    return warp(whole, at)


def correlation(a: Float[Tensor, "n c s s"], b: Float[Tensor, "n c s s"]) -> Float[Tensor, " n"]:
    """Normalised cross-correlation: each channel less its mean over the patch, all channels together."""
    a, b = (x - x.mean((2, 3), keepdim=True) for x in (a, b))
    return F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


@dataclass(frozen=True)
class Correlations(Findings):
    """How well each view's matches agree with the first view, in ``pixels`` and in ``latents``."""

    matched: Sequence[Matched]
    values: Mapping[str, list[Float[np.ndarray, " n"]]]

    def rows(self) -> list[dict[str, float]]:
        """Mean and spread of the correlations of each view."""
        rows = []
        for i, m in enumerate(self.matched):
            row = {"angle": m.angle, "distance": m.distance, "matches": float(len(self.values["pixels"][i]))}
            for what, values in self.values.items():
                if len(values[i]):
                    row |= {what: float(values[i].mean()), f"{what}_std": float(values[i].std())}
            rows.append(row)
        return rows

    def numbers(self) -> dict[str, Any]:
        return {"views": self.rows()}

    def draw(self, path: Path, about: str = "") -> None:
        """Correlation against angle and distance, in pixels and latents, with its spread."""
        rows = [r for r in self.rows() if "pixels" in r]
        with plots.figure(path, (7.5, 5.2), "Patches that show the same place", about) as figure:
            axes = figure.subplots(2, 2, sharey=True)
            for row, key in enumerate(("distance", "angle")):
                at = [r[key] for r in rows]
                for column, what in enumerate(("pixels", "latents")):
                    mean, std = ([r[k] for r in rows] for k in (what, f"{what}_std"))
                    axes[row, column].errorbar(at, mean, std, fmt="o", color=plots.COLOURS[column], elinewidth=0.7)
                    axes[row, column].set_title(what)
                    axes[row, column].set_xlabel("angle, degrees" if key == "angle" else key)
                axes[row, 0].set_ylabel("correlation")


@torch.no_grad()
def patch_correlations(
    model: Backbone, images: Float[Tensor, "v 3 h w"], matched: Sequence[Matched], cells: int = CELLS
) -> Correlations:
    """Of each view's matches with the first view. Matches whose patch would leave an image are left out."""
    latents = model.encode(images.to(model.device)).cpu()
    size, rim = (images.shape[-2], images.shape[-1]), cells * model.factor / 2
    limit = torch.tensor([size[1], size[0]]) - rim
    out: dict[str, list[Float[np.ndarray, " n"]]] = {"pixels": [], "latents": []}
    for m in matched:
        both = torch.stack([m.source, m.target])
        kept = ((both >= rim) & (both <= limit)).all(2).all(0)
        for what, maps, side in (("pixels", images.cpu(), cells * model.factor), ("latents", latents, cells)):
            first = patches(maps[0], m.source[kept], side, size)
            out[what].append(correlation(first, patches(maps[m.view], m.target[kept], side, size)).numpy())
    return Correlations(matched, out)


def still_life(seed: int = 0, views: int = 13, full: float = 120.0) -> tuple[Float[Tensor, "v 3 h w"], list[Matched]]:
    """A drawn scene seen along an arc of ``full`` degrees, the middle view first, with exact matches of its things."""
    from sfumato.stilllife.moves import correspond, orbit
    from sfumato.stilllife.render import render
    from sfumato.stilllife.scene import sample_scene

    scene = sample_scene(np.random.default_rng(seed), count=2, style="photo")
    scenes = orbit(scene, views, full=full)
    middle = views // 2
    scenes = [scenes[middle], *scenes[:middle], *scenes[middle + 1 :]]
    shown = render(scenes)
    axes = [np.asarray(s.camera.to_world())[:3, 2] for s in scenes]
    matched = []
    for v in range(1, views):
        dense = [correspond(shown, shown, (0, i), (v, i), within=0.02) for i in range(len(scene.things))]
        source, target = (
            torch.cat([getattr(d, side)[d.visible].float() for d in dense]) + 0.5 for side in ("source", "target")
        )
        angle = float(np.degrees(np.arccos(np.clip(axes[0] @ axes[v], -1, 1))))
        distance = float(np.linalg.norm(scenes[0].camera.eye - scenes[v].camera.eye))
        matched.append(Matched(v, source, target, angle, distance))
    return shown.images, matched


@dataclass(frozen=True)
class Patches(Experiment):
    """Correlate patches that show the same place from several cameras, in pixels and in latents, by angle and distance.

    Example: sfumato experiment patches --seed 3
    """

    views: Annotated[int, Between(3, 100)] = 13
    """Cameras on an arc around a drawn scene."""
    arc: Annotated[float, Between(1, 360)] = 120.0
    """Its length in degrees."""
    seed: Seed = 0
    """The same seed gives the same result."""

    def about(self, model: Backbone) -> str:
        return f"{named(model.name)}: scene {self.seed}, {self.views} views"

    def run(self, model: Backbone) -> Correlations:
        """``SfumatoError`` for a model that works on images of another size than scenes are drawn at."""
        images, matched = still_life(self.seed, self.views, self.arc)
        side = images.shape[-1]
        if side != model.size:
            raise SfumatoError(f"scenes are drawn at {side} pixels, {model.name} works on {model.size}; take stilllife")
        return patch_correlations(model, images, matched)
