"""BoxDiff (Xie et al. 2023, arXiv 2307.10816): boxes fill with their words' attention, and nothing of it lies outside.

Before each of the first steps the conditional prediction is made once more and the latents go down three losses on the
maps of each box's words: the greatest values inside should be one (inner box), the greatest outside zero (outer box),
and the map's outline, its greatest values by column and by row, should end at the corners of the box.

Defaults: the authors' code (P 0.2, L 1, maps of 16 x 16 where the latents are 64 x 64, smoothed; step 20, which shrinks
to 20 sqrt(1/2), in the first half of 50 steps). It extends Attend-and-Excite, sharpens maps as that does and refines at
the same steps, by the inner-box loss of the emptiest box: so their config; the commands of their README switch it off
(``refinements`` 0). There a step that was refined then goes down the inner-box loss alone, as the others are still
those of the latents before; here down all. A box has one token there; here a phrase may have several, whose losses are
averaged, articles left out. Fewer cells than one count as one, where the authors' mean would not exist.

Needs: image->text maps near one resolution, in a prediction of the conditional rows with its gradient, once a step
while it acts and up to ``refinements`` times more where it refines; stops after the last site that is read.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.look import look
from sfumato.core.method import Method, Need, Phases, Requires, Run, Step, Where, span
from sfumato.core.settings import Part, PartOfSteps, Weight, Whole
from sfumato.methods.control.latent_descent import descend, refine, sharpened, text_at, text_span, thresholds, word_maps
from sfumato.methods.control.placed import among, phrase_tokens, placed
from sfumato.ops.blur import blur
from sfumato.prompts.layout import Layout

SIGMA = 2**-0.5  # of the blur, whose exponent the authors write as (x / 2 sigma)^2 with sigma 0.5


@dataclass(frozen=True)
class BoxDiff(Method):
    """Puts each phrase of a layout into its box, by three constraints on its maps."""

    requires: ClassVar = Requires(words=True, windows=False)

    layout: Layout | None = None
    """Phrases of the prompt and their boxes."""
    share: Part = 0.2
    """P: the part of the cells inside, and outside, whose greatest values count."""
    corners: Whole = 1
    """L: how many cells to either side of a box's edge its outline is compared."""
    scale: float = 20.0
    """Step at first; it shrinks with the root of a line from 1 to 1/2."""
    until: PartOfSteps = 0.5
    """Part of the steps in which it acts."""
    res: Part = 0.25
    """The grid nearest to this part of the latents' side is read."""
    layers: tuple[str, ...] = ()
    """Only attention on that grid whose path has one of these parts, such as up_blocks.3; none: all."""
    refine_at: tuple[PartOfSteps, ...] = (0.0, 0.2, 0.4)
    """Parts of the steps at which it refines."""
    refine_to: tuple[Weight, ...] = (0.05, 0.5, 0.8)
    """What the greatest values inside each box shall reach there."""
    refinements: Whole = 20
    """Most updates of one refinement; 0: none is made."""
    normalize_eot: bool = False
    """Leave the end token and the padding out of the sharpening: the authors do for Stable Diffusion 2.1."""

    def start(self, run: Run) -> Phases:
        at = thresholds(run, self.refine_at, self.refine_to, self.refinements)
        layout = placed(self.layout, run, "BoxDiff")
        tokens = phrase_tokens(layout, run)
        where = among(self.layers)
        need = Need(Where("image->text", text_at(run, self.res), (0, self.until), "cond", where))
        spans = [text_span(run, prompt, self.normalize_eot) for some in run.prompts.values() for prompt in some]
        end = span((0, self.until), run.steps)[1]

        def before(step: Step) -> None:
            if step.i >= end or not self.scale:
                return

            def each_box(x: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> list[Float[Tensor, " boxes"]]:
                maps = word_maps(look(step, (need,), x)[need], run)
                masks = layout.masks((maps.shape[1], maps.shape[2])).to(maps)
                each = []
                for image, (first, last), words in zip(maps, spans, tokens, strict=True):
                    sharp = blur(sharpened(image, first, last).movedim(-1, 0), SIGMA, 1, "reflect")
                    pairs = zip(masks, words, strict=True)
                    each.append(torch.stack([torch.stack([of(sharp[t], m) for t in some]).mean() for m, some in pairs]))
                return each

            def loss(x: Tensor) -> Float[Tensor, " b"]:
                boxes = each_box(x, lambda map, mask: box_loss(map, mask, self.share, self.corners))
                return torch.stack([one.sum() for one in boxes])

            def emptiest(x: Tensor) -> Float[Tensor, " b"]:
                boxes = each_box(x, lambda map, mask: inner_loss(map, mask, self.share))
                return torch.stack([one.max() for one in boxes])

            scale = self.scale * torch.linspace(1, 0.5, run.steps)[step.i].sqrt().item()
            if step.i in at and self.refinements:
                refine(step, emptiest, scale, self.refinements, 1 - at[step.i], beyond=True)
            descend(step, loss, scale)

        return Phases(looks=(need,) if end else (), before=before, calls=end / run.steps / len(run.rows.conditions))


def box_loss(map: Float[Tensor, "h w"], mask: Float[Tensor, "h w"], share: float, corners: int) -> Float[Tensor, ""]:
    """Inner-box, outer-box and corner constraints of one map (eqs. 4 to 7), ``mask`` one inside the box."""
    outer = _greatest(map, 1 - mask, share)
    total = inner_loss(map, mask, share) + outer.clamp(min=0)
    for axis in (0, 1):
        outline, wanted = map.amax(axis), mask.amax(axis)
        total = total + ((outline - wanted).abs() * _near_edges(wanted, corners)).mean()
    return total


def inner_loss(map: Float[Tensor, "h w"], mask: Float[Tensor, "h w"], share: float) -> Float[Tensor, ""]:
    """How far the greatest values inside a box are from one."""
    return (1 - _greatest(map, mask, share)).clamp(min=0)


def _greatest(map: Float[Tensor, "h w"], mask: Float[Tensor, "h w"], share: float) -> Float[Tensor, ""]:
    """Mean of the greatest values in the mask: as many as ``share`` of its cells."""
    count = max(1, int(mask.sum() * share))
    return (map * mask).flatten().topk(count).values.mean()


def _near_edges(wanted: Float[Tensor, " n"], corners: int) -> Float[Tensor, " n"]:
    """One at cells up to ``corners`` from where the box begins and from where it has ended."""
    inside = wanted.nonzero()
    near = torch.zeros_like(wanted)
    for edge in (int(inside[0]), int(inside[-1]) + 1):
        near[max(edge - corners, 0) : edge + corners + 1] = 1
    return near
