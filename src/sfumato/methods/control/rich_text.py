"""Rich text (Ge et al. 2023, arXiv 2304.06720): words with a footnote, a colour and a size, as in a text editor.

A first pass paints the plain text and watches: clusters of self-attention are regions, cross-attention says which words
they belong to. In a second pass each such region is predicted under a prompt of its own, with the whole text elsewhere
(eq. 4); a colour also pulls the region's mean colour there by its gradient, and a size weighs a word's attention.

Defaults are the authors' code: 9 clusters of maps at half the latents' side, summed from step 10 of 41 on, words that
hold more than 0.3 of their normalised map; a colour loss of 100 times the mean square at weight 0.5; 41 steps at
guidance 8.5 are theirs too. As there, a colour is also said: the region's prompt has the nearest of eleven names.
Unlike there, a word that no cluster is enough of gets its best one, so that nothing is lost without a word, and colours
pull at x0 as the step leaves it, where theirs mixes two levels. Their injection of the plain pass's self-attention, off
by default, is left out.

Needs: a whole plain pass before the first step, with image->image and image->text maps; in each step a network call for
each region and image; for colours a backward pass through the decoder; for sizes image->text probabilities.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.conditions import Cond
from sfumato.core.denoising import denoise
from sfumato.core.guidance import told_as
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where
from sfumato.core.rows import Pattern
from sfumato.core.settings import Count, Part, PartOfSteps, SomePart, Weight, Whole
from sfumato.core.sites import Site
from sfumato.methods.control.formats import nearest_name, read, rgb
from sfumato.ops.regions import attended_clusters, spectral
from sfumato.prompts.words import Words, spans


@dataclass(frozen=True)
class RichText(Method):
    """Words of the prompt with prompts, colours and sizes of their own."""

    requires: ClassVar = Requires(words=True, windows=False)

    regions: Mapping[str, str] = field(default_factory=dict)
    """Words or phrases and the text that their regions are painted from instead."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Words or phrases and their colours, a name or #rrggbb."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Words or phrases and factors of their attention; below 0 it is taken away."""
    clusters: Count = 9
    """How many parts self-attention is parted into."""
    threshold: Weight = 0.3
    """How much of a word's normalised map a cluster holds, on average, to be its region."""
    res: SomePart = 0.5
    """Of the self-attention maps, in parts of the latents' side; cross-attention is read up to there."""
    watched: PartOfSteps = 10 / 41
    """Part of the plain pass before the maps are watched."""
    colour_weight: Weight = 0.5
    """Of the colours' gradient."""
    background: Part = 0.0
    """After this part of the steps what belongs to no word is put back to the plain pass's; 0 for never."""
    seed: Whole = 0
    """Of the clusters."""

    def start(self, run: Run) -> Phases:
        first, *others = run.rows.streams
        targets = others or [first]
        prompts = {s: [run.model.words(prompt) for prompt in run.prompts[s]] for s in targets}
        edits = tuple(
            Edit(Where("image->text", rows=(s, "cond")), "probs", _weighed(s, self._weights(run, prompts[s])))
            for s in targets
            if any(size != 1 for size in self.sizes.values())
        )
        words = list(dict.fromkeys((*self.regions, *self.colours)))
        if not words:
            return Phases(edits)
        tokens = [[spans(these, word) for word in words] for s in targets for these in prompts[s]]
        colours = [rgb(self.colours[word]) if word in self.colours else None for word in words]
        conds = run.model.embed([self.regions.get(w) or f"{nearest_name(self.colours[w])} {w}" for w in words])
        at = torch.cat([torch.arange(len(prompts[s])) + run.images(s).start for s in targets])
        watching = _Watching(self.res, self.watched, int(self.background * run.steps) - 1)
        masks = torch.empty(0)

        def before(step: Step) -> None:
            nonlocal masks
            if step.i == 0:
                assert run.guide is not None and run.levels is not None
                streams, start = {s: run.prompts[s] for s in targets}, step.x[at]
                plain = {"methods": [watching], "guide": run.guide, "levels": run.levels, "start": start}
                denoise(run.model, streams, controls=step.cond.controls, **plain)
                masks = torch.stack([self._masks(run, *seen) for seen in zip(*watching.found(), tokens, strict=True)])
                masks = masks.to(step.x)

        def denoised(step: Step) -> None:
            """The sum of the regions' predictions, each in its mask, takes the place of the whole text's (eq. 4)."""
            assert run.guide is not None
            several = replace(Cond.cat([conds] * len(at)), controls=step.cond.controls)
            rows = (at + run.rows[run.rows.streams[0], "cond"].start).repeat_interleave(len(words))
            several = told_as(several, step.cond, rows)
            predicted = run.model.predict(step.x[at].repeat_interleave(len(words), 0), step.level.t, several)
            mixed = step.parts["cond"].clone()
            mixed[at] = masks[:, -1:] * mixed[at]
            mixed[at] += (masks[:, :-1, None] * predicted.unflatten(0, (len(at), len(words)))).sum(1)
            change = run.guide.combine({**step.parts, "cond": mixed}, run.rows)
            change = change - run.guide.combine(step.parts, run.rows)
            # x0 is linear in the prediction and x, so that what energies have added to it stays
            step.x0 = step.x0 + run.model.schedule.x0_and_eps(change, torch.zeros_like(step.x), step.level)[0]

        def after(step: Step) -> None:
            x = step.x_next.clone()
            if self.colour_weight and self.colours:
                x[at] -= self.colour_weight * pull(step, at, masks, colours)
            if step.i == watching.keep:
                x[at] += masks[:, -1:] * (watching.kept[0].to(x) - x[at])
            step.x_next = x

        part = len(targets) / len(run.rows.streams)
        return Phases(
            edits,
            looks=tuple(need for t in targets for need in watching.needs(run, (t, "cond"))),
            descends=False,
            before=before,
            denoised=denoised,
            after=after,
            calls=part * (1 + len(words) / len(run.rows.conditions)),
        )

    def _weights(self, run: Run, prompts: Sequence[Words]) -> Float[Tensor, "each 1 1 text"]:
        weights = torch.ones(len(prompts), 1, 1, run.model.text_tokens)
        for i, words in enumerate(prompts):
            for word, size in self.sizes.items():
                weights[i, ..., spans(words, word)] = size
        return weights

    def _masks(
        self, run: Run, alike: Float[Tensor, "n n"], attended: Float[Tensor, "text h w"], tokens: list[list[int]]
    ) -> Float[Tensor, "words_and_rest h w"]:
        """Of one image: each word's region, and last what belongs to none; they add up to one."""
        labels = spectral(alike, min(self.clusters, len(alike)), self.seed).view(attended.shape[1:])
        found = torch.stack([attended_clusters(labels, attended[at], self.threshold) for at in tokens])
        whole = torch.cat([found, 1 - found.amax(0, keepdim=True)])
        masks = F.interpolate(whole[None], run.grid, mode="bicubic", antialias=True)[0].clamp(0, 1)
        return masks / masks.sum(0, keepdim=True).clamp_min(1e-8)

    @classmethod
    def read(cls, path: str | Path) -> tuple[str, RichText]:
        """A prompt and its formats from a file of a Quill editor: see ``formats.read``."""
        prompt, regions, colours, sizes = read(path)
        return prompt, cls(regions, colours, sizes)


@dataclass(eq=False)
class _Watching(Method):
    """Adds up the maps of a plain pass, and keeps its latents after step ``keep``."""

    res: Part
    first: PartOfSteps
    keep: int
    sums: dict[str, dict[Site, Tensor]] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def needs(self, run: Run, rows: Pattern = "cond") -> tuple[Need, Need]:
        side, steps = round(self.res * min(run.grid)), (self.first, None)
        words = Need(Where("image->text", steps=steps, rows=rows, sites=lambda site: min(site.grid(run.grid)) <= side))
        return Need(Where("image->image", self.res, steps, rows)), words

    def start(self, run: Run) -> Phases:
        needs = self.needs(run)

        def after(step: Step) -> None:
            for need, sites in ((n, step.maps.get(n, {})) for n in needs):
                totals = self.sums.setdefault(need.where.pair, {})
                for site, groups in sites.items():
                    maps = torch.cat([groups[s, "cond"] for s in run.rows.streams])
                    maps = maps.unflatten(1, site.grid(run.grid))
                    totals[site] = totals[site] + maps if site in totals else maps
            if step.i == self.keep:
                self.kept.append(step.x_next)

        return Phases(needs=needs, after=after)

    def found(self) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b text h w"]]:
        """Self-attention, and cross-attention on its grid; each a mean over sites."""
        alike = torch.stack(list(self.sums["image->image"].values())).mean(0)
        grid = (alike.shape[1], alike.shape[2])
        words = [
            F.interpolate(maps.permute(0, 3, 1, 2), grid, mode="bicubic", antialias=True)
            for maps in self.sums["image->text"].values()
        ]
        return alike.flatten(1, 2), torch.stack(words).mean(0)


def _weighed(stream: str, weights: Float[Tensor, "each 1 1 text"]) -> Callable[[Call], None]:
    """Attention times |weight|, made one again, and given the weight's sign (eq. 3)."""

    def do(call: Call) -> None:
        pixels, text = call.segment("q", "image"), call.segment("k", "text")
        probs, factor = call.probs((stream, "cond")).clone(), weights.to(call.logits((stream, "cond")))
        own = probs[..., pixels, :]
        own[..., text] *= factor.abs()
        own /= own.sum(-1, keepdim=True)
        own[..., text] *= factor.sign()
        call.set_probs((stream, "cond"), probs)

    return do


def pull(
    step: Step, at: Tensor, masks: Float[Tensor, "b words_and_rest h w"], colours: Sequence[Tensor | None]
) -> Float[Tensor, "b c h w"]:
    """The gradient by the next latents of 100 times how far regions' mean colours are from theirs (eq. 6), inside."""
    with torch.enable_grad():
        x = step.x_next[at].detach().requires_grad_()
        images = step.run.model.decode((x - step.next.sigma * step.eps[at]) / step.next.alpha)
        loss, inside = x.new_zeros(()), torch.zeros_like(masks[:, :1])
        for i, colour in enumerate(colours):
            if colour is None:
                continue
            mask = F.interpolate(masks[:, i, None], images.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
            mean = (images * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1e-8)
            loss = loss + 100 * (mean - colour.to(mean)).square().mean(1).sum()
            inside = inside + masks[:, i, None]
        return torch.autograd.grad(loss, x)[0] * inside
