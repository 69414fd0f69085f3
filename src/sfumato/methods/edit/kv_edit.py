"""KV-Edit (Zhu et al. 2025, arXiv 2502.17363): a region painted anew among the keys and values of what is around it.

The image is inverted. On the way back the run's first stream follows that track, and the others take from it, in all
self-attention, the keys and values of every token outside the mask, so that the region is painted in sight of the true
background. Outside the mask they end as the image itself.

Defaults: the authors' demo for Flux (28 steps, the first 4 skipped, guidance 1.5 to invert and 5.5 to edit, a bias of
1 on attention to the background). Their code keeps the inversion's keys and values, which were made one level cleaner,
and runs the region's tokens alone; here source and target run side by side at the same level and what a target makes of
its background is not used, which leads to the same in joint attention. ``fresh`` and ``apart``, for things to be taken
away, are theirs (re_init, attn_mask), the latter here on the way back only.

In a UNet convolutions mix places, so the region also sees the background through them, which is the image's own in
every step; what is outside the mask is as exact there.

Needs: image->image keys and values everywhere, still fused; with a bias or ``apart`` the logits too, everywhere; a
network call a step to invert.

Families: all; joint-attention transformers, which are Stable Diffusion 3 and Flux, as published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.method import Edit, Phases, Requires, Run, Step, Where
from sfumato.core.schedule import add_noise
from sfumato.core.settings import Count, Part, Whole
from sfumato.errors import SfumatoError
from sfumato.inversion.ddim import DDIMInversion
from sfumato.inversion.path import Advance, Path, noise_of
from sfumato.methods.edit.flow_edit import Scaled
from sfumato.prompts.layout import Mask


@dataclass(frozen=True, eq=False)
class KVEdit(Scaled):
    """Gives a start whose first stream is held to the image, and the others to it outside of the mask; the run's
    guidance should be its own (``guide``)."""

    mask: Mask | None = None
    """What is painted anew."""
    source_scale: float = 1.5
    """Guidance on the way to noise, and of the source."""
    target_scale: float = 5.5
    """Guidance of the edit."""
    skip: Part = 4 / 28
    """Part of the steps, the noisiest, that are left out."""
    bias: float = 1.0
    """Added to the logits of what looks at the background, in the edits; 0 for none."""
    fresh: bool = False
    """Start the region from noise of its own instead of the inverted one."""
    apart: bool = False
    """Hide region and background from each other in the source, so that the background does not tell of the region."""
    seed: Whole = 0
    """Of that noise."""
    steps: Count = 28

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        if self.mask is None:
            raise SfumatoError("KV-Edit needs a mask: white is what is painted anew")
        levels = model.levels(self.steps, image.shape[-2:]).without(self.skip)
        how = DDIMInversion(self.source_scale, 0, self.steps)
        track = how.track(model, image, prompts, advance, len(levels))
        cells = self.mask.at((image.shape[-2], image.shape[-1])).to(image.device)
        start = None
        if self.fresh:
            start = torch.where(cells, add_noise(image, noise_of(model, image, self.seed), levels[0]), track[0])
        return Kept(
            track[0], levels, prompts, image, track=track, pinned=True, cells=cells, fresh=start,
            bias=self.bias, apart=self.apart,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Kept(Path):
    """A path whose other streams are, outside of the cells, the first one: in latents, and as keys and values."""

    requires: ClassVar = Requires("KV-Edit", source=True, windows=False)

    cells: Bool[Tensor, "h w"] | None = None
    fresh: Tensor | None = None
    """Where the others start, if not on the track."""
    bias: float = 0.0
    apart: bool = False

    def start(self, run: Run) -> Phases:
        source, *targets = run.rows.streams
        assert self.cells is not None
        cells, held = self.cells, super().start(run)
        inside: dict[int, Tensor] = {}

        def region(call: Call) -> Bool[Tensor, " n"]:
            """The tokens with a cell in the mask."""
            scale = call.site.scale
            if scale not in inside:
                inside[scale] = F.max_pool2d(cells.float()[None], scale, ceil_mode=True).flatten() > 0
            return inside[scale].to(call.get("k", call.rows.names[0]).device)

        def keep(target: str, call: Call) -> None:
            here = region(call)[:, None]
            for _, condition in run.rows.match((target, None)):
                for which in "kv":
                    own, base = (call.get(which, (s, condition), "image") for s in (target, source))
                    call.set(which, (target, condition), torch.where(here, own, base), "image")

        def look(target: str, call: Call) -> None:
            for name in run.rows.match((target, None)):
                logits = call.logits(name).clone()
                logits[..., call.segment("k", "image")] += self.bias * ~region(call)
                call.set_logits(name, logits)

        def part(call: Call) -> None:
            here = region(call)
            for name in run.rows.match((source, None)):
                logits = call.logits(name).clone()
                block = logits[..., call.segment("q", "image"), call.segment("k", "image")]
                block.masked_fill_(here[:, None] != here, -torch.inf)
                call.set_logits(name, logits)

        def before(step: Step) -> None:
            if step.i == 0 and self.fresh is not None:
                step.x = step.x.clone()
                for target in targets:
                    step.x[run.images(target)] = self.fresh.to(step.x)

        def after(step: Step) -> None:
            assert held.after is not None
            held.after(step)
            for target in targets:
                at = run.images(target)
                step.x_next[at] = torch.where(cells, step.x_next[at], step.x_next[run.images(source)])

        edits = [Edit(Where("image->image", rows=(t, None)), "qkv", partial(keep, t), parts="kv") for t in targets]
        if self.bias:
            edits += [Edit(Where("image->image", rows=(t, None)), "logits", partial(look, t)) for t in targets]
        if self.apart:
            edits.append(Edit(Where("image->image", rows=(source, None)), "logits", part))
        return replace(held, edits=tuple(edits), before=before, after=after)
