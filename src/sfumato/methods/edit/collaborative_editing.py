"""Collaborative editing (CSD-Edit, Kim et al. 2023, arXiv 2307.04787): pictures that are edited together,
so that their edits agree.

Every picture goes downhill from itself, as in delta denoising, by what the model sees in it under the instruction less
what it sees in the source under none, with the same noise at the same level; the set shares these gradients by Stein
variational gradient descent (``sfumato.distill.stein``). InstructPix2Pix reads each source under both its guidances,
the source's own estimate with an empty prompt (section 3.2), so that what ``--from`` says is not read. Any other
model takes the source's words and the target's (appendix B.3). Of one picture it is delta denoising.

Defaults: the text's levels, 0.2 to 0.5, and the authors' code: guidance 7.5 to the text and 5 to the image, w = 1 -
abar = sigma^2, 200 steps of plain descent at a rate of 2.0, 0.9 of it after each 20. A step is divided by the sum of
the kernel, which leaves the rate what it is for one picture; the text divides by their number (``number``). The code
takes its bandwidth from a median with zeros, has no number for two pictures, and draws levels from 0.02 up.

A picture larger than the model's own is a set, too: of its windows (``windows``, section 4.1). Each step draws some,
which have noise of their own, share their gradients, and lay them on the picture, the mean where they overlap. The
authors' lie a quarter of their side apart, 4 to 16 in a step (``wide``), drawn in each step anew, and what is left at a
border that their stride does not end at is never edited. Here the last ones end at the borders, and all have a turn
before one comes again. One window is the picture itself.

Needs: a network call a step for all pictures, or for the windows that are drawn; the run's steps are those of the
descent.

Families: all; Stable Diffusion's InstructPix2Pix for instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.latent import Latent
from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide, Scales
from sfumato.core.method import Phases, Requires, Run, Step
from sfumato.core.settings import Count, Part, Weight, Whole
from sfumato.core.sites import Grid
from sfumato.core.views import Fuse, Tiles, Views, Windows
from sfumato.distill.gradients import Weighting, weight
from sfumato.distill.stein import PUBLISHED, Bandwidth, Division, Stein
from sfumato.inversion.path import Advance, Inversion, Path
from sfumato.methods.edit.delta_denoising import Descent, drawn_levels
from sfumato.methods.edit.instruct_pix2pix import Instruction, InstructPix2Pix
from sfumato.prompts.layout import Mask


@dataclass(frozen=True)
class CollaborativeEditing(Inversion):
    """The run's first stream is the sources, all others are their edits; the images of a stream are one set."""

    requires: ClassVar = Requires(words=True, set=True)

    rate: Weight = 2.0
    """How much of the weighted gradient a step takes from each latent."""
    decay: Part = 0.9
    """What is left of the rate after each ``every`` steps."""
    every: Count = 20
    """Steps at one rate."""
    least: Part = 0.2
    """Cleanest level that is drawn, as a part of the training's; one for all pictures."""
    most: Part = 0.5
    """Noisiest level."""
    weighting: Weighting = "variance"
    """w(t)."""
    image_scale: float = 5.0
    """Guidance to the image, of InstructPix2Pix."""
    bandwidth: Bandwidth = "text"
    """Of the kernel, for pictures to share gradients; off: each goes alone."""
    repulsion: Weight = 1.0
    """How much pictures are kept apart."""
    division: Division = "kernel"
    """What a step is divided by: the sum of the kernel, or the number of pictures."""
    mask: Mask | None = None
    """Where the pictures may change; everywhere if not given."""
    windows: Whole = 0
    """Of a picture larger than the model's, how many windows take part in a step; 0: it is seen whole."""
    stride: Part = 0.25
    """From window to window, as a part of a window's side."""
    seed: Whole = 0
    """Of the levels, the noise and the windows; picture i has noise of its own from seed + i."""
    steps: Count = 200

    def guide(self, model: Backbone, scale: float | None = None) -> Guide | Scales:
        paints = self.edit_guidance if scale is None else scale
        return Instruction(None, paints, self.image_scale) if _instructed(model) else paints  # pyright: ignore

    def alone(self) -> Views | None:
        return Drawn(Tiles(self.stride), self.windows, self.seed) if self.windows else None

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        levels = drawn_levels(model.schedule, self.least, self.most, self.steps, self.seed)
        shown = InstructPix2Pix(steps=1)(model, image, prompts, advance) if _instructed(model) else None
        return TogetherDown(
            image, levels, prompts, image, rate=self.rate, seed=self.seed,
            inside=None if self.mask is None else self.mask.at((image.shape[-2], image.shape[-1])),
            decay=self.decay, every=self.every, weighting=self.weighting, shown=shown,
            stein=Stein(self.bandwidth, self.repulsion, self.division), views=self.alone(),
        )  # fmt: skip


def _instructed(model: Backbone) -> bool:
    return isinstance(model, Latent) and model.reads == 2 * model.channels


@dataclass(frozen=True, eq=False)
class TogetherDown(Descent):
    """A descent whose images share their gradients, by models that read the source or do not."""

    decay: Part = 1.0
    every: Count = 1
    weighting: Weighting = "one"
    stein: Stein = PUBLISHED
    shown: Path | None = None
    """What shows InstructPix2Pix the sources."""
    views: Views | None = None
    """Windows of pictures that are larger than the model's."""

    def alone(self) -> Views | None:
        return self.views

    def start(self, run: Run) -> Phases:
        phases = super().start(run) if run.rows.views == 1 else self._by_windows(run)
        if self.shown is None or (sees := self.shown.start(run).cond) is None:
            return phases
        source = run.rows.streams[0]

        def cond(step: Step, now: Cond) -> Cond:
            now = sees(step, now)
            prompted, unprompted = run.rows[source, "cond"], run.rows[source, "image"]
            return Cond.cat([now[: prompted.start], now[unprompted], now[prompted.stop :]])

        return replace(phases, cond=cond)

    def _by_windows(self, run: Run) -> Phases:
        """A descent of all windows as one set, each with noise of its own."""
        source, *edits = run.rows.streams
        guide, images, count = run.guide, run.rows.of_stream, run.rows.views
        draw = run.model.noises.drawing([self.seed + 1 + i for i in range(images)], (self.image.shape[1], *run.grid))
        clean: list[Tensor] = []

        def before(step: Step) -> None:
            clean[:] = [step.x]
            noise = torch.stack([draw() for _ in range(count)], 1).flatten(0, 1).repeat(1 + len(edits), 1, 1, 1)
            step.x, step.offset = step.level.alpha * step.x, step.level.sigma * noise.to(step.x)

        def after(step: Step) -> None:
            assert guide is not None and step.offset is not None
            noisy, prediction = step.split(step.x) + step.offset, guide.combine(step.parts, run.rows)
            _, eps = run.model.schedule.x0_and_eps(prediction, noisy, step.level)
            x, from_source = clean[0].clone(), eps[run.rows.stream(source)]
            for edit in edits:
                at = run.rows.stream(edit)
                way = step.merge(self._way(step, noisy[at], eps[at] - from_source))
                x[run.images(edit)] -= way if self.inside is None else way * self.inside.to(x)
            step.x_next = x

        return Phases(before=before, after=after)

    def way(self, step: Step, edit: slice, gradient: Tensor) -> Tensor:
        return self._way(step, step.x[edit], gradient)

    def _way(self, step: Step, noisy: Float[Tensor, "n c h w"], gradient: Tensor) -> Float[Tensor, "n c h w"]:
        weighted = weight(self.weighting, step.level, noisy) * self.stein(gradient, noisy)
        return self.rate * self.decay ** (step.i // self.every) * weighted


@dataclass(frozen=True)
class Drawn(Windows):
    """Some windows in each step, drawn so that all have had a turn before one comes again."""

    inner: Tiles
    number: int
    seed: int = 0
    step: int = 0
    fuse: Fuse = "eps"
    partial: bool = True

    def at(self, i: int) -> Drawn:
        return replace(self, step=i)

    def places(self, height: int, width: int, window: Grid) -> tuple[tuple[int, int], ...]:
        every = self.inner.places(height, width, window)
        if self.number >= len(every):
            return every
        turn, part = divmod(self.step, -(-len(every) // self.number))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + turn) % 2**63)
        order = torch.randperm(len(every), generator=generator).tolist()
        return tuple(every[order[(part * self.number + k) % len(every)]] for k in range(self.number))


WIDE = CollaborativeEditing(windows=16)
"""Pictures larger than the model's, as in the authors' code: up to 16 windows in a step."""
