"""LLM-grounded diffusion (Lian et al. 2023, arXiv 2305.13655): each thing is painted alone, then all in their places.

A layout comes from a chat model (stage 1, ``prompts.planner``; here a grammar unless one is named). Each box's thing is
painted by itself, all of them in one batch, with the latents going down an energy of its words' attention (eqs. 2, 3);
where its attention is strong is its mask (section 3.2). The final run starts from the composed noise; in its first half
the masks hold the latents that the things had alone, and the same energy, with one that draws attention to what it was
in the things' own runs, keeps each in its box (the authors' code: "attention transfer").

Defaults: the authors' code of LMD (50 steps, 4 to 1 descents in the first 30 of them, scale 5 down to an energy of 5,
the greatest fifth of the cells, outside weighed 4, transfer 2, things centred on a floor at 0.8 and moved to their box
afterwards). Energies are summed over heads and taken at the middle block and the first upward level, so scale and
energy belong to models with eight heads. There SAM refines the masks; here they are the smoothed attention of the
phrase's last token above ``saliency`` inside the box, the paper's other way, for which things need not be painted to
their end. There the final prompt is put together from background and things, here it is the run's own. Their loop
carries an energy on from step to step; here each step looks. ControlNets of the run steer the things alone as well,
which then stay where their boxes are.

Needs: image->text maps of each head in predictions with gradients, up to four a step while it acts; before the first
step a run of all boxes, a row each, whose latents and maps of one token are kept.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.choice import choose
from sfumato.core.denoising import denoise
from sfumato.core.method import Method, Need, Phases, Requires, Run, Step, Where, span
from sfumato.core.schedule import Levels
from sfumato.core.settings import Part, PartOfSteps, Weight, Whole
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.methods.control.latent_descent import descend
from sfumato.methods.control.layout_guidance import middle
from sfumato.methods.control.placed import among, placed
from sfumato.methods.control.things_alone import Alone, Blocks, Picture, Thing, beneath, blocks, in_the_middle
from sfumato.prompts.chat import Chat, chat_of
from sfumato.prompts.layout import Box, Layout, Region
from sfumato.prompts.planner import Planned, planned
from sfumato.prompts.words import spans

_WHO = "LLM-grounded diffusion"
_SETTLED = 0.2  # part of the steps after which attention counts for the masks: 10 of 50


@dataclass(frozen=True)
class LlmGrounded(Method):
    """Plans where things go, paints each alone and then all of them there."""

    requires: ClassVar = Requires(words=True, windows=False)

    layout: Layout | None = None
    """Phrases of the prompt and their boxes; without one, it is planned."""
    background: str | None = None
    """What is around a thing alone: "{} on grass" with the place for it, or words that "with" and the thing follow."""
    planner: str = "offline"
    """Who plans: the grammar (offline), the folder of a transformers chat model, or the address of an endpoint."""
    planner_model: str = ""
    """Which model an endpoint runs."""
    chat: Chat | None = field(default=None, metadata={"command": False})
    """Who plans, as a function."""
    scale: float = 5.0
    """Size of a descent, in parts of sigma."""
    enough: Weight = 5.0
    """The energy at which an image is left alone."""
    iterations: tuple[Weight, ...] = (4, 3, 2, 2, 1, 1)
    """Most descents a step, in equal parts of the steps in which they are made."""
    until: PartOfSteps = 0.6
    """Part of the steps in which they are made."""
    share: Part = 0.2
    """Part of the cells, inside and outside, whose greatest values count."""
    inside: Weight = 1.0
    """Weight of what attention lacks inside."""
    outside: Weight = 4.0
    """Weight of attention outside."""
    transfer: Weight = 2.0
    """Weight of the difference to the things' own attention."""
    frozen: PartOfSteps = 0.5
    """Part of the steps in which the masks hold the things' own latents."""
    saliency: float = 0.25
    """Share of the greatest attention above which a cell of the box belongs to its thing."""
    blur: Weight = 1.5
    """Deviation of the attention's smoothing for that, in sixteenths of the image."""
    centred: bool = True
    """Paint things alone in the middle, and not where their boxes are."""
    fresh: Part = 0.01
    """Share of new noise in each thing's box."""
    guide: float = 7.5
    """Guidance of the things alone."""
    seed: Whole = 20
    """Of the new noise."""
    layers: tuple[str, ...] = ()
    """Parts of the paths of the attention that energies read, such as up_blocks.1; none: the authors' choice."""
    res: Part = 0.25
    """Masks are made of maps on the grid nearest to this part of the latents' side."""

    plans: Mapping[str, Planned] = field(default_factory=dict, repr=False, compare=False, metadata={"command": False})
    """Of prompts, as they were answered; ``prepare`` asks for those that are missing."""

    def prepare(self, model: Backbone, prompts: Mapping[str, tuple[str, ...]]) -> LlmGrounded:
        missing = {p for some in prompts.values() for p in some} - self.plans.keys()
        return replace(self, plans={**self.plans, **{p: self._plan(p) for p in missing}}) if missing else self

    def start(self, run: Run) -> Phases:
        noisiest = run.model.levels(run.steps, run.grid)[0]
        if run.levels is not None and run.levels[0].t != noisiest.t:
            raise SfumatoError(f"{_WHO} paints things alone over the model's own levels, and this run has others")
        frozen, descents = span((0, self.frozen), run.steps)[1], self.descents(run.steps)
        if not frozen and not descents:
            return Phases()
        where = Where("image->text", steps=(0, len(descents)), rows="cond", sites=among(self.layers) or middle(run))
        need = Need(where, reduce=lambda call, name: blocks(call))
        sites = choose(run.model, need.where, run.grid, _WHO)
        pictures = [self._picture(run, stream, n) for stream, some in run.prompts.items() for n in range(len(some))]
        of = run.rows.match("cond")
        rows = slice(run.rows[of[0]].start, run.rows[of[-1]].stop)
        apart = bool(frozen or self.transfer)

        def before(step: Step) -> None:
            if step.i == 0 and apart:
                self._paint(step, pictures, sites, max(frozen, len(descents)))
                step.x = torch.stack([picture.track[0] for picture in pictures])
            if step.i >= len(descents):
                return

            def loss(x: Tensor) -> Float[Tensor, " b"]:
                read = run.model.maps(x, step.level.t, step.cond[rows], sites, blocks)
                each = [{site: maps[b] for site, maps in read.items()} for b in range(len(x))]
                return torch.stack([self._loss(maps, p, step) for maps, p in zip(each, pictures, strict=True)])

            descend(step, loss, self.scale * step.level.sigma, descents[step.i], self.enough)

        def after(step: Step) -> None:
            if step.i < frozen:
                held = torch.stack([picture.mask for picture in pictures])[:, None]
                own = torch.stack([picture.track[step.i + 1] for picture in pictures])
                step.x_next = torch.where(held, own, step.x_next)

        looks = sum(descents) / run.steps / len(run.rows.conditions)
        things = sum(len(picture.things) for picture in pictures) / len(pictures)
        calls = looks + apart * things * (max(frozen, len(descents)) / run.steps + looks)
        return Phases(looks=(need,) if descents else (), before=before, after=after if frozen else None, calls=calls)

    def descents(self, steps: int) -> list[int]:
        """For each of the first steps, most descents: published, 4 in 5 of 50, 3 in 5, 2 in 10 and 1 in 10."""
        end = span((0, self.until), steps)[1] if self.scale else 0
        return [int(self.iterations[i * len(self.iterations) // end]) for i in range(end)]

    def energy(
        self, maps: Blocks, masks: Callable[[Site], Float[Tensor, "n h w"]], tokens: Sequence[Sequence[int]]
    ) -> Float[Tensor, ""]:
        """What attention lacks inside and has outside (eq. 2), averaged over tokens, masks and sites."""
        found = []
        for site, at in maps.items():
            for mask, words in zip(masks(site).to(at).flatten(1), tokens, strict=True):
                found.append(grounding(at[..., list(words)], mask, self.share, self.inside, self.outside))
        return torch.stack(found).mean()

    def _loss(self, maps: Blocks, picture: Picture, step: Step) -> Float[Tensor, ""]:
        loss = self.energy(maps, lambda site: picture.masks(site.grid(step.run.grid)), picture.tokens)
        if not self.transfer:
            return loss
        found = []
        for site, at in maps.items():
            masks = picture.layout.masks(site.grid(step.run.grid)).to(at).flatten(1)
            alone = picture.maps[step.i][site]
            for regions in picture.phrases:
                last = at[..., picture.things[regions[0]].words[-1]]
                found.append(torch.stack([difference(last, alone[n], masks[n]) for n in regions]).mean())
        return loss + self.transfer * torch.stack(found).mean()

    def _picture(self, run: Run, stream: str, number: int) -> Picture:
        prompt = run.prompts[stream][number]
        plan = self.plans.get(prompt) or self._plan(prompt)
        layout = placed(plan.layout, run, _WHO)
        things = []
        for phrase, box, words in zip(layout.phrases, layout.boxes(), layout.tokens(run, stream, number), strict=True):
            alone = plan.alone(phrase, prompt)
            tokens = spans(run.model.words(alone), plan.thing(phrase, prompt))
            things.append(Thing(phrase, box, words, alone, tokens))
        return Picture(layout, things)

    def _plan(self, prompt: str) -> Planned:
        if self.layout is not None:
            plan = Planned(self.layout)
        elif self.chat is not None or self.planner == "offline":
            plan = planned(prompt, self.chat)
        else:
            plan = planned(prompt, chat_of(self.planner, self.planner_model))
        if self.background is None and not plan.background and self.layout is not None:
            with suppress(SfumatoError):  # what is beyond the grammar is painted without a background
                plan = replace(plan, background=planned(prompt).background)
        return plan if self.background is None else replace(plan, background=self.background)

    def _paint(self, step: Step, pictures: Sequence[Picture], sites: Sequence[Site], steps: int) -> None:
        """Paint the things of all images alone, in one batch, and put them into the pictures (section 3.2)."""
        run, controls = step.run, step.cond.controls
        levels = run.levels or run.model.levels(run.steps, run.grid)
        things = [thing for picture in pictures for thing in picture.things]
        boxes = [in_the_middle(t.box) if self.centred and not controls else t.box for t in things]
        shown, descents = beneath(run, self.res), self.descents(run.steps)
        alone = Alone(things, boxes, sites, shown, self.energy, self.scale, descents, self.enough)
        of = [(b, n) for b, picture in enumerate(pictures) for n in range(len(picture.things))]
        noise = torch.stack([self._noise(step.x[b], box, n) for (b, n), box in zip(of, boxes, strict=True)])
        denoise(
            run.model,
            [thing.prompt for thing in things],
            methods=[alone],
            guide=self.guide if "uncond" in run.rows.conditions else 1.0,
            start=noise,
            seed=[self.seed + n for _, n in of],
            levels=Levels(levels.all.rows(slice(steps + 1))),
            controls=controls,
        )
        latents = torch.stack([noise, *alone.latents])
        masks = alone.masks(self.saliency, self.blur, span((0, _SETTLED), run.steps)[1], run.grid).to(noise.device)
        unit = max(site.scale for site in (*sites, *shown))
        for b, picture in enumerate(pictures):
            at = [i for i, (image, _) in enumerate(of) if image == b]
            maps = [{site: maps[at] for site, maps in now.items() if site in sites} for now in alone.maps]
            picture.put(step.x[b], latents[:, at], masks[at], maps, unit)

    def _noise(self, x: Float[Tensor, "c h w"], box: Box, number: int) -> Float[Tensor, "c h w"]:
        """An image's noise, a little of it new in a box."""
        new = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed + number)).to(x)
        mask = Layout((Region("", box),)).masks((x.shape[1], x.shape[2]))[0].to(x) > 0
        return torch.where(mask, (1 - self.fresh) ** 0.5 * x + self.fresh**0.5 * new, x)


def grounding(
    maps: Float[Tensor, "heads queries tokens"],
    mask: Float[Tensor, " queries"],
    share: float,
    inside: float,
    outside: float,
) -> Float[Tensor, ""]:
    """The energy of one phrase at one site: means of the greatest ``share`` of the cells, summed over heads (eq. 2)."""
    found = maps.new_zeros(maps.shape[0], maps.shape[2])
    for part, weight, lacks in ((mask, inside, True), (1 - mask, outside, False)):
        count = max(1, int(part.sum() * share))
        most = (maps * part[:, None]).topk(count, 1).values.mean(1)
        found = found + weight * (1 - most if lacks else most)
    return found.sum(0).mean()


def difference(
    now: Float[Tensor, "heads queries"], alone: Float[Tensor, "heads queries"], mask: Float[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """How differently a token's attention is spread in a mask: the sum over cells of |now - alone|, each made to sum to
    one; the mean over heads."""
    a, b = ((m * mask) / ((m * mask).sum(-1, keepdim=True) + 1e-5) for m in (now, alone))
    return (a - b).abs().sum(-1).mean()
