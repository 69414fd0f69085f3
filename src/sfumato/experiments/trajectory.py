"""How a run gets from noise to an image: how alike its successive predictions are, which way its latents and pixels go.

The measurements of Jambon 2023 (Improved 3D scene reconstruction with diffusion models, section 5.4), the first of them
after EDICT (Wallace et al. 2023). Steps run from noise to data throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.core.results import Trajectory
from sfumato.core.schedule import Levels, Schedule
from sfumato.core.settings import Between
from sfumato.errors import SfumatoError
from sfumato.experiments.experiment import Experiment, Findings, Seed, plain
from sfumato.io.progress import progress
from sfumato.media import plots

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Decoded = Literal["x", "x0"]
Cells = Int[Tensor, "points 2"]
"""Row and column of cells of the latents."""
HALF = 0.5 / 255
"""So close to 0 or 1 a value is written as 0 or 255."""


def successive(values: Float[Tensor, "steps b *shape"]) -> Float[Tensor, "steps_1 b"]:
    """Cosine similarity of each step's value, from the second on, with the one before, an image at a time.

    Where one of the two is zero, and so has no direction, it is 0.
    """
    flat = values.double().flatten(2)
    return torch.cosine_similarity(flat[1:], flat[:-1], dim=-1).float()


def similarities(kept: Trajectory, schedule: Schedule, levels: Levels) -> dict[str, Float[Tensor, "steps_1 b"]]:
    """How alike successive predictions are: of the noise, ``unconditional`` and ``conditional``, and ``guidance``.

    ``kept`` holds ``x``, ``uncond`` and ``cond``, the network's own predictions, which are read as noise. Guidance is
    their difference, taken as the network says it: in noise, v, flow velocity and x0 it points the same way, up to a
    sign that stays; and at a level without signal, where as noise it would vanish, it still has a direction.
    """

    def noise(name: str) -> Float[Tensor, "steps b c h w"]:
        return schedule.x0_and_eps(kept[name], kept["x"], levels.all.rows(slice(len(levels))))[1]

    return {
        "unconditional": successive(noise("uncond")),
        "conditional": successive(noise("cond")),
        "guidance": successive(kept["cond"] - kept["uncond"]),
    }


def some_cells(height: int, width: int, n: int, generator: torch.Generator) -> Cells:
    """``n`` cells of latents of this size, at random, each once. ``SfumatoError`` when there are not so many."""
    if n > height * width:
        raise SfumatoError(f"latents of {height} x {width} have {height * width} points, so {n} cannot be followed")
    flat = torch.randperm(height * width, generator=generator)[:n]
    return torch.stack([flat // width, flat % width], 1)


def some_pixels(cells: Cells, factor: int, n: int, generator: torch.Generator) -> Int[Tensor, "points n 2"]:
    """Row and column of ``n`` (or all) of the ``factor`` x ``factor`` pixels that each cell becomes, at random."""
    inside = torch.stack([torch.randperm(factor**2, generator=generator)[:n] for _ in cells])
    return cells[:, None] * factor + torch.stack([inside // factor, inside % factor], -1)


def points(values: Float[Tensor, "*b c h w"], at: Int[Tensor, "*points 2"]) -> Float[Tensor, "*b *points c"]:
    """All channels at places of latents or images."""
    found = values[..., at[..., 0], at[..., 1]]
    return found.movedim(values.ndim - 3, -1)


def ranges(path: Float[Tensor, "steps b *shape"]) -> Float[Tensor, " b"]:
    """How far apart the greatest and the least value on a path are, averaged over an image's paths."""
    return (path.amax(0) - path.amin(0)).flatten(1).mean(1)


def at_border(rgb: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Which values in [0, 1] an 8-bit picture holds as 0 or 255."""
    return (rgb <= HALF) | (rgb >= 1 - HALF)


@dataclass(frozen=True)
class Course(Findings):
    """One noise painted at several guidance scales, step by step."""

    prompt: str
    decoded: Decoded
    scales: tuple[float, ...]
    times: tuple[float, ...]
    """Of each level from noise to data; the last is 0."""
    similarity: dict[str, Float[Tensor, "steps_1 scales"]]
    """See ``similarities``; the first is that of the steps at ``times[1]`` and ``times[0]``."""
    latents: Float[Tensor, "levels scales c h w"]
    """z_T to z_0."""
    cells: Cells
    rgb: Float[Tensor, "levels scales points pixels 3"]
    """What some pixels of each cell are when the latents of each step are decoded."""
    images: Float[Tensor, "scales 3 H W"]
    words: Mapping[str, object] = field(default_factory=dict)
    """Text entries of the PNGs: how it was painted."""

    def rows(self) -> list[dict[str, Any]]:
        """What can be said in numbers, a record a scale.

        ``similarity`` is a mean over the steps; ``range`` a mean over all paths in the latents, ``range_points`` over
        those at ``cells``; ``border`` the part of the image's values that are 0 or 255, ``border_points`` of ``rgb``'s.
        """
        paths = points(self.latents, self.cells)
        every, here = ranges(self.latents), ranges(paths)
        return [
            {
                "scale": scale,
                "similarity": {name: float(curve[:, i].mean()) for name, curve in self.similarity.items()},
                "range": float(every[i]),
                "range_points": float(here[i]),
                "least": float(paths[:, i].min()),
                "greatest": float(paths[:, i].max()),
                "border": float(at_border(self.images[i]).float().mean()),
                "border_points": float(at_border(self.rgb[-1, i]).float().mean()),
            }
            for i, scale in enumerate(self.scales)
        ]

    def numbers(self) -> dict[str, Any]:
        """The records, with the curves of their similarities."""
        curves = [{k: v[:, i].tolist() for k, v in self.similarity.items()} for i in range(len(self.scales))]
        rows = [{**row, "curves": each} for row, each in zip(self.rows(), curves, strict=True)]
        return {"times": self.times, "cells": self.cells.tolist(), "scales": rows}

    def table(self) -> list[dict[str, str]]:
        return [
            {
                "scale": f"{row['scale']:g}",
                **{name: f"{value:.4f}" for name, value in row["similarity"].items()},
                "range": f"{row['range']:.2f}",
                "at border": f"{row['border']:.1%}",
            }
            for row in self.rows()
        ]

    def figures(self, path: Path) -> dict[str, Path]:
        _, dot, number = path.stem.partition(".")
        return {name: path.with_name(f"{name}{dot}{number}.png") for name in ("similarity", "latents", "pixels")}

    def draw(self, path: Path, about: str = "") -> None:
        """The three figures (5.6 to 5.8 of the source), which say themselves what they are about.

        Columns are scales; time runs from right to left, as z_T to z_0 is read.
        """
        files = self.figures(path)
        _similarity(self, files["similarity"])
        _latents(self, files["latents"])
        _pixels(self, files["pixels"])


@torch.no_grad()
def follow(
    model: Backbone,
    prompt: str,
    scales: Sequence[float] = (1.0, 3.0, 7.5, 15.0, 30.0),
    *,
    steps: int = 100,
    seed: int = 0,
    many: int = 3,
    pixels: int = 8,
    decoded: Decoded = "x",
) -> Course:
    """Paint ``prompt`` from one noise by DDIM at several guidance scales, a stream each, and keep every step.

    Scale 1 keeps its unconditional prediction too. ``many`` cells, the same for all scales, are followed, and in each
    ``pixels`` of its pixels, in what becomes of ``decoded``: the noisy latents, as in the source, or the estimates of
    the image. ``SfumatoError`` for scales given twice, too many points, and a run that leaves the finite numbers.
    """
    names = [f"guidance {float(s)}" for s in scales]
    if not names or len(set(names)) < len(names):
        raise SfumatoError(f"scales are given once each, got: {', '.join(map(str, scales)) or 'none'}")
    if steps < 2:
        raise SfumatoError(f"successive steps are compared, so there are at least 2, got {steps}")
    generator = torch.Generator().manual_seed(seed)
    side = model.size // model.factor
    cells = some_cells(side, side, many, generator)
    where = some_pixels(cells, model.factor, pixels, generator)
    levels = model.levels(steps, (side, side))
    kept = Trajectory(("x", "uncond", "cond", *(("x0",) if decoded == "x0" else ())))
    painted = denoise(
        model,
        dict.fromkeys(names, prompt),
        guide=CFG(dict(zip(names, map(float, scales), strict=True))),
        levels=levels,
        seed=seed,
        trajectory=kept,
    )
    last = torch.stack([p.latents[0].cpu() for p in painted.values()])
    latents = torch.cat([kept["x"], last[None]])
    images, rgb = torch.empty(0), []
    with progress("decoding", len(levels) + 1) as advance:
        for shown in (*kept[decoded], last):
            images = model.decode(shown.to(model.device)).cpu()
            rgb.append(points(images, where))
            advance()
    return Course(
        prompt,
        decoded,
        tuple(map(float, scales)),
        tuple(levels.all.t.clamp_min(0).tolist()),
        similarities(kept, model.schedule, levels),
        latents,
        cells,
        torch.stack(rgb),
        images,
    )


WIDE, TALL = 2.3, 1.7  # a panel, in inches


@contextmanager
def _panels(course: Course, path: Path, rows: int, title: str) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with the images on top and rows of panels over time below them, one column a scale."""
    from matplotlib.ticker import MaxNLocator

    n = len(course.scales)
    size = (max(2.2, n) * WIDE, WIDE + rows * TALL + 0.8)
    about = f"DDIM, {len(course.times) - 1} steps from one noise, read from right to left: “{course.prompt}”"
    with plots.figure(path, size, title, about, course.words) as figure:
        grid = figure.subplots(rows + 1, n, squeeze=False, height_ratios=[WIDE, *[TALL] * rows])
        for axes, pixels, scale in zip(grid[0], course.images, course.scales, strict=True):
            plots.image(axes, pixels, f"guidance {scale:g}")
        for axes in grid[1:].flat:
            axes.sharex(grid[1, 0])
            axes.sharey(grid[1, 0])
            axes.label_outer()
        grid[1, 0].xaxis.set_major_locator(MaxNLocator(3))
        for axes in grid[-1]:
            axes.set_xlabel("time step t")
        yield figure, grid


def _similarity(course: Course, path: Path) -> None:
    title = "Cosine similarity of each prediction with the one before it"
    with _panels(course, path, 1, title) as (figure, grid):
        looks: dict[str, plots.Look] = {
            "unconditional": {"color": plots.PALE, "linewidth": 2.6},  # the next may lie on it
            "conditional": {"color": plots.COLOURS[0]},
            "guidance": {"color": plots.COLOURS[1]},
        }
        for i, axes in enumerate(grid[1]):
            for name, look in looks.items():
                axes.plot(course.times[1:-1], course.similarity[name][:, i], **look)
        grid[1, 0].set_ylabel("cosine similarity")
        plots.legend(figure, looks)


def _marks(course: Course, grid: np.ndarray, what: str) -> None:
    """Where the cells are, on the images and, with what is drawn of them, beside their rows."""
    factor = course.images.shape[-1] // course.latents.shape[-1]
    for k, (row, column) in enumerate(course.cells.tolist()):
        grid[k + 1, 0].set_ylabel(f"{what}, point {k + 1}")
        for axes in grid[0]:
            plots.mark(axes, row * factor, column * factor, factor, str(k + 1))


def _latents(course: Course, path: Path) -> None:
    values = points(course.latents, course.cells)
    shades = plots.colours(values.shape[-1])
    title = "Paths of single points of the latents, z_T to z_0"
    with _panels(course, path, len(course.cells), title) as (figure, grid):
        _marks(course, grid, "latents")
        for k, axes in enumerate(grid[1:]):
            for i, panel in enumerate(axes):
                for channel, colour in enumerate(shades):
                    panel.plot(course.times, values[:, i, k, channel], color=colour)
        plots.legend(figure, {f"channel {i}": {"color": colour} for i, colour in enumerate(shades)})


def _pixels(course: Course, path: Path) -> None:
    what = "latents" if course.decoded == "x" else "estimates"
    title = f"RGB paths of {course.rgb.shape[3]} pixels in each square, {what} decoded"
    with _panels(course, path, len(course.cells), title) as (figure, grid):
        _marks(course, grid, "RGB")
        for k, axes in enumerate(grid[1:]):
            for i, panel in enumerate(axes):
                _rgb(panel, course.times, course.rgb[:, i, k])
        red, green, blue = ({"color": colour} for colour in plots.RGB)
        plots.legend(figure, {"red": red, "green": green, "blue": blue, "limits": plots.LIMIT})


def _rgb(axes: Axes, times: Sequence[float], values: Float[Tensor, "levels pixels 3"]) -> None:
    for limit in (0, 1):
        axes.axhline(limit, **plots.LIMIT)
    for channel, colour in enumerate(plots.RGB):
        axes.plot(times, values[..., channel], color=colour, linewidth=0.7, alpha=0.7)
    axes.set_ylim(-0.06, 1.06)


@dataclass(frozen=True)
class Trajectories(Experiment):
    """Paint one noise at several guidance scales and draw how it goes: predictions, latents and pixels, step by step.

    Example: sfumato experiment trajectory "a red cube on grass" --scales 1 3 7.5 15 30 --steps 100
    """

    prompt: str
    """What to paint."""
    scales: tuple[float, ...] = (1.0, 3.0, 7.5, 15.0, 30.0)
    """Scales of classifier-free guidance; 1 is without."""
    steps: Annotated[int, Between(2, 1000)] = 100
    """DDIM steps."""
    points: Annotated[int, Between(1, 6)] = 3
    """Places in the latents to follow, at random by the seed."""
    decode: Literal["z", "estimate"] = "z"
    """Pixels of the noisy latents, or of what they are estimated to become."""
    seed: Seed = 0
    """The same seed gives the same result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.scales) > 8:
            raise SfumatoError(f"scales are one to eight different numbers, got {plain(self.scales)}")
        if not self.prompt.strip():
            raise SfumatoError("the prompt is empty, so there is no guidance to follow; say what to paint")

    def settings(self, model: Backbone) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "scales": self.scales,
            "steps": self.steps,
            "seed": self.seed,
            "model": model.name,
            "decode": self.decode,
        }

    @property
    def works(self) -> int:
        return 2

    def run(self, model: Backbone) -> Course:
        decoded: Decoded = "x" if self.decode == "z" else "x0"
        course = follow(
            model, self.prompt, self.scales, steps=self.steps, seed=self.seed, many=self.points, decoded=decoded
        )
        return replace(course, words=self.settings(model))
