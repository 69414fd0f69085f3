"""Guidance x method: what distillation makes of a prompt, with random views and without (Jambon 2023, figs. 5.2-5.5).

The source moves pixels kept in [0, 1], or latents, 128 x 128, and looks at them turned by up to 30 degrees and 0.6 to
1.2 times as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between
from sfumato.distill import Distillation, RandomViews, canvases
from sfumato.experiments.common import (
    MOST_STEPS,
    Batch,
    OfSubjects,
    Subjects,
    distilled,
    guided,
    listed,
    percent,
    published,
    tile,
)
from sfumato.experiments.experiment import Findings
from sfumato.media import plots

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
class Grid(Findings):
    space: canvases.Space
    cells: tuple[Cell, ...]

    def of(self, method: str, views: bool) -> list[Cell]:
        """A row, by guidance."""
        return [c for c in self.cells if c.method == method and c.views == views]

    @property
    def rows(self) -> list[tuple[str, bool]]:
        return list(dict.fromkeys((c.method, c.views) for c in self.cells))

    def numbers(self) -> dict[str, object]:
        cells = [{"method": c.method, "guidance": c.guidance, "random_views": c.views, **c.looks} for c in self.cells]
        return {"space": self.space, "cells": cells}

    def ours(self) -> str:
        parts = []
        for method, views in self.rows:
            row = self.of(method, views)
            name = f"{method} {'with random views' if views else 'straight'}"
            best = max(row, key=lambda c: c.looks["right"])
            if best.looks["right"]:
                right = percent(best.looks["right"])
                parts.append(f"{name} is read right most ({right}) first at a guidance of {best.guidance:g}")
            else:
                parts.append(f"{name} is never read right")
        smoother = []
        for method in dict.fromkeys(m for m, _ in self.rows):
            straight, random = (sum(c.looks["detail"] for c in self.of(method, v)) for v in (False, True))
            if straight and random:
                smoother.append(f"{random / straight:.2g} times for {method}")
        tail = f" Detail with random views over that without: {listed(smoother)}." if smoother else ""
        return f"In {self.space}s: {'; '.join(parts)}.{tail}"

    def draw(self, path: Path, about: str = "") -> None:
        """A row a method and way to look, a column a guidance."""
        columns = len(self.of(*self.rows[0]))
        size = (1.45 * columns + 0.4, 1.55 * len(self.rows) + 0.7)
        with plots.figure(path, size, f"Distilled into {self.space}s, by guidance", about) as figure:
            axes = figure.subplots(len(self.rows), columns, squeeze=False)
            for i, (method, views) in enumerate(self.rows):
                for j, cell in enumerate(self.of(method, views)):
                    head = f"guidance {cell.guidance:g}" if i == 0 else ""
                    side = f"{method}\n{VIEWS[views]}" if j == 0 else ""
                    tile(axes[i, j], cell.images, head, side, f"saturation {cell.looks['saturation']:.2f}")


@dataclass(frozen=True)
class GuidanceGrid(OfSubjects):
    """Pictures by guidance and method, with random views and without: all from the same noise.

    Example: sfumato experiment guidance-grid --prompt "a red cube on grass" --n 1 --methods sds,nfsd
    """

    n: Annotated[int, Between(1, 64)] = 1
    """Images."""
    methods: Mapping[str, Distillation] = field(default_factory=published)
    """Methods that distil; on a command line WORD:PRESET for one of their presets."""
    guidances: tuple[float, ...] = (1.0, 7.5, 30.0, 100.0)
    """Scales of classifier-free guidance, u + s (c - u)."""
    space: canvases.Space = "latent"
    """What is moved."""
    views: Literal["both", "straight", "random"] = "both"
    """Are images turned and scaled at random?"""
    steps: Annotated[int, Between(1, MOST_STEPS)] = 60
    """Steps of each run."""

    source = (
        "Jambon 2023, figures 5.2 to 5.5: score distillation finds no valid image at a low guidance and needs a very "
        "high one; in latents random views smooth the image too much, in pixels they are what makes it consistent."
    )
    untold = ("views",)

    @property
    def works(self) -> int:
        return len(self.methods) * len(self.guidances) * (2 if self.views == "both" else 1)

    def measure(self, model: Backbone, subjects: Subjects) -> Grid:
        ways = {"both": (False, True), "straight": (False,), "random": (True,)}[self.views]
        named = self.methods.items()
        runs = [(n, m, seen, g) for n, m in named for seen in ways for g in sorted(self.guidances)]
        runs = [(n, guided(n, m, g), seen, g) for n, m, seen, g in runs]  # what has none is known before all runs
        cells = []
        for name, method, seen, scale in runs:
            looked = RandomViews(len(subjects.stated)) if seen else None
            images = distilled(model, subjects.prompts, method, self.steps, self.seed, self.space, looked)
            cells.append(Cell(name, scale, seen, images, subjects.looks(images)))
        return Grid(self.space, tuple(cells))
