"""Shared attention (what most methods for sets have in common): images of a set read each other while they are painted.

What an image's self-attention reads decides what its parts look like. Where it reads the keys and values of another
image of the set, in place of its own or beside them, its parts look like that image's. Which images each one reads is
said in a few words, ``first+previous`` for a video, ``all`` for a set without order.

The default is Text2Video-Zero's (Khachatryan et al. 2023, arXiv 2303.13439, section 3.3.2): all layers, all steps, the
first image alone. Tune-A-Video and Pix2Video have ``first+previous``, extended attention (TokenFlow's among keyframes)
is ``all``. An image that is named twice is read once; each counts as much as any other. Every stream and every
condition of the guidance keeps to itself, and in joint attention only the image's keys and values are shared: words
stay an image's own.

Needs: image->image keys and values, which stay fused. No further network calls; attention to m images takes m times as
long as to one.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from sfumato.core.choice import choose, nearest_side
from sfumato.core.method import Method, Phases, Requires, Run
from sfumato.core.settings import Part, PartOfSteps
from sfumato.errors import unknown
from sfumato.methods.sets.sources import PAIR, read, shared


@dataclass(frozen=True)
class SharedAttention(Method):
    """The images of a stream are the set, in their order."""

    requires: ClassVar = Requires(set=True, groups=True)

    sources: str = "first"
    """Whom each image reads: ``self``, ``first``, ``previous``, ``next``, ``middle``, ``all``, a number from 0 on, or
    several joined by +."""
    own: bool = False
    """Does each image read itself as well?"""
    after: PartOfSteps = 0.0
    """Part of the steps that are left alone."""
    until: PartOfSteps = 1.0
    """Part of the steps up to which it acts."""
    finest: Part = 1.0
    """Finest grid whose attention looks across, as a part of the latents' side."""
    stages: tuple[str, ...] = ()
    """Parts of the network whose attention looks across: ``down``, ``mid``, ``up`` of UNets; none named is all."""

    def start(self, run: Run) -> Phases:
        found = read(f"{self.sources}+self" if self.own else self.sources, run.rows.of_stream)
        return Phases(shared(run, found, (self.after, self.until), sited(run, self.finest, self.stages)))


EXTENDED = SharedAttention("all")
"""Every image reads every image."""
SPARSE_CAUSAL = SharedAttention("first+previous")
"""Tune-A-Video's (Wu et al. 2023) and Pix2Video's."""


def sited(run: Run, finest: float, stages: tuple[str, ...] = ()) -> Callable[[Any], bool]:
    """Which self-attention has a grid no finer than this part of the latents' side, in these parts of the network."""
    sites = choose(run.model, PAIR, run.grid, who="shared attention")
    has = tuple(dict.fromkeys(site.stage for site in sites))
    for stage in stages:
        if stage not in has:
            raise unknown("part of the network", stage, has)
    side = nearest_side(sites, run.grid, finest)
    return lambda site: min(site.grid(run.grid)) <= side and (not stages or site.stage in stages)
