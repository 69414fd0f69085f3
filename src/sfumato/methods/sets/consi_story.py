"""ConsiStory (Tewel et al. 2024, arXiv 2402.03286): one subject in several pictures, told by one word of their prompts.

Every image reads itself and of the others the subject alone: the cells whose attention to its word is strong (section
4.1). So the subject is drawn alike and grounds stay apart. That it is not drawn in one pose as well, part of those
cells, drawn anew in each step, is left out (self-attention dropout).

Defaults: the authors' code: half of the cells are dropped, attention is shared from the second step on, on the way up
of a UNet; maps are of a quarter of the latents' side, cut by Otsu's threshold, each image's own. They are averages over
the steps before, theirs over the last maps of each part of the network. Left out are what needs a pass of its own:
queries of a run that does not share, which they mix into those of the first tenth of the steps, and features carried
along correspondences (DIFT) of a finished first pass.

Needs: image->text maps of the word; image->image keys and values, which stay fused, with a mask. No further network
calls; attention to n images takes n times as long.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose, nearest_side
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where
from sfumato.core.sites import Grid
from sfumato.errors import SfumatoError
from sfumato.methods.edit.appearance import in_decoder
from sfumato.methods.sets.sources import PAIR
from sfumato.prompts.words import spans


@dataclass(frozen=True)
class ConsiStory(Method):
    """The images of a stream show the subject, their prompts all name it."""

    requires: ClassVar = Requires(words=True, set=True)

    word: str
    """The subject, a word or phrase of every prompt."""
    dropout: float = 0.5
    """Part of the subject's cells that others do not read in a step."""
    after: float = 0.02
    """Part of the steps that are left alone."""
    until: float = 1.0
    """Part of the steps up to which it acts."""
    res: float = 0.25
    """Side of the word's maps, as a part of the latents' side."""
    seed: int = 0
    """Of what is dropped."""

    def start(self, run: Run) -> Phases:
        if not 0 <= self.dropout <= 1:
            raise SfumatoError(f"a part of the subject's cells lies between 0 and 1, got {self.dropout:g}")
        tokens = {s: [spans(run.model.words(p), self.word) for p in some] for s, some in run.prompts.items()}
        images, views = run.rows.of_stream, run.rows.views
        if images == 1:
            return Phases()
        side = nearest_side(choose(run.model, "image->text", run.grid, who="ConsiStory"), run.grid, self.res)
        need = Need(Where("image->text", side, (0, self.until), "cond"))
        heat: dict[str, Tensor] = {}

        def after(step: Step) -> None:
            maps = step.maps.get(need, {})
            for stream in run.rows.streams if maps else ():
                mean = torch.stack([m[stream, "cond"] for m in maps.values()]).mean(0)
                at = [found for found in tokens[stream] for _ in range(views)]
                seen = torch.stack([m[:, some].mean(-1) for m, some in zip(mean, at, strict=True)])
                seen = seen.view(len(seen), 1, *next(iter(maps)).grid(run.grid))
                heat[stream] = heat[stream] + seen if stream in heat else seen

        def share(call: Call) -> None:
            kept = self._kept(call.step, images, call.grid)
            everyone = torch.arange(images) * views + torch.arange(views)[:, None]
            for stream, map in heat.items():
                read = subject(map, call.grid).view(images, views, -1) & kept.to(map.device)[:, None]
                bias = torch.zeros(images, views, images, read.shape[-1], device=map.device)
                bias += torch.where(read, 0.0, -torch.inf).transpose(0, 1)
                for i in range(images):
                    bias[i, :, i] = 0  # all of itself
                for condition in run.rows.conditions:
                    call.share((stream, condition), everyone.repeat(images, 1), bias.flatten(2).flatten(0, 1))

        where = Where(PAIR, steps=(self.after, self.until), sites=in_decoder(run, PAIR))
        return Phases((Edit(where, "sources", share),), (need,), after=after)

    def _kept(self, step: int, images: int, grid: Grid) -> Bool[Tensor, "images n"]:
        """What is not dropped in a step, the same in all layers of a grid."""
        draw = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        return torch.rand(images, grid[0] * grid[1], generator=draw) >= self.dropout


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
