"""Stable Flow (Avrahami et al. 2025, arXiv 2411.14430): an edit keeps the source by attending to it in few blocks.

Flow transformers paint much the same image for much the same prompt. Left out one at a time, few of their blocks matter
to what is painted: the vital ones. In those the edits' image tokens have the source's keys and values, and so keep what
the new words do not touch; everywhere else they are free.

Defaults: the vital blocks that the paper gives for Flux, as parts of the depth, so that other sizes have theirs;
``RELEASED`` is the authors' code, which leaves one of them out, ``SD3`` what the paper gives for Stable Diffusion 3.
The code copies keys before their norm and rotation, which act on each token by its place alone: copied after them, as
here, from the same place they are the same. Under classifier-free guidance, which the paper does not use, each edit's
rows take those of the source under the same condition.

A real image is inverted after its latents are made a little larger, which the paper found to keep the way back closer
to it (``Nudged``). The authors show the larger latents; here they are divided again, so that the source ends as the
image itself.

Needs: image->image keys and values in the vital blocks, still fused.

Families: joint-attention transformers, which are Stable Diffusion 3 and Flux.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Step, Where
from sfumato.core.schedule import part_of
from sfumato.core.settings import Count, LesserPart, Positive
from sfumato.core.sites import Site, block
from sfumato.errors import SfumatoError
from sfumato.inversion.ddim import DDIMInversion
from sfumato.inversion.path import Advance, Path
from sfumato.methods.edit.flow_edit import Scaled


@dataclass(frozen=True)
class StableFlow(Method):
    """The run's first stream is the source, all others are its edits. Published: 15 steps at guidance 3.5 for what is
    painted from noise."""

    requires: ClassVar = Requires(source=True)

    vital: tuple[LesserPart, ...] = tuple(i / 57 for i in (0, 1, 2, 17, 18, 25, 28, 53, 54, 56))
    """Vital blocks, as parts of the depth: 0 is the first block."""

    def start(self, run: Run) -> Phases:
        source, *targets = run.rows.streams
        if not any("text" in site.query for site in run.model.sites):
            raise SfumatoError(
                f"Stable Flow is for transformers with joint attention, such as Stable Diffusion 3 and Flux; "
                f"{run.model.name} has none: take masactrl"
            )
        blocks = list(dict.fromkeys(block(site) for site in run.model.sites))
        vital = {blocks[part_of(len(blocks), part)] for part in self.vital}

        def share(target: str, call: Call) -> None:
            for _, condition in run.rows.match((target, None)):
                for which in "kv":
                    call.set(which, (target, condition), call.get(which, (source, condition), "image"), "image")

        def where(site: Site) -> bool:
            return block(site) in vital

        if not vital:
            return Phases()
        return Phases(
            tuple(
                Edit(Where("image->image", rows=(t, None), sites=where), "qkv", partial(share, t), parts="kv")
                for t in targets
            )
        )


RELEASED = StableFlow(tuple(i / 57 for i in (0, 1, 17, 18, 25, 28, 53, 54, 56)))
"""The authors' code for Flux: blocks 0, 1, 17, 18 of the double and 6, 9, 34, 35, 37 of the single ones."""
SD3 = StableFlow(tuple(i / 24 for i in (0, 7, 8, 9)))
"""The paper's for Stable Diffusion 3."""


@dataclass(frozen=True)
class Nudged(Scaled):
    """Direct inversion of latents that are a little too large (section 3.3); each stream is divided again at the end.

    The run's guidance should be its own (``guide``).

    Needs: a network call a step; the latents of all levels are kept.

    Families: all; published for Flux.
    """

    nudge: Positive = 1.15
    """What the latents are multiplied by; 1 is direct inversion."""
    source_scale: float = 1.0
    """Guidance on the way to noise, and of the source."""
    target_scale: float = 3.0
    """Guidance of the edits."""
    steps: Count = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        track = DDIMInversion(self.source_scale, 0, self.steps).track(model, image * self.nudge, prompts, advance)
        levels = model.levels(self.steps, image.shape[-2:])
        return Larger(track[0], levels, prompts, image, track=track, pinned=True, nudge=self.nudge)


@dataclass(frozen=True, eq=False)
class Larger(Path):
    """A path of latents that are too large by a factor, which goes after the last step."""

    nudge: Positive = 1.0

    def start(self, run: Run) -> Phases:
        held, first = super().start(run), run.images(run.rows.streams[0])

        def after(step: Step) -> None:
            assert held.after is not None
            held.after(step)
            if step.i + 1 == run.steps:
                step.x_next = step.x_next / self.nudge
                step.x_next[first] = self.image.to(step.x_next)

        return replace(held, after=after)
