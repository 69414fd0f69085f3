"""DenseDiffusion (Kim et al. 2023, arXiv 2308.12964): each segment of a picture listens to its phrase and to itself.

In the first steps the logits of attention are raised where a pixel and a token of its segment's phrase meet, or two
pixels of one segment, and lowered everywhere else, each as far as the row's own greatest and least logit allow: the
more, the noisier the step and the smaller the segment (eqs. 5 to 8). Each phrase is also encoded by itself, and its
tokens take the place of those in the prompt, so that no word leaks into another's.

Defaults: the authors' code (words 1.0, pixels 0.3, (t / 1000)^5, the first 30 % of 50 steps, conditional rows only).
Their layouts cover the whole picture. Here what no segment covers is a segment of its own among pixels, and for words
it only loses those of the others. Cells are taken by their area, not by their corner; tokens that a network masks stay
out. Of two texts that are read one after the other (Stable Diffusion 3) the phrases are found in the first.

Needs: image->text and image->image logits at all sites, which rules the fused kernel out in the steps in which it acts.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.conditions import Cond
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Step, Where, span
from sfumato.core.settings import PartOfSteps, Positive, Weight
from sfumato.methods.control.placed import among, phrase_tokens, placed
from sfumato.prompts.layout import Layout
from sfumato.prompts.weights import escaped

_MASKED = -5e3  # masks of text add -1e4 or minus infinity


@dataclass(frozen=True)
class DenseDiffusion(Method):
    """Ties each segment of a layout to its phrase."""

    requires: ClassVar = Requires(words=True, windows=False)

    layout: Layout | None = None
    """Phrases of the prompt and their segments: masks, or boxes."""
    cross: Weight = 1.0
    """w_c: how strongly words are tied to their segments."""
    self: Weight = 0.3
    """w_s: how strongly pixels are tied to those of their own segment."""
    power: Positive = 5.0
    """Of t / 1000, by which both fade."""
    until: PartOfSteps = 0.3
    """Part of the steps in which it acts."""
    apart: bool = True
    """Encode each phrase by itself."""
    layers: tuple[str, ...] = ()
    """Parts of the paths of the attention it writes, such as up_blocks.1; none: all."""

    def start(self, run: Run) -> Phases:
        layout = placed(self.layout, run, "dense diffusion")
        tokens = phrase_tokens(layout, run, articles=True)
        if not span((0, self.until), run.steps)[1]:
            return Phases()
        now = [0.0]

        def before(step: Step) -> None:
            now[0] = float(step.level.t / run.model.schedule.train_steps) ** self.power

        def writing(pair: str, weight: float) -> Edit:
            def do(call: Call) -> None:
                masks = layout.masks(call.grid).flatten(1)
                area, together = segments(masks)
                for name in call.rows.match("cond"):
                    words = tokens[run.images(name[0])]
                    query, key = call.segment("q", "image"), call.segment("k", pair.removeprefix("image->"))
                    logits = call.logits(name).clone()
                    for i, named in enumerate(words):  # not over views: a gradient may be wanted
                        block = logits[i, :, query, key]
                        up, down = (
                            (together, ~together) if pair == "image->image" else spoken(masks, named, block.shape[-1])
                        )
                        logits[i, :, query, key] = tied(block, up, down, weight * now[0] * (1 - area))
                    call.set_logits(name, logits)

            return Edit(Where(pair, steps=(0, self.until), rows="cond", sites=among(self.layers)), "logits", do)

        pairs = (("image->text", self.cross), ("image->image", self.self))
        edits = tuple(writing(pair, weight) for pair, weight in pairs if weight)
        return Phases(edits, before=before, cond=_encoding(run, tokens) if self.apart else None)


def segments(masks: Float[Tensor, "n cells"]) -> tuple[Float[Tensor, "cells 1"], Bool[Tensor, "cells cells"]]:
    """Of each cell the part of the picture that its segment takes, and which cells share it; the rest is one too."""
    rest = (masks.sum(0, keepdim=True) == 0).to(masks)
    whole = torch.cat([masks, rest])
    together = whole.T @ whole > 0
    return together.to(masks).mean(1, keepdim=True), together


def spoken(
    masks: Float[Tensor, "n cells"], tokens: Sequence[Sequence[int]], length: int
) -> tuple[Bool[Tensor, "cells length"], Bool[Tensor, "cells length"]]:
    """For which tokens a cell's attention is raised, and for which lowered: in no segment, the others' words alone."""
    named = masks.new_zeros(len(tokens), length)
    for row, some in zip(named, tokens, strict=True):
        row[list(some)] = 1
    up = masks.T @ named > 0
    covered = masks.sum(0)[:, None] > 0
    return up, ~up & (covered | (named.sum(0) > 0))


def tied(
    logits: Float[Tensor, "heads queries keys"],
    up: Bool[Tensor, "queries keys"],
    down: Bool[Tensor, "queries keys"],
    weight: Float[Tensor, "queries 1"],
) -> Float[Tensor, "heads queries keys"]:
    """Logits raised towards the greatest of their row, and lowered towards the least, by a weight (eqs. 5 and 6)."""
    seen = logits > _MASKED
    high = logits.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True)
    low = logits.masked_fill(~seen, torch.inf).amin(-1, keepdim=True)
    up, down, weight = up.to(logits.device), down.to(logits.device), weight.to(logits)
    moved = logits + weight * (up * (high - logits) - down * (logits - low))
    return torch.where(seen, moved, logits)


def _encoding(run: Run, tokens: Sequence[Sequence[Sequence[int]]]) -> Callable[[Step, Cond], Cond]:
    """Conditions in which each phrase's tokens are those that it has by itself."""
    found: list[tuple[int, slice, Tensor]] = []
    for stream, prompts in run.prompts.items():
        at = run.rows[stream, "cond"].start
        for row, (prompt, phrases) in enumerate(zip(prompts, tokens[run.images(stream)], strict=True), at):
            words = run.model.words(prompt)
            for named in phrases:
                for here in _runs([n for n, (_, place) in enumerate(words) if place.start in named]):
                    piece = escaped(" ".join(words[n][0] for n in here))
                    own = run.model.words(piece)
                    text = run.model.embed([piece]).text[0, own[0][1].start : own[-1][1].stop]
                    found.append((row, slice(words[here[0]][1].start, words[here[-1]][1].stop), text))

    def cond(step: Step, now: Cond) -> Cond:
        text = now.text.clone()
        for row, place, own in found:
            text[row, place] = own.to(text)
        return replace(now, text=text)

    return cond


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Consecutive numbers together."""
    out: list[list[int]] = []
    for n in numbers:
        if out and out[-1][-1] == n - 1:
            out[-1].append(n)
        else:
            out.append([n])
    return out
