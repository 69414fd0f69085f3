"""SpaText (Avrahami et al. 2023, arXiv 2211.14305): regions painted as words of their own say, by a network that
learned to read a map of them.

The map lies beside the noisy latents as further channels of the network's input: where a region is, the CLIP embedding
of what is to be there, elsewhere zeros. The network is fine-tuned on pictures with segments, one to K of those that
cover 5 % or more, each described by the CLIP's embedding of its crop, black outside of the segment; new weights begin
at zero. Where it paints, words are embedded as texts, and a prior says what the embedding of their image would be.

Guidance by several conditions: of both at once, u + s (c - u) with the map in c alone, as fast as any other; or, with
``region_scale``, by each for itself, u + s (t - u) + s_r (r - u), a row more, t with the text and r with the map alone.
Caption and map are each left out in a tenth of the examples, for u.

There is no official code. Different from the paper: the prior is a linear map in closed form, learned of the same
segments and their names (of pictures and captions where those are not known), in the place of DALL-E 2's diffusion
model; embeddings are of length sqrt(d), so that a channel is as large as one of the latents; where regions overlap, the
smaller one counts; rate, batch and steps are ours. ``boxes`` shows segments as the boxes around them, for such layouts.

Needs: a head that ``sfumato train-head`` taught of this very model; a row more for each image, with ``region_scale``.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide, Parts
from sfumato.core.method import Method, Phases, Requires, Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.learning.heads import Head
from sfumato.methods import heads
from sfumato.methods.control.placed import given, placed
from sfumato.methods.control.spatio_textual import SpaTextHead, prior_of, spatio_textual, with_map
from sfumato.prompts.layout import Layout


@dataclass(frozen=True)
class SpaText(Method):
    """Paints regions as their own words say, by a network that learned to."""

    requires: ClassVar = Requires(words=True, windows=False)

    layout: Layout | None = None
    """Regions and what is in them."""
    head: Path | None = None
    """What ``sfumato train-head DATA spatext`` wrote."""
    region_scale: float | None = None
    """Guidance by the regions, beside that by the prompt; none: one for both, a row less."""

    def own_model(self, model: Backbone) -> Backbone:
        """A model that reads maps. Raises ``SfumatoError`` where there is no head, and for a model that is not its."""
        return _reads(self.learned(model), model, _state(model.network))

    def learned(self, model: Backbone) -> Head:
        """The head. Raises ``SfumatoError`` where there is none, or another one."""
        if self.head is None:
            raise SfumatoError(
                "SpaText paints by a network that learned to; sfumato train-head stilllife:400 spatext makes its --head"
            )
        place = Path(self.head).expanduser()
        head = _opened(place, place.stat().st_mtime_ns if place.is_file() else 0)
        if not isinstance(head.method, SpaTextHead):
            raise SfumatoError(f"{place} is a head of {type(head.method).__name__}, which reads; SpaText has its own")
        head.check(model)
        return head

    def around(self, base: Guide) -> Guide:
        """With a row for the regions alone, where they have a guidance of their own."""
        if self.region_scale is None or isinstance(base, MultiScale):
            return base
        return MultiScale(base, self.region_scale)

    def start(self, run: Run) -> Phases:
        given(self.layout, "SpaText")
        layout, head = placed(self.layout, run, "SpaText"), self.learned(run.model)
        with torch.no_grad():
            embeddings = described(head, run.model, layout.phrases)
        map = spatio_textual(layout.masks(run.grid), embeddings.cpu()).to(run.model.device)
        row = "cond" if self.region_scale is None else REGIONS

        def cond(step: Step, cond: Cond) -> Cond:
            maps = map.new_zeros(len(cond), *map.shape)
            for name in run.rows.match(row):
                maps[run.rows[name]] = map
            return with_map(cond, maps)

        return Phases(cond=cond)


REGIONS = "regions"
"""The condition whose rows read a map and no prompt."""


@dataclass(frozen=True)
class MultiScale(Guide):
    """A guidance, and beside it one by regions: base + s (r - u)."""

    base: Guide
    scale: float

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        conds = dict(self.base.embed(model, prompts))
        if "uncond" not in conds:
            conds = {"uncond": model.embed_negative([getattr(self.base, "negative", "")] * len(prompts)), **conds}
        return {**conds, REGIONS: conds["uncond"]}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        return self.base.combine(parts, rows) + self.scale * (parts[REGIONS] - parts["uncond"])


def described(head: Head, model: Backbone, phrases: Sequence[str]) -> Float[Tensor, "n d"]:
    """What the image embeddings of words would be, by the head's prior."""
    network: Any = head.network
    return prior_of(network.prior.weight, network.prior.bias, head.source.texts(model, phrases))


@lru_cache(maxsize=2)
def _opened(place: Path, stamp: int) -> Head:
    """A head's file as it was at a time."""
    return heads.load(place)


@lru_cache(maxsize=1)
def _reads(head: Head, model: Backbone, state: tuple[int, ...]) -> Backbone:
    """The model with what the head learned, kept for the next pictures."""
    return head.network.on(model)


def _state(network: Any) -> tuple[int, ...]:
    """Numbers that are others once weights have changed, or what is hooked to layers."""
    weights = [number for p in network.parameters() for number in (p.data_ptr(), p._version)]
    return (*weights, *(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()))
