"""How saturated results are, by guidance and method, beside plain sampling's and renders' (Jambon 2023, ch. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between
from sfumato.distill import Distillation
from sfumato.experiments.common import (
    MOST_STEPS,
    Batch,
    OfSubjects,
    Subjects,
    apart,
    distilled,
    guided,
    listed,
    painted,
    published,
    tile,
)
from sfumato.experiments.experiment import Findings
from sfumato.media import plots

SAMPLING = "sampling"
SAMPLED = 50  # steps of DDIM


@dataclass(frozen=True)
class Curve:
    """A method's results by guidance."""

    name: str
    images: Mapping[float, Batch]
    looks: Mapping[float, Mapping[str, float]]


@dataclass(frozen=True)
class Curves(Findings):
    curves: tuple[Curve, ...]
    """Plain sampling first."""
    renders: Batch
    reference: Mapping[str, float]
    """What renders of the same prompts look like."""

    def numbers(self) -> dict[str, object]:
        curves = {c.name: [{"guidance": g, **looks} for g, looks in c.looks.items()] for c in self.curves}
        return {"renders": dict(self.reference), "methods": curves}

    def ours(self) -> str:
        truth = self.reference["saturation"]
        parts = []
        for curve in self.curves:
            shares = [f"{apart(looks['saturation'], truth)} at {g:g}" for g, looks in curve.looks.items()]
            values = [looks["saturation"] for looks in curve.looks.values()]
            grows = values == sorted(values)
            parts.append(f"{curve.name} is {listed(shares)}{' (it grows with guidance)' if grows else ''}")
        return f"Against renders' mean saturation of {truth:.3f}, {'; '.join(parts)}."

    def draw(self, path: Path, about: str = "") -> None:
        """Pictures, a row a method and a column a guidance, beside the curves."""
        scales = list(self.curves[0].images)
        rows, columns = len(self.curves), len(scales) + 1
        size = (1.3 * columns + 4.2, max(1.4 * rows + 0.8, 3.2))
        with plots.figure(path, size, "Saturation, by guidance", about) as figure:
            left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.3 * columns, 4.0))[0]
            axes = left.subplots(rows, columns, squeeze=False)
            for i, curve in enumerate(self.curves):
                for j, g in enumerate(scales):
                    tile(
                        axes[i, j],
                        curve.images[g],
                        f"guidance {g:g}" if i == 0 else "",
                        curve.name if j == 0 else "",
                        f"{curve.looks[g]['saturation']:.2f}",
                    )
                axes[i, -1].set_axis_off()
            tile(axes[0, -1], self.renders, "renders", below=f"{self.reference['saturation']:.2f}")
            panel = right.subplots()
            for curve, colour in zip(self.curves, plots.colours(rows), strict=True):
                values = [looks["saturation"] for looks in curve.looks.values()]
                panel.plot(scales, values, "o-", color=colour, label=curve.name, markersize=3.5)
            panel.axhline(self.reference["saturation"], label="renders", **plots.LIMIT)
            panel.set_xscale("log")
            panel.set_xticks(scales, [f"{g:g}" for g in scales])
            panel.minorticks_off()
            panel.set_xlabel("guidance")
            panel.set_title("mean saturation (HSV)")
            panel.set_ylim(0, None)
            panel.legend(fontsize=7)


@dataclass(frozen=True)
class Saturation(OfSubjects):
    """How saturated results are by guidance, beside those of plain sampling and renders.

    Example: sfumato experiment saturation --methods sds,sdi --guidances 3 7.5 30 --steps 100
    """

    methods: Mapping[str, Distillation] = field(default_factory=published)
    """Methods that distil; on a command line WORD:PRESET for one of their presets."""
    guidances: tuple[float, ...] = (1.0, 7.5, 30.0, 100.0)
    """Scales of classifier-free guidance, u + s (c - u)."""
    steps: Annotated[int, Between(1, MOST_STEPS)] = 60
    """Steps of each run."""

    source = (
        "Jambon 2023, figures 5.4, 5.5 and 5.8: the high guidance that score distillation needs drives colours to the "
        "border of their range; results are highly saturated, and more so the higher the guidance."
    )

    @property
    def works(self) -> int:
        return (1 + len(self.methods)) * len(self.guidances)

    def measure(self, model: Backbone, subjects: Subjects) -> Curves:
        scales = sorted(self.guidances)
        runs = {name: {g: guided(name, m, g) for g in scales} for name, m in self.methods.items()}
        made = {SAMPLING: {g: painted(model, subjects, g, SAMPLED, self.seed) for g in scales}}
        for name, each in runs.items():
            made[name] = {
                g: distilled(model, subjects.prompts, method, self.steps, self.seed) for g, method in each.items()
            }
        curves = tuple(
            Curve(name, images, {g: subjects.looks(x) for g, x in images.items()}) for name, images in made.items()
        )
        renders = subjects.renders()
        return Curves(curves, renders, subjects.looks(renders))
