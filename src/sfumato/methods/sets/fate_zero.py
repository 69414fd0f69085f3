"""FateZero (Qi et al. 2023, arXiv 2303.09535): a video edited by the attention of its own inversion.

The maps with which the video was inverted know its motion better than any that are made while it is edited. So in most
steps the edit gets them: those to words that both prompts have (as Prompt-to-Prompt, section 4.1), and those of
self-attention, so that shape and motion stay. Where the edited word is, self-attention can be the edit's own, which
lets shapes change (eq. 5, the attention blending). And every frame reads the middle one, in all but the finest layers
(4.2).

Defaults: the authors' code: cross 0.8, self 0.8, the middle frame alone (the text has the frame itself beside it:
``sources="self+middle"``), layers of at most half the latents' side. They keep all maps of an inversion, 100 GB for 8
frames; here the source runs beside, put back on its track by ``Direct`` before each step, and its maps are fused from
its queries and keys and never exist. The source reads the middle frame as well, as it is its maps that are taken; what
is predicted of it is not. A word's region is where the source's maps to it at a quarter of the side are above 0.3 of
their maximum, spread by a cell, as there; it is that of the step before, so the first has none.

Needs: image->text probabilities at all sites, image->image queries, keys and values, which stay fused; with a word its
maps, and twice the attention. No further network calls.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose, nearest_side
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where, span
from sfumato.core.settings import Part, PartOfSteps
from sfumato.core.sites import Grid
from sfumato.methods.edit.prompt_to_prompt import PromptToPrompt
from sfumato.methods.sets.shared_attention import sited
from sfumato.methods.sets.sources import PAIR, read, rows, shared, weighed
from sfumato.prompts.words import spans


@dataclass(frozen=True)
class FateZero(Method):
    """The run's first stream is the source, all others its edits; the images of a stream are its frames."""

    requires: ClassVar = Requires(words=True, source=True, set=True, groups=True)

    cross: PartOfSteps = 0.8
    """Part of the steps in which attention to the words is the source's."""
    self: PartOfSteps = 0.8
    """Part of the steps in which self-attention is the source's."""
    sources: str = "middle"
    """Whom each frame reads (as ``SharedAttention``)."""
    finest: Part = 0.5
    """Finest grid at which frames read others and self-attention is the source's, as a part of the latents' side."""
    word: str | None = None
    """A word or phrase of the source's prompt: where it is, self-attention is the edit's own."""
    threshold: Part = 0.3
    """How strong attention to it is there, of its maximum."""
    res: Part = 0.25
    """Side of its maps, as a part of the latents' side."""

    def start(self, run: Run) -> Phases:
        words = [e for e in PromptToPrompt(self.cross).start(run).edits if e.where.pair == "image->text"]
        found, within = read(self.sources, run.rows.of_stream), sited(run, self.finest)
        source, *targets = run.rows.streams
        region = None if self.word is None else _Region(run, source, self)
        kept = tuple(_Layout(run, source, t, found, region) for t in targets)
        where = {one: Where(PAIR, steps=(0, self.self), rows=(one.target, "cond"), sites=within) for one in kept}
        layout = tuple(Edit(at, "qkv", one.take, parts="qk") for one, at in where.items())
        across = shared(run, found, sites=within)
        if region is None:
            return Phases((*words, *layout, *across))
        end = span((0, self.self), run.steps)[1]

        def fuse(call: Call) -> None:
            for edit in across:
                edit.do(call)
            for one in kept if call.step < end else ():
                one.fuse(call)

        steps = (0, None if across else self.self)
        fused = Edit(Where(PAIR, steps=steps, sites=within), "sources", fuse, reads=lambda step: found)
        return Phases((*words, *layout, fused), (region.need,), after=region.note, state=region.state)


class _Region:
    """Where a word of the source's prompt is, by the maps of the step before."""

    def __init__(self, run: Run, source: str, how: FateZero):
        self.run, self.source, self.threshold = run, source, how.threshold
        known = {p: spans(run.model.words(p), how.word or "") for p in dict.fromkeys(run.prompts[source])}
        self.tokens = [known[p] for p in run.prompts[source]]
        side = nearest_side(choose(run.model, "image->text", run.grid, who="FateZero"), run.grid, how.res)
        self.need = Need(Where("image->text", side, (0, how.self), (source, "cond")))
        self.state: dict[str, Tensor] = {}

    def note(self, step: Step) -> None:
        maps = step.maps.get(self.need)
        if not maps:
            return
        mean = torch.stack([m[self.source, "cond"] for m in maps.values()]).mean(0)
        each = [tokens for tokens in self.tokens for _ in range(self.run.rows.views)]
        seen = torch.stack([m[:, at].sum(-1) for m, at in zip(mean, each, strict=True)])
        self.state["map"] = F.max_pool2d(seen.view(len(seen), 1, *next(iter(maps)).grid(self.run.grid)), 3, 1, 1)

    def at(self, grid: Grid) -> Bool[Tensor, "each n"] | None:
        if "map" not in self.state:
            return None
        large = F.interpolate(self.state["map"], grid)
        return (large > self.threshold * large.amax((2, 3), keepdim=True)).flatten(1)


@dataclass(frozen=True, eq=False)
class _Layout:
    """The source's self-attention maps in an edit: its queries and keys, and the edit's own values."""

    run: Run
    source: str
    target: str
    found: tuple[tuple[int, ...], ...]
    region: _Region | None
    own: dict[str, Tensor] = field(default_factory=dict)

    def take(self, call: Call) -> None:
        name = (self.target, "cond")
        for which in "qk":
            self.own[which] = call.get(which, name, "image").clone()
            call.set(which, name, call.get(which, (self.source, "cond"), "image"), "image")

    def fuse(self, call: Call) -> None:
        """Queries in the region have the edit's own maps (eq. 5)."""
        name = (self.target, "cond")
        inside = self.region.at(call.grid) if self.region else None
        if inside is None:
            return
        at, weight = map(call.rows.own, rows(self.found, self.run.rows.views))
        inside, everyone = call.rows.own(inside), torch.arange(len(at))
        bias = weighed(call, weight)
        kept = call.attended(name, everyone, at, bias, key="kept")
        for which in "qk":
            call.set(which, name, self.own[which], "image")
        edited = call.attended(name, everyone, at, bias, key="edited")
        out, image = kept.clone(), call.segment("q", "image")
        out[..., image, :] = torch.where(inside[:, None, :, None], edited[..., image, :], kept[..., image, :])
        call.give(name, out)
