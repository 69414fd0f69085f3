"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242): all weights of the network learn a thing under a rare name.

The word reads as a rare token before the word of its kind, so that the model brings what it knows of the kind to the
thing (section 3.2). Beside each picture it sees one of the kind at large, which it painted before the run, and which
keeps the kind from becoming the thing (prior preservation, eq. 2).

Defaults: diffusers' example as its README runs it, 800 steps with 100 pictures of the kind, one of either a step, at a
rate of 5e-6, clipped to a norm of 1; without the prior 400 (``dream-booth:without-prior``); the paper has 1000 at 1e-5
for Imagen and 5e-6 for Stable Diffusion. The rare token is ``sks``, the example's, and for ``sfumato learn`` one that
its word has alone. Different from both: pictures are encoded once and latents are the encoder's means; texts are made
once unless the text encoder learns, which has a rate of its own; each picture is seen once before any comes again;
``snr_gamma`` weighs each picture by its own level, also beside the prior. A model in halves learns in float32 and
computes in bfloat16.

Needs: a forward and a backward pass for a picture of each in one batch, a float32 copy of the network, and two moments
of each weight.

Families: all; a word's vectors in Stable Diffusion 1, 2 and XL, the others read the word as it is spelled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sfumato.core.settings import Count, Weight
from sfumato.learning import tuning
from sfumato.learning.concepts import Concept
from sfumato.learning.personal import Asked
from sfumato.learning.tuning import Retuning, Tuning


@dataclass(frozen=True)
class DreamBooth(Retuning):
    """Learns the whole network."""

    teaches_words = False
    steps: Count = 800
    rate: Weight = 5e-6
    text: bool = False
    """Do the text encoders learn as well?"""
    text_rate: Weight = 2e-6
    """Their rate."""
    checkpointing: bool = False
    """Is what the backward pass needs made again, and not kept? Slower, in less memory."""

    def problem(self, asked: Asked) -> Tuning:
        model, _ = tuning.named(asked, self.rare)
        own, moved = tuning.copies(model, tuning.parts_of(model, self.text))
        if self.checkpointing:
            own.network.enable_gradient_checkpointing()
        parts = tuning.lessons(asked, self.templates, self.batch, self.prior_weight)
        problem = Tuning(own, parts, asked.seed, moved=moved, word=asked.word, snr_gamma=self.snr_gamma)
        if self.text:
            problem.phrase = f"{self.rare} {asked.kind}"
        problem.rates = {part: self.text_rate for part in moved if part.startswith("text_encoder")}
        return problem

    def concept(self, asked: Asked, problem: Any) -> Concept:
        _, rows = tuning.named(asked, self.rare)
        changes = tuning.differences(asked.model, problem.moved)
        return Concept(asked.word, problem.vectors() or rows, changes, {"kind": asked.kind, "identifier": self.rare})


WITHOUT_PRIOR = replace(DreamBooth(), prior_weight=0.0, steps=400)
"""Of the thing's pictures alone."""
