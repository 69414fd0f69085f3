"""LEDITS++ (Brack et al. 2024, arXiv 2311.16711): several edits of an image at once, each where its concept is.

The image is inverted by noises of its own (edit-friendly). On the way back each concept adds its guidance, s (c - u)
for what is to come and the reverse of it for what is to go, but only in the cells where it is strongest and where the
attention to its words is (section 3.3). What is not named stays, because the base of it all is the inversion's own
prediction.

The target's prompt is a concept, a phrase rather than a sentence; ``also`` and ``remove`` are more. Defaults: the
authors' pipeline in diffusers (30 steps after 0.15 as many that are left out, guidance 3.5 by the source's words in the
inversion, 5 for an edit, threshold 0.9, both masks, the noise's own only below 0.8 of the training's levels). It is
matched exactly where the source has no words, but for two slips. With words of the source, its inversion is guided by
1 - s in the place of s, and its edit starts from the empty prompt's prediction, not from that of the inversion: no edit
at all does not give the image back; here it does. And with today's tokenizers it sums the attention of all 75 tokens,
padding too, in the place of the phrase's own. Maps come from the grid nearest to ``res``, where a network has none of
that side.

Needs: image->text maps of each concept in the steps of the edits; its guidance, ``guide(model)``, with a row for each
further concept and one for the source's words.

Families: all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.choice import choose, nearest_side
from sfumato.core.conditions import Cond
from sfumato.core.guidance import CFG, Guide, Parts
from sfumato.core.method import Need, Phases, Requires, Run, Step, Where
from sfumato.core.rows import Rows
from sfumato.core.schedule import part_of
from sfumato.core.settings import Count, Part, Whole
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.inversion.noise_space import EditFriendly
from sfumato.inversion.path import Advance, Inversion, Path
from sfumato.methods.edit.blended_latents import edits
from sfumato.ops.blur import blur

_ROWS = ("add ", "remove ")  # conditions of further edits begin so


@dataclass(frozen=True)
class Ledits(Inversion):
    """Adds and removes concepts."""

    requires: ClassVar = Requires(words=True)

    also: tuple[str, ...] = ()
    """Phrases to add, beside the target's prompt."""
    remove: tuple[str, ...] = ()
    """Phrases to remove."""
    scale: float = 5.0
    """Guidance of an edit."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Phrases with a guidance of their own."""
    threshold: Part = 0.9
    """Part of the cells that an edit leaves alone."""
    thresholds: Mapping[str, Part] = field(default_factory=dict)
    """Phrases with a threshold of their own."""
    masks: Literal["both", "attention", "noise"] = "both"
    """An edit's cells are those with the most attention to its words, with the strongest guidance, or both."""
    warmup: Whole = 0
    """Steps before the edits begin."""
    cooldown: Whole | None = None
    """The step in which they end."""
    res: Part = 0.25
    """Side of the attention's grid, in parts of the latents'."""
    source_scale: float = 3.5
    """Guidance by the source's words, in the inversion and below the edits; 0 tells the network none."""
    skip: Part = 0.15
    """So many steps, in parts of ``steps``, are left out before the first."""
    seed: Whole = 0
    """Of the noises."""
    steps: Count = 30
    """Steps that are painted."""

    has_source: ClassVar = False
    edit_guidance: ClassVar = 5.0

    def concepts(self, prompt: str) -> list[tuple[str, str, float]]:
        """Condition, phrase and signed scale of each edit, the target's prompt the first."""
        found = [("cond", prompt, 1), *((f"add {c}", c, 1) for c in self.also)]
        found += [(f"remove {c}", c, -1) for c in self.remove]
        return [(row, c, sign * self.scales.get(c, self.scale)) for row, c, sign in found]

    def guide(self, model: Backbone, scale: float | None = None) -> Guide:
        """The prediction of the inversion, with rows for the edits; of a ``scale`` only the method's own is taken."""
        if scale not in (None, self.scale):
            raise SfumatoError(f"LEDITS++ guides each edit by a scale of its own, here {self.scale:g}; change that one")
        return Concepts(tuple((row, phrase) for row, phrase, _ in self.concepts("")[1:]), self.source_scale)

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        if unknown := (self.scales.keys() | self.thresholds.keys()) - {*self.also, *self.remove}:
            named = ", ".join((*self.also, *self.remove)) or "none"
            raise SfumatoError(f"{min(unknown)!r} is none of the further phrases to add or remove: {named}")
        total = part_of(self.steps, 1 + self.skip)
        how = EditFriendly(self.source_scale, (total - self.steps) / total, self.seed, total)
        path = how(model, image, prompts, advance, CFG(self.source_scale) if self.source_scale else Nothing())
        return Edited(**vars(path), how=self)


@dataclass(frozen=True)
class Nothing(Guide):
    """The prediction that is given no words."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        return {"base": model.embed_negative([""] * len(prompts))}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        return parts["base"]


@dataclass(frozen=True)
class Concepts(Guide):
    """The prediction of the inversion; edits are added to it by the path, which knows where."""

    more: tuple[tuple[str, str], ...]
    """Conditions and phrases of further edits."""
    source_scale: float

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        n = len(prompts)
        empty = model.embed_negative([""] * n)
        out = {"uncond": empty} if self.source_scale else {}
        out |= {"base": empty, "cond": model.embed(prompts)}  # the path says what the source's words are
        return out | {row: model.embed([phrase] * n) for row, phrase in self.more}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        u = _empty(parts)
        return u + self.source_scale * (parts["base"] - u) if self.source_scale else u


def _empty(parts: Parts) -> Float[Tensor, "b *shape"]:
    """The prediction that was told nothing; without words of the source it is the base."""
    return parts.get("uncond", parts["base"])


@dataclass(frozen=True, eq=False, kw_only=True)
class Edited(Path):
    """The way back of the noises, with guidance to concepts added where they are."""

    requires: ClassVar = Requires("LEDITS++", windows=False)

    how: Ledits

    def start(self, run: Run) -> Phases:
        how = self.how
        wanted = {*how.guide(run.model).embed(run.model, self.prompts)}
        if wanted - {*run.rows.conditions} or {c for c in run.rows.conditions if c.startswith(_ROWS)} - wanted:
            raise SfumatoError(
                "LEDITS++ has a guidance of its own; give guide=Ledits(...).guide(model), the same Ledits"
            )
        if run.rows.each != len(self.image):
            raise SfumatoError(f"the noises are of {len(self.image)} images, so they cannot serve {run.rows.each}")
        base, first = super().start(run), run.images(run.rows.streams[0])
        end = run.steps if how.cooldown is None else min(how.cooldown, run.steps)
        rows = [row for row, *_ in how.concepts("")]
        looked = _sites_near(run, how.res) if how.masks != "noise" else ()
        needs = {
            (stream, row): Need(
                Where("image->text", steps=(how.warmup, end), rows=(stream, row), sites=lambda site: site in looked)
            )
            for stream in edits(run)
            for row in rows
            if looked
        }

        def cond(step: Step, now: Cond) -> Cond:
            source = run.model.embed(self.prompts)
            parts = [source if c == "base" else now[run.rows[s, c]] for s, c in run.rows.names]
            return replace(Cond.cat(parts), controls=now.controls)

        def denoised(step: Step) -> None:
            if not how.warmup <= step.i < end:
                return
            schedule, x0 = run.model.schedule, step.x0.clone()
            for stream in edits(run):
                at = run.images(stream)
                predicted = schedule.prediction_of(step.x0[at], step.eps[at], step.level).clone()
                for i, image in enumerate(range(at.start, at.stop)):
                    for row, phrase, scale in how.concepts(run.prompts[stream][i]):
                        if not phrase:
                            continue
                        guidance = scale * (step.parts[row][image] - _empty(step.parts)[image])
                        map = _map(step, needs[stream, row], i, _tokens(run.model, phrase)) if looked else None
                        threshold = how.thresholds.get(phrase, how.threshold)
                        predicted[i] = predicted[i] + guidance * self.where(step, guidance, map, threshold)
                x0[at] = schedule.x0_and_eps(predicted, step.x[at], step.level)[0]
            step.x0 = x0

        def after(step: Step) -> None:
            if base.after:
                base.after(step)
            if len(run.rows.streams) > 1 and step.i + 1 == run.steps:  # but for rounding it is there
                step.x_next = step.x_next.clone()
                step.x_next[first] = self.image.to(step.x_next)

        return replace(
            base,
            needs=tuple(needs.values()),
            cond=cond if how.source_scale else None,
            denoised=denoised,
            after=after,
        )

    def where(
        self, step: Step, guidance: Float[Tensor, "c h w"], map: Float[Tensor, "y x"] | None, threshold: float
    ) -> Float[Tensor, "#h #w"]:
        """1 in the cells of an edit (eqs. 8 to 10)."""
        mask = guidance.new_ones(1, 1)
        if map is not None:
            chosen = (map >= map.flatten().quantile(threshold)).to(guidance)
            mask = F.interpolate(chosen[None, None], guidance.shape[-2:])[0, 0]
        late = step.level.t <= 0.8 * step.run.model.schedule.train_steps
        if self.how.masks == "noise" or (self.how.masks == "both" and late):
            strength = guidance.abs().sum(0)
            mask = mask * (strength >= strength.flatten().quantile(threshold)).to(mask)
        return mask


def _tokens(model: Backbone, phrase: str) -> slice:
    words = model.words(phrase)
    return slice(words[0][1].start, words[-1][1].stop) if words else slice(0)


def _map(step: Step, need: Need, image: int, tokens: slice) -> Float[Tensor, "y x"]:
    """Attention to a phrase: the mean of heads and sites, summed over its tokens and smoothed."""
    maps = step.maps[need]
    found = torch.stack([m[need.where.rows][image, :, tokens].sum(-1) for m in maps.values()]).mean(0)  # pyright: ignore
    map = found.view(*next(iter(maps)).grid(step.run.grid))
    return blur(map, 2**-0.5, 1, "reflect")  # the authors' exp(-(x / 2 sigma)^2) with sigma 0.5


def _sites_near(run: Run, res: float) -> tuple[Site, ...]:
    """Sites of image->text on the grid nearest to a part of the latents' side; of a UNet those down and up."""
    sites = choose(run.model, "image->text", run.grid, who="LEDITS++")
    outer = [site for site in sites if site.stage != "mid"] or list(sites)
    side = nearest_side(outer, run.grid, res)
    return tuple(site for site in outer if min(site.grid(run.grid)) == side)
