"""ConsiStory (Tewel et al. 2024, arXiv 2402.03286): one subject in several pictures, told by one word of their prompts.

Every image reads itself and of the others the subject alone: the cells whose attention to its word is strong (section
4.1). So the subject is drawn alike and grounds stay apart. That it is not drawn in one pose as well, part of those
cells, drawn anew in each step, is left out (self-attention dropout), and in the first steps queries are mostly those of
images that read nothing but themselves, which settle where things are (4.2). What is fine of the subject is brought
together in a second run from the same noise: each of its cells gets most of what attention gave the cell of another
image that corresponds to it, by diffusion features (DIFT) of the first run, where those are near (4.3).

Defaults: the authors' code, of 50 steps. Attention is shared from the second step on, on the way up of a UNet, with
half of the cells dropped; maps are of a quarter of the latents' side, of the last 20 steps, cut by Otsu's threshold,
each image's own. Queries are mixed up to and with a tenth of the steps, 0.9 of the other ones in the first and 0.82 in
the last. Features are those at t 261 where the way up first has half the latents' side, blurred by a cell; 0.8 of what
corresponds is injected from a tenth to a third of the steps, on the ways down and up at half the side, with the prompt
alone, where distances are below their Otsu threshold. There an image gets what an earlier one of the batch got already;
here what all had, so that images have no order. Left out are FreeU, which they turn on beside it, and anchors: some
images alone that all others read.

Needs: image->text maps of the word; image->image keys and values, which stay fused, with a mask; queries of a further
prediction in the first tenth of the steps; a hidden layer, attention's output, and a second run (``inject=0``: none).
Attention to n images takes n times as long.

Families: all. Transformers have one grid, and no ways down and up: features are those of half their depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose, nearest_side
from sfumato.core.look import look
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where
from sfumato.core.schedule import part_of
from sfumato.core.settings import Part, PartOfSteps, TrainStep, Whole
from sfumato.core.sites import Grid, Layer, Site
from sfumato.methods.edit.appearance import in_decoder
from sfumato.methods.sets.sources import PAIR
from sfumato.ops.blur import blur
from sfumato.ops.memory import chunks
from sfumato.prompts.words import spans
from sfumato.reading.reader import up_block


@dataclass(frozen=True)
class ConsiStory(Method):
    """The images of a stream show the subject, their prompts all name it."""

    requires: ClassVar = Requires(words=True, set=True)

    word: str
    """The subject, a word or phrase of every prompt."""
    dropout: Part = 0.5
    """Part of the subject's cells that others do not read in a step."""
    after: PartOfSteps = 0.02
    """Part of the steps that are left alone."""
    until: PartOfSteps = 1.0
    """Part of the steps up to which images read each other."""
    res: Part = 0.25
    """Side of the word's maps, as a part of the latents' side."""
    queries: tuple[Part, Part] = (0.9, 0.81837)
    """Part of the queries that are of images which read themselves alone, in the first step and the last of these."""
    queries_until: PartOfSteps = 0.1
    """Part of the steps up to and with which they are mixed in."""
    inject: Part = 0.8
    """What a cell of the subject gets of what corresponds to it; 0: none, and no second run."""
    injected: tuple[PartOfSteps, PartOfSteps] = (0.1, 1 / 3)
    """Parts of the steps between which it does, both of them in it."""
    inject_res: Part = 0.5
    """Side of the grids on which it does, as a part of the latents' side."""
    t: TrainStep = 261
    """At which features are taken, of a thousand: in the step of the first run that is nearest."""
    features: Part = 0.5
    """Side of the features, as a part of the latents' side."""
    seed: Whole = 0
    """Of what is dropped."""

    def start(self, run: Run) -> Phases:
        if run.rows.of_stream == 1:
            return Phases()
        where = _Subject(run, self)
        mixed, carried = _Queries(run, self, where), _Carried(run, self, where)
        share = Edit(Where(PAIR, steps=(self.after, self.until), sites=in_decoder(run, PAIR)), "sources", where.share)

        def after(step: Step) -> None:
            where.note(step)
            carried.note(step)

        return Phases(
            (share, *mixed.edits, *carried.edits),
            (where.need, *carried.needs),
            looks=mixed.needs,
            before=mixed.before,
            after=after,
            again=carried.again if carried.edits else None,
            calls=len(mixed.steps) / run.steps,
        )

    def _kept(self, step: int, images: int, grid: Grid) -> Bool[Tensor, "images n"]:
        """What is not dropped in a step, the same in all layers of a grid."""
        draw = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        return torch.rand(images, grid[0] * grid[1], generator=draw) >= self.dropout


RECENT = 0.4
"""Of the steps, those whose maps count: 20 of 50."""


class _Subject:
    """Where the subject is, by the maps of its word, and who reads it."""

    def __init__(self, run: Run, how: ConsiStory):
        self.run, self.how = run, how
        self.tokens = {s: [spans(run.model.words(p), how.word) for p in some] for s, some in run.prompts.items()}
        side = nearest_side(choose(run.model, "image->text", run.grid, who="ConsiStory"), run.grid, how.res)
        self.need = Need(Where("image->text", side, (0, None if how.inject else how.until), "cond"))
        self.maps: dict[str, list[Tensor]] = {}

    def note(self, step: Step) -> None:
        maps = step.maps.get(self.need, {})
        for stream in self.run.rows.streams if maps else ():
            mean = torch.stack([m[stream, "cond"] for m in maps.values()]).mean(0)
            at = [found for found in self.tokens[stream] for _ in range(self.run.rows.views)]
            seen = torch.stack([m[:, some].mean(-1) for m, some in zip(mean, at, strict=True)])
            seen = seen.view(len(seen), 1, *next(iter(maps)).grid(self.run.grid))
            recent = max(1, part_of(self.run.steps, RECENT))
            self.maps[stream] = [*self.maps.get(stream, []), seen][-recent:]

    def at(self, stream: str, grid: Grid) -> Bool[Tensor, "each n"]:
        return subject(torch.stack(self.maps[stream]).mean(0), grid)

    def share(self, call: Call) -> None:
        images, views = self.run.rows.of_stream, self.run.rows.views
        kept = self.how._kept(call.step, images, call.grid)
        everyone = torch.arange(images) * views + torch.arange(views)[:, None]
        for stream in self.maps:
            inside = self.at(stream, call.grid)
            read = inside.view(images, views, -1) & kept.to(inside.device)[:, None]
            bias = torch.zeros(images, views, images, read.shape[-1], device=read.device)
            bias += torch.where(read, 0.0, -torch.inf).transpose(0, 1)
            for i in range(images):
                bias[i, :, i] = 0  # all of itself
            for condition in self.run.rows.conditions:
                call.share((stream, condition), everyone.repeat(images, 1), bias.flatten(2).flatten(0, 1))


class _Queries:
    """Queries of a prediction in which nothing is shared, for the first of the steps in which it is."""

    def __init__(self, run: Run, how: ConsiStory, where: _Subject):
        self.where, self.how, self.last = where, how, part_of(run.steps, how.queries_until)
        first, end = part_of(run.steps, how.after), part_of(run.steps, how.until)
        # before the first map nothing is shared
        self.steps = range(max(1, first), min(self.last + 1, end)) if any(how.queries) else range(0)
        span = (self.steps.start, self.steps.stop)
        sites, conditions = in_decoder(run, PAIR), run.rows.conditions if self.steps else ()
        self.wanted = {
            c: Need(
                Where(PAIR, steps=span, rows=c, sites=sites), reduce=lambda call, name: call.get("q", name, "image")
            )
            for c in conditions
        }
        self.needs = tuple(self.wanted.values())
        mix = Edit(Where(PAIR, steps=span, sites=sites), "qkv", self.mix, parts="q")
        self.edits = (mix,) if self.steps else ()
        self.found: dict[Site, dict] = {}

    def before(self, step: Step) -> None:
        self.found.clear()
        for condition, need in self.wanted.items() if step.i in self.steps else ():
            for site, queries in look(step, [need], rows=condition)[need].items():
                self.found.setdefault(site, {}).update(queries)

    def mix(self, call: Call) -> None:
        first, last = self.how.queries
        part = first + (last - first) * call.step / self.last
        for name, queries in self.found.get(call.site, {}).items():
            call.set("q", name, torch.lerp(call.get("q", name, "image"), queries, part), "image")


class _Carried:
    """What attention gives a subject's cell, from another image's cell that is like it by a first run's features."""

    def __init__(self, run: Run, how: ConsiStory, where: _Subject):
        self.run, self.how, self.where = run, how, where
        self.layer = described(run, how.features)
        times = (run.model.levels(run.steps, run.grid) if run.levels is None else run.levels).all.t[:-1]
        at = int((times.float() - how.t).abs().argmin())
        need = Need(Where(self.layer.kind, steps=(at, at + 1), rows="cond", sites=lambda one: one == self.layer))
        sites = [site for site in choose(run.model, PAIR, run.grid, who="ConsiStory") if site.stage != "mid"]
        side = nearest_side(sites, run.grid, how.inject_res)
        chosen = {site.path for site in sites if min(site.grid(run.grid)) == side}
        first, last = (part_of(run.steps, part) for part in how.injected)
        into = Where(PAIR, steps=(first, last + 1), rows="cond", sites=lambda site: site.path in chosen)
        self.needs = (need,) if how.inject else ()
        self.edits = (Edit(into, "out", self.give),) if how.inject else ()
        self.seen: dict[str, Tensor] = {}
        self.inside: dict[str, list[Tensor]] = {}
        self.found: dict[tuple[str, Grid], tuple[Tensor, Tensor]] = {}

    def note(self, step: Step) -> None:
        for need in self.needs if not step.passed else ():
            for (stream, _), seen in step.maps.get(need, {}).get(self.layer, {}).items():
                if self.layer.kind == "tokens":
                    seen = seen.transpose(1, 2).unflatten(2, self.layer.grid(self.run.grid))
                self.seen[stream] = blur(seen, 1.0, radius=1)

    def again(self, passed: int, first: Tensor, last: Tensor, noise: object) -> Tensor | None:
        if passed or not self.seen:
            return None
        self.inside, self.where.maps = self.where.maps, {}
        return first

    def give(self, call: Call) -> None:
        for stream, maps in self.inside.items():
            key = (stream, call.grid)
            if key not in self.found:
                inside = subject(torch.stack(maps).mean(0), call.grid)
                self.found[key] = corresponding(self.seen[stream], inside, call.grid, self.run.rows.views)
            at, near = self.found[key]
            own = call.get("out", (stream, "cond"), "image")
            other = own.transpose(0, 1).flatten(1, 2)[:, at].transpose(0, 1)
            given = torch.where(near[:, None, :, None], torch.lerp(own, other, self.how.inject), own)
            call.set("out", (stream, "cond"), given, "image")


def described(run: Run, part: float) -> Layer:
    """The layer by which cells correspond: where the way up first has this part of the latents' side."""
    found = [layer for layer in run.model.layers if layer.kind == "hidden" and layer.stage == "up"]
    if not found:
        return up_block(run.model, 1)
    side = nearest_side(found, run.grid, part)
    return next(layer for layer in found if min(layer.grid(run.grid)) == side)


def corresponding(
    features: Float[Tensor, "b c h w"], inside: Bool[Tensor, "b n"], grid: Grid, views: int = 1
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """For each cell that of the other images' subjects which is most like it, as a number among all images' cells; and
    whether it lies in the subject and is near enough: its distance is in the lower class by Otsu's threshold.
    """
    large = F.normalize(F.interpolate(features.float(), grid, mode="bilinear").flatten(2), dim=1)
    every, n = large.transpose(0, 1).flatten(1), large.shape[-1]
    image = torch.arange(len(large), device=large.device)
    other = (image[:, None] // views != image // views) & (image[:, None] % views == image % views)
    at, near = [], []
    for one, some in enumerate(large):
        best, places = [], []
        hidden = torch.where(inside, 0.0, -torch.inf).flatten()  # beyond a subject all is as far as can be
        for part in chunks(some.T, every.shape[1]):
            cosines = (part @ every + hidden).clamp_min(-1)
            cosines = cosines.masked_fill(~other[one].repeat_interleave(n), -torch.inf)
            most, where = cosines.max(-1)
            best.append(most)
            places.append(where)
        distance = 1 - torch.cat(best)
        at.append(torch.cat(places))
        near.append(inside[one] & (distance <= otsu(distance)) & (distance < 2))
    return torch.stack(at), torch.stack(near)


def subject(map: Float[Tensor, "b 1 h w"], grid: Grid) -> Bool[Tensor, "b n"]:
    """Where a map, made as large as a grid, is above its Otsu threshold."""
    large = F.interpolate(map, grid, mode="bilinear").flatten(1)
    return large > torch.stack([otsu(each) for each in large])[:, None]


def otsu(values: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The value that divides numbers into two classes whose means are the furthest apart, weighed by their sizes."""
    x = values.sort().values.double()
    n = torch.arange(1, len(x), device=x.device)
    sums = x.cumsum(0)
    low, high = sums[:-1] / n, (sums[-1] - sums[:-1]) / (len(x) - n)
    return x[(n * (len(x) - n) * (high - low) ** 2).argmax()].to(values)
