"""How many steps an inversion needs: quality and seconds (Lukoianov 2024, fig. 6.6).

The source counts the steps of an inversion up to t = 1; at t it takes that part of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.core.backbone import Backbone
from sfumato.core.guidance import CFG
from sfumato.distill import GuidedModel
from sfumato.experiments.common import Batch, Subjects, listed, percent, tile
from sfumato.experiments.kappa_error import along, error, inverted_as
from sfumato.media import plots
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion

SOURCE = (
    "Lukoianov 2024, figure 6.6: 10 steps are enough. With 3, 5, 10, 20 and 30 a shape takes 1:22, 1:44, 1:59, 2:54 "
    "and 4:07 hours, and its quality by CLIP-IQA is 71, 76, 82, 83 and 83 %."
)
COUNTS = (3, 5, 10, 20, 30)
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
class InversionSteps:
    runs: tuple[Run, ...]
    renders: Batch
    reference: Mapping[str, float]


def inversion_steps(
    model: Backbone,
    subjects: Subjects,
    counts: Sequence[int] = COUNTS,
    steps: int = 30,
    levels: int = 6,
    seed: int = 0,
) -> InversionSteps:
    """A run of SDI for each number of inversion steps."""
    runs = []
    for count in sorted(counts):
        method = ScoreDistillationViaInversion(per_unit=count)
        prior = GuidedModel(model, subjects.prompts, CFG(method.guidance))
        began = time.perf_counter()
        images, states = along(model, subjects, method, steps, seed, levels)
        seconds = (time.perf_counter() - began) / len(images)
        with torch.no_grad():
            wrong = [error(prior, s.x, inverted_as(method, prior, s.x, s.at), s.at).mean() for s in states]
        runs.append(Run(count, images, subjects.looks(images), float(torch.stack(wrong).mean()), seconds))
    renders = subjects.renders()
    return InversionSteps(tuple(runs), renders, subjects.looks(renders))


def numbers(found: InversionSteps) -> dict[str, object]:
    """The figures, for a machine to read."""
    rows = [{"steps": r.count, "seconds": r.seconds, "error": r.error, **r.looks} for r in found.runs]
    return {"renders": dict(found.reference), "runs": rows}


def ours(found: InversionSteps) -> str:
    """What the numbers say."""
    runs = found.runs
    best = min(runs, key=lambda r: r.error)
    enough = next(r for r in runs if r.error <= best.error * (1 + ENOUGH))
    counts = listed([str(r.count) for r in runs])
    took = ", ".join(f"{r.seconds:.0f}" for r in runs)
    errors = ", ".join(f"{r.error:.3g}" for r in runs)
    right = ", ".join(percent(r.looks["right"]) for r in runs)
    return (
        f"With {counts} steps an image takes {took} seconds, its mean error in eq. 4.4 is {errors}, and {right} are "
        f"read right; the error is least with {best.count}, and first within {percent(ENOUGH)} of that with "
        f"{enough.count}."
    )


def draw(found: InversionSteps, path: Path, about: str) -> None:
    """Pictures by the number of steps, and below them time and error."""
    columns = len(found.runs) + 1
    with plots.figure(path, (1.65 * columns, 4.3), "Steps of the inversion", about) as figure:
        grid = figure.add_gridspec(2, 2 * columns, height_ratios=(1, 1.2))
        tile(figure.add_subplot(grid[0, :2]), found.renders, "renders")
        for j, r in enumerate(found.runs, 1):
            head = f"{r.count} steps"
            below = f"{r.seconds:.0f} s, right {percent(r.looks['right'])}"
            tile(figure.add_subplot(grid[0, 2 * j : 2 * j + 2]), r.images, head, below=below)
        counts = [r.count for r in found.runs]
        kinds = {"seconds an image": [r.seconds for r in found.runs], "error in eq. 4.4": [r.error for r in found.runs]}
        for k, (title, values) in enumerate(kinds.items()):
            panel = figure.add_subplot(grid[1, k * columns : (k + 1) * columns])
            panel.plot(counts, values, "o-", color=plots.COLOURS[k], markersize=3.5)
            panel.set_xlabel("steps")
            panel.set_title(title)
            panel.set_xticks(counts)
            panel.set_ylim(0, 1.1 * max(values))
