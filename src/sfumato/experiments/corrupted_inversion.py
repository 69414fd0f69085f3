"""How inversions of a corrupted image stray from the original's (Jambon 2023, figures 6.8 and 6.9).

An image and its corruptions (colours jittered, turned, scaled) are inverted together by DDIM. Compared are the noise
estimates of each step and the latents that each ends in, by cosine similarity. The source finds that colours matter
little and that geometry decorrelates quickly. ``aligned`` also moves the original's own as the image was moved, which
gained the source nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between
from sfumato.experiments.experiment import Experiment, Findings
from sfumato.inversion.ddim import DDIMInversion
from sfumato.inversion.invert import checked
from sfumato.io.progress import progress
from sfumato.media import plots
from sfumato.media.images import Fit, read_image
from sfumato.ops.warps import Similarity

ANGLES = (2.0, 5.0, 10.0, 20.0, 45.0)
ZOOMS = (1.02, 1.05, 1.1, 1.25, 1.5)
JITTERS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Corruption:
    """One corruption of a kind, by its strength: degrees, a factor, or a part of the range of colours."""

    kind: str
    strength: float

    def of(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.kind == "jitter":  # brighter, with more contrast, and warmer, each by this much
            tint = torch.tensor([1 + self.strength / 2, 1.0, 1 - self.strength / 2]).view(3, 1, 1).to(image)
            return (((image - 0.5) * (1 + self.strength) + 0.5 + self.strength / 4) * tint).clamp(0, 1)
        return self.move(image)

    def move(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Its geometry alone; colours do not move anything."""
        match self.kind:
            case "rotation":
                return Similarity(turn=self.strength)(x, padding="reflection")
            case "scaling":
                return Similarity(scale=self.strength)(x, padding="reflection")
        return x


CORRUPTIONS = (
    *(Corruption("jitter", s) for s in JITTERS),
    *(Corruption("rotation", s) for s in ANGLES),
    *(Corruption("scaling", s) for s in ZOOMS),
)


@dataclass(frozen=True)
class Strayed:
    """Cosine similarities with the original, of one corruption."""

    corruption: Corruption
    image: Float[Tensor, "3 h w"]
    estimates: Float[Tensor, " steps"]
    """Of the noise estimate of each step of the inversion."""
    end: float
    """Of the latents at its end."""
    aligned: float
    """The same, with the original's latents moved as the image was."""


@dataclass(frozen=True)
class Inversions(Findings):
    """An image, and how its corruptions strayed."""

    image: Float[Tensor, "3 h w"]
    strayed: Sequence[Strayed]

    def numbers(self) -> dict[str, Any]:
        rows = [
            {
                "kind": s.corruption.kind,
                "strength": s.corruption.strength,
                "end": s.end,
                "aligned": s.aligned,
                "estimates": s.estimates.tolist(),
            }
            for s in self.strayed
        ]
        return {"corruptions": rows}

    def draw(self, path: Path, about: str = "") -> None:
        """A row a kind: the strongest, the estimates along the inversion, and where it ends by strength."""
        kinds = list(dict.fromkeys(s.corruption.kind for s in self.strayed))
        with plots.figure(path, (9.5, 2.1 * len(kinds) + 0.6), "Inversions of corrupted images", about) as figure:
            axes = figure.subplots(len(kinds), 4, squeeze=False, width_ratios=(0.8, 0.8, 1.6, 1.6))
            for row, kind in zip(axes, kinds, strict=True):
                some = [s for s in self.strayed if s.corruption.kind == kind]
                plots.image(row[0], self.image, "original")
                plots.image(row[1], some[-1].image, f"{kind} {some[-1].corruption.strength:g}")
                for s, colour in zip(some, plots.colours(len(some)), strict=True):
                    row[2].plot(
                        range(1, len(s.estimates) + 1),
                        s.estimates.numpy(),
                        color=colour,
                        label=f"{s.corruption.strength:g}",
                    )
                row[2].legend(fontsize=6.5, ncols=2)
                row[2].set_title("noise estimates, by step")
                strengths = [s.corruption.strength for s in some]
                row[3].plot(strengths, [s.end for s in some], "o-", color=plots.COLOURS[0], label="as they are")
                if kind != "jitter":
                    row[3].plot(
                        strengths,
                        [s.aligned for s in some],
                        "o--",
                        color=plots.COLOURS[1],
                        label="original moved alike",
                    )
                row[3].legend(fontsize=6.5)
                row[3].set_title("where they end, by strength")
                for axis in row[2:]:
                    axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.02)


@torch.no_grad()
def corrupted_inversion(
    model: Backbone,
    image: Float[Tensor, "1 3 h w"],
    prompt: str = "",
    steps: int = 50,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
) -> Inversions:
    """Invert an image, which the model can encode as it is, and its corruptions, in one batch."""
    shown = torch.cat([image, *(c.of(image) for c in corruptions)])
    latents = model.encode(shown.to(model.device))
    how = DDIMInversion(steps=steps)
    with progress("inverting", steps) as bar:
        track = how.track(model, latents, (prompt,) * len(shown), checked(model, how, bar))[::-1]  # cleanest first
    levels = model.levels(steps, latents.shape[-2:])
    estimates = []
    for i, (x, y) in enumerate(pairwise(track)):
        at, to = levels[steps - i], levels[steps - i - 1]
        estimates.append((y - to.alpha / at.alpha * x) / (to.sigma - to.alpha * at.sigma / at.alpha))
    noise, end = torch.stack(estimates).cpu(), track[-1].cpu()
    strayed = [
        Strayed(
            c,
            shown[n].cpu(),
            F.cosine_similarity(noise[:, 0].flatten(1), noise[:, n].flatten(1), dim=1),
            _alike(end[:1], end[n : n + 1]),
            _alike(c.move(end[:1]), end[n : n + 1]),
        )
        for n, c in enumerate(corruptions, 1)
    ]
    return Inversions(image[0].cpu(), strayed)


def _alike(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@dataclass(frozen=True)
class CorruptedInversion(Experiment):
    """Invert an image and its corruptions (colours, rotations, scalings), and see how far their noise strays.

    Example: sfumato experiment inversion photo.png --prompt "a red cube on grass"
    """

    image: Path
    """Any picture file."""
    prompt: str = ""
    """What it shows."""
    steps: Annotated[int, Between(2, 1000)] = 50
    """DDIM steps."""
    fit: Fit = "crop"
    """How the picture becomes what the model sees."""

    def settings(self, model: Backbone) -> dict[str, Any]:
        return {"prompt": self.prompt}

    def run(self, model: Backbone) -> Inversions:
        return corrupted_inversion(model, read_image(self.image, model, self.fit)[None], self.prompt, self.steps)
