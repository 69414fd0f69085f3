"""Guidance of an inversion against that of what follows: of whole DDIM trajectories, and in distillation.

Lukoianov 2024, figures 6.4 and 6.5. A strategy is the guidance of the inversion and that of the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between
from sfumato.errors import SfumatoError
from sfumato.experiments.common import MOST_STEPS, Batch, OfSubjects, Subjects, apart, logarithmic, percent, tile
from sfumato.experiments.experiment import Findings
from sfumato.experiments.kappa_error import LOOKS, along, inverted_errors
from sfumato.inversion import DDIMInversion, invert, reconstruct
from sfumato.media import plots
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion
from sfumato.metrics.image import psnr

WORST = 100.0
"""Largest PSNR told, in dB."""


def strategies(g: float) -> tuple[tuple[float, float], ...]:
    """The five of the source at a guidance g."""
    return ((1.0, 1.0), (g, g), (1.0, g), (-g, g), (0.0, 0.0))


@dataclass(frozen=True)
class Strategy:
    """What one did: to a whole trajectory, and in distillation."""

    there: float
    back: float
    reconstructed: Batch
    psnr: float
    """Of the reconstruction, to the image as the autoencoder gives it back; dB."""
    distilled: Batch | None
    """None where the run left the finite numbers."""
    looks: Mapping[str, float]
    errors: tuple[float, ...]
    """In eq. 4.4, along the run."""

    @property
    def label(self) -> str:
        """-7.5/7.5."""
        return f"{self.there:g}/{self.back:g}"

    @property
    def error(self) -> float | None:
        return sum(self.errors) / len(self.errors) if self.errors else None


@dataclass(frozen=True)
class Strategies(Findings):
    strategies: tuple[Strategy, ...]
    renders: Batch
    reference: Mapping[str, float]

    def numbers(self) -> dict[str, object]:
        rows = {
            s.label: {"psnr": s.psnr, "error": s.error, "errors": list(s.errors), **s.looks} for s in self.strategies
        }
        return {"renders": dict(self.reference), "strategies": rows}

    def ours(self) -> str:
        near = sorted(self.strategies, key=lambda s: -s.psnr)
        whole = ", ".join(f"{s.label} {s.psnr:.1f} dB" for s in near)
        parts = []
        for s in sorted(self.strategies, key=lambda s: -s.looks.get("right", -1.0)):
            if s.distilled is None:
                parts.append(f"{s.label} leaves the finite numbers")
            else:
                colour = apart(s.looks["saturation"], self.reference["saturation"])
                parts.append(
                    f"{s.label} {percent(s.looks['right'])} right, error {s.error:.2f}, saturation {colour} renders'"
                )
        return f"Of whole trajectories: {whole}. In distillation: {'; '.join(parts)}."

    def draw(self, path: Path, about: str = "") -> None:
        """A column a strategy: what comes back of a render, and what is distilled; the errors along the run below."""
        columns = len(self.strategies) + 1
        title = "Guidance of the inversion / of the way back"
        with plots.figure(path, (1.65 * columns, 6.0), title, about) as figure:
            grid = figure.add_gridspec(3, columns, height_ratios=(1, 1, 1.1))
            tile(figure.add_subplot(grid[0, 0]), self.renders, "renders")
            for j, s in enumerate(self.strategies, 1):
                side = "trajectory", "distilled"
                tile(
                    figure.add_subplot(grid[0, j]),
                    s.reconstructed,
                    s.label,
                    side[0] if j == 1 else "",
                    f"{s.psnr:.1f} dB",
                )
                axes = figure.add_subplot(grid[1, j])
                if s.distilled is None:
                    axes.text(0.5, 0.5, "not finite", ha="center", transform=axes.transAxes)
                    axes.set_axis_off()
                else:
                    below = f"saturation {s.looks['saturation']:.2f}\nright {percent(s.looks['right'])}"
                    tile(axes, s.distilled, "", side[1] if j == 1 else "", below)
            panel = figure.add_subplot(grid[2, :])
            for s, colour in zip(self.strategies, plots.colours(len(self.strategies)), strict=True):
                if s.errors:
                    part = [i / max(1, len(s.errors) - 1) for i in range(len(s.errors))]
                    panel.plot(part, s.errors, "o-", color=colour, label=s.label, markersize=3)
            logarithmic(panel, 1e-3)
            panel.set_xlabel("part of the run")
            panel.set_title("error in eq. 4.4, as clean images")
            panel.legend(fontsize=7, ncols=2)


@dataclass(frozen=True)
class InversionGuidance(OfSubjects):
    """Guidance of an inversion against that of the way back: whole trajectories, and distillation.

    Example: sfumato experiment inversion-guidance --guidance 5 --trajectory 50
    """

    guidance: float = 7.5
    """The g of 1/1, g/g, 1/g, -g/g and 0/0."""
    trajectory: Annotated[int, Between(2, 1000)] = 30
    """DDIM steps of a whole trajectory."""
    steps: Annotated[int, Between(2, MOST_STEPS)] = 30
    """Steps of each run."""

    source = (
        "Lukoianov 2024, figures 6.4 and 6.5: of whole trajectories 1/1 gives the image back almost perfectly, all "
        "others with a bias; in distillation 7.5/7.5 has the largest error and drifts, 1/1 and 0/0 do not make what is "
        "asked for, 1/7.5 does and is too saturated, -7.5/7.5 is best."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance in (0, 1):
            raise SfumatoError(f"guidance is another than 0 and 1, which are there as well, got {self.guidance:g}")

    @property
    def works(self) -> int:
        return 3 * len(strategies(self.guidance))

    def measure(self, model: Backbone, subjects: Subjects) -> Strategies:
        renders = subjects.renders(model.size)
        with torch.no_grad():
            coded = model.decode(model.encode(renders.to(model.device))).cpu().clamp(0, 1)
        found = []
        for there, back in strategies(self.guidance):
            again = torch.zeros_like(coded)
            with torch.no_grad(), suppress(SfumatoError):  # what runs away stays black
                path = invert(model, renders, subjects.prompts, DDIMInversion(scale=there, steps=self.trajectory))
                again = model.decode(reconstruct(model, path, back)).cpu().clamp(0, 1)
            near = float(psnr(again, coded).clamp_max(WORST).mean())
            method = ScoreDistillationViaInversion(guidance=back, inversion_guidance=there)
            try:
                images, states = along(model, subjects, method, self.steps, self.seed, min(LOOKS, self.steps))
                errors = tuple(inverted_errors(model, subjects, method, states).tolist())
            except SfumatoError:  # it ran away, which is a finding
                found.append(Strategy(there, back, again, near, None, {}, ()))
                continue
            found.append(Strategy(there, back, again, near, images, subjects.looks(images), errors))
        return Strategies(tuple(found), renders, subjects.looks(renders))
