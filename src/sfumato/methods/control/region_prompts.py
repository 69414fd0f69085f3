"""Prompts by region: what lies in a region reads a prompt of its own, the rest the prompt of the whole picture.

SpaText (Avrahami et al. 2023, arXiv 2211.14305) paints from such spatio-textual input with a network trained for it
(``spatext``). Here nothing is trained: attention does it, as in regional prompting (Chen et al. 2024, arXiv
2411.02395). Each region's prompt has rows of its own in the batch, which are asked with the picture's own queries; what
they answer takes the place of the picture's attention inside the region.

Defaults: 0.1 of the whole's prompt and the first 10 of 24 steps, as in an example for Flux with the authors' code.
There the picture is predicted with and without regions in those steps and the two are mixed; pixels of different
regions do not attend to each other. Here the two answers of one attention are mixed, and pixels attend to all. Where
regions overlap, their answers are averaged. A region's prompt need not be in the picture's.

Needs: a row more for each image and region, as a condition of the guidance; image->text queries of those rows and
outputs of the conditional ones, all still fused.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide, Parts
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where
from sfumato.core.rows import Rows
from sfumato.core.settings import Part, PartOfSteps
from sfumato.core.sites import Grid
from sfumato.methods.control.placed import given, placed
from sfumato.prompts.layout import Layout


@dataclass(frozen=True)
class RegionPrompts(Method):
    """Regions of the picture read prompts of their own."""

    requires: ClassVar = Requires(words=True, windows=False)

    layout: Layout | None = None
    """Regions and their prompts."""
    whole: Part = 0.1
    """How much of the whole picture's prompt is read inside the regions as well."""
    until: PartOfSteps = 0.4
    """Part of the steps in which it acts."""
    background: str | None = None
    """A prompt for what no region covers; none: that of the whole picture."""

    def around(self, base: Guide) -> Guide:
        """A guidance with rows for the regions; ``base`` itself if it is off, or has them."""
        if not self._regions or isinstance(base, Regional):
            return base
        return Regional(base, tuple(self._regions.items()))

    @property
    def _regions(self) -> dict[str, str]:
        """The regions' conditions, and their prompts."""
        layout = given(self.layout, "prompts by region")
        if not self.until or self.whole == 1:
            return {}
        regions = {f"region {i}": phrase for i, phrase in enumerate(layout.phrases)}
        return regions if self.background is None else {**regions, "background": self.background}

    def start(self, run: Run) -> Phases:
        prompts = self._regions
        layout, steps = placed(self.layout, run, "prompts by region"), (0, self.until)

        def answer(call: Call) -> None:
            shares = (1 - self.whole) * _shares(layout, call.grid, self.background is not None)
            for name in call.rows.match("cond"):
                own = call.get("out", name, "image")
                mixed = own * (1 - shares.sum(0)).to(own)
                for share, row in zip(shares, prompts, strict=True):
                    mixed = mixed + share.to(own) * call.get("out", (name[0], row), "image")
                call.set("out", name, mixed, "image")

        queries = [Edit(Where("image->text", steps=steps, rows=row), "qkv", _asking(row)) for row in prompts]
        return Phases(
            (*queries, Edit(Where("image->text", steps=steps, rows="cond"), "out", answer)) if prompts else ()
        )


@dataclass(frozen=True)
class Regional(Guide):
    """A guidance beside which rows for regions run, whose predictions are not asked for."""

    base: Guide
    regions: tuple[tuple[str, str], ...]
    """The rows' conditions and prompts."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        conds = self.base.embed(model, prompts)
        base, own = conds["cond"], {row: model.embed([regions] * len(prompts)) for row, regions in self.regions}
        alike = {row: replace(c, image=base.image, extra={**base.extra, **c.extra}) for row, c in own.items()}
        return conds | alike  # a guidance that the network reads is the same for all

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        return self.base.combine(parts, rows)


def _asking(row: str) -> Callable[[Call], None]:
    """A row's pixels ask as the picture's own do; where pixels are attended to as well, they are the picture's."""

    def do(call: Call) -> None:
        for name in call.rows.match(row):
            for which in "qkv" if "image" in call.site.key else "q":
                call.set(which, name, call.get(which, (name[0], "cond"), "image"), "image")

    return do


def _shares(layout: Layout, grid: Grid, background: bool) -> Float[Tensor, "n queries 1"]:
    """How much each region, and what none covers, counts at each pixel; together at most one."""
    masks = layout.masks(grid)
    covered = masks.sum(0, keepdim=True)
    masks = masks / covered.clamp_min(1)
    if background:
        masks = torch.cat([masks, (covered == 0).to(masks)])
    return masks.flatten(1)[..., None]
