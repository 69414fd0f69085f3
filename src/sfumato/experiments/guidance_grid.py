"""Guidance x method: what distillation makes of a prompt, with random views and without (Jambon 2023, figs. 5.2-5.5).

The source moves pixels kept in [0, 1], or latents, 128 x 128, and looks at them turned by up to 30 degrees and 0.6 to
1.2 times as large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.core.backbone import Backbone
from sfumato.distill import Distillation, RandomViews, canvases
from sfumato.experiments.common import Batch, Subjects, distilled, guided, listed, percent, tile
from sfumato.media import plots

SOURCE = (
    "Jambon 2023, figures 5.2 to 5.5: score distillation finds no valid image at a low guidance and needs a very high "
    "one; in latents random views smooth the image too much, in pixels they are what makes it consistent."
)
VIEWS = {False: "straight", True: "random views"}


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    guidance: float
    views: bool
    images: Batch
    looks: Mapping[str, float]


@dataclass(frozen=True)
class Grid:
    space: canvases.Space
    cells: tuple[Cell, ...]

    def of(self, method: str, views: bool) -> list[Cell]:
        """A row, by guidance."""
        return [c for c in self.cells if c.method == method and c.views == views]

    @property
    def rows(self) -> list[tuple[str, bool]]:
        return list(dict.fromkeys((c.method, c.views) for c in self.cells))


def guidance_grid(
    model: Backbone,
    subjects: Subjects,
    methods: Mapping[str, Distillation],
    guidances: Sequence[float],
    steps: int,
    seed: int = 0,
    space: canvases.Space = "latent",
    views: Sequence[bool] = (False, True),
) -> Grid:
    """A run for each method, guidance and way to look, all from the same noise."""
    runs = [(n, m, seen, g) for n, m in methods.items() for seen in views for g in sorted(guidances)]
    runs = [(n, guided(n, m, g), seen, g) for n, m, seen, g in runs]  # what cannot be guided is known before all runs
    cells = []
    for name, method, seen, scale in runs:
        looked = RandomViews(len(subjects.said)) if seen else None
        images = distilled(model, subjects.prompts, method, steps, seed, space, looked)
        cells.append(Cell(name, scale, seen, images, subjects.looks(images)))
    return Grid(space, tuple(cells))


def numbers(found: Grid) -> dict[str, object]:
    """The figures, for a machine to read."""
    cells = [{"method": c.method, "guidance": c.guidance, "random_views": c.views, **c.looks} for c in found.cells]
    return {"space": found.space, "cells": cells}


def ours(found: Grid) -> str:
    """What the numbers say."""
    parts = []
    for method, views in found.rows:
        row = found.of(method, views)
        name = f"{method} {'with random views' if views else 'straight'}"
        best = max(row, key=lambda c: c.looks["right"])
        if best.looks["right"]:
            parts.append(
                f"{name} is read right most ({percent(best.looks['right'])}) first at a guidance of {best.guidance:g}"
            )
        else:
            parts.append(f"{name} is never read right")
    smoother = []
    for method in dict.fromkeys(m for m, _ in found.rows):
        straight, random = (sum(c.looks["detail"] for c in found.of(method, v)) for v in (False, True))
        if straight and random:
            smoother.append(f"{random / straight:.2g} times for {method}")
    tail = f" Detail with random views over that without: {listed(smoother)}." if smoother else ""
    return f"In {found.space}s: {'; '.join(parts)}.{tail}"


def draw(found: Grid, path: Path, about: str) -> None:
    """A row a method and way to look, a column a guidance."""
    columns = len(found.of(*found.rows[0]))
    size = (1.45 * columns + 0.4, 1.55 * len(found.rows) + 0.7)
    with plots.figure(path, size, f"Distilled into {found.space}s, by guidance", about) as figure:
        axes = figure.subplots(len(found.rows), columns, squeeze=False)
        for i, (method, views) in enumerate(found.rows):
            for j, cell in enumerate(found.of(method, views)):
                head = f"guidance {cell.guidance:g}" if i == 0 else ""
                side = f"{method}\n{VIEWS[views]}" if j == 0 else ""
                tile(axes[i, j], cell.images, head, side, f"saturation {cell.looks['saturation']:.2f}")
