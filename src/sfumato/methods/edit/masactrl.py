"""MasaCtrl (Cao et al. 2023, arXiv 2304.08465): another pose, another layout, the same things.

The target asks and the source answers: from some step and some layer on, the target's self-attention has its own
queries and the source's keys and values (section 3.2), so that what it paints where its own words put it looks like
the source. Near the image of another thing that may mix things up, so the queries of a word's region can be kept to
the keys of that region in the source, and the others to the rest (section 3.3); the regions are cross-attention maps.

Defaults: the authors' code, from step 4 of 50 and from layer 10 of 16, given here as parts; for SDXL that is layer 44
of 70, the first of the three that they try. Each condition of the guidance has the source's keys and values of the
same condition. Masks are made as there, in the step itself, from the maps at a quarter of the latents' side that the
network has already made; where it has none of that side, from those nearest to it. Photographs they invert with an
empty prompt, which then is the source's.

Needs: image->image keys and values, which stay fused; with words, their probabilities in the layers from ``layer`` on,
and image->text maps. No further network calls.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose, nearest_side
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where
from sfumato.core.settings import LesserPart, Part, PartOfSteps
from sfumato.errors import SfumatoError
from sfumato.prompts.words import spans


@dataclass(frozen=True)
class MasaCtrl(Method):
    """The run's first stream is the source, all others take their looks from it."""

    requires: ClassVar = Requires(source=True)

    after: PartOfSteps = 0.08
    """Part of the steps that are left alone: they settle the layout."""
    layer: LesserPart = 0.625
    """Part of the self-attention layers, in the order in which they run, that are left alone."""
    source: str | None = None
    """A word or phrase of the source's prompt: what is in its region is looked for there alone."""
    target: str | None = None
    """Its counterpart in the target's prompt; the same unless said."""
    threshold: Part = 0.1
    """How strong attention to the words is in their region, between its minimum and its maximum."""
    res: Part = 0.25
    """Side of the maps that regions are made of, as a part of the latents' side."""

    def start(self, run: Run) -> Phases:
        source, *targets = run.rows.streams
        layers = choose(run.model, "image->image", run.grid, who="MasaCtrl")
        first = layers[min(round(self.layer * len(layers)), len(layers) - 1)]

        def edit(field, do, target: str) -> Edit:
            where = lambda site: site.index >= first.index  # noqa: E731
            return Edit(
                Where("image->image", steps=(self.after, None), rows=(target, None), sites=where), field, do, parts="kv"
            )

        def answers(target: str):
            def share(call: Call) -> None:  # eq. 6
                for c in run.rows.conditions:
                    for which in "kv":
                        call.set(which, (target, c), call.get(which, (source, c), "image"), "image")

            return share

        edits = tuple(edit("qkv", answers(t), t) for t in targets)
        if self.source is None:
            if self.target is not None:
                raise SfumatoError("MasaCtrl's region is that of a word of the source; give the source's word as well")
            return Phases(edits)
        regions = _Regions(run, self, self.source)
        edits += tuple(edit("logits", regions.confine(t), t) for t in targets)
        return Phases(edits, (regions.need,), before=regions.watch)


class _Regions:
    """Where the words are, as far as the step's maps tell by now."""

    def __init__(self, run: Run, how: MasaCtrl, word: str):
        self.run, self.threshold = run, how.threshold
        self.source, *targets = run.rows.streams
        words = {self.source: word} | dict.fromkeys(targets, how.target or word)
        found = {s: [spans(run.model.words(p), words[s]) for p in some] for s, some in run.prompts.items()}
        tokens = tuple(sorted({t for some in found.values() for each in some for t in each}))
        chosen = {s: torch.tensor([[t in each for t in tokens] for each in some]) for s, some in found.items()}
        self.weights = {s: run.rows.spread(w).float()[:, None] for s, w in chosen.items()}
        side = nearest_side(choose(run.model, "image->text", run.grid, who="MasaCtrl"), run.grid, how.res)
        self.need = Need(Where("image->text", side, (how.after, None), "cond"), tokens)
        self.step: Step | None = None

    def watch(self, step: Step) -> None:
        self.step = step

    def mask(self, stream: str, grid: tuple[int, int]) -> Bool[Tensor, "each n"] | None:
        """Cells of a stream that are in the region; none where the step has no maps yet."""
        maps = self.step.maps.get(self.need) if self.step else None
        if not maps:
            return None
        map = torch.stack([m[stream, "cond"] for m in maps.values()]).mean(0)
        map = (map * self.weights[stream].to(map)).sum(-1)
        return region(map.view(len(map), 1, *next(iter(maps)).grid(self.run.grid)), grid, self.threshold)

    def confine(self, target: str):
        def confine(call: Call) -> None:
            keys, queries = (self.mask(s, call.grid) for s in (self.source, target))
            if keys is None or queries is None:
                return
            allowed = queries[:, :, None] == keys[:, None, :]
            allowed |= ~allowed.any(-1, keepdim=True)  # a region that the source has nowhere is looked for everywhere
            at = (..., call.segment("q", "image"), call.segment("k", "image"))
            for c in self.run.rows.conditions:
                logits = call.logits((target, c)).clone()
                logits[at] = logits[at].masked_fill(~allowed[:, None], -torch.inf)
                call.set_logits((target, c), logits)

        return confine


def region(map: Float[Tensor, "b 1 h w"], grid: tuple[int, int], threshold: float) -> Bool[Tensor, "b n"]:
    """A map between its minimum and its maximum, at another size, above a threshold."""
    low, high = map.amin((2, 3), keepdim=True), map.amax((2, 3), keepdim=True)
    even = (map - low) / (high - low).clamp_min(torch.finfo(map.dtype).tiny)
    return F.interpolate(even, grid).flatten(1) >= threshold
