"""What experiments share: subjects to paint, runs to compare, what results look like, and how they are laid out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.settings import Between
from sfumato.distill import Distillation, Viewpoints, canvases, distil
from sfumato.errors import SfumatoError
from sfumato.experiments.experiment import Experiment, Findings, Seed, plain
from sfumato.io.files import named
from sfumato.media import plots
from sfumato.methods import index
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion
from sfumato.metrics.looks import detail, saturation
from sfumato.stilllife.captions import Said, SaidThing, parse
from sfumato.stilllife.compose import scene_of
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.oracle import Oracle, matches
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import COLOURS, GROUNDS, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Batch = Float[Tensor, "n 3 h w"]
SIDE = 128  # of what the oracle reads
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Subjects:
    """Prompts, an image each, and what they say in the words of the built-in model."""

    stated: tuple[Said, ...]
    seed: int = 0

    @classmethod
    def drawn(cls, n: int, seed: int) -> Subjects:
        """One coloured thing on some ground, n times."""
        rng = np.random.default_rng((seed, 4))

        def pick(words: Sequence[str]) -> str:
            return words[int(rng.integers(len(words)))]

        return cls(
            tuple(Said((SaidThing(pick(TRAINED), pick(COLOURS)),), ground=pick(GROUNDS)) for _ in range(n)), seed
        )

    @classmethod
    def of(cls, prompt: str, n: int, seed: int) -> Subjects:
        """One prompt n times; ``SfumatoError`` unless it is in the words that renders are drawn from."""
        return cls((parse(prompt),) * n, seed)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(s.phrase() for s in self.stated)

    def alike(self) -> Subjects:
        """The first of them as often: a set."""
        return replace(self, stated=self.stated[:1] * len(self.stated))

    def renders(self, size: int = SIDE) -> Batch:
        """A drawn scene of each."""
        rng = np.random.default_rng((self.seed, 5))
        return render([photographed(s, rng) for s in self.stated], size).images.cpu()

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle.load()

    def right(self, images: Batch) -> float:
        """Part of the images in which the oracle reads the thing that was said, in its colour."""
        shown = images if images.shape[-1] == SIDE else F.interpolate(images, (SIDE, SIDE), mode="area")
        read = self.oracle.read(shown)
        return float(np.mean([bool(matches(r, s)["things"]) for r, s in zip(read, self.stated, strict=True)]))

    def looks(self, images: Batch) -> dict[str, float]:
        """Mean saturation and detail of the images, and the part that is read right."""
        return {
            "saturation": float(saturation(images).mean()),
            "detail": float(detail(images).mean()),
            "right": self.right(images),
        }


@dataclass(frozen=True)
class OfSubjects(Experiment):
    """An experiment on prompts that can be drawn: with the built-in model a few minutes on two cores, as it stands."""

    prompt: str = ""
    """Paint this, n times; in the words of the built-in model [default: one thing on some ground, drawn n times]."""
    n: Annotated[int, Between(1, 64)] = 2
    """Images."""
    seed: Seed = 0
    """The same seed gives the same result."""

    together: ClassVar[bool] = False
    """Is it of a set, all of the first prompt?"""
    untold: ClassVar[tuple[str, ...]] = ()
    """Settings that are seen in the findings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._subjects()

    def run(self, model: Backbone) -> Findings:
        return self.measure(model, self._subjects())

    @abstractmethod
    def measure(self, model: Backbone, subjects: Subjects) -> Findings:
        """The run, of other subjects than ``prompt`` and ``n`` say."""

    def _subjects(self) -> Subjects:
        found = Subjects.of(self.prompt, self.n, self.seed) if self.prompt else Subjects.drawn(self.n, self.seed)
        return found.alike() if self.together else found

    def _own(self) -> dict[str, Any]:
        shared = {*self.untold, *(f.name for f in fields(OfSubjects))}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in shared}
        return {name: list(v) if isinstance(v, Mapping) else v for name, v in own.items()}

    def settings(self, model: Backbone) -> dict[str, Any]:
        prompts = list(dict.fromkeys(self._subjects().prompts))
        return {"model": model.name, "n": self.n, "seed": self.seed, **self._own(), "prompts": prompts}

    def about(self, model: Backbone) -> str:
        own = (f"{k.replace('_', ' ')} {plain(v)}" for k, v in self._own().items())
        return ", ".join([named(model.name), f"n {self.n}", *own])


def published() -> dict[str, Distillation]:
    """The methods that the sources compare, as published."""
    return {word: index.default(word) for word in ("sds", "nfsd", "sdi")}


def photographed(stated: Said, rng: np.random.Generator) -> Scene:
    """A scene of which this is true, a photo where no style is said, as captions mostly leave that out."""
    return scene_of(stated if stated.style else replace(stated, style="photo"), rng)


def painted(model: Backbone, subjects: Subjects, guidance: float, steps: int, seed: int) -> Batch:
    """What plain sampling makes of the same prompts, from the same noise."""
    return denoise(model, subjects.prompts, guide=guidance, steps=steps, seed=seed).images.clamp(0, 1)


def distilled(
    model: Backbone,
    prompts: Sequence[str],
    method: Distillation,
    steps: int,
    seed: int,
    space: canvases.Space = "latent",
    viewpoints: Viewpoints | None = None,
) -> Batch:
    """What a method makes of prompts, an image each: image i starts from noise of seed + i.

    Latents under SDI, whose gradient leads to the image that the model sees, take that step; all else is Adam's.
    """
    generator = canvases.canvas(model, space, len(prompts), seed)
    direct = space == "latent" and isinstance(method, ScoreDistillationViaInversion)
    optimiser = canvases.optimiser("sgd" if direct else "adam", space, None)
    distil(model, generator, prompts, method, steps, optimiser=optimiser, viewpoints=viewpoints, seed=seed)
    return canvases.shown(model, generator)


def guided(name: str, method: Distillation, scale: float) -> Distillation:
    """The method at another guidance. An inversion's stays as much against it as it was (-7.5 for 7.5)."""
    asked: Any = method
    own = {f.name for f in fields(asked)}
    if "guidance" not in own:
        raise SfumatoError(f"{name} has no guidance to vary; leave it out of methods")
    if "inversion_guidance" not in own:
        return replace(asked, guidance=scale)
    return replace(asked, guidance=scale, inversion_guidance=scale * asked.inversion_guidance / asked.guidance)


def apart(value: float, reference: float) -> str:
    """How far above or below a reference, in words: "12 % above"."""
    part = value / reference - 1
    return f"{percent(abs(part))} {'above' if part >= 0 else 'below'}"


def percent(part: float, digits: int = 0) -> str:
    """0.5 as "50 %"."""
    return f"{100 * part:.{digits}f} %"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def ranked(values: Mapping[str, float], digits: int = 3) -> str:
    """Names by their values, least first: "a 0.1, b 0.2"."""
    return ", ".join(f"{name} {value:.{digits}g}" for name, value in sorted(values.items(), key=lambda kv: kv[1]))


def mosaic(images: Batch) -> Float[Tensor, "3 h w"]:
    """The first images as a square of them: one, four, nine."""
    side = math.isqrt(len(images))
    rows = images[: side * side].unflatten(0, (side, side))
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def tile(axes: Axes, images: Batch, column: str = "", row: str = "", below: str = "") -> None:
    """A cell of a table of pictures: its column's word above it, its row's beside it, a few words below."""
    plots.image(axes, mosaic(images), column)
    if row:
        axes.text(-0.03, 0.5, row, transform=axes.transAxes, rotation=90, ha="right", va="center", color=plots.INK)
    if below:
        axes.text(0.5, -0.03, below, transform=axes.transAxes, ha="center", va="top", fontsize=7, color=plots.SOFT)


def logarithmic(axes: Axes, least: float) -> None:
    """Values by their logarithm, those below ``least`` off the panel, ticks in plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=max(least, axes.get_ylim()[0]))
