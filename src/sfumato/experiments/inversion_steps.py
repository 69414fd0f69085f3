"""How many steps an inversion needs: quality and seconds (Lukoianov 2024, fig. 6.6).

The source counts the steps of an inversion up to t = 1; at t it takes that part of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between, Count
from sfumato.errors import whole
from sfumato.experiments.common import MOST_STEPS, Batch, OfSubjects, Subjects, listed, percent, tile
from sfumato.experiments.experiment import Findings
from sfumato.experiments.kappa_error import LOOKS, along, inverted_errors
from sfumato.media import plots
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion

ENOUGH = 0.05
"""An error so little above the least one is as good."""


@dataclass(frozen=True)
class Run:
    """A run with so many steps of inversion to t = 1."""

    count: int
    images: Batch
    looks: Mapping[str, float]
    error: float
    """In eq. 4.4, mean along the run."""
    seconds: float
    """Of the run, an image."""


@dataclass(frozen=True)
class Runs(Findings):
    runs: tuple[Run, ...]
    renders: Batch
    reference: Mapping[str, float]

    def numbers(self) -> dict[str, object]:
        rows = [{"steps": r.count, "seconds": r.seconds, "error": r.error, **r.looks} for r in self.runs]
        return {"renders": dict(self.reference), "runs": rows}

    def ours(self) -> str:
        runs = self.runs
        best = min(runs, key=lambda r: r.error)
        enough = next(r for r in runs if r.error <= best.error * (1 + ENOUGH))
        counts = listed([str(r.count) for r in runs])
        took = ", ".join(f"{r.seconds:.0f}" for r in runs)
        errors = ", ".join(f"{r.error:.3g}" for r in runs)
        right = ", ".join(percent(r.looks["right"]) for r in runs)
        return (
            f"With {counts} steps an image takes {took} seconds, its mean error in eq. 4.4 is {errors}, and {right} "
            f"are read right; the error is least with {best.count}, and first within {percent(ENOUGH)} of that with "
            f"{enough.count}."
        )

    def draw(self, path: Path, about: str = "") -> None:
        """Pictures by the number of steps, and below them time and error."""
        columns = len(self.runs) + 1
        with plots.figure(path, (1.65 * columns, 4.3), "Steps of the inversion", about) as figure:
            grid = figure.add_gridspec(2, 2 * columns, height_ratios=(1, 1.2))
            tile(figure.add_subplot(grid[0, :2]), self.renders, "renders")
            for j, r in enumerate(self.runs, 1):
                head = f"{r.count} steps"
                below = f"{r.seconds:.0f} s, right {percent(r.looks['right'])}"
                tile(figure.add_subplot(grid[0, 2 * j : 2 * j + 2]), r.images, head, below=below)
            counts = [r.count for r in self.runs]
            kinds = {
                "seconds an image": [r.seconds for r in self.runs],
                "error in eq. 4.4": [r.error for r in self.runs],
            }
            for k, (title, values) in enumerate(kinds.items()):
                panel = figure.add_subplot(grid[1, k * columns : (k + 1) * columns])
                panel.plot(counts, values, "o-", color=plots.COLOURS[k], markersize=3.5)
                panel.set_xlabel("steps")
                panel.set_title(title)
                panel.set_xticks(counts)
                panel.set_ylim(0, 1.1 * max(values))


@dataclass(frozen=True)
class InversionSteps(OfSubjects):
    """How many steps an inversion needs: pictures, error and seconds.

    Example: sfumato experiment inversion-steps --counts 3 10 30
    """

    counts: tuple[Count, ...] = (3, 5, 10, 20, 30)
    """Steps of an inversion up to t = 1."""
    steps: Annotated[int, Between(2, MOST_STEPS)] = 30
    """Steps of each run."""

    source = (
        "Lukoianov 2024, figure 6.6: 10 steps are enough. With 3, 5, 10, 20 and 30 a shape takes 1:22, 1:44, 1:59, "
        "2:54 and 4:07 hours, and its quality by CLIP-IQA is 71, 76, 82, 83 and 83 %."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for count in self.counts:
            whole("counts", count, 1, 1000)

    @property
    def works(self) -> int:
        return len(self.counts)

    def measure(self, model: Backbone, subjects: Subjects) -> Runs:
        runs = []
        for count in sorted(self.counts):
            method = ScoreDistillationViaInversion(per_unit=count)
            began = time.perf_counter()
            images, states = along(model, subjects, method, self.steps, self.seed, min(LOOKS, self.steps))
            seconds = (time.perf_counter() - began) / len(images)
            error = float(inverted_errors(model, subjects, method, states).mean())
            runs.append(Run(count, images, subjects.looks(images), error, seconds))
        renders = subjects.renders()
        return Runs(tuple(runs), renders, subjects.looks(renders))
