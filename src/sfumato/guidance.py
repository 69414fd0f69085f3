"""Guidance as algebra over rows: which conditions the network is asked under, and one prediction made of the answers.

All are linear in the prediction, so they mean the same for noise, v and flow velocity. CFG is u + s (c - u) throughout
(Ho and Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.attention import Call, Site
from sfumato.backbones import Backbone, Cond
from sfumato.errors import SfumatoError
from sfumato.plan import Edit, Method, Phases, Run
from sfumato.rows import Rows

Parts = Mapping[str, Float[Tensor, "b *shape"]]


class Guide:
    """The conditions of a run, and how their predictions (a row an image) become one."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        """Condition -> what the network reads, a row a prompt."""
        raise NotImplementedError

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        raise NotImplementedError


@dataclass(frozen=True)
class CFG(Guide):
    """Classifier-free guidance u + s (c - u), with the rescaling of Lin et al. 2023 (section 3.4). ``scale`` 1: off."""

    scale: float | Mapping[str, float] = 7.5
    """One for all streams, or each stream's own."""
    negative: str = ""
    """What takes the place of the empty prompt."""
    rescale: float = 0.0
    """phi: part of the result that is brought back to the deviation of ``c``; 0.7 in the paper."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        cond = model.embed(prompts)
        if self.scale == 1:
            return {"cond": cond}
        return {"uncond": model.embed([self.negative] * len(prompts)), "cond": cond}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        c = parts["cond"]
        if self.scale == 1:
            return c
        u = parts["uncond"]
        return rescaled(u + self._scales(rows, c) * (c - u), c, self.rescale)

    def _scales(self, rows: Rows, like: Tensor) -> float | Tensor:
        if not isinstance(self.scale, Mapping):
            return self.scale
        if missing := [s for s in rows.streams if s not in self.scale]:
            raise SfumatoError(f"no guidance scale is given for {missing[0]}; given: {', '.join(self.scale)}")
        each = torch.tensor([self.scale[s] for s in rows.streams], device=like.device).repeat_interleave(rows.each)
        return each.view(-1, *[1] * (like.ndim - 1))


def cfg(scale: float | Mapping[str, float] = 7.5, negative: str = "", rescale: float = 0.0) -> CFG:
    """See ``CFG``."""
    return CFG(scale, negative, rescale)


@dataclass(frozen=True)
class ImageTextCFG(Guide):
    """InstructPix2Pix's two scales (Brooks et al. 2023, eq. 3): u + s_I (i - u) + s_T (c - i)."""

    image: Float[Tensor, "1 c h w"]
    """The image's latents as the network reads them: not scaled."""
    text_scale: float = 7.5
    image_scale: float = 1.5

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        empty, said = model.embed([""] * len(prompts)), model.embed(prompts)
        seen = self.image.to(model.device).expand(len(prompts), -1, -1, -1)
        none = torch.zeros_like(seen)
        blind, sighted = replace(empty, image=none), replace(empty, image=seen)
        return {"uncond": blind, "image": sighted, "cond": replace(said, image=seen)}

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
        return {"uncond": model.embed([self.negative] * n), "cond": model.embed(prompts), **more}

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
class Distilled(Guide):
    """For a network that reads its guidance as an input (Flux dev): each stream its own, and no row beside its own."""

    scales: tuple[float, ...]
    """A stream's each, in their order; or one for all."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        if not reads_scale(model):
            raise SfumatoError(f"{model.name} does not read its guidance as an input; give it cfg(scale)")
        if len(prompts) % len(self.scales):
            raise SfumatoError(f"{len(self.scales)} scales do not go into {len(prompts)} prompts; give one a stream")
        return {"cond": _told(model.embed(prompts), self.scales)}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        return parts["cond"]


def reads_scale(model: Backbone) -> bool:
    """Is guidance an input of the network, distilled into it, and not a matter of two predictions?"""
    return bool(getattr(getattr(model.network, "config", None), "guidance_embeds", False))


def reading(model: Backbone, scale: float) -> Backbone:
    """A model that reads its guidance as an input, told this one; any other as it is."""
    return model.given(lambda cond: _told(cond, (scale,))) if reads_scale(model) else model


def _told(cond: Cond, scales: Sequence[float]) -> Cond:
    each = torch.tensor(scales, device=cond.text.device).repeat_interleave(len(cond) // len(scales))
    return replace(cond, extra={**cond.extra, "guidance": each})


def scaled(model: Backbone, scales: Mapping[str, float]) -> Guide:
    """The guidance of a run whose streams have scales of their own, in whichever way the model is guided."""
    return Distilled(tuple(scales.values())) if reads_scale(model) else CFG(dict(scales))


@dataclass(frozen=True)
class Perturbed(Guide):
    """base + s (c - c'), c' from rows that read what ``cond`` reads and are disturbed by a method's edits."""

    base: Guide
    rows: str
    """The condition's name, by which those edits find its rows."""
    scale: float

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        conds = self.base.embed(model, prompts)
        return {**conds, self.rows: conds["cond"]}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        return self.base.combine(parts, rows) + self.scale * (parts["cond"] - parts[self.rows])


@dataclass(frozen=True)
class Perturbing(Method):
    """A method that guides away from what the network says with some of its self-attention disturbed.

    It wraps whatever guidance the run has (``around``), and several of them wrap each other: all are rows of one
    prediction. At ``scale`` 0 there is no such row.
    """

    scale: float = 3.0
    """s in base + s (c - c')."""
    layers: tuple[str, ...] = ("mid",)
    """Where: mid (the middle block), or parts of sites' paths, such as up_blocks.1 or transformer_blocks.13."""
    since: float = 0.0
    """From this part of the steps on."""
    until: float = 1.0
    """Up to this part of the steps. Elsewhere the rows are run all the same, undisturbed, and cancel."""

    rows: ClassVar[str]
    """Name of the disturbed rows."""
    field: ClassVar[Literal["qkv", "out"]]
    parts: ClassVar[str] = "qkv"
    """What it writes."""

    def around(self, base: Guide) -> Guide:
        """The run's guidance with this one on top; ``base`` itself if it is off, or there already."""
        inner = base
        while isinstance(inner, Perturbed):
            if inner.rows == self.rows:
                return base
            inner = inner.base
        return Perturbed(base, self.rows, self.scale) if self.scale else base

    def start(self, run: Run) -> Phases:
        if not self.scale:
            return Phases()
        if not self.since < self.until:
            raise SfumatoError(f"{type(self).__name__} acts from {self.since:g} to {self.until:g}: that is never")
        where, span = within(run.model, self.layers), (float(self.since), float(self.until))
        which = {"steps": span, "rows": self.rows, "where": where, "parts": self.parts}
        return Phases(edits=(Edit("image->image", self.field, self.disturb, **which),))

    def disturb(self, call: Call) -> None:
        """Write the rows of a call."""
        raise NotImplementedError


def within(model: Backbone, layers: Sequence[str]) -> Callable[[Site], bool]:
    """Which sites of self-attention are meant: ``mid``, or parts of paths, whole between dots.

    A transformer's middle is the block in the middle of its depth. ``SfumatoError`` for what no path has.
    """
    sites = [s for s in model.sites if "image->image" in s.pairs]
    blocks = list(dict.fromkeys(block(s) for s in sites))
    stages, middle = {s.stage for s in sites}, blocks[len(blocks) // 2] if blocks else ""

    def meant(site: Site, layer: str) -> bool:
        if layer == "mid":
            return site.stage == "mid" if "mid" in stages else block(site) == middle
        return f".{layer}." in f".{site.path}."

    for layer in layers:
        if not any(meant(s, layer) for s in sites):
            has = ", ".join(blocks) or "none"
            raise SfumatoError(f"{model.name} has no self-attention in {layer!r}; it has it in: {has}")
    return lambda site: any(meant(site, layer) for layer in layers)


def block(site: Site) -> str:
    """The path of the block that a site is in."""
    return site.path.rsplit(".", 1)[0]


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
