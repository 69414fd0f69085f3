"""What is subtracted in CSD-Edit, and whether a set shares its gradients: edits of a set (Kim et al. 2023, figs. 6-8).

The source edits patches of panoramas and frames of videos by InstructPix2Pix. Here a set is one drawn thing from
several sides, and its edit another colour, asked for by a pair of sentences: the baseline is the model's prediction for
the original images under the sentence that describes them, in place of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between, Positive
from sfumato.distill import Latents, canvases, distil
from sfumato.errors import SfumatoError
from sfumato.experiments.common import MOST_STEPS, Batch, OfSubjects, Subjects, percent, photographed, tile
from sfumato.experiments.experiment import Findings
from sfumato.media import plots
from sfumato.methods.distill.collaborative_score_distillation import EDITING, CollaborativeScoreDistillation
from sfumato.metrics.image import psnr
from sfumato.metrics.looks import detail
from sfumato.stilllife import change
from sfumato.stilllife.captions import Said
from sfumato.stilllife.moves import orbit
from sfumato.stilllife.scene import COLOURS

ARC = 60.0
"""Degrees between the first side and the last."""


@dataclass(frozen=True)
class World:
    """A thing from several sides, and what its edit should be."""

    stated: Said
    asked: Said
    before: Batch
    after: Batch
    kept: Bool[Tensor, "n h w"]
    """What the edit does not touch."""

    @classmethod
    def drawn(cls, stated: Said, colour: str, n: int, size: int, seed: int) -> World:
        """The first thing that is said in another colour. ``SfumatoError`` for its own, or for none."""
        first, *rest = stated.things
        if colour not in COLOURS or colour == first.colour:
            others = ", ".join(c for c in COLOURS if c != first.colour)
            raise SfumatoError(f"{first.phrase()} becomes another colour, one of {others}; got {colour!r}")
        scenes = orbit(photographed(stated, np.random.default_rng((seed, 6))), n, full=ARC)
        edits = [change.counterfactual(scene, change.Recolour(0, colour)) for scene in scenes]
        before, after = change.render_pairs(edits, size)
        kept = torch.stack([~change.masks(edit, size) for edit in edits])
        return cls(stated, replace(stated, things=(replace(first, colour=colour), *rest)), before, after, kept)


@dataclass(frozen=True)
class Edit:
    """One way to edit, and what came of it."""

    images: Batch
    right: float
    """Part that is read as asked."""
    kept: float
    """PSNR where nothing should change, dB."""
    truth: float
    """PSNR to what the edit should be, dB."""
    detail: float
    """High-frequency energy over the source's."""
    colours: float
    """Mean distance between the images' mean colours, where the edit should change something."""


@dataclass(frozen=True)
class Edits(Findings):
    world: World
    edits: Mapping[str, Edit]

    def numbers(self) -> dict[str, object]:
        rows = {
            name: {
                "right": e.right,
                "kept_psnr": e.kept,
                "truth_psnr": e.truth,
                "detail_over_source": e.detail,
                "colour_spread": e.colours,
            }
            for name, e in self.edits.items()
        }
        return {"from": self.world.stated.phrase(), "to": self.world.asked.phrase(), "edits": rows}

    def ours(self) -> str:
        parts = [
            f"{name} keeps {e.detail:.2f} of the source's detail and {e.kept:.1f} dB where nothing should change, "
            f"{percent(e.right)} read as asked, colours {e.colours:.3f} apart"
            for name, e in self.edits.items()
        ]
        return f"{'; '.join(parts)}."

    def draw(self, path: Path, about: str = "") -> None:
        """Rows: the source, the ways to edit, what should be."""
        world, n = self.world, min(6, len(self.world.before))
        rows = {"source": (world.before, "")}
        for name, e in self.edits.items():
            rows[name] = (e.images, f"detail {e.detail:.2f}, kept {e.kept:.1f} dB")
        rows["truth"] = (world.after, "")
        title = f"“{world.stated.phrase()}” to “{world.asked.phrase()}”"
        with plots.figure(path, (max(1.45 * n, 5.0), 1.5 * len(rows) + 0.8), title, about) as figure:
            axes = figure.subplots(len(rows), n, squeeze=False)
            for i, (name, (images, below)) in enumerate(rows.items()):
                for j in range(n):
                    side = name if j == 0 else ""
                    tile(axes[i, j], images[j : j + 1], row=side, below=below if j == 0 else "")


def _apart(images: Batch, where: Bool[Tensor, "n h w"]) -> float:
    """Mean distance of mean colours between the images of a set."""
    weight = where[:, None].float()
    colours: Float[Tensor, "n 3"] = (images * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1)
    return float(torch.pdist(colours).mean())


@dataclass(frozen=True)
class Baseline(OfSubjects):
    """CSD-Edit of a set, n sides of a thing: with its baseline, with random noise as baseline, and without SVGD.

    Example: sfumato experiment baseline --prompt "a red cube on grass" --colour blue --n 4
    """

    n: Annotated[int, Between(2, 64)] = 4
    """Images."""
    colour: str = ""
    """What the thing becomes [default: blue, or red if it is blue]."""
    guidance: float = 7.5
    """Of all runs."""
    rate: Positive = 0.1
    """Of plain gradient descent."""
    steps: Annotated[int, Between(1, MOST_STEPS)] = 60
    """Steps of each run."""

    source = (
        "Kim et al. 2023, figures 6 to 8: with random noise as baseline edits are blurry and lose the structure of the "
        "source; without Stein variational gradient descent the images of a set are edited inconsistently; CSD-Edit "
        "keeps detail and consistency."
    )
    together = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.colour:
            own = self._subjects().stated[0].things[0].colour
            object.__setattr__(self, "colour", "red" if own == "blue" else "blue")

    @property
    def works(self) -> int:
        return 3

    def measure(self, model: Backbone, subjects: Subjects) -> Edits:
        n, seed = len(subjects.stated), self.seed
        world = World.drawn(subjects.stated[0], self.colour, n, model.size, seed)
        asked = Subjects((world.asked,) * n, seed)
        with torch.no_grad():
            begin = model.encode(world.before.to(model.device))
            source = model.decode(begin).cpu().clamp(0, 1)
        fine = float(detail(source).mean())
        method = replace(EDITING, guidance=self.guidance, described=world.stated.phrase())

        def run(method: CollaborativeScoreDistillation) -> Edit:
            canvas = Latents(begin)
            descent = partial(torch.optim.SGD, lr=self.rate)
            distil(model, canvas, asked.prompts, method, self.steps, optimiser=descent, seed=seed)
            images = canvases.shown(model, canvas)
            return Edit(
                images,
                asked.right(images),
                float(psnr(images, world.before, world.kept).nanmean()),
                float(psnr(images, world.after).mean()),
                float(detail(images).mean()) / fine,
                _apart(images, ~world.kept),
            )

        ways = {
            "CSD-Edit": method,
            "random baseline": replace(method, baseline="random"),
            "without SVGD": replace(method, bandwidth="off"),
        }
        return Edits(world, {name: run(way) for name, way in ways.items()})
