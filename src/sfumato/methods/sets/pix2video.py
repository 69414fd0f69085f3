"""Pix2Video (Ceylan et al. 2023, arXiv 2303.12688): a video edited frame by frame, each after the one before it.

Every frame starts from its own inversion and reads the keys and values of the first frame and of the one before it, so
that what was made there is made here (section 3.1). In the first half of the steps its latents are also drawn to where
the frame before it is going: down the distance of its predicted image to that frame's (3.2), which is the colours and
the light mostly.

Defaults: the authors' code, of 50 steps: all self-attention; a weight of 100 times the mean of squares up to and with
step 25 (the paper: in the first half), whose gradient is by the prediction itself, detached: no way back through the
network, and a step of 200 over the numbers of an image towards the other's (0.012 of 64 x 64 x 4; here too it is over
the numbers, so that small latents take larger steps), which is taken after the step. Frames are painted together, as
each reads what the others are in the same step; theirs are painted one after the other and keep every step's tokens,
which is the same. Their model reads the frames' depth, and frames are inverted with the source's words at guidance 1
(``DDIMInversion()``).

Needs: image->image keys and values, which stay fused. No further network calls; attention takes twice as long.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sfumato.core.method import Method, Phases, Requires, Run, Step, span
from sfumato.core.settings import PartOfSteps, Weight
from sfumato.methods.sets.sources import read, shared


@dataclass(frozen=True)
class Pix2Video(Method):
    """The images of a stream are its frames; of several streams all are edits, or a source that is painted alike."""

    requires: ClassVar = Requires(set=True, groups=True)

    sources: str = "first+previous"
    """Whom each frame reads (as ``SharedAttention``)."""
    weight: Weight = 100.0
    """Of the distance to the frame before, a mean of squares; 0 for none."""
    until: PartOfSteps = 0.52
    """Part of the steps in which latents go down it."""

    def start(self, run: Run) -> Phases:
        frames, end = run.rows.of_stream, span((0, self.until), run.steps)[1]
        edits = shared(run, read(self.sources, frames))
        if frames == 1 or not self.weight or not end:
            return Phases(edits)

        def after(step: Step) -> None:  # eq. 2
            if step.i >= end:
                return
            x = step.x_next.clone()
            for stream in run.rows.streams:
                at = run.images(stream)
                x0 = step.x0[at]
                x[at][1:] -= 2 * self.weight / x0[0].numel() * (x0[1:] - x0[:-1])
            step.x_next = x

        return Phases(edits, after=after)
