"""Inversions of flows (Stable Diffusion 3, Flux), whose network tells a velocity and whose steps are Euler's.

In sigma, which is a flow's time, a step is x' = x + (sigma' - sigma) v with v = eps - x0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.guidance import Guide, Scales, reads_scale
from sfumato.core.method import Phases, Run, Step, span
from sfumato.core.settings import Count, Part, PartOfSteps, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.inversion.ddim import DDIMInversion
from sfumato.inversion.path import Advance, Inversion, Path, noise_of

TOLD = 3.5  # to a network that reads its guidance, by the authors' pipeline


def _flow(model: Backbone, who: str) -> None:
    if model.schedule.prediction != "flow":
        raise SfumatoError(
            f"{who} inverts flows, such as Stable Diffusion 3 and Flux; {model.name} is none: take direct inversion"
        )


@dataclass(frozen=True, eq=False)
class Pulled(Path):
    """A path whose every stream is drawn to the image: x0 goes ``eta`` of the way to it."""

    etas: tuple[Part, ...] = ()
    """For each step."""

    def start(self, run: Run) -> Phases:
        image = self.image.repeat(len(run.rows.streams), 1, 1, 1)

        def denoised(step: Step) -> None:
            if eta := self.etas[step.i]:
                step.x0 = step.x0 + eta * (image.to(step.x0) - step.x0)

        return Phases(denoised=denoised)


@dataclass(frozen=True)
class RFInversion(Inversion):
    """RF-inversion (Rout et al. 2025, arXiv 2410.10792): velocities mixed with the straight one to where it should end.

    To noise (eq. 8): v + gamma ((y - x) / (1 - sigma) - v), y fixed noise, the network told nothing but the empty
    prompt. Back (eq. 15): v + eta ((x - image) / sigma - v); as x0 = x - sigma v, that is a step with
    x0 + eta (image - x0). ``eta`` acts from ``start`` to ``stop``: more keeps more of the image. There is no source to
    follow: each stream is drawn to the image, and at ``eta`` 1 up to the end it is the image.

    Defaults: the authors' pipeline. Its way to noise tells the network and the straight velocity i / N while it steps
    over shifted levels, and takes one step fewer than N; here sigma is the time throughout, as in the equations. What
    Flux reads as distilled guidance stays the model's own, where theirs is 0 on the way to noise.

    Needs: a network call a step.

    Families: flows, which are Stable Diffusion 3 and Flux.
    """

    gamma: Part = 0.5
    eta: Part = 0.9
    start: PartOfSteps = 0.0
    """Parts of the steps."""
    stop: PartOfSteps = 0.25
    decay: Weight = 0.0
    """Power of (1 - i / steps) that ``eta`` is multiplied by; 1 for a line, 0 for none."""
    seed: Whole = 0
    steps: Count = 28

    has_source: ClassVar = False
    edit_guidance: ClassVar = 1.0

    def source_guidance(self, scale: float) -> float:
        return 1.0

    def guide(self, model: Backbone, scale: float | None = None) -> Guide | Scales:
        return super().guide(model, TOLD if scale is None and reads_scale(model) else scale)

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        _flow(model, "RF-inversion")
        levels, noise = model.levels(self.steps, image.shape[-2:]), noise_of(model, image, self.seed)
        empty, track = model.embed_negative([""] * len(image)), [image]
        for i in reversed(range(self.steps)):
            at, to = levels[i + 1], levels[i]
            x = track[-1]
            v = model.predict(x, at.t, empty)
            straight = (noise - x) / at.alpha
            track.append(x + (to.sigma - at.sigma) * (v + self.gamma * (straight - v)))
            advance(track[-1])
        first, last = span((float(self.start), float(self.stop)), self.steps)
        etas = (self.eta * (1 - i / self.steps) ** self.decay if first <= i < last else 0 for i in range(self.steps))
        return Pulled(track[-1], levels, prompts, image, track=tuple(reversed(track)), etas=tuple(etas))


@dataclass(frozen=True, eq=False)
class Aligned(Path):
    """A path whose every stream is moved, for a prediction, by what the track moved in the same step; and after the
    step by what the first stream lacks of the track."""

    def start(self, run: Run) -> Phases:
        first, streams = run.images(run.rows.streams[0]), len(run.rows.streams)

        def before(step: Step) -> None:
            here, next = self.track[step.i].to(step.x), self.track[step.i + 1].to(step.x)
            step.x = step.x + (next - here).repeat(streams, 1, 1, 1)

        def after(step: Step) -> None:
            lack = self.track[step.i + 1].to(step.x_next) - step.x_next[first]
            step.x_next = step.x_next + lack.repeat(streams, 1, 1, 1)

        return Phases(before=before, after=after)


@dataclass(frozen=True)
class Residual(Inversion):
    """The step-exact residual cache of DirectEdit (Yang and Ye 2026, arXiv 2605.02417), without its masks and values.

    Euler's way to noise asks for the velocity where the latents are one step cleaner than on the way back. So the way
    back asks for it there: at x + d, d = the track's next latents less these; the step itself is made from x. The
    source's velocity is then the inversion's own, and its step is exact without being put right.

    ``Direct`` puts the source back after a step whose prediction was made elsewhere: attention and velocities that an
    edit shares with it are those of another point, and the edit keeps the error of each step. Here all streams are
    moved by d alike. What guidance adds to the source's step, beyond that of the inversion, is taken from every stream
    after it (nothing, at the published guidance of 1 for the source and 2 for the edit); so the source is exact at
    any guidance, and so is an edit with the source's own words and guidance. No prediction is added.

    Needs: a network call a step; the latents of all levels are kept.

    Families: flows, which are Stable Diffusion 3 and Flux.
    """

    scale: float = 1.0
    steps: Count = 30
    negative: str = ""
    """What takes the place of the empty prompt."""

    edit_guidance: ClassVar = 2.0

    def source_guidance(self, scale: float) -> float:
        return self.scale

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        _flow(model, "the residual cache")
        track = DDIMInversion(self.scale, 0, self.steps, self.negative).track(model, image, prompts, advance)
        return Aligned(track[0], model.levels(self.steps, image.shape[-2:]), prompts, image, track=track)
