"""A set of images of one prompt, with Stein variational gradient descent and without (Kim et al. 2023, figs. 6-8).

The source shows it on edits of a panorama's patches and of a video's frames; here a set is painted from noise, an image
its own, as in the source's text-to-3D. See ``baseline`` for edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato.core.backbone import Backbone
from sfumato.distill import canvases, distil
from sfumato.experiments.common import Batch, Subjects, percent, tile
from sfumato.media import plots
from sfumato.methods.distill.collaborative_score_distillation import CollaborativeScoreDistillation
from sfumato.metrics.looks import spread

SOURCE = (
    "Kim et al. 2023, figures 6 to 8: without Stein variational gradient descent the images of a set come out "
    "inconsistent, such as with blue caps and red ones; with it they agree."
)


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
class Collaboration:
    on: Set
    off: Set
    repelled: Set
    """With collaboration, and the kernel's own gradient many times as strong."""
    repulsion: float


def collaboration(
    model: Backbone,
    subjects: Subjects,
    steps: int = 150,
    guidance: float = 20.0,
    repulsion: float = 1e3,
    seed: int = 0,
    method: CollaborativeScoreDistillation | None = None,
) -> Collaboration:
    """Three runs of the same prompt from the same noise. ``SfumatoError`` for a set of one."""
    method = replace(method or CollaborativeScoreDistillation(), guidance=guidance)

    def run(method: CollaborativeScoreDistillation) -> Set:
        canvas = canvases.canvas(model, "latent", len(subjects.said), seed)
        spread(canvas.render().images.detach())  # a set of one is refused before it is run
        adam = canvases.optimiser("adam", "latent", None)
        distil(model, canvas, subjects.prompts, method, steps, optimiser=adam, seed=seed)
        images = canvases.shown(model, canvas)
        with torch.no_grad():
            return Set(images, spread(images), spread(canvas.render().images), subjects.looks(images))

    return Collaboration(
        run(method), run(replace(method, bandwidth="off")), run(replace(method, repulsion=repulsion)), repulsion
    )


def _named(found: Collaboration) -> dict[str, Set]:
    return {"off": found.off, "on": found.on, f"repulsion x {found.repulsion:g}": found.repelled}


def numbers(found: Collaboration) -> dict[str, object]:
    """The figures, for a machine to read."""
    rows = {name: {"spread": s.spread, "spread_of_latents": s.latents, **s.looks} for name, s in _named(found).items()}
    return {"sets": rows, "spread_on_off": found.on.spread / found.off.spread}


def ours(found: Collaboration) -> str:
    """What the numbers say."""
    on, off, far = found.on, found.off, found.repelled
    return (
        f"Images of a set differ by {on.spread:.3f} with collaboration and by {off.spread:.3f} without, "
        f"{on.spread / off.spread:.2f} times as much; {percent(on.looks['right'])} are read right with it and "
        f"{percent(off.looks['right'])} without. With {found.repulsion:g} times the repulsion they differ by "
        f"{far.spread:.3f}."
    )


def draw(found: Collaboration, path: Path, about: str) -> None:
    """A row a run, a column an image."""
    rows, n = _named(found), min(8, len(found.on.images))
    title = "A set of one prompt, with collaboration and without"
    with plots.figure(path, (max(1.4 * n, 5.0), 1.5 * len(rows) + 0.9), title, about) as figure:
        axes = figure.subplots(len(rows), n, squeeze=False)
        for i, (name, each) in enumerate(rows.items()):
            for j in range(n):
                below = f"spread {each.spread:.3f}" if j == 0 else ""
                tile(axes[i, j], each.images[j : j + 1], row=name if j == 0 else "", below=below)
