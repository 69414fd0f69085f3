"""Prompt embeddings (Hedlin et al. 2023, arXiv 2305.15581): a text is fitted until one token of it lights up a point.

A random text is optimised so that the cross-attention of its token 1 becomes a Gaussian at the point asked for, over
many crops of the source image (eqs. 6 and 8 of the paper). The same text then lights up a place of the target image, of
several crops and several texts that began elsewhere (eqs. 9 and 10): the brightest pixel is the match.

Numbers are the authors', found by a search on Stable Diffusion 1.4. Their code adds uniform noise where Gaussian noise
belongs, matches at another level than it fits at, and sees the last half of the heads only, by a slip: ``PUBLISHED`` is
that, the default is not. Differences from both: crops start on a grid of ``bank`` by ``bank`` places (the corners among
them), so that each is encoded once for all points, texts and steps; and those of the target are the same for all.

What is slow in it is made once or not at all: all points and all their texts are fitted in batches, the network ends at
the last site that is read, and nothing is differentiated with respect to weights.

Needs: image->text maps, and ``steps`` forward and backward passes through three quarters of the network for each point
and text; then ``found`` forward passes.

Families: UNets of Stable Diffusion 1, 2 and XL; others have no cross-attention of their own in an upward half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.core.gradients import gradients
from sfumato.core.method import Requires
from sfumato.core.settings import Between, Count, Part, Positive, Settings, Several, SomePart, Time, Weight, Whole
from sfumato.core.sites import Grid, Site
from sfumato.errors import SfumatoError, finite
from sfumato.learning.loop import Problem, learn
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.texts import conditions, drawn, frozen, readers, token_map
from sfumato.reading.reader import Reader
from sfumato.reading.results import Matches

Maps = list[Float[Tensor, "rows h w"]]


@dataclass(frozen=True)
class PromptEmbeddings(Settings):
    """Matches points by texts that are fitted to them."""

    requires: ClassVar = Requires(words=True)

    steps: Count = 129
    """Of the optimisation, for each point and each text."""
    rate: Positive = 0.0023755632
    """Of Adam."""
    restarts: Count = 5
    """Texts that each point is fitted with; their maps are averaged."""
    sigma: Positive = 27.97853 / 512
    """Of the Gaussian at the point, in parts of the crop's sides."""
    crop: SomePart = 0.9316549
    """Side of the crops, in parts of the image's."""
    margin: Annotated[float, Between(0, 0.5, below=True)] = 0.15
    """How far inside of the crop the point lies where it can, in parts of the crop's side."""
    bank: Several = 5
    """Places a side at which crops start: its square is how many are encoded."""
    found: Annotated[int, Between(4)] = 20
    """Crops of the target that its maps are averaged over: the corners, and others at random."""
    token: Whole = 1
    """Which token of the text is to light up."""
    parts: tuple[Part, ...] = (0.25, 0.25, 0.25, 0.5)
    """Where maps are read, in parts of the latents' side: a site of the upward half for each, in order."""
    layers: Literal["mean", "each"] = "mean"
    """Are the sites' maps averaged and then compared with the Gaussian (paper), or each compared by itself (code; a
    softmax over pixels then makes them one)?"""
    heads: Literal["all", "last half"] = "all"
    """Whose maps are read."""
    noise: Literal["gaussian", "uniform"] = "gaussian"
    """What is added to the latents."""
    t: Time = 140
    """Training step of the noise."""
    t_found: Time | None = None
    """That of the target [default: the same]."""
    patience: Count | None = None
    """A text is done when its loss, averaged over so many steps, is hardly less than over as many before [default: all
    texts run all steps]."""
    tolerance: Weight = 0.01
    """What part less is hardly less."""
    seed: Whole = 0
    """Of texts, crops and noise. A point's match does not depend on the other points."""
    batch: Count = 20
    """Rows of the network at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.found > self.bank**2:
            raise SfumatoError(f"{self.bank} by {self.bank} places give {self.bank**2} crops, not {self.found}")

    def __call__(self, source: Reader, target: Reader, points: Float[Tensor, "n 2"]) -> Matches:
        maps = self.maps(target, self.fit(source, points))
        h, w = maps.shape[1:]
        best, cell = maps.flatten(1).max(1)
        share = torch.stack([(cell % w + 0.5) / w, (cell // w + 0.5) / h], -1)
        at = torch.as_tensor(np.asarray(points), dtype=torch.float32).reshape(-1, 2)
        size = torch.tensor([target.size[1], target.size[0]])
        return Matches(at, share.cpu() * size, best.cpu(), torch.ones(len(at), dtype=torch.bool))

    def fit(self, source: Reader, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n restarts tokens d"]:
        """The texts of each point (eq. 8)."""
        model, share = source.model, source.inside(points)
        self.requires.check_model(model, "PromptEmbeddings")
        sites = readers(model, source.grid, self.parts, "prompt embeddings")
        problem = _Fitting(self, source, share, sites)
        with frozen(model.network):
            learn(problem, torch.optim.Adam(problem.groups(), self.rate), steps=self.steps)
        return problem.texts.detach().unflatten(0, (len(share), self.restarts))

    @torch.no_grad()
    def maps(self, target: Reader, texts: Float[Tensor, "n r tokens d"]) -> Float[Tensor, "n h w"]:
        """Where the texts light up, in the pixels that the network sees (eqs. 9 and 10)."""
        model, (h, w) = target.model, target.seen
        sites = readers(model, target.grid, self.parts, "prompt embeddings")
        latents, starts = self.crops(target)
        side = self.sides((h, w))
        generator = torch.Generator().manual_seed(self.seed + 2)
        t = self.t if self.t_found is None else self.t_found
        total = torch.zeros(len(texts), len(sites), h, w, device=model.device)
        count = torch.zeros(h, w, device=model.device)
        for crop in some(self.bank, self.found, generator).tolist():
            noise, _ = self.luck(latents.shape[1:], generator)
            x = self.noised(model, latents[crop].expand_as(noise), noise, t).repeat(len(texts), 1, 1, 1)
            rows = texts.flatten(0, 1).split(self.batch)
            parts = [self.seen(model, z, text, t, sites) for z, text in zip(x.split(self.batch), rows, strict=True)]
            left, top = starts[crop].tolist()
            place = (..., slice(top, top + side[0]), slice(left, left + side[1]))
            for i, site in enumerate(zip(*parts, strict=True)):
                mean = torch.cat(site).unflatten(0, texts.shape[:2]).mean(1)
                total[(slice(None), i, *place)] += enlarged(mean, side)
            count[place] += 1
        total = total / count.clamp_min(1)
        finite(total, "where texts light up", model.remedy)
        if self.layers == "each":
            total = total.flatten(2).softmax(-1).view_as(total)
        return total.mean(1)

    def crops(self, reader: Reader) -> tuple[Float[Tensor, "crops c h w"], Int[Tensor, "crops 2"]]:
        """The image's crops as latents, encoded once, and the pixel (x, y) at which each starts, row by row."""
        h, w = reader.seen
        side = self.sides((h, w))
        ys, xs = (torch.linspace(0, n - s, self.bank).round().int() for n, s in zip((h, w), side, strict=True))
        starts = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1).view(-1, 2).flip(1)

        def encoded() -> Tensor:
            cut = [reader.shown[:, y : y + side[0], x : x + side[1]] for x, y in starts.tolist()]
            whole = F.interpolate(torch.stack(cut), (h, w), mode="bilinear", align_corners=False)
            with torch.no_grad():
                return torch.cat(
                    [reader.model.encode(some) for some in whole.to(reader.model.device).split(self.batch)]
                )

        return reader.kept(("crops", self.crop, self.bank), encoded), starts

    def luck(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Float[Tensor, "restarts 2"]]:
        """A noise for each restart, and which of the crops it gets, in [0, 1): the same for all points."""
        draw = torch.randn if self.noise == "gaussian" else torch.rand
        return draw(self.restarts, *shape, generator=generator), torch.rand(self.restarts, 2, generator=generator)

    def sides(self, seen: Grid) -> Grid:
        """Height and width of a crop in pixels."""
        return int(self.crop * seen[0]), int(self.crop * seen[1])

    def choose(
        self, point: Tensor, luck: Float[Tensor, "rows 2"], within: Int[Tensor, "2"], side: Int[Tensor, "2"]
    ) -> Int[Tensor, " rows"]:
        """A crop for each (x, y) in pixels, ``margin`` from its border where that can be. ``within`` and ``side`` are
        width and height of the image and of a crop."""
        free = within - side
        safe = (self.margin * side).int()
        first = (point - side + safe).clamp(0).minimum(free)
        last = (point - safe).clamp(0).minimum(free)
        scale = (self.bank - 1) / free.clamp_min(1)
        low, high = (first * scale - 1e-4).ceil(), (last * scale + 1e-4).floor()
        high = high.maximum(low)  # between two places of the bank there may be none
        column, row = (low + (luck * (high - low + 1)).floor()).clamp(0, self.bank - 1).long().unbind(1)
        return row * self.bank + column

    def noised(self, model: Backbone, latents: Tensor, noise: Tensor, t: float) -> Float[Tensor, "rows c h w"]:
        level = model.schedule.thousandths(t)
        return level.alpha * latents + level.sigma * noise.to(latents)

    def seen(self, model: Backbone, x: Tensor, texts: Tensor, t: float, sites: tuple[Site, ...]) -> Maps:
        """The token's map at each site."""
        heads = {s: slice(s.heads // 2 if self.heads == "last half" else 0, None) for s in sites}
        time = model.schedule.thousandths(t).t
        found = model.maps(x, time, conditions(model, texts), sites, lambda c: token_map(c, self.token, heads[c.site]))
        return [found[site] for site in sites]

    def loss(self, maps: Maps, centre: Float[Tensor, "rows 2"], size: Grid) -> Float[Tensor, " rows"]:
        """Mean squared distance of enlarged maps from the Gaussian, each row's for itself (eq. 6).

        Enlarging is linear along each side and the Gaussian is a product of two, so nothing of ``size`` is made.
        """
        down, across = (wave.to(maps[0]) for wave in waves(centre, size, self.sigma))
        by = [[bilinear(n, to).to(m) for n, to in zip(m.shape[1:], size, strict=True)] for m in maps]
        inner = [
            [(m * ((y.T @ v) @ o @ (u.T @ x))).sum((1, 2)) for o, (v, u) in zip(maps, by, strict=True)]
            for m, (y, x) in zip(maps, by, strict=True)
        ]
        with_goal = [torch.einsum("rh,rhw,rw->r", down @ y, m, across @ x) for m, (y, x) in zip(maps, by, strict=True)]
        n = len(maps)
        own = (
            sum(inner[i][j] for i in range(n) for j in range(n)) / n
            if self.layers == "mean"
            else sum(inner[i][i] for i in range(n))
        )
        goal = down.square().sum(1) * across.square().sum(1)
        return ((own - 2 * sum(with_goal)) / n + goal) / (size[0] * size[1])

    def going(self, losses: Float[Tensor, "steps rows"], rows: Int[Tensor, " going"]) -> Int[Tensor, " left"]:
        """Those whose loss still falls."""
        n = self.patience
        if n is None or len(losses) < 2 * n:
            return rows
        now, before = losses[-n:, rows].mean(0), losses[-2 * n : -n, rows].mean(0)
        return rows[now < (1 - self.tolerance) * before]


@dataclass(eq=False)
class _Fitting(Problem):
    """The texts of all points, as the run's problem: those that are done rest."""

    method: PromptEmbeddings
    source: Reader
    share: Float[Tensor, "n 2"]
    sites: tuple[Site, ...]
    name: str = "prompt embeddings"
    doing: str = "fitting texts"

    def __post_init__(self) -> None:
        texts = drawn(self.source.model, self.method.restarts, seed=self.method.seed).repeat(len(self.share), 1, 1)
        self.texts, self.going = nn.Parameter(texts), torch.arange(len(texts))
        self.modules = {"texts": nn.ParameterDict({"value": self.texts})}
        self.losses = torch.full((self.method.steps, len(texts)), torch.nan)
        self.rng = torch.Generator().manual_seed(self.method.seed + 1)
        self.latents, self.starts = self.method.crops(self.source)

    def loss(self, step: int) -> Tensor:
        """It has the gradient that was found, some texts at a time."""
        method, model, n = self.method, self.source.model, len(self.share)
        within, side = (torch.tensor(size).flip(0) for size in (self.source.seen, method.sides(self.source.seen)))
        where = self.share.repeat_interleave(method.restarts, 0)
        noise, luck = method.luck(self.latents.shape[1:], self.rng)
        chosen = method.choose(where * within, luck.repeat(n, 1), within, side)
        centre = (where * within - self.starts[chosen]) / side
        x = method.noised(model, self.latents[chosen], noise.repeat(n, 1, 1, 1), method.t)
        gradient = torch.zeros_like(self.texts)
        for rows in self.going.split(method.batch):
            text = self.texts.detach()[rows].requires_grad_()
            maps = method.seen(model, x[rows], text, method.t, self.sites)
            loss = method.loss(maps, centre[rows], self.source.seen)
            (gradient[rows],) = gradients(model, loss.sum(), (text,))
            self.losses[step, rows] = loss.detach().cpu()
        self.before = self.texts.detach().clone()
        return (self.texts * gradient).sum()

    @torch.no_grad()
    def after_step(self, step: int, optimisers: Optimisers) -> None:
        rests = torch.ones(len(self.texts), dtype=torch.bool).index_fill(0, self.going, False)
        self.texts[rests] = self.before[rests]
        self.going = self.method.going(self.losses[: step + 1], self.going)

    def finished(self) -> bool:
        return not len(self.going)


def waves(
    centre: Float[Tensor, "rows 2"], size: Grid, sigma: float
) -> tuple[Float[Tensor, "rows h"], Float[Tensor, "rows w"]]:
    """Down and across, what the Gaussian of height 1 at (x, y) is the product of (eq. 5); all in parts of the sides."""
    y, x = ((torch.arange(n) + 0.5) / n for n in size)
    return (-0.5 * ((y - centre[:, 1:]) / sigma).square()).exp(), (-0.5 * ((x - centre[:, :1]) / sigma).square()).exp()


def bilinear(n: int, to: int) -> Float[Tensor, "to n"]:
    """The matrix that enlarges one side of a map, as ``enlarged`` does."""
    return F.interpolate(torch.eye(n)[None], to, mode="linear", align_corners=False)[0].T


def enlarged(maps: Float[Tensor, "rows h w"], size: Grid) -> Float[Tensor, "rows H W"]:
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def some(side: int, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """``n`` of side x side places: the corners, then others at random."""
    corners = torch.tensor([0, side - 1, side * (side - 1), side * side - 1])
    order = torch.randperm(side * side, generator=generator)
    return torch.cat([corners, order[~torch.isin(order, corners)]])[:n]


PUBLISHED = PromptEmbeddings(noise="uniform", t_found=40, layers="each", heads="last half")
"""What the authors' code does (commit 97e3246), with Stable Diffusion 1.4's 8 heads."""
