"""Eye-for-an-eye (Go et al. 2024, arXiv 2406.07008): looks go over by meaning, part to part.

Cross-image attention leaves it to queries and keys which part of the appearance a part of the target reads, and mixes
several. Here each token of the target takes the one of the appearance's tokens that is most like it (by their cosine),
before queries, keys and values are made of it, within the thing; so the network goes on with the appearance's
features in the target's arrangement. At the end, latents get the appearance's mean and deviation within the thing
(AdaIN).

Defaults: the authors' code, as parts of the 68 steps that it runs (100, the first 32 skipped): tokens from step 10 on
(its end, 70, lies behind the last step), AdaIN from 50, guidance 1. Every fifth of the first 40 steps takes the
structure's own tokens. Theirs matches pixel by pixel in a loop; this is one product. Their masks are Segment
Anything's: give masks, or a word, which finds them as in cross-image attention; without either all is matched with
all. What lies outside of the appearance's mask is never matched (there it counts as similarity 0).

Needs: the tokens that self-attention reads at the two finest grids of the decoder; with a word, maps of the steps
before the statistics. No further network calls. Start as cross-image attention does.

Families: all; in transformers the later half of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.features import Activation
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where, span
from sfumato.core.settings import PartOfSteps, Whole
from sfumato.methods.edit.appearance import APPEARANCE, Things, grids, in_decoder, matched, of_structure, roles
from sfumato.prompts.layout import Mask


@dataclass(frozen=True)
class EyeForAnEye(Method):
    """The first stream is the structure, ``appearance`` the looks, all others are painted. No prompt need differ."""

    requires: ClassVar = Requires(windows=False)

    tokens: tuple[PartOfSteps, PartOfSteps] = (10 / 68, 1.0)
    """Parts of the steps between which the target's tokens are the appearance's."""
    adain: tuple[PartOfSteps, PartOfSteps] = (50 / 68, 1.0)
    """Parts of the steps between which the latents get the appearance's mean and deviation."""
    every: Whole = 5
    """Of the early steps each so manieth takes the structure's tokens; 0 for none."""
    early: PartOfSteps = 40 / 68
    """Part of the steps that are early."""
    word: str | None = None
    """What the thing is called in the source's prompt."""
    appearance_word: str | None = None
    """What it is called in the appearance's prompt, if otherwise."""
    mask: Mask | None = None
    """Where the thing is in the source, instead of a word."""
    appearance_mask: Mask | None = None
    """Where the thing is in the appearance's image."""

    def start(self, run: Run) -> Phases:
        structure, painted = roles(run, "eye-for-an-eye")
        first, end = span(self.adain, run.steps)
        words = {structure: self.word, APPEARANCE: self.appearance_word or self.word}
        masks = {structure: self.mask, APPEARANCE: self.appearance_mask}
        things = Things(run, words, masks, first + 1 if first < end else run.steps)

        def taking(target: str):
            name = (target, "cond")

            def take(tokens: Activation) -> None:
                if of_structure(tokens.step, run.steps, self.every, self.early):
                    return tokens.set(name, tokens.get((structure, "cond")))
                grid = tokens.layer.grid(run.grid)
                inside, of = (things.at(s, grid) for s in (structure, APPEARANCE))
                tokens.set(name, arranged(tokens.get(name), tokens.get((APPEARANCE, "cond")), inside, of))

            return take

        drawn = in_decoder(run, "tokens")
        edits = tuple(
            Edit(Where("tokens", side, self.tokens, (target, "cond"), drawn), "feature", taking(target))
            for side in grids(run, "tokens")[:2]
            for target in painted
        )
        return Phases(edits, things.needs, after=matched(run, things, structure, painted, (first, end)))


def arranged(
    tokens: Float[Tensor, "b n d"],
    others: Float[Tensor, "b m d"],
    inside: Bool[Tensor, "b 1 h w"] | None = None,
    of: Bool[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b n d"]:
    """For each token the one of the ``others`` with the greatest cosine.

    ``inside`` says which tokens are replaced, ``of`` which others may be taken.
    """
    alike = F.normalize(tokens, dim=-1) @ F.normalize(others, dim=-1).transpose(1, 2)
    if of is not None:
        alike = alike.masked_fill(~of.flatten(1)[:, None], -torch.inf)
    found = others.gather(1, alike.argmax(-1)[..., None].expand(-1, -1, others.shape[-1]))
    return found if inside is None else torch.where(inside.flatten(1)[..., None], found, tokens)
