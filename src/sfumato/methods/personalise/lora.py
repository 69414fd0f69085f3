"""LoRA (Hu et al. 2021, arXiv 2106.09685): a low-rank change of attention learns a thing, in a small file.

To each projection of attention a product of two thin matrices is added, which alone learn. The word reads as a rare
token before the word of its kind, as in DreamBooth, also with its pictures of the kind where they are asked for.

Defaults: diffusers' example as its README runs it, rank 4 with alpha the same, downs normal with deviation 1 / rank and
ups zero, 500 steps of a picture at a rate of 1e-4, clipped to a norm of 1. Different from it: pictures are encoded once
and latents are the encoder's means; texts are made once unless text encoders learn; each picture is seen once before
any comes again; pairs are in float32 whatever the network is in, and float16's gradients are scaled.

Needs: a forward and a backward pass through the frozen network for each picture of a step.

Families: all with attention; a word's vectors in Stable Diffusion 1, 2 and XL, the others read the word as it is
spelled, and also learn the projections of the text that they attend to with the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.backbones import lora_files
from sfumato.core.settings import Count, Weight
from sfumato.learning import tuning
from sfumato.learning.concepts import Concept, checked
from sfumato.learning.personal import Asked
from sfumato.learning.tuning import Retuning, Tuning


@dataclass(frozen=True)
class LoRA(Retuning):
    """Learns a low-rank change of attention."""

    teaches_words = False
    steps: Count = 500
    rate: Weight = 1e-4
    rank: Count = 4
    """Of each change."""
    alpha: Weight | None = None
    """A change counts alpha / rank; none: the rank."""
    prior_weight: Weight = 0.0
    text: bool = False
    """Do the text encoders learn as well?"""
    checkpointing: bool = False
    """Is what the backward pass needs made again, and not kept? Slower, in less memory."""

    def problem(self, asked: Asked) -> Tuning:
        model, _ = tuning.named(asked, self.rare)
        own, moved = tuning.low_rank(model, tuning.parts_of(model, self.text), self.rank, asked.seed, self.alpha)
        if self.checkpointing:
            own.network.enable_gradient_checkpointing()
        parts = tuning.lessons(asked, self.templates, self.batch, self.prior_weight)
        return Tuning(own, parts, asked.seed, moved=moved, word=asked.word, snr_gamma=self.snr_gamma)

    def concept(self, asked: Asked, problem: Any) -> Concept:
        _, rows = tuning.named(asked, self.rare)
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        changes = tuning.halves(problem.moved, scale)
        return Concept(asked.word, rows, changes, {"kind": asked.kind, "identifier": self.rare})


def imported(file: str | Path, model: Any, word: str) -> Concept:
    """A concept of a LoRA's file in any layout, by a word that prompts call it; the file's own are read as ever.

    ``sfumato.backbones.lora_files.write`` writes one of a concept's changes. Raises ``SfumatoError`` for a file of
    another family.
    """
    return Concept(checked(word), {}, lora_files.changes(Path(file), model.pipe), {"file": Path(file).name})
