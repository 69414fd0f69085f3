"""StyleAligned (Hertz et al. 2024, arXiv 2312.02133): a set of images in the style of its first one.

Every image reads itself and the first one, the reference. By itself that does little, as an image attends mostly to
itself; so its queries and keys first get the mean and the deviation of the reference's, channel by channel over the
tokens (AdaIN, section 4.1), and then find the reference as easily as their own. No image reads any but the first, so
what is in them does not mix.

Defaults: the authors' code: all self-attention, all steps, queries and keys but not values, the reference's logits as
they are. ``shift`` and ``scale`` are theirs of a reference that is found too strongly or too weakly, a photograph
say (they take log 2 there); a photograph is a start of two streams' images (``sfumato.inversion``). The reference reads
itself alone here, so it is what it is without the set; there it reads itself twice, which is the same. Sharing of
normalisation layers, which their code can do and their examples do not, is left out. In Flux queries and keys are
turned by their places before they get here, and so are the statistics.

Needs: image->image queries, keys and values, which stay fused. No further network calls; attention takes twice as long.

Families: all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where
from sfumato.core.rows import Name
from sfumato.errors import SfumatoError
from sfumato.methods.sets.sources import PAIR, read, shared


@dataclass(frozen=True)
class StyleAligned(Method):
    """The first image of a stream is the reference, all others take its style."""

    requires: ClassVar = Requires(set=True, groups=True)

    adain: str = "qk"
    """Which of queries, keys and values (``q``, ``k``, ``v``) get the reference's statistics."""
    shift: float = 0.0
    """What is added to the logits of the reference's keys."""
    scale: float = 1.0
    """What they are multiplied by."""

    def start(self, run: Run) -> Phases:
        if set(self.adain) - set("qkv"):
            raise SfumatoError(f"statistics are those of q, k and v, such as 'qk', got {self.adain!r}")
        images = run.rows.of_stream
        if images == 1:
            return Phases()

        views = run.rows.views

        def aligned(call: Call, which: str, name: Name) -> Tensor:
            own = call.get(which, name, "image")
            firsts = {n: own[at * views : (at + 1) * views] for at, n in enumerate(call.rows.numbers)}
            reference = call.across(name, f"aligned {which}", firsts, [0])[0]
            others = own[views:] if 0 in firsts else own
            new = adain(others, reference.repeat(len(others) // views, 1, 1, 1))
            return torch.cat([reference, new]) if 0 in firsts else new

        def align(call: Call) -> None:
            found = {(w, n): aligned(call, w, n) for w in self.adain for n in run.rows.names}
            for (which, name), value in found.items():  # once all are read: gradients need them as they were
                call.set(which, name, value, "image")

        edits = shared(run, read("self+first", images), of_others=(self.scale, self.shift))
        return Phases((Edit(Where(PAIR), "qkv", align, parts=self.adain), *edits) if self.adain else edits)


PHOTOGRAPH = StyleAligned(shift=math.log(2))
"""The authors' notebook for a reference that is a photograph."""


def adain(own: Float[Tensor, "b heads n d"], reference: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
    """With the mean and deviation over tokens of the reference's."""
    both = (own, reference)
    (mean, std), (to, by) = ((x.mean(-2, keepdim=True), (x.var(-2, keepdim=True) + 1e-5).sqrt()) for x in both)
    return (own - mean) / std * by + to
