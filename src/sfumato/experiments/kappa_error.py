"""The error in eq. 4.4 of five choices of noise, as a difference of clean images, against t (Lukoianov 2024, fig. 6.3).

The source measures renders of a scene while it is made. Here the images are those that a run of SDI with inverted noise
renders (``run``), each at the level that the run has then, or finished renders of the prompts (``renders``), which lie
where the model has seen images, at the same levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.guidance import guided
from sfumato.core.schedule import Level
from sfumato.core.settings import Between, Count
from sfumato.distill import GuidedModel, Images, canvases, distil
from sfumato.distill.kappa import fixed_point, inverted, regressed, residual
from sfumato.errors import SfumatoError, whole
from sfumato.experiments.common import MOST_STEPS, Batch, OfSubjects, Subjects, logarithmic, ranked
from sfumato.experiments.experiment import Findings
from sfumato.io.progress import progress
from sfumato.learning.seeds import Draws
from sfumato.media import plots
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion

Where = Literal["run", "renders"]
CHOICES: tuple[str, ...] = ("resampled", "fixed", "fixed point", "gradient descent", "inversion")
BEST = "inversion"
LOOKS = 6
"""Levels of a run at which the noise that it infers is measured."""


@dataclass(frozen=True)
class State:
    """Images as a run has them at a level."""

    at: Level
    x: Images


def error(prior: GuidedModel, x: Images, kappa: Images, at: Level) -> Float[Tensor, " b"]:
    """Root mean square of ``residual``, an image each: in units of clean latents."""
    return residual(prior, x, kappa, at).square().mean((1, 2, 3)).sqrt()


def inverted_as(method: ScoreDistillationViaInversion, prior: GuidedModel, x: Images, at: Level) -> Images:
    """The noise that the method infers at a level, without its tau and entropy."""
    steps = method.inversion_steps(prior.model.schedule, at)
    backwards = replace(prior, guide=guided(prior.model, method.inversion_guidance, method.negative))
    return inverted(backwards, x, at, steps)


def along(
    model: Backbone, subjects: Subjects, method: ScoreDistillationViaInversion, steps: int, seed: int, looks: int
) -> tuple[Batch, list[State]]:
    """A run of the method by plain gradient descent, and its images at as many levels, evenly through the run."""
    if method.times is None:
        raise SfumatoError("levels of a run are looked at as parts of the training's; give the method times")
    times, wanted = method.times, {round(i * (steps - 1) / max(1, looks - 1)) for i in range(looks)}
    kept: list[State] = []

    def watch(step: int, x: Images) -> None:
        if step in wanted:
            at = times.draw(model.schedule, step / steps, len(x), Draws(seed, step), shared=True)
            kept.append(State(at, x.clone()))

    canvas = canvases.canvas(model, "latent", len(subjects.stated), seed)
    descent = canvases.optimiser("sgd", "latent", None)
    distil(model, canvas, subjects.prompts, method, steps, optimiser=descent, seed=seed, watch=watch)
    return canvases.shown(model, canvas), kept


@torch.no_grad()
def inverted_errors(
    model: Backbone, subjects: Subjects, method: ScoreDistillationViaInversion, states: Sequence[State]
) -> Float[Tensor, " states"]:
    """The error of the noise that the method infers, at each state, a mean over images."""
    prior = GuidedModel(model, subjects.prompts, guided(model, method.guidance))
    return torch.stack([error(prior, s.x, inverted_as(method, prior, s.x, s.at), s.at).mean() for s in states])


@torch.no_grad()
def choices(
    method: ScoreDistillationViaInversion, prior: GuidedModel, state: State, fixed: Images, rng: torch.Generator
) -> dict[str, Images]:
    """The five noises of an image at a level; three of them begin with the same new one."""
    x, at = state.x, state.at
    drawn = torch.randn(x.shape, generator=rng).to(x)
    found = (
        drawn,
        fixed,
        fixed_point(prior, x, at, drawn),
        regressed(prior, x, at, drawn),
        inverted_as(method, prior, x, at),
    )
    return dict(zip(CHOICES, found, strict=True))


@dataclass(frozen=True)
class Errors(Findings):
    times: tuple[float, ...]
    """Levels as parts of the training's, noisiest first."""
    errors: Mapping[Where, Mapping[str, Float[Tensor, " levels"]]]
    """By images and choice, means over images."""

    def numbers(self) -> dict[str, object]:
        errors = {
            where: {name: {"mean": float(e.mean()), "errors": e.tolist()} for name, e in rows.items()}
            for where, rows in self.errors.items()
        }
        return {"times": list(self.times), "images": errors}

    def ours(self) -> str:
        parts = []
        for where, rows in self.errors.items():
            means = {name: float(e.mean()) for name, e in rows.items()}
            others = torch.stack([e for name, e in rows.items() if name != BEST])
            least = int((rows[BEST] < others.amin(0)).sum())
            which = "a run" if where == "run" else where
            parts.append(
                f"of {which} the mean errors are {ranked(means)}, inversion the least at {least} of "
                f"{len(self.times)} levels"
            )
        return f"For images {'; '.join(parts)}."

    def draw(self, path: Path, about: str = "") -> None:
        """A panel for each kind of image, time from right to left as a run goes."""
        panels = len(self.errors)
        with plots.figure(path, (4.2 * panels, 3.4), "Error of the noise in eq. 4.4, as clean images", about) as figure:
            axes = figure.subplots(1, panels, squeeze=False, sharey=True)
            looks: dict[str, plots.Look] = dict(
                zip(CHOICES, ({"color": c, "marker": "o", "markersize": 3} for c in plots.COLOURS), strict=False)
            )
            looks["fixed"] = {**looks["fixed"], "linestyle": "--"}  # it lies on the resampled one
            for panel, (where, rows) in zip(axes[0], self.errors.items(), strict=True):
                for name, values in rows.items():
                    panel.plot(self.times, values, **looks[name])
                logarithmic(panel, 1e-3)
                panel.set_xlabel("t")
                panel.set_title({"run": "images of a run of SDI", "renders": "renders"}[where])
            axes[0, 0].set_ylabel("error")
            plots.legend(figure, looks)


def measured(
    method: ScoreDistillationViaInversion, prior: GuidedModel, states: Sequence[State], seed: int
) -> dict[str, Float[Tensor, " levels"]]:
    """Each choice's error at each state."""
    rng = torch.Generator().manual_seed(seed)
    fixed = torch.randn(states[0].x.shape, generator=rng).to(states[0].x)
    rows: dict[str, list[Tensor]] = {name: [] for name in CHOICES}
    with progress("solving for the noise", len(states)) as advance, torch.no_grad():
        for state in states:
            for name, kappa in choices(method, prior, state, fixed, rng).items():
                rows[name].append(error(prior, state.x, kappa, state.at).mean().cpu())
            advance()
    return {name: torch.stack(values) for name, values in rows.items()}


@dataclass(frozen=True)
class KappaError(OfSubjects):
    """The error of five choices of the noise in eq. 4.4, as a difference of clean images, against t.

    Example: sfumato experiment kappa-error --images run --levels 5
    """

    images: Literal["both", "run", "renders"] = "both"
    """Of a run of SDI as they are then, or finished renders."""
    steps: Annotated[int, Between(2, MOST_STEPS)] = 30
    """Steps of each run."""
    levels: Count = 10
    """Levels at which the error is measured."""

    source = (
        "Lukoianov 2024, figure 6.3: noise by DDIM inversion has by far the least error; fixed-point iteration and "
        "gradient descent do not improve on random noise, and fixed-point iteration diverges."
    )
    untold = ("images",)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("levels", self.levels, 2, self.steps)

    @property
    def works(self) -> int:
        return 3

    def measure(self, model: Backbone, subjects: Subjects) -> Errors:
        method = ScoreDistillationViaInversion()
        prior = GuidedModel(model, subjects.prompts, guided(model, method.guidance, method.negative))
        _, states = along(model, subjects, method, self.steps, self.seed, self.levels)
        found: dict[Where, dict[str, Tensor]] = {}
        if self.images != "renders":
            found["run"] = measured(method, prior, states, self.seed)
        if self.images != "run":
            with torch.no_grad():
                x = model.encode(subjects.renders(model.size).to(model.device))
            found["renders"] = measured(method, prior, [State(s.at, x) for s in states], self.seed)
        return Errors(tuple(float(s.at.t) / model.schedule.train_steps for s in states), found)
