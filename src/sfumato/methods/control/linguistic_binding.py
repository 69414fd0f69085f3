"""Linguistic binding (SynGen; Rassin et al. 2023, arXiv 2306.08877): adjectives belong to their own nouns.

A colour ends up on the wrong thing where its word attends to the wrong place. Before each of the first steps the
conditional prediction is made once more, and the latents go down a loss on its maps: a modifier's map should be its
noun's (symmetric KL divergence of the two, eq. 1, 2), and neither should be that of any other word of the prompt, of
which the mean distance is subtracted (eq. 3). Pairs are read off the prompt's noun phrases.

Defaults: the authors' code (step 20 in the first 25 of 50 steps; maps of 16 x 16 where the latents are 64 x 64, neither
sharpened nor smoothed; of words of several tokens the greatest distance). Its spaCy parser is our grammar here, which
knows no "the cube is red": name such pairs in ``phrases``. Of a batch that code moves the last image alone, and acts in
25 steps whatever their number; here each image goes down its own loss, in a part of the steps.

Needs: image->text maps near one resolution, in a prediction of the conditional rows with its gradient, once a step
while it acts; it stops after the last site that is read.

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
from sfumato.core.settings import Part, PartOfSteps, Weight
from sfumato.errors import SfumatoError
from sfumato.methods.control.latent_descent import descend, text_at, word_maps
from sfumato.methods.control.own_words import occurrences, own_words, prompts_of
from sfumato.prompts.grammar import Parser, noun_phrases
from sfumato.prompts.weights import plain

Tokens = list[int]


@dataclass(frozen=True)
class Bound:
    """A noun with its modifiers, and the other words of a prompt, all by their tokens."""

    noun: Tokens
    modifiers: tuple[Tokens, ...]
    others: Tokens


@dataclass(frozen=True)
class LinguisticBinding(Method):
    """Draws the attention of adjectives and their nouns together, and away from all other words."""

    requires: ClassVar = Requires(words=True, windows=False)

    phrases: tuple[str, ...] = ()
    """Modifiers and their noun, the noun last ("pink horse"); empty: the noun phrases of the prompt."""
    scale: float = 20.0
    """Step."""
    until: PartOfSteps = 0.5
    """Part of the steps in which it acts."""
    res: Part = 0.25
    """The grid nearest to this part of the latents' side is read."""
    apart: Weight = 1.0
    """Weight of the distance from other words; 0 leaves it out."""
    parser: Parser | None = field(default=None, metadata={"command": False})
    """Finds the noun phrases, in place of our grammar."""

    def start(self, run: Run) -> Phases:
        prompts = prompts_of(run)
        own = own_words(run, self.phrases)
        bound = [self._bound(run, prompt, some) for prompt, some in zip(prompts, own, strict=True)]
        if not any(bound):
            raise SfumatoError(
                f"linguistic binding finds no noun with an adjective in {prompts[0]!r}; name one: 'red cube'"
            )
        need = Need(Where("image->text", text_at(run, self.res), (0, self.until), "cond"))
        end = span((0, self.until), run.steps)[1]

        def before(step: Step) -> None:
            if step.i >= end or not self.scale:
                return

            def loss(x: Tensor) -> Float[Tensor, " b"]:
                maps = word_maps(look(step, (need,), x)[need], run)
                return torch.stack([binding(m, some, self.apart) for m, some in zip(maps, bound, strict=True)])

            descend(step, loss, self.scale, enough=-torch.inf)

        calls = end / run.steps / len(run.rows.conditions)
        return Phases(looks=(need,) if end else (), before=before, calls=calls)

    def _bound(self, run: Run, prompt: str, phrases: Sequence[str]) -> list[Bound]:
        places = [range(at.start, at.stop) for _, at in run.model.words(prompt)]
        found = [_named(run, prompt, p) for p in phrases] if self.phrases else self._read(prompt)
        out = []
        for *modifiers, noun in found:
            if modifiers and max(noun, *modifiers) < len(places):
                others = [t for i, tokens in enumerate(places) if i not in (noun, *modifiers) for t in tokens]
                out.append(Bound([*places[noun]], tuple([*places[m]] for m in modifiers), others))
        return out

    def _read(self, prompt: str) -> list[list[int]]:
        """Modifiers and noun of each noun phrase as positions among the prompt's words."""
        text = plain(prompt)
        found = noun_phrases(text, self.parser)
        return [[p.at(text, word) for word in (*p.modifiers, p.head)] for p in found]


def _named(run: Run, prompt: str, phrase: str) -> list[int]:
    """The same of a phrase of ours: where it stands as it is, there, else its words wherever they are."""
    first = {at.start: i for i, (_, at) in enumerate(run.model.words(prompt))}
    try:
        return [first[t] for t in occurrences(run, prompt, phrase)[0] if t in first]
    except SfumatoError:
        return [first[occurrences(run, prompt, word)[0][0]] for word in phrase.split()]


def binding(maps: Float[Tensor, "h w tokens"], bound: Sequence[Bound], apart: float = 1.0) -> Float[Tensor, ""]:
    """Distance of modifiers from their nouns, less their mean distance from other words (eq. 1 to 3)."""
    if not bound:
        return 0 * maps.sum()
    used = sorted({t for b in bound for tokens in (b.noun, b.others, *b.modifiers) for t in tokens})
    far, at = distances(maps.flatten(0, 1).T[used]), {t: i for i, t in enumerate(used)}

    def between(a: Tokens, b: Tokens) -> Float[Tensor, "a b"]:
        return far[[at[t] for t in a]][:, [at[t] for t in b]]

    total = []
    for some in bound:
        for modifier in some.modifiers:
            total.append(between(modifier, some.noun).max())
            if some.others:
                away = between(modifier, some.others).amax(0) + between(some.noun, some.others).amax(0)
                total.append(-apart * away.mean() / 2)
    return torch.stack(total).sum()


def distances(maps: Float[Tensor, "tokens cells"]) -> Float[Tensor, "tokens tokens"]:
    """Mean of the two KL divergences between each two maps, each as a distribution over the cells."""
    p = maps / maps.sum(-1, keepdim=True)
    log = p.clamp_min(torch.finfo(p.dtype).eps).log()
    one_way = (p * log).sum(-1, keepdim=True) - p @ log.T
    return (one_way + one_way.T) / 2
