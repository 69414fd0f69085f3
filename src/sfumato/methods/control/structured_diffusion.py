"""Structured diffusion (Feng et al. 2023, arXiv 2212.05032): each noun phrase is also read on its own.

A text encoder mixes the words of a prompt, so that adjectives leak to other nouns. Here the prompt's noun phrases are
encoded by themselves too, and put in the places of their words; cross-attention has the keys of the whole prompt, and
the values of all these texts in turn, whose outputs are averaged (eq. 6; structure of noun phrases, one key).

With one key the average of the outputs is the attention of the average value, so it stays one fused call. The values
are the network's own: they are seen once, at the first step, and kept. Defaults: the authors' code (all noun phrases of
more than one word, also those within others, the whole prompt as one more; all steps; the conditional rows). Phrases
are found by our grammar and not by a constituency parser. Their option of several keys for conjunctions is not here. A
description of the method with a loss on maps mixes it up with Attend-and-Excite: it has none.

Needs: image->text values at all sites, still fused; once a run, a prediction of a row a phrase.

Families: those with cross-attention on a text that the network leaves as it is (Stable Diffusion 1, 2 and XL, DeepFloyd
IF, PixArt). In joint attention (Stable Diffusion 3, Flux) the text changes from block to block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.core.conditions import Cond
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Step, Where
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.methods.control.own_words import occurrences, own_words, prompts_of
from sfumato.prompts.grammar import Parser, noun_phrases
from sfumato.prompts.weights import escaped, plain

Paste = list[tuple[int, int]]
"""Pairs of tokens: of the prompt, and of the phrase by itself."""


@dataclass(frozen=True)
class StructuredDiffusion(Method):
    """Values of cross-attention from the prompt and from each of its noun phrases by itself."""

    requires: ClassVar = Requires(words=True)

    phrases: tuple[str, ...] = ()
    """Phrases of the prompt; empty: its noun phrases of more than one word."""
    nested: bool = True
    """Also phrases that hold others ("a bowl of red apples")."""
    weight: float = 1.0
    """Of a phrase, where the whole prompt is 1; greater is stronger than published."""
    parser: Parser | None = field(default=None, metadata={"command": False})
    """Finds the noun phrases, in place of our grammar."""

    def start(self, run: Run) -> Phases:
        sites = choose(run.model, "image->text", run.grid, who="structured diffusion")
        if any("text" in site.query for site in sites):
            raise SfumatoError(
                f"in {run.model.name} text and image attend together, so that a phrase's values change from block to "
                "block; structured diffusion needs cross-attention, as in Stable Diffusion 1, 2, XL, IF or PixArt"
            )
        found = self._phrases(run)
        values: dict[Site, list[Tensor]] = {}  # of each image: the sum over its phrases

        def before(step: Step) -> None:
            if not values:
                values.update(_values(step, sites, found))

        def average(call: Call) -> None:
            for stream in run.rows.streams:
                name = (stream, "cond")
                at = run.images(stream)
                more = run.rows.spread(torch.stack(values[call.site][at]))
                count = run.rows.spread(torch.tensor([len(some) for some in found[at]])).to(more)
                own = call.get("v", name, "text")
                whole = (own + self.weight * more) / (1 + self.weight * count.view(-1, 1, 1, 1))
                call.set("v", name, whole, "text")

        total = sum(map(len, found))
        if not total or not self.weight:
            return Phases()
        edit = Edit(Where("image->text", rows="cond"), "qkv", average, parts="v")
        return Phases((edit,), before=before, calls=total / len(run.rows) / run.steps)

    def _phrases(self, run: Run) -> list[list[tuple[str, Paste]]]:
        """For each image, each phrase by itself and where its tokens go."""
        prompts = prompts_of(run)
        if self.phrases:
            own = own_words(run, self.phrases)
            found = [
                [(w, t) for w in some for t in occurrences(run, p, w)] for p, some in zip(prompts, own, strict=True)
            ]
        else:
            found = [self._read(run, prompt) for prompt in prompts]
        return [[(text, _paste(run, text, tokens)) for text, tokens in some] for some in found]

    def _read(self, run: Run, prompt: str) -> list[tuple[str, list[int]]]:
        """A prompt's phrases of more than one word, with their tokens there."""
        all_words, out = run.model.words(prompt), []
        for phrase in noun_phrases(plain(prompt), self.parser, nested=self.nested):
            words = all_words[phrase.words.start : phrase.words.stop]
            if len(words) > 1:
                text = escaped(" ".join(word for word, _ in words).rstrip(",.;:!?"))
                out.append((text, [t for _, at in words for t in range(at.start, at.stop)]))
        return out


def _paste(run: Run, text: str, tokens: Sequence[int]) -> Paste:
    own = [t for _, at in run.model.words(text) for t in range(at.start, at.stop)]
    return list(zip(tokens, own, strict=False))  # the prompt's last word may have a mark behind it


def _values(
    step: Step, sites: Sequence[Site], found: Sequence[Sequence[tuple[str, Paste]]]
) -> dict[Site, list[Float[Tensor, "heads tokens dim"]]]:
    """At each site, the sum over an image's phrases of the values that the network makes of them in the prompt."""
    run = step.run
    x, conds, shown = step.split(step.x), [], []
    read = Cond.cat([step.cond[run.rows[s, "cond"]] for s in run.rows.streams])
    for row, some in zip(range(0, len(x), run.rows.views), found, strict=True):
        for text, paste in some:
            cond = read[row : row + 1]
            changed, (here, there) = cond.text.clone(), zip(*paste, strict=True)
            changed[0, list(here)] = run.model.embed([text]).text[0, list(there)].to(changed)
            conds.append(replace(cond, text=changed))
            shown.append(x[row])
    cuts = [len(some) for some in found]
    seen = run.model.maps(
        torch.stack(shown), step.level.t, Cond.cat(conds), sites, lambda call: call.get("v", ("main", "cond"), "text")
    )
    return {site: [part.sum(0) for part in v.split(cuts)] for site, v in seen.items()}
