"""A set of images of one prompt, with Stein variational gradient descent and without (Kim et al. 2023, figs. 6-8).

The source shows it on edits of a panorama's patches and of a video's frames; here a set is painted from noise, an image
its own, as in the source's text-to-3D. See ``baseline`` for edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between, Weight
from sfumato.distill import canvases, distil
from sfumato.experiments.common import MOST_STEPS, Batch, OfSubjects, Subjects, percent, tile
from sfumato.experiments.experiment import Findings
from sfumato.media import plots
from sfumato.methods.distill.collaborative_score_distillation import CollaborativeScoreDistillation
from sfumato.metrics.looks import spread


@dataclass(frozen=True)
class Set:
    """One run."""

    images: Batch
    spread: float
    """Of the images, in pixels."""
    latents: float
    """The same of the latents."""
    looks: Mapping[str, float]


@dataclass(frozen=True)
class Sets(Findings):
    on: Set
    off: Set
    repelled: Set
    """With collaboration, and the kernel's own gradient many times as strong."""
    repulsion: float

    def _named(self) -> dict[str, Set]:
        return {"off": self.off, "on": self.on, f"repulsion x {self.repulsion:g}": self.repelled}

    def numbers(self) -> dict[str, object]:
        rows = {
            name: {"spread": s.spread, "spread_of_latents": s.latents, **s.looks} for name, s in self._named().items()
        }
        return {"sets": rows, "spread_on_off": self.on.spread / self.off.spread}

    def ours(self) -> str:
        on, off, far = self.on, self.off, self.repelled
        return (
            f"Images of a set differ by {on.spread:.3f} with collaboration and by {off.spread:.3f} without, "
            f"{on.spread / off.spread:.2f} times as much; {percent(on.looks['right'])} are read right with it and "
            f"{percent(off.looks['right'])} without. With {self.repulsion:g} times the repulsion they differ by "
            f"{far.spread:.3f}."
        )

    def draw(self, path: Path, about: str = "") -> None:
        """A row a run, a column an image."""
        rows, n = self._named(), min(8, len(self.on.images))
        title = "A set of one prompt, with collaboration and without"
        with plots.figure(path, (max(1.4 * n, 5.0), 1.5 * len(rows) + 0.9), title, about) as figure:
            axes = figure.subplots(len(rows), n, squeeze=False)
            for i, (name, each) in enumerate(rows.items()):
                for j in range(n):
                    below = f"spread {each.spread:.3f}" if j == 0 else ""
                    tile(axes[i, j], each.images[j : j + 1], row=name if j == 0 else "", below=below)


@dataclass(frozen=True)
class Collaboration(OfSubjects):
    """A set of images of one prompt, with Stein variational gradient descent and without. n is the set's number.

    Example: sfumato experiment collaboration --prompt "a red cube on grass" --n 8
    """

    n: Annotated[int, Between(2, 64)] = 4
    """Images."""
    guidance: float = 20.0
    """Of all runs."""
    repulsion: Weight = 1e3
    """Times the kernel's own gradient, in a third run."""
    steps: Annotated[int, Between(1, MOST_STEPS)] = 150
    """Steps of each run."""

    source = (
        "Kim et al. 2023, figures 6 to 8: without Stein variational gradient descent the images of a set come out "
        "inconsistent, such as with blue caps and red ones; with it they agree."
    )
    together = True

    @property
    def works(self) -> int:
        return 3

    def measure(self, model: Backbone, subjects: Subjects) -> Sets:
        method = CollaborativeScoreDistillation(guidance=self.guidance)

        def run(method: CollaborativeScoreDistillation) -> Set:
            canvas = canvases.canvas(model, "latent", len(subjects.stated), self.seed)
            adam = canvases.optimiser("adam", "latent", None)
            distil(model, canvas, subjects.prompts, method, self.steps, optimiser=adam, seed=self.seed)
            images = canvases.shown(model, canvas)
            with torch.no_grad():
                return Set(images, spread(images), spread(canvas.render().images), subjects.looks(images))

        off, repelled = replace(method, bandwidth="off"), replace(method, repulsion=self.repulsion)
        return Sets(run(method), run(off), run(repelled), self.repulsion)
