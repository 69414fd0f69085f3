"""TokenFlow (Geyer et al. 2024, arXiv 2307.10373): an edit of a few frames, carried to all along the source's features.

In a video the same token comes again in the next frame, a little further; a model of images edits it there in another
way. So of each step a few frames are drawn, one in each stretch of the video, which read each other while they are
edited (section 4.1). What their self-attention gives is then carried to the frames in between: each token gets what
the tokens got that are nearest to it in the source's keyframes, before and after it, blended by how far those are
(4.2). Keyframes are drawn anew in each step, as what they miss is seen then by others.

Defaults: the authors' code: one keyframe in 8 frames, in all self-attention, in all steps; nearest by the cosine of the
source's tokens as that attention gets them. Edits need a technique beside it that keeps the source's layout: as
published ``PlugAndPlay()`` in the same run, with a start by ``Direct``. It follows the paper where the code does not:
frames are blended between the keyframes on both sides of them, not with the earlier one alone, from wherever those were
drawn and not as if in the middle of their stretch; weights go to 1 at a keyframe (theirs are a sigmoid's, of 0.5 to
0.73); no frame beyond a multiple of 8 is dropped, the last stretch is shorter. Theirs carries the source's tokens as
well; here the source is left as it is. Keyframes are not predicted twice: in
one pass they are what they would be in one of their own.

Needs: image->image queries, keys and values, and the source's tokens; attention is computed of keyframes alone, fused.
What is nearest is kept of a layer until the step ends, its matrices are made in parts of bounded size. No further
network calls.

Families: all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.features import Activation
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where
from sfumato.core.rows import Name
from sfumato.core.settings import Count, PartOfSteps, Whole
from sfumato.methods.sets.sources import PAIR
from sfumato.ops.memory import chunks


@dataclass(frozen=True)
class TokenFlow(Method):
    """The run's first stream is the source, all others its edits; the images of a stream are its frames."""

    requires: ClassVar = Requires(source=True, windows=False, set=True, groups=True)

    every: Count = 8
    """Frames of a stretch, of which one is a keyframe."""
    until: PartOfSteps = 1.0
    """Part of the steps in which edits are carried."""
    seed: Whole = 0
    """Of the draws of keyframes."""

    def start(self, run: Run) -> Phases:
        frames = run.rows.of_stream
        source, *targets = run.rows.streams
        drawn = [keyframes(frames, self.every, self.seed, i) for i in range(run.steps)]
        if frames == 1:
            return Phases()
        now: list[Step] = []
        flow = Need(
            Where("tokens", steps=(0, self.until), rows=(source, "cond")),
            reduce=lambda tokens, name: nearest(tokens, name, drawn[tokens.step]),
            passes=True,
        )

        def before(step: Step) -> None:
            now[:] = [step]

        def carrying(target: str):
            def carry(call: Call) -> None:
                maps = now[0].maps[flow]
                at = next(maps[layer][source, "cond"] for layer in maps if layer.path == call.site.path)
                for condition in run.rows.conditions:
                    call.give((target, condition), carried(call, (target, condition), drawn[call.step], at))

            return carry

        where = {t: Where(PAIR, steps=(0, self.until), rows=(t, None)) for t in targets}
        read = [(keys,) * frames for keys in drawn]
        edits = tuple(Edit(where[t], "sources", carrying(t), reads=read.__getitem__) for t in targets)
        return Phases(edits, (flow,), before=before)


def keyframes(frames: int, every: int, seed: int, step: int) -> tuple[int, ...]:
    """One of each stretch of so many frames, drawn by the seed for a step."""
    draw = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    starts = range(0, frames, every)
    return tuple(a + int(torch.randint(min(every, frames - a), (), generator=draw)) for a in starts)


def around(frame: int, keys: Sequence[int]) -> tuple[int, int, float]:
    """The keyframes before and after a frame, by their number, and the first one's weight."""
    before = max((n for n, key in enumerate(keys) if key <= frame), default=0)
    after = min((n for n, key in enumerate(keys) if key >= frame), default=len(keys) - 1)
    if before == after:
        return before, after, 1.0
    return before, after, (keys[after] - frame) / (keys[after] - keys[before])


def nearest(tokens: Activation, name: Name, keys: Sequence[int]) -> Int[Tensor, "frames 2 n"]:
    """For each frame's tokens those most like them of the keyframes before and after it, by their cosine."""
    own = F.normalize(tokens.get(name).float(), dim=-1)
    numbers = tokens.rows.numbers
    theirs = tokens.across(name, dict(zip(numbers, own, strict=True)), keys)
    sides = [around(frame, keys)[:2] for frame in numbers]
    out = torch.zeros(len(own), 2, own.shape[1], dtype=torch.long, device=own.device)
    for n, key in enumerate(keys):
        at = torch.tensor([(f, side) for f, pair in enumerate(sides) for side in (0, 1) if pair[side] == n])
        if len(at):
            asked = own[at[:, 0]].flatten(0, 1)
            found = [(some @ theirs[key].T).argmax(-1) for some in chunks(asked, own.shape[1])]
            out[at[:, 0], at[:, 1]] = torch.cat(found).view(len(at), -1)
    return out


def carried(
    call: Call, name: Name, keys: Sequence[int], at: Int[Tensor, "frames 2 n"]
) -> Float[Tensor, "each heads queries dim"]:
    """Keyframes read each other (eq. 3), and every frame's tokens get what those nearest to them got (eqs. 4 to 6)."""
    each, numbers = len(at), call.rows.numbers
    everyone, here = torch.tensor(keys).expand(each, -1), [key for key in keys if key in numbers]
    own: dict[int, Tensor] = {}
    if here:
        places = torch.tensor([numbers.index(key) for key in here])
        own = dict(zip(here, call.attended(name, places, everyone, key=None), strict=True))
    got = call.across(name, "carried", own, keys)
    image = call.segment("q", "image")
    out = got[keys[0]].new_empty(each, *got[keys[0]].shape)
    for f, frame in enumerate(numbers):
        before, after, weight = around(frame, keys)
        first, second = (got[keys[n]][:, image][:, at[f, side]] for side, n in ((0, before), (1, after)))
        out[f][:, image] = first if weight == 1 else torch.lerp(second, first, weight)
    for text in _words(call):
        out[..., text, :] = call.attended(name, torch.arange(each), everyone, queries=text, key="words")
    for key in here:
        out[numbers.index(key)] = got[key]
    return out


def _words(call: Call) -> list[slice]:
    """Where queries of text lie, which go on in every frame."""
    return [call.segment("q", "text")] if "text" in call.site.query else []
