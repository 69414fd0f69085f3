"""Guidance away from what the network says when some of its self-attention is disturbed: what such methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide, Parts
from sfumato.core.method import Edit, Method, Phases, Run, Where
from sfumato.core.rows import Rows
from sfumato.core.settings import Part, PartOfSteps
from sfumato.core.sites import Site, block
from sfumato.errors import SfumatoError


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
    since: Part = 0.0
    """From this part of the steps on."""
    until: PartOfSteps = 1.0
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
        steps, sites = (float(self.since), float(self.until)), within(run.model, self.layers)
        where = Where("image->image", steps=steps, rows=self.rows, sites=sites)
        return Phases(edits=(Edit(where, self.field, self.disturb, self.parts),))

    def disturb(self, call: Call) -> None:
        """Write the rows of a call."""
        raise NotImplementedError


def within(model: Backbone, layers: Sequence[str]) -> Callable[[Site], bool]:
    """Which sites of self-attention are meant: ``mid``, or parts of paths, whole between dots.

    A transformer's middle is the block in the middle of its depth. ``SfumatoError`` for what no path has.
    """
    sites = [s for s in model.sites if "image->image" in s.pairs and s.axis == "space"]
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
