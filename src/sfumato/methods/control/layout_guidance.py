"""Layout guidance (Chen et al. 2023, arXiv 2304.03373): the attention of a phrase's words is brought into its box.

Backward guidance (section 4.2) makes the conditional prediction once more before each of the first steps and moves the
latents down the energy (1 - inside / all)^2 of each word's map, inside and all its sums over pixels (eq. 2), until
it is small. Forward guidance (section 4.1) writes the maps themselves: each word's whole attention is spread over its
box by a smooth window, and mixed with what it was (eq. 1).

Defaults of backward guidance: the authors' code (scale 30, energy 0.2, 5 iterations, the first 10 of 51 steps, the maps
of the middle block and of the first upward level; transformers, which have no such levels, give those of the middle
half of their blocks). The authors step by sigma_k^2 times the gradient in the latents of k-diffusion, x / alpha, where
sigma_k = sigma / alpha; in x itself the gradient is 1 / alpha of that one and the step alpha times, so the same step is
sigma^2. As there the energy is of each head by itself. Their loop carries the last energy on, so that a step whose
predecessor ended below 0.2 is not looked at again; here each step looks. A box that ends inside of a cell has it if it
covers half of it; there ends are rounded down, so that it loses the last cell and gains the first. Phrases lose their
leading article. Forward guidance was never published as code: the window is a Gaussian whose deviation is half the
box's sides, and the share 0.8 is ours. Edited maps are not normalised again.

Needs: backward, image->text maps of each head in predictions of the conditional rows with their gradients, up to five a
step while it acts; forward, image->text probabilities at all sites.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.core.method import Edit, Method, Need, Phases, Requires, Run, Step, Where, span
from sfumato.core.settings import Part, PartOfSteps, Weight, Whole
from sfumato.core.sites import Grid, Site
from sfumato.methods.control.latent_descent import descend
from sfumato.methods.control.placed import among, phrase_tokens, placed
from sfumato.prompts.layout import Box, Layout


@dataclass(frozen=True)
class LayoutGuidance(Method):
    """Brings the attention of each phrase of a layout into its box."""

    requires: ClassVar = Requires(words=True, windows=False)

    layout: Layout | None = None
    """Phrases of the prompt and their boxes."""
    mode: Literal["backward", "forward"] = "backward"
    """Move the latents, or write the maps."""
    scale: float = 30.0
    """Backward: size of a step."""
    enough: Weight = 0.2
    """Backward: the energy, between 0 and 1, at which an image is left alone."""
    iterations: Whole = 5
    """Backward: most predictions a step."""
    strength: Part = 0.8
    """Forward: share of the window, from 0 to 1."""
    until: PartOfSteps = 0.2
    """Part of the steps in which it acts."""
    layers: tuple[str, ...] = ()
    """Parts of the paths of the attention that is read or written, such as up_blocks.1; none: the authors' choice."""

    def start(self, run: Run) -> Phases:
        layout = placed(self.layout, run, "layout guidance")
        tokens = phrase_tokens(layout, run)
        end = span((0, self.until), run.steps)[1]
        if self.mode == "forward":
            do = _spreading(layout.boxes(), tokens, self.strength, run)
            edit = Edit(Where("image->text", steps=(0, end), rows="cond", sites=among(self.layers)), "probs", do)
            return Phases(edits=(edit,) if self.strength else ())
        where = Where("image->text", steps=(0, end), rows="cond", sites=among(self.layers) or middle(run))
        need = Need(where, reduce=lambda call, name: call.block(name, "image->text"))
        sites = choose(run.model, need.where, run.grid, "layout guidance")
        of = run.rows.match("cond")
        rows = slice(run.rows[of[0]].start, run.rows[of[-1]].stop)

        def before(step: Step) -> None:
            if step.i >= end or not self.scale:
                return

            def loss(x: Tensor) -> Float[Tensor, " b"]:
                read = run.model.maps(
                    x, step.level.t, step.cond[rows], sites, lambda call: call.block(("main", "cond"), "image->text")
                )
                masks = {site: layout.masks(site.grid(run.grid)).to(x) for site in read}
                found = [
                    torch.stack([energy(maps[i].float(), masks[site], named) for site, maps in read.items()]).mean()
                    for i, named in enumerate(tokens)
                ]
                return torch.stack(found)

            descend(step, loss, self.scale * step.level.sigma**2, self.iterations, self.enough)

        calls = end * self.iterations / run.steps / len(run.rows.conditions)
        return Phases(looks=(need,) if calls else (), before=before, calls=calls)


def energy(
    maps: Float[Tensor, "heads queries tokens"], masks: Float[Tensor, "n h w"], tokens: Sequence[Sequence[int]]
) -> Float[Tensor, ""]:
    """(1 - inside / all)^2 of one site's maps, the mean over regions, their tokens and heads (eq. 2)."""
    total = maps.new_zeros(())
    for mask, named in zip(masks, tokens, strict=True):
        words = maps[..., list(named)]
        inside = (words * mask.flatten()[:, None]).sum(1) / words.sum(1).clamp_min(1e-12)
        total = total + (1 - inside).square().mean()
    return total / len(masks)


def middle(run: Run) -> Callable[[Site], bool]:
    """Middle block and first upward level of a UNet; the middle half of a transformer's blocks."""
    sites = choose(run.model, "image->text", run.grid)
    first = max((s.scale for s in sites if s.stage == "up"), default=0)
    chosen = {s for s in sites if s.stage == "mid" or (s.stage == "up" and s.scale == first)}
    return (chosen or set(sites[len(sites) // 4 : len(sites) - len(sites) // 4])).__contains__


def window(box: Box, grid: Grid) -> Float[Tensor, "h w"]:
    """A Gaussian in the middle of a box, as wide as it; its sum is one."""
    sides = [(torch.arange(n) + 0.5) / n for n in grid]
    lines = [
        torch.exp(-0.5 * ((at - (low + high) / 2) / ((high - low) / 2)).square())
        for at, low, high in zip(sides, (box[1], box[0]), (box[3], box[2]), strict=True)
    ]
    whole = lines[0][:, None] * lines[1]
    return whole / whole.sum()


def _spreading(
    boxes: Sequence[Box], tokens: Sequence[Sequence[Sequence[int]]], strength: float, run: Run
) -> Callable[[Call], None]:
    def do(call: Call) -> None:
        windows = [window(box, call.grid).flatten()[:, None] for box in boxes]
        for name in call.rows.match("cond"):
            maps = call.block(name, "image->text").clone()
            for i, named in enumerate(tokens[run.images(name[0])]):  # not over views: a gradient may be wanted
                for spread, some in zip(windows, named, strict=True):
                    own = maps[i, ..., some]
                    maps[i, ..., some] = (1 - strength) * own + strength * spread.to(own) * own.sum(1, keepdim=True)
            call.set_block(name, "image->text", maps)

    return do
