"""Prompt-to-Prompt (Hertz et al. 2023, arXiv 2208.01626): an edit of the words edits the image and keeps its layout.

The layout of an image is in its cross-attention maps, so while the target is painted, its maps are replaced by the
source's where both have the word (section 3.2: words swapped, words added, which keep their own maps, words weighed).
Self-attention is replaced in the first steps as well, which holds shapes. A local blend keeps the background.

Defaults: the authors' code (cross 0.8, self 0.4, blend 0.3 from 0.2 of the steps on). As there, edited maps are not
normalised again, the blend adds up the edited maps, and a part c of N steps is int(c (N + 1)) of them for words, int(c
N) for self-attention and the blend: of 12 steps 0.8 are 10, of 50 they are 40 either way.

Needs: image->text probabilities at all sites, image->image queries and keys (the same probabilities, still fused) at
grids up to ``self_res``; no further network calls.

Families: all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose, side_of
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where, span
from sfumato.core.settings import Count, Part, PartOfSteps, Settings
from sfumato.prompts.alignment import Padding, refinement, replacement
from sfumato.prompts.words import spans


@dataclass(frozen=True)
class LocalBlend(Settings):
    """Where the words' maps are weak, the target keeps the source's latents (section 4, "local editing")."""

    source: str
    """Word or phrase of the source prompt."""
    target: str
    """Word or phrase of the target prompt."""
    threshold: Part = 0.3
    start: Part = 0.2
    """From this part of the steps on."""
    res: Count | Part = 0.25
    """Grid of the maps: cells a side, or the nearest to this part of the latents' side (of small ones to 16 cells)."""


@dataclass(frozen=True)
class PromptToPrompt(Method):
    """The run's first stream is the source, all others are its edits."""

    requires: ClassVar = Requires(words=True, source=True, groups=True)
    prompted: ClassVar = True

    cross: PartOfSteps = 0.8
    """Part of the steps in which cross-attention is the source's."""
    self: PartOfSteps = 0.4
    """Part of the steps in which self-attention is the source's."""
    words: Mapping[str, float] = field(default_factory=dict)
    """Words of the target with a ``cross`` of their own."""
    reweight: Mapping[str, float] = field(default_factory=dict)
    """Words of the target whose maps are multiplied."""
    blend: LocalBlend | None = None
    """A word of the source and one of the target: only where they are may the picture change; and how strong their maps
    must be there, of their maximum."""
    self_res: Count | Part = 0.5
    """Finest grid whose self-attention is replaced: cells a side, or a part of the latents' side (of small ones 16
    cells). Half is the authors' later code, a quarter their first."""
    padding: Padding = "position"
    """Where words are added: what stands for the padding behind the target's last word, which is what has its position
    in the source, or what lies as far behind the source's own end (``end``)."""

    def start(self, run: Run) -> Phases:
        source, *targets = run.rows.streams
        mixes = {t: self._mixes(run, source, t) for t in targets}

        def cross(call: Call) -> None:
            base = call.block((source, "cond"), "image->text")
            for t in targets:
                theirs, own = (x if len(x) == 1 else call.rows.own(x) for x in mixes[t][call.step])
                new = base * theirs.to(base) if theirs.shape[-2] == 1 else base @ theirs.to(base)
                if own.any():
                    new = new + call.block((t, "cond"), "image->text") * own.to(base)
                call.set_block((t, "cond"), "image->text", new)

        def layout(call: Call) -> None:
            for t in targets:
                for which in "qk":
                    call.set(which, (t, "cond"), call.get(which, (source, "cond"), "image"), "image")

        end = max(_end(part, run.steps) for part in (self.cross, *self.words.values()))
        edits = (
            Edit(Where("image->text", steps=(0, end), rows="cond"), "probs", cross),
            Edit(
                Where("image->image", steps=(0, self.self), rows="cond", sites=_upto(run, self.self_res)),
                "qkv",
                layout,
                parts="qk",
            ),
        )
        if self.blend is None:
            return Phases(edits)
        side = side_of(choose(run.model, "image->text", run.grid), run.grid, self.blend.res)
        need = Need(Where("image->text", side, rows="cond"))
        total: dict[str, Tensor] = {}
        return Phases(edits, (need,), after=_blend(self.blend, run, need, total), state=total)

    def _mixes(self, run: Run, source: str, stream: str) -> list[tuple[Tensor, Tensor]]:
        """For each step, what the source's maps are multiplied by (tokens to tokens, or one number a token where they
        keep their places), and what the target's own; for each row, or once where all images have the same words."""
        pairs = list(zip(run.prompts[source], run.prompts[stream], strict=True))
        known = {pair: self._mixes_of(run, *pair) for pair in dict.fromkeys(pairs)}
        pairs = [pair for pair in pairs for _ in range(run.rows.views)] if len(known) > 1 else pairs[:1]
        out = []
        for step in range(run.steps):
            theirs, own = (torch.stack([known[pair][step][n] for pair in pairs]) for n in (0, 1))
            kept = theirs.diagonal(dim1=-2, dim2=-1)
            aligned = torch.equal(theirs, torch.diag_embed(kept))
            out.append(((kept[:, None] if aligned else theirs)[:, None], own[:, None, None]))
        return out

    def _mixes_of(self, run: Run, source: str, target: str) -> list[tuple[Tensor, Tensor]]:
        """For each step, matrix and own weights of one image's prompts."""
        words = run.model.words(target)
        matrix, known = _mapping(run, source, target, self.padding)
        weights = torch.ones(run.model.text_tokens)
        for word, weight in self.reweight.items():
            weights[spans(words, word)] = weight
        ends = torch.full((run.model.text_tokens,), _end(self.cross, run.steps))
        for word, part in self.words.items():
            ends[spans(words, word)] = _end(part, run.steps)
        acts = [(step < ends).float() for step in range(run.steps)]
        return [(matrix * (now * known * weights), now * ~known * weights + (1 - now)) for now in acts]


PIE_BENCH = PromptToPrompt(cross=0.4, self=0.6)
"""What the figures of PIE-Bench were made with (Ju et al. 2024, their code), 50 steps at guidance 7.5."""
EDIT_FRIENDLY = PromptToPrompt(cross=60.5 / 89, self=20.5 / 88, self_res=0.25)
"""With ``EditFriendly(skip=0.12)`` and guidance 9 (Huberman-Spiegelglas et al. 2024, their code), whose 0.6 and 0.2 are
of all 100 steps: 60 and 20 of the 88 that are run."""


def _end(part: float, steps: int) -> int:
    """One past the last step in which words are replaced: the authors' table of them has a row more than steps."""
    return min(span((0, part), steps + 1)[1], steps)


def _upto(run: Run, res: int | float):
    side = side_of(choose(run.model, "image->image", run.grid), run.grid, res)
    return lambda site: min(site.grid(run.grid)) <= side


def _mapping(run: Run, source: str, target: str, padding: Padding) -> tuple[Tensor, Tensor]:
    a, b = (run.model.words(prompt) for prompt in (source, target))
    if len(a) == len(b):
        return replacement(a, b, run.model.text_tokens), torch.ones(run.model.text_tokens, dtype=torch.bool)
    return refinement(a, b, run.model.text_tokens, padding)


def _blend(blend: LocalBlend, run: Run, need: Need, total: dict[str, Tensor]):
    """``total`` is of each stream what its maps sum up to."""
    source, *targets = run.rows.streams
    words = {s: blend.source if s == source else blend.target for s in run.rows.streams}
    known = {(s, p): spans(run.model.words(p), words[s]) for s in run.rows.streams for p in {*run.prompts[s]}}
    tokens = {s: [known[s, p] for p in run.prompts[s] for _ in range(run.rows.views)] for s in run.rows.streams}
    first = span((0, blend.start), run.steps)[1]

    def after(step: Step) -> None:
        maps = step.maps[need]
        for s in run.rows.streams:
            heard = [
                [m[..., at].sum(-1) for m, at in zip(of[s, "cond"], tokens[s], strict=True)] for of in maps.values()
            ]
            now = torch.stack([torch.stack(each) for each in heard]).mean(0)
            total[s] = total[s] + now if s in total else now
        if step.i < first:
            return
        grid = next(iter(maps)).grid(run.grid)
        masks = {s: _mask(total[s].view(-1, 1, *grid), blend.threshold, run.grid) for s in run.rows.streams}
        x, base = step.x_next.clone(), step.x_next[run.images(source)]
        for t in targets:
            at = run.images(t)
            x[at] = torch.where(masks[source] | masks[t], x[at], base)
        step.x_next = x

    return after


def _mask(map: Tensor, threshold: float, size: tuple[int, int]) -> Tensor:
    big = F.interpolate(F.max_pool2d(map, 3, 1, 1), size)
    return big / big.amax((2, 3), keepdim=True) > threshold
