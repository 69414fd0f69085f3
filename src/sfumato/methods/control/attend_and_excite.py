"""Attend-and-Excite (Chefer et al. 2023, arXiv 2301.13826): no thing of the prompt is left out.

A thing that is neglected has no place that attends to its word. Before each of the first steps the conditional
prediction is made once more, and the latents go down the loss of the most neglected word, one minus its greatest
attention (eq. 1, 2; maps without the start token, sharpened, smoothed). At three of these steps they do so until every
word has reached a threshold (section 3.3, iterative latent refinement).

Defaults: the authors' code (step 20, which shrinks to 20 sqrt(1/2); thresholds 0.05, 0.5, 0.8 at steps 0, 10, 20 of
50). Where it departs from the paper, the paper is the default and ``AUTHORS`` the code, which diffusers has as well:
there a Gaussian of 0.5 is one of 0.71, and a refinement goes one update further than its threshold. A word of several
tokens counts as their sum. That code goes on reading maps when it no longer acts; here nothing is read then.

Needs: image->text maps near one resolution, in a prediction of the conditional rows with its gradient, once a step
while it acts and up to ``refinements`` times more where it refines; it stops after the last site that is read.

Families: all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.look import look
from sfumato.core.method import Method, Need, Phases, Requires, Run, Step, Where, span
from sfumato.core.settings import Part, PartOfSteps, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.methods.control.latent_descent import (
    descend,
    refine,
    sharpened,
    text_at,
    text_span,
    thresholds,
    word_maps,
)
from sfumato.methods.control.own_words import occurrences, own_words, prompts_of
from sfumato.ops.blur import blur
from sfumato.prompts.grammar import Parser, noun_phrases
from sfumato.prompts.weights import plain


@dataclass(frozen=True)
class AttendAndExcite(Method):
    """Makes each thing of the prompt appear, by its word's attention."""

    requires: ClassVar = Requires(words=True, windows=False)

    words: tuple[str, ...] = ()
    """Words or phrases of the prompt; empty: the head of each of its noun phrases."""
    scale: float = 20.0
    """Step at first; it shrinks with the root of a line from 1 to 1/2."""
    until: PartOfSteps = 0.5
    """Part of the steps in which it acts."""
    res: Part = 0.25
    """The grid nearest to this part of the latents' side is read."""
    refine_at: tuple[PartOfSteps, ...] = (0.0, 0.2, 0.4)
    """Parts of the steps at which it refines; none: no refinement."""
    refine_to: tuple[Weight, ...] = (0.05, 0.5, 0.8)
    """The attention that each word shall reach there."""
    refinements: Whole = 20
    """Most updates of one refinement."""
    beyond: bool = False
    """One update more where a refinement has reached its threshold, as in the authors' code."""
    sigma: Weight = 0.5
    """Of the Gaussian, in cells of the maps."""
    normalize_eot: bool = False
    """Leave the end token and the padding out of the sharpening: the authors do for Stable Diffusion 2.1."""
    parser: Parser | None = field(default=None, metadata={"command": False})
    """Finds the noun phrases, in place of our grammar."""

    def start(self, run: Run) -> Phases:
        at = thresholds(run, self.refine_at, self.refine_to, self.refinements)
        subjects = self._subjects(run)
        inside = [text_span(run, p, self.normalize_eot) for p in prompts_of(run)]
        need = Need(Where("image->text", text_at(run, self.res), (0, self.until), "cond"))
        end = span((0, self.until), run.steps)[1]
        shrinking = torch.linspace(1, 0.5, run.steps).sqrt().tolist()

        def before(step: Step) -> None:
            if step.i >= end or not self.scale:
                return

            def loss(x: Tensor) -> Float[Tensor, " b"]:
                maps = word_maps(look(step, (need,), x)[need], run)
                return torch.stack(
                    [
                        excitation(sharpened(image, *tokens), some, self.sigma)
                        for image, tokens, some in zip(maps, inside, subjects, strict=True)
                    ]
                )

            scale = self.scale * shrinking[step.i]
            if step.i in at:
                refine(step, loss, scale, self.refinements, 1 - at[step.i], self.beyond)
            descend(step, loss, scale)

        calls = end / run.steps / len(run.rows.conditions)
        return Phases(looks=(need,) if end else (), before=before, calls=calls)

    def _subjects(self, run: Run) -> list[list[list[int]]]:
        """For each image the tokens of each thing; a word that is said twice is two things."""
        prompts = prompts_of(run)
        if self.words:
            own = own_words(run, self.words)
            found = [[t for w in some for t in occurrences(run, p, w)] for p, some in zip(prompts, own, strict=True)]
        else:
            found = [self._heads(run, p) for p in prompts]
        if not any(found):
            raise SfumatoError(
                f"Attend-and-Excite finds no thing in {prompts[0]!r}; name it: words of the prompt that shall appear"
            )
        return found

    def _heads(self, run: Run, prompt: str) -> list[list[int]]:
        tokens = [[*range(at.start, at.stop)] for _, at in run.model.words(prompt)]
        text = plain(prompt)
        heads = [p.at(text, p.head) for p in noun_phrases(text, self.parser)]
        return [tokens[i] for i in heads if i < len(tokens)]


def excitation(
    maps: Float[Tensor, "h w tokens"], subjects: Sequence[Sequence[int]], sigma: float = 0.5
) -> Float[Tensor, ""]:
    """One minus the attention of the most neglected word where it is greatest (eq. 1, 2), of sharpened maps."""
    if not subjects:
        return 0 * maps.sum()
    each = torch.stack([maps[..., list(tokens)].sum(-1) for tokens in subjects])
    greatest = blur(each, sigma, 1, "reflect").flatten(1).max(1).values
    return (1 - greatest).clamp(min=0).max()


AUTHORS = AttendAndExcite(beyond=True, sigma=0.5 * 2**0.5)
"""What the authors' code and diffusers' pipeline do."""
