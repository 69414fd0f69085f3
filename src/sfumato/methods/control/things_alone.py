"""The first half of LLM-grounded diffusion: the things of a layout, each painted by itself, and put together.

All of them are rows of one run. What is kept of it: the latents of each level, and of each thing's last token the
attention that the final run is drawn to and that its mask is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.core.method import Method, Need, Phases, Run, Step, Where
from sfumato.core.rows import Name
from sfumato.core.settings import Weight, Whole
from sfumato.core.sites import Grid, Site
from sfumato.methods.control.latent_descent import descend, text_at
from sfumato.ops.blur import blur
from sfumato.prompts.layout import Box, Layout, Region

FLOOR = 0.8  # where things that are painted in the middle stand, from the top
Blocks = dict[Site, Float[Tensor, "heads queries tokens"]]
"""Of one row, its image->text maps of each head."""
Energy = Callable[[Blocks, Callable[[Site], Float[Tensor, "n h w"]], Sequence[Sequence[int]]], Float[Tensor, ""]]
"""Of one row's maps, for masks and the tokens of each."""


@dataclass(frozen=True)
class Thing:
    """One region of a layout, and how it is painted alone."""

    phrase: str
    box: Box
    words: Sequence[int]
    """Tokens of the phrase in the image's prompt."""
    prompt: str
    """For the thing alone."""
    tokens: Sequence[int]
    """Of the thing, in that."""


@dataclass(frozen=True, eq=False)
class Alone(Method):
    """Paints things, a row each, and keeps what the final run needs of them."""

    things: Sequence[Thing]
    boxes: Sequence[Box]
    """Where they are painted."""
    sites: Sequence[Site]
    """Whose maps the energy reads."""
    shown: Sequence[Site]
    """Whose maps the masks are made of."""
    energy: Energy
    scale: float
    descents: Sequence[Whole]
    enough: Weight
    latents: list[Tensor] = field(default_factory=list)
    """After each step (n, c, h, w)."""
    maps: list[dict[Site, Tensor]] = field(default_factory=list)
    """In each step (n, heads, queries) of the last tokens."""

    def start(self, run: Run) -> Phases:
        layouts = [Layout((Region(t.phrase, box),)) for t, box in zip(self.things, self.boxes, strict=True)]

        def before(step: Step) -> None:
            if step.i >= len(self.descents):
                return

            def loss(x: Tensor) -> Float[Tensor, " n"]:
                read = run.model.maps(x, step.level.t, step.cond[run.rows["main", "cond"]], self.sites, blocks)
                rows = [{site: maps[n] for site, maps in read.items()} for n in range(len(x))]
                each = zip(rows, layouts, self.things, strict=True)
                return torch.stack(
                    [
                        self.energy(row, lambda s, of=layout: of.masks(s.grid(run.grid)), [thing.tokens])
                        for row, layout, thing in each
                    ]
                )

            descend(step, loss, self.scale * step.level.sigma, self.descents[step.i], self.enough)

        def kept(call: Call, name: Name) -> Tensor:
            each = zip(blocks(call), self.things, strict=True)
            return torch.stack([maps[..., thing.tokens[-1]] for maps, thing in each])

        need = Need(Where("image->text", rows="cond", sites={*self.sites, *self.shown}.__contains__), reduce=kept)

        def after(step: Step) -> None:
            self.latents.append(step.x_next)
            self.maps.append({site: found["main", "cond"] for site, found in step.maps[need].items()})

        return Phases(needs=(need,), before=before, after=after)

    def masks(self, saliency: float, blur: float, skip: int, grid: Grid) -> Bool[Tensor, "n h w"]:
        """Where each thing is in the latents (``salient``); the first ``skip`` steps do not count."""
        kept = [step[site].mean(1) for step in (self.maps[skip:] or self.maps) for site in self.shown]
        side = self.shown[0].grid(grid)
        maps = torch.stack(kept).mean(0).unflatten(1, side).cpu()
        return torch.stack([salient(m, box, saliency, blur, grid) for m, box in zip(maps, self.boxes, strict=True)])


@dataclass
class Picture:
    """An image of the run: its layout, and what the things of it were alone, moved to where they belong."""

    layout: Layout
    things: Sequence[Thing]
    """One a region."""
    track: Tensor = field(default_factory=lambda: torch.empty(0))
    """At each level (c, h, w), the things in their masks."""
    mask: Tensor = field(default_factory=lambda: torch.empty(0))
    """All masks (h, w)."""
    maps: list[dict[Site, Tensor]] = field(default_factory=list)
    """In each step (n, heads, queries) of the things' last tokens."""

    @property
    def phrases(self) -> list[list[int]]:
        """The regions of each phrase: "two cubes" may have two."""
        phrases = self.layout.phrases
        return [[i for i, other in enumerate(phrases) if other == phrase] for phrase in dict.fromkeys(phrases)]

    @property
    def tokens(self) -> list[Sequence[int]]:
        """Of each phrase."""
        return [self.things[regions[0]].words for regions in self.phrases]

    def masks(self, grid: Grid) -> Float[Tensor, "phrases h w"]:
        masks = self.layout.masks(grid)
        return torch.stack([masks[regions].amax(0) for regions in self.phrases])

    def put(
        self,
        noise: Float[Tensor, "c h w"],
        latents: Float[Tensor, "levels n c h w"],
        masks: Bool[Tensor, "n h w"],
        maps: Sequence[dict[Site, Tensor]],
        unit: int,
    ) -> None:
        """Move all of each thing by whole ``unit`` cells, so that its mask's middle is its box's, and compose."""
        cells = [offset(mask, t.box, unit) for mask, t in zip(masks, self.things, strict=True)]
        masks = torch.stack([shifted(m, *by) for m, by in zip(masks, cells, strict=True)])
        moved = [torch.roll(x, by, (-2, -1)) for x, by in zip(latents.unbind(1), cells, strict=True)]
        self.track, self.mask = compose(noise, torch.stack(moved, 1), masks)
        self.maps = [{site: _moved(m, site, cells, noise.shape[-2:]) for site, m in now.items()} for now in maps]


def _moved(maps: Tensor, site: Site, cells: Sequence[tuple[int, int]], grid: Sequence[int]) -> Tensor:
    images = maps.unflatten(-1, site.grid((grid[0], grid[1])))
    steps = [(down // site.scale, right // site.scale) for down, right in cells]
    return torch.stack([shifted(m, *by) for m, by in zip(images, steps, strict=True)]).flatten(-2)


def beneath(run: Run, res: float) -> tuple[Site, ...]:
    """The sites that masks are made of: the last downward one of its grid; in transformers, which have none, all."""
    sites = choose(run.model, Where("image->text", text_at(run, res)), run.grid)
    return tuple(s for s in sites if s.stage == "down")[-1:] or sites


def blocks(call: Call) -> Float[Tensor, "rows heads queries tokens"]:
    """Image->text maps of the conditional rows; in joint attention each pixel's part for the text is made one."""
    maps = call.block(("main", "cond"), "image->text").float()
    return maps / maps.sum(-1, keepdim=True).clamp_min(1e-12) if len(call.site.key) > 1 else maps


def in_the_middle(box: Box) -> Box:
    """The box in the middle of the width, standing on the floor; one too high for that hangs from the top."""
    width, height = box[2] - box[0], box[3] - box[1]
    bottom = max(FLOOR, height)
    return 0.5 - width / 2, bottom - height, 0.5 + width / 2, bottom


def salient(
    map: Float[Tensor, "h w"], box: Box, share: float, deviation: float, grid: Grid
) -> Bool[Tensor, "{grid[0]} {grid[1]}"]:
    """Cells of the box whose smoothed attention lies over ``share`` of the way from the least to the greatest there.

    ``deviation`` of the blur in sixteenths of the shorter side. The whole box, if it is alike everywhere.
    """
    sigma = deviation * min(map.shape) / 16
    smooth = blur(map.double(), sigma, int(4 * sigma + 0.5), "symmetric")
    region = Layout((Region("", box),))
    inside, whole = region.masks((map.shape[0], map.shape[1]))[0].bool(), region.masks(grid)[0].bool()
    low, high = smooth[inside].min(), smooth[inside].max()
    found = inside & (smooth - low > share * (high - low))
    fine = (F.interpolate(found.float()[None, None], grid)[0, 0] > 0) & whole
    return fine if fine.any() else whole


def offset(mask: Bool[Tensor, "h w"], box: Box, unit: int) -> tuple[int, int]:
    """How many cells to move down and right, whole units, to bring a mask's middle to that of a box."""
    middles = (box[1] + box[3]) / 2, (box[0] + box[2]) / 2
    at = [float(axis.float().mean()) + 0.5 for axis in mask.nonzero(as_tuple=True)]
    down, right = (unit * round((m * n - a) / unit) for m, n, a in zip(middles, mask.shape, at, strict=True))
    return down, right


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """The last two dimensions moved; what comes from outside is zero."""
    out = torch.roll(x, (down, right), (-2, -1))
    h, w = x.shape[-2:]
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    kept = ((rows >= down) & (rows < h + down))[:, None] & (columns >= right) & (columns < w + right)
    return torch.where(kept, out, torch.zeros_like(out))


def compose(
    noise: Float[Tensor, "c h w"], latents: Float[Tensor, "levels n c h w"], masks: Bool[Tensor, "n h w"]
) -> tuple[Float[Tensor, "levels c h w"], Bool[Tensor, "h w"]]:
    """An image's latents at each level with the things in their masks, smaller ones over larger; and all masks.

    The noise at the first level is also that of the boxes around the masks, a cell wider. Elsewhere, later levels are
    zero.
    """
    track = torch.zeros_like(latents[:, 0])
    track[0] = noise
    order = masks.sum((1, 2)).argsort(descending=True, stable=True).tolist()
    for n in order:
        rows, columns = masks[n].nonzero(as_tuple=True)
        top, left = max(int(rows.min()) - 1, 0), max(int(columns.min()) - 1, 0)
        around = (slice(None), slice(top, int(rows.max()) + 2), slice(left, int(columns.max()) + 2))
        track[0][around] = latents[0, n][around]
    for n in order:
        track = torch.where(masks[n], latents[:, n], track)
    return track, masks.any(0)
