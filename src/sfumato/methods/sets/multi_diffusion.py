"""MultiDiffusion with regions (Bar-Tal et al. 2023, arXiv 2302.08113): parts of a picture that are painted each from a
prompt of its own, and agree where they meet.

Every window of the canvas is predicted once for each region that it shows, reading that region's prompt, and once as
the rest, reading the picture's; where they are laid on the canvas each counts inside its region alone.
Nothing tells a region's prediction where its thing should be, so that it may well stand half outside. Bootstrapping
does: in the first steps what it sees around its region is one plain colour, drawn anew in each, encoded and noised to
the step's level, so that all it can go on with lies inside.

Defaults: the paper's, bootstrapping in the first fifth of the steps; the authors' code has 20 of 50 (``authors``).
There the noise around regions is the one that the canvas starts from, here it is drawn for it, which a run may do
without starting from noise; a colour is drawn for each region in each step, there for each window. Regions that a
window does not show are not predicted in it, and where regions cover everything there is no rest.

Needs: nothing inside the network. In each window a prediction a region and one for the rest, in the first steps the
encoding of a colour a region. Without views it sees pictures whole.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.grids import Grids
from sfumato.core.method import Method, Phases, Requires, Run, Step
from sfumato.core.schedule import add_noise, part_of
from sfumato.core.settings import PartOfSteps
from sfumato.core.sites import Grid
from sfumato.core.views import Fuse, Looks, Side, Turned, View, Views
from sfumato.errors import SfumatoError
from sfumato.methods.control.placed import given
from sfumato.prompts.layout import Layout


@dataclass(frozen=True)
class MultiDiffusion(Method):
    """Regions of a canvas are painted from prompts of their own."""

    late: ClassVar[bool] = True

    layout: Layout | None = None
    """Regions and their prompts; {} in one is the picture's."""
    background: str | None = None
    """A prompt for what no region covers; none: that of the whole picture."""
    bootstrap: PartOfSteps = 0.2
    """Up to this part of the steps a region's surroundings are a plain colour; 0: never."""

    def prepare(self, model: Backbone, prompts: object) -> MultiDiffusion:
        Requires(words=True).check_model(model, "MultiDiffusion")
        return self

    def alone(self) -> Views:
        return Looks((Turned(),), "x_prev")

    def seeing(self, views: Views) -> Views:
        if views.side == "instance" or isinstance(views, Grids):
            raise SfumatoError("MultiDiffusion's regions are of one canvas; views are tiles, a ring or looks of it")
        layout = given(self.layout, "MultiDiffusion")
        layout.check()
        rest = "{}" if self.background is None else self.background
        return Regions(views, layout, (rest, *layout.phrases), views.fuse, views.around)

    def start(self, run: Run) -> Phases:
        if run.rows.frames > 1:
            raise SfumatoError(f"MultiDiffusion paints pictures, and a clip has {run.rows.frames}; leave frames out")
        seen, canvas, end = run.views, run.canvas, part_of(run.steps, self.bootstrap)
        if not isinstance(seen, Regions) or canvas is None:
            raise SfumatoError("MultiDiffusion's regions are views of a run; give it to denoise as one of the methods")
        if not end:
            return Phases()
        kept: list[Tensor] = []

        def before(step: Step) -> None:
            if step.i >= end:
                return
            views = seen.at(step.i)
            owners, inside = views.masks(canvas, run.grid)
            if bool(inside.all()):
                return
            if step.i == 0:
                kept[:] = [step.draw()]  # of what is around, the same in all steps
            plain = _plain(step, owners, run)
            around = add_noise(plain, views.split_noise(kept[0], run.grid), step.level)
            shown = step.split(step.x) if step.offset is None else step.split(step.x) + step.offset
            outside = 1 - inside.to(shown).repeat(len(shown) // len(owners), 1, 1, 1)
            off = outside * (around - shown)
            step.offset = off if step.offset is None else step.offset + off

        return Phases(before=before)


def _plain(step: Step, owners: list[int], run: Run) -> Float[Tensor, "bv c h w"]:
    """What is around each view's region: pictures of one colour, encoded; nothing around the rest."""
    model, (height, width) = run.model, (n * run.model.factor for n in run.grid)
    number = max(owners)
    drawn = torch.special.ndtr(step.draw().flatten(1)[:, : number * model.colours])  # even between 0 and 1
    colours = drawn.unflatten(1, (number, model.colours))[..., None, None]
    backs = [model.encode(colours[:, i].expand(-1, -1, height, width)) for i in range(number)]
    empty = torch.zeros_like(backs[0])
    return torch.stack([backs[k - 1] if k else empty for k in owners], 1).flatten(0, 1)


@dataclass(frozen=True)
class Regions(Views):
    """Each view of a canvas once a region that it shows, and once for what is in none, counting there alone."""

    inner: Views
    layout: Layout
    """Of parts of the canvas' sides."""
    prompts: tuple[str, ...]
    """What the rest reads and what each region, {} being the run's prompt."""
    fuse: Fuse = "x_prev"
    around: bool = False
    side: Side = "canvas"

    def at(self, i: int) -> Regions:
        inner = self.inner.at(i)
        return self if inner is self.inner else replace(self, inner=inner)

    def window(self, canvas: Grid, side: int) -> Grid:
        return self.inner.window(canvas, side)

    def of(self, canvas: Grid, window: Grid, cell: int = 1) -> tuple[View, ...]:
        return tuple(view for view, _ in _parts(self, canvas, window, cell))

    def prompts_of(self, prompt: str, canvas: Grid, window: Grid) -> tuple[str, ...]:
        return tuple(self.prompts[owner].replace("{}", prompt) for _, owner in _parts(self, canvas, window))

    def masks(self, canvas: Grid, window: Grid) -> tuple[list[int], Float[Tensor, "v 1 h w"]]:
        """Whose each view is, from 1 on in the order of the layout, 0 that of the rest; and where it may look as it is:
        inside its region, and the rest everywhere."""
        found = _parts(self, canvas, window)
        ones = torch.ones(1, 1, *canvas)
        shown = [
            view.project(view.mask[None, None] if owner and isinstance(view, Masked) else ones) for view, owner in found
        ]
        return [owner for _, owner in found], torch.cat(shown)


@lru_cache(8)  # they are the same in every step
def _parts(views: Regions, canvas: Grid, window: Grid, cell: int = 1) -> tuple[tuple[View, int], ...]:
    """Views and whose they are. Where those of a step are others, each has all regions, as many in every step."""
    masks = views.layout.masks((canvas[0] // cell, canvas[1] // cell))
    masks = masks.repeat_interleave(cell, -2).repeat_interleave(cell, -1)
    each = [(masks.sum(0) == 0).to(masks), *masks]
    steady = views.inner.at(0) is views.inner
    found: list[tuple[View, int]] = []
    for view in views.inner.of(canvas, window, cell):
        weight = view.unproject(torch.zeros(1, 1, *window), canvas)[1]
        for owner, mask in enumerate(each):
            if mask.any() and (not steady or (weight * mask).any()):
                found.append((view if mask.all() else Masked(view, mask), owner))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Masked(View):
    """A view that counts in a part of the canvas alone."""

    view: View
    mask: Float[Tensor, "H W"]

    def project(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return self.view.project(canvas)

    def noise(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c h w"]:
        return self.view.noise(canvas)

    def unproject(self, part: Float[Tensor, "b c h w"], canvas: Grid) -> tuple[Tensor, Tensor]:
        laid, weight = self.view.unproject(part, canvas)
        mask = self.mask.to(part)
        return laid * mask, weight * mask


AUTHORS = MultiDiffusion(bootstrap=0.4)
"""In their code: the first 20 of 50 steps."""
