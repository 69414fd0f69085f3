"""Where a network can be read and written: its attention calls, and what it holds between them.

A ``Layer`` is to a feature what a ``Site`` is to an attention call, and is tapped with them (``sfumato.core.taps``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

Grid = tuple[int, int]
Axis = Literal["space", "time"]


@dataclass(frozen=True)
class Site:
    """One attention call of a network, in the order in which they run."""

    path: str
    """Of the attention module in the network."""
    index: int
    stage: str
    """down, mid, up (UNets), double, single, blocks (transformers)."""
    query: tuple[str, ...]
    """Segments of the queries in order: ``image``, ``text``."""
    key: tuple[str, ...]
    """Segments of the keys in order."""
    scale: int
    """Side of a token in cells of the latents."""
    heads: int
    dim: int
    """Numbers of a head's query."""
    masked: bool = False
    """Are keys hidden by a mask?"""
    axis: Axis = "space"
    """Over what of a clip it attends: an image's tokens, or one place of all its frames. Over time its rows are each
    clip's places, whose grid is ``grid``, and its tokens frames."""
    rotary: tuple[int, ...] = ()
    """How many of a head's numbers are turned by each part of a token's place, the last two its row and column, in the
    queries and keys that methods see (``ops.rotary``); none, unless said."""

    @property
    def pairs(self) -> tuple[str, ...]:
        """What attends to what: ``image->text`` and the like."""
        return tuple(f"{q}->{k}" for q in self.query for k in self.key)

    def grid(self, latents: Grid) -> Grid:
        """Rows and columns of image tokens, for latents of this height and width."""
        return -(-latents[0] // self.scale), -(-latents[1] // self.scale)


Kind = Literal["residual", "hidden", "tokens", "text"]


@dataclass(frozen=True)
class Layer:
    """One feature of a network."""

    path: str
    """Of the module that gives it (``residual``, ``hidden``) or reads it (``tokens``, ``text``)."""
    index: int
    """Its place among the layers of its kind, in the order in which they run; of what attention reads, its index."""
    stage: str
    """As of a ``Site``."""
    kind: Kind
    """``residual``: what a ResNet adds to its shortcut, the output of its last convolution. ``hidden``: what flows on
    behind each ResNet with its transformer, and behind each change of resolution. ``tokens``: what an attention's
    queries are made of, of the image alone. ``text``: what a cross-attention's keys and values are made of."""
    scale: int
    """Side in cells of the latents."""
    width: int
    """Channels."""
    axis: ClassVar[Axis] = "space"

    @property
    def pairs(self) -> tuple[str, ...]:
        """By what name methods ask for it."""
        return (self.kind,)

    def grid(self, latents: Grid) -> Grid:
        """Rows and columns, for latents of this height and width."""
        return -(-latents[0] // self.scale), -(-latents[1] // self.scale)


def token_layers(sites: Sequence[Site], network: nn.Module) -> tuple[Layer, ...]:
    """What attention in space reads: the image's tokens, and the text that cross-attention is given."""
    modules: dict[str, Any] = dict(network.named_modules()) if sites else {}
    out = []
    for s in sites:
        if s.axis == "time":
            continue
        module = modules[s.path]
        if "image" in s.query and "image" in s.key:
            out.append(Layer(s.path, s.index, s.stage, "tokens", s.scale, module.to_q.in_features))
        if "text" in s.key and "text" not in s.query:  # not a stream of text that goes its own way
            reads = module.to_k if s.key == ("text",) else module.add_k_proj
            out.append(Layer(s.path, s.index, s.stage, "text", s.scale, reads.in_features))
    return tuple(out)


def block(site: Site) -> str:
    """The path of the block that a site is in."""
    return site.path.rsplit(".", 1)[0]
