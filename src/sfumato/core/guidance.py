"""Guidance as algebra over rows: which conditions the network is asked under, and one prediction made of the answers.

All are linear in the prediction, so they mean the same for noise, v and flow velocity. CFG is u + s (c - u) throughout
(Ho and Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.hints import GUIDING, hinting
from sfumato.core.rows import Rows
from sfumato.core.settings import Part, Settings, fits
from sfumato.errors import SfumatoError, kind, shown

Parts = Mapping[str, Float[Tensor, "b *shape"]]
Scales = float | Mapping[str, float]
"""Of guidance: one, or each stream's own."""


class Guide(Settings):
    """The conditions of a run, and how their predictions (a row an image) become one."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        """Condition -> what the network reads, a row a prompt."""
        raise NotImplementedError

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        raise NotImplementedError


@dataclass(frozen=True)
class CFG(Guide):
    """Classifier-free guidance u + s (c - u), with the rescaling of Lin et al. 2023 (section 3.4). ``scale`` 1: off."""

    scale: Scales = 7.5
    """One for all streams, or each stream's own."""
    negative: str = ""
    """What takes the place of the empty prompt."""
    rescale: Part = 0.0
    """phi: part of the result that is brought back to the deviation of ``c``; 0.7 in the paper."""

    def __post_init__(self) -> None:
        kind("the scale of a guidance is a number, or one a stream", self.scale, (Real, Mapping, Tensor))
        kind("a negative prompt is a text", self.negative, str)
        super().__post_init__()

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        cond = model.embed(prompts)
        if self.scale == 1:
            return {"cond": cond}
        return {"uncond": model.embed_negative([self.negative] * len(prompts)), "cond": cond}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        c = parts["cond"]
        if self.scale == 1:
            return c
        u = parts["uncond"]
        return rescaled(u + self._scales(rows, c) * (c - u), c, self.rescale)

    def _scales(self, rows: Rows, like: Tensor) -> float | Tensor:
        if not isinstance(self.scale, Mapping):
            return self.scale
        each = torch.tensor(_scales_of(self.scale, rows.streams), device=like.device).repeat_interleave(rows.each)
        return each.view(-1, *[1] * (like.ndim - 1))


@hinting(GUIDING)
def cfg(scale: Scales = 7.5, negative: str = "", rescale: float = 0.0) -> CFG:
    """See ``CFG``."""
    return CFG(scale, negative, rescale)


@dataclass(frozen=True)
class FrameCFG(CFG):
    """Guidance that grows along a clip, linearly from its first frame to its last (Blattmann et al. 2023, D.3)."""

    scale: Scales = 1.0
    """Of the first frame."""
    last: float = 3.0

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        empty = model.embed_negative([self.negative] * len(prompts))
        return {"uncond": empty, "cond": model.embed(prompts)}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        if isinstance(self.scale, Mapping):
            raise SfumatoError("guidance along a clip is the same in all streams; give one number for its first frame")
        u, c = parts["uncond"], parts["cond"]
        along = torch.linspace(self.scale, self.last, rows.frames, device=c.device).repeat(len(c) // rows.frames)
        return rescaled(u + along.view(-1, *[1] * (c.ndim - 1)) * (c - u), c, self.rescale)


@dataclass(frozen=True)
class ImageTextCFG(Guide):
    """InstructPix2Pix's two scales (Brooks et al. 2023, eq. 3): u + s_I (i - u) + s_T (c - i)."""

    image: Float[Tensor, "1 c h w"]
    """The image's latents as the network reads them: not scaled."""
    text_scale: float = 7.5
    image_scale: float = 1.5
    negative: str = ""
    """What takes the place of the empty prompt."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        empty, prompted = model.embed_negative([self.negative] * len(prompts)), model.embed(prompts)
        seen = self.image.to(model.device).expand(len(prompts), -1, -1, -1)
        none = torch.zeros_like(seen)
        blind, sighted = replace(empty, image=none), replace(empty, image=seen)
        return {"uncond": blind, "image": sighted, "cond": replace(prompted, image=seen)}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        u, i, c = (parts[k] for k in ("uncond", "image", "cond"))
        return u + self.image_scale * (i - u) + self.text_scale * (c - i)


@dataclass(frozen=True)
class Composed(Guide):
    """Composable diffusion (Liu et al. 2022, eqs. 11 and 13): u + s (c - u) + sum of w (c_i - u).

    A positive weight is AND, a negative one NOT.
    """

    terms: tuple[tuple[str, float], ...]
    """Further prompts and their weights."""
    scale: float = 7.5
    negative: str = ""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        n = len(prompts)
        more = {f"term {i}": model.embed([text] * n) for i, (text, _) in enumerate(self.terms)}
        return {"uncond": model.embed_negative([self.negative] * n), "cond": model.embed(prompts), **more}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        u = parts["uncond"]
        terms = [w * (parts[f"term {i}"] - u) for i, (_, w) in enumerate(self.terms)]
        return u + self.scale * (parts["cond"] - u) + sum(terms, torch.zeros_like(u))


@dataclass(frozen=True)
class PerpNeg(Composed):
    """Perp-Neg (Armandpour et al. 2023, eq. 6): of a negative prompt only what is perpendicular to the positive one.

    u + s (d + sum of w_i (d_i - projection of d_i on d)), d = c - u, projected over an image's whole latents. Weights
    are negative.
    """

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        u = parts["uncond"]
        d = parts["cond"] - u
        total = d
        for i, (_, w) in enumerate(self.terms):
            total = total + w * perpendicular(parts[f"term {i}"] - u, d)
        return u + self.scale * total


@dataclass(frozen=True)
class Contrasted(Guide):
    """Away from other prompts as well, an image its own: a guidance's, and weight (c - o).

    Of two prompts that differ in a word this is what the word changes, which guidance by the whole prompt hardly heeds.
    """

    guide: Guide
    others: tuple[str, ...]
    """Of each image of a stream."""
    weight: float = 7.5

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        if not self.others or len(prompts) % len(self.others):
            raise SfumatoError(f"{len(self.others)} other prompts do not go into {len(prompts)}; give one an image")
        others = self.others * (len(prompts) // len(self.others))
        return {**self.guide.embed(model, prompts), "other": model.embed(others)}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        return self.guide.combine(parts, rows) + self.weight * (parts["cond"] - parts["other"])


@dataclass(frozen=True)
class Distilled(Guide):
    """For a network that reads its guidance as an input (Flux dev, LCM): each stream its own, and no further row."""

    scales: tuple[float, ...]
    """A stream's each, in their order; or one for all."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        if not reads_scale(model):
            raise SfumatoError(f"{model.name} does not read its guidance as an input; give it cfg(scale)")
        if len(prompts) % len(self.scales):
            raise SfumatoError(f"{len(self.scales)} scales do not go into {len(prompts)} prompts; give one a stream")
        cond = model.embed(prompts)
        each = torch.tensor(self.scales, device=cond.text.device).repeat_interleave(len(cond) // len(self.scales))
        return {"cond": replace(cond, extra={**cond.extra, "guidance": each})}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        return parts["cond"]


DEFAULT = 7.5
"""Of guidance, for models that were not distilled to another."""


def remark(model: Backbone, scale: float, negative: str = "") -> str | None:
    """What a person should know of a guidance that does not do what other tools' of the same number does."""
    if reads_scale(model):
        return None
    if 0 <= scale < 1:
        does = "leaves the prompt out" if not scale else "follows the prompt only in part"
        return f"guidance {scale:g} {does}; for models distilled to run without guidance say 1"
    return "at guidance 1 the negative prompt is not read" if negative and scale == 1 else None


def guided(
    model: Backbone, guide: Guide | Scales | None, negative: str = "", streams: Iterable[str] | None = None
) -> Guide:
    """A guidance as it is; of a scale, or one a stream, the way in which this model is guided; of None, the model's
    own.

    A network that reads its guidance as an input is told it. Any other is asked as ``CFG``; so is, beside what it was
    distilled with, one that reads it for what it cannot be told: a negative prompt, or a scale below 0. One that reads
    no words is not guided.
    """
    if isinstance(guide, Guide):
        return guide
    if not (guide is None or fits(guide, Scales)) or (isinstance(guide, Mapping) and not guide):
        raise SfumatoError(f"a guidance is a number, one a stream, or a Guide such as cfg(5), got {shown(guide)}")
    if not isinstance(guide, Mapping) and (own := model.guided(guide)) is not None:
        return own
    if not model.text_tokens:
        return CFG(1.0, negative)
    if guide is None:
        guide = DEFAULT if model.distilled is None else model.distilled
    scales = list(guide.values()) if isinstance(guide, Mapping) else [float(guide)]
    if negative or min(scales) < 0 or not reads_scale(model):
        return CFG(guide if isinstance(guide, Mapping) else scales[0], negative)
    return Distilled(tuple(_scales_of(guide, streams or guide)) if isinstance(guide, Mapping) else (scales[0],))


def against(model: Backbone, guide: Guide | Scales, negative: str, streams: Iterable[str] | None = None) -> Guide:
    """A guidance away from a negative prompt.

    Raises ``SfumatoError`` where there is no place for one, or where the prompt alone is asked for.
    """
    if not negative:
        return guided(model, guide, streams=streams)
    if not model.text_tokens:
        raise SfumatoError(f"{model.name} paints without words, so it reads no negative prompt; leave it out")
    scaled: Any = guided(model, guide, negative, streams)
    if not hasattr(scaled, "negative"):
        raise SfumatoError(f"{type(scaled).__name__} has no empty prompt whose place a negative one could take")
    if getattr(scaled, "scale", None) == 1:
        raise SfumatoError("at guidance 1 only the prompt is asked for, and no negative prompt; take another guidance")
    return replace(scaled, negative=negative)


def told_as(cond: Cond, rows: Cond, of: Tensor) -> Cond:
    """A condition whose network, if it reads its guidance, is told what it is for some rows of another."""
    scales = rows.extra.get("guidance")
    return cond if scales is None else replace(cond, extra={**cond.extra, "guidance": scales[of]})


def reads_scale(model: Backbone) -> bool:
    """Is guidance an input of the network, distilled into it (Flux dev, LCM), and not a matter of two predictions?"""
    config = getattr(model.network, "config", None)
    embeds, width = (getattr(config, option, None) for option in ("guidance_embeds", "time_cond_proj_dim"))
    return bool(embeds) or width is not None


def _scales_of(scales: Mapping[str, float], streams: Iterable[str]) -> list[float]:
    if missing := [s for s in streams if s not in scales]:
        raise SfumatoError(f"no guidance scale is given for {missing[0]}; given: {', '.join(scales)}")
    return [scales[s] for s in streams]


def rescaled(x: Float[Tensor, "b *shape"], to: Float[Tensor, "b *shape"], phi: float) -> Float[Tensor, "b *shape"]:
    """``x`` with ``phi`` of the way to the deviation of ``to``, an image at a time (Lin et al. 2023, eqs. 15, 16)."""
    if not phi:
        return x
    dims = tuple(range(1, x.ndim))
    return phi * x * (to.std(dims, keepdim=True) / x.std(dims, keepdim=True)) + (1 - phi) * x


def perpendicular(a: Float[Tensor, "b *shape"], d: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
    """What of ``a`` is perpendicular to ``d``, an image at a time."""
    flat, along = a.flatten(1), d.flatten(1)
    share = (flat * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True).clamp_min(1e-12)
    return (flat - share * along).view_as(a)
