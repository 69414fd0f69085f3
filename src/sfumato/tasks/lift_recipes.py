"""How scenes are lifted by each method: as it was published, and on the built-in model, found by measuring.

Published numbers are threestudio's (28d9d80) unless said. Recipes are of first stages, from a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from sfumato.distill.annealing import Ramp, Times, constant, linear, piecewise
from sfumato.distill.gradients import Reduction
from sfumato.errors import unknown
from sfumato.methods import index
from sfumato.scene.view_words import DREAMFUSION, Way
from sfumato.scene.viewpoints import (
    DREAMFUSION_SD,
    PROLIFICDREAMER_SCENE,
    STABLE_DREAMFUSION,
    STILL_LIFE_CAMERAS,
    RandomCameras,
)

if TYPE_CHECKING:
    from sfumato.distill.generators import Space
    from sfumato.distill.loop import Distillation

Loss = Literal["orientation", "sparsity", "opaque", "z-variance", "distortion", "convexity", "opacity", "smooth"]
"""By their words; ``sfumato.scene.regularisers`` has them."""
Behind = Literal["horizon", "directions", "plain"]
Kind = Literal["voxels", "hash", "gaussians"]


@dataclass(frozen=True)
class Lift:
    """All of a run but its prompt and seed."""

    word: str
    """The method's."""
    preset: str
    """``published`` or ``still-life``."""
    source: str
    """Where its numbers are from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The method's that differ from its own defaults."""
    steps: int = 10_000
    cameras: RandomCameras = DREAMFUSION_SD
    space: Space = "pixel"
    kind: Kind = "hash"
    cells: int = 0
    """Of a dense grid, a side."""
    samples: int = 512
    """Of a ray."""
    half: float = 2.0
    """Of the scene's cube."""
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rate: float = 0.01
    """Of Adam (0.9, 0.99)."""
    eps: float = 1e-15
    """Adam's."""
    networks: float | None = None
    """Rate of a hash grid's networks; None: the same."""
    optimiser: Literal["adam", "adamax"] = "adam"
    made: Mapping[str, Any] = field(default_factory=dict)
    """What else the field is made with."""
    behind: Behind = "directions"
    behind_rate: float = 1e-3
    losses: Mapping[Loss, Ramp] = field(default_factory=dict)
    """What else is descended, and how much; of means over pixels."""
    clip: Ramp | None = None
    reduction: Reduction = "batch"

    def of(self, kind: Kind) -> Lift:
        """Of something else; what only a dense grid can be asked for is left out."""
        losses = {name: ramp for name, ramp in self.losses.items() if name != "smooth" or kind == "voxels"}
        return replace(self, kind=kind, losses=losses, made={}, cells=self.cells or CELLS)

    @property
    def method(self) -> Distillation:
        return index.find(self.word).method(**self.settings)

    def by_way(self, way: Way) -> Lift:
        """With another way to tell the views."""
        return replace(self, cameras=replace(self.cameras, words=replace(self.cameras.words, way=way)))


def _jump(before: float, after: float, at: float) -> Ramp:
    return piecewise((0.0, before), (at, after), shape="steps")


PROGRESSIVE = {"progressive": (8, 0.2, 0.05)}
"""Eight levels of the hash grid for 2000 of 10000 steps, and one more each 500."""
_SDS = partial(
    Lift, preset="published", cameras=replace(DREAMFUSION_SD, size=(64, 64)),
    losses={"orientation": linear(10.0, 1000.0), "sparsity": constant(1.0)}, made=PROGRESSIVE,
)  # fmt: skip
_VSD = partial(
    Lift, preset="published", steps=25_000, cameras=PROLIFICDREAMER_SCENE, half=1.0, networks=1e-3,
    losses={"sparsity": constant(10.0), "opaque": _jump(0.0, 1000.0, 0.4)},
)  # fmt: skip

PUBLISHED = (
    _SDS("score-distillation", source="dreamfusion-sd.yaml", losses={
        "orientation": piecewise((0.0, 10.0), (0.5, 1000.0)), "sparsity": constant(1.0)}),
    Lift("score-jacobian-chaining", "published", "the authors' code, without its emptiness loss", optimiser="adamax",
         space="latent", kind="voxels", cells=100, rate=0.05, cameras=replace(DREAMFUSION_SD, size=(64, 64))),
    Lift("score-distillation-via-inversion", "published", "Lukoianov et al. 2024 and sdi.yaml", made=PROGRESSIVE,
         cameras=replace(DREAMFUSION_SD, size=(512, 512), words=replace(DREAMFUSION, way="perp-neg")),
         losses={
             "orientation": constant(0.1), "sparsity": piecewise((0.0, 0.15), (0.3, 0.0), shape="steps"),
             "opaque": constant(0.1), "z-variance": constant(1.0),
             "convexity": _jump(0.1, 0.0, 0.4)}),
    _VSD("variational-score-distillation", source="prolificdreamer.yaml, its first stage"),
    _VSD("entropic-score-distillation", source="prolificdreamer.yaml with the guidance of its copy at 0.5"),
    Lift("hifa", "published", "hifa.yaml", steps=25_000, cameras=replace(PROLIFICDREAMER_SCENE, size=(512, 512)),
         half=1.0, networks=1e-3, losses={"sparsity": constant(1.0), "z-variance": constant(100.0)}),
    Lift("interval-score-matching", "published", "LucidDreamer's bagel.yaml, of Gaussians there; a field here",
         steps=5000, cameras=replace(STABLE_DREAMFUSION, n=4, size=(512, 512), distance=(3.5, 5.5), fov=(18.3, 34.4)),
         reduction="sum"),
    _SDS("noise-free-score-distillation", source="as score distillation's, at the method's guidance of 7.5"),
    _SDS("score-distillation-bridge", source="as score distillation's, with its switch at 20k of 25k steps",
         steps=25_000),
    _SDS("classifier-score-distillation", source="csd-if.yaml, of latents here", settings={"negative":
         "oversaturated color, ugly, tiling, low quality, noisy", "against": piecewise((0.0, 0.0), (0.5, 1.0)),
         "weighting": "one", "normalised": True}, rate=1e-3,
         losses={"orientation": linear(1.0, 100.0), "sparsity": linear(10.0, 1.0)}),
    _SDS("collaborative-score-distillation", source="Kim et al. 2023, D.2: stable-dreamfusion, a set of 4",
         cameras=replace(STABLE_DREAMFUSION, n=4), losses={}),
    Lift("score-iterative-reconstruction", "published", "MicroDreamer, text to 3D: 50 rounds of 15 steps, 4 views",
         steps=800, cameras=replace(STABLE_DREAMFUSION, n=4, hold=15, size=(128, 128)), reduction="mean"),
)  # fmt: skip

MEASURED = "found by measuring, docs/lift.md"
ONCE = "as score distillation's there; measured on one prompt, docs/lift.md"
_HERE = partial(
    Lift, preset="still-life", source="as score distillation's there; not measured", steps=150,
    kind="voxels", cells=40, samples=40, half=0.75,
    centre=(0.0, 0.55, 0.0), rate=0.1, eps=1e-8, behind="horizon", behind_rate=0.05,
    cameras=replace(STILL_LIFE_CAMERAS, n=4, size=(64, 64)), reduction="mean",
    losses={"opaque": constant(1e-3)},
)  # fmt: skip
CELLS, GAUSSIANS = 40, 3000
"""Of a dense grid, a side, and how many there are at first, where a recipe is of something else."""
IN_LATENTS: dict[str, Any] = {"space": "latent", "cells": 24, "samples": 32}
"""What a recipe of pixels is changed by for a scene of the built-in model's latents."""
_FEW = replace(STILL_LIFE_CAMERAS, n=2, size=(64, 64))
STILL_LIFE = (
    _HERE("score-distillation", source=MEASURED, settings={"guidance": 20.0}),
    _HERE("score-jacobian-chaining", settings={"guidance": 20.0}),
    _HERE("score-distillation-via-inversion", source=MEASURED, settings={
        "guidance": 5.0, "inversion_guidance": -4.0, "times": Times(linear(0.9, 0.3)), "refresh": 10, "per_unit": 4},
          rate=0.15, losses={"opaque": constant(1e-3), "smooth": constant(1e-4)},
        cameras=replace(STILL_LIFE_CAMERAS, n=4, size=(64, 64), hold=10)),
    _HERE("variational-score-distillation", settings={"rate": 1e-3, "conditioned": False}),
    _HERE("entropic-score-distillation", settings={"rate": 1e-3}),
    _HERE("hifa", source=ONCE, settings={"guidance": 20.0}, cameras=_FEW),
    _HERE("interval-score-matching", source=ONCE, cameras=_FEW),
    _HERE("noise-free-score-distillation", source=ONCE),
    _HERE("score-distillation-bridge", settings={"guidance": 20.0}),
    _HERE("classifier-score-distillation"),
    _HERE("collaborative-score-distillation", source=ONCE),
    _HERE("score-iterative-reconstruction", source=MEASURED, settings={
        "guidance": 5.0, "times": Times(linear(0.9, 0.4)), "begin": 0.125, "refresh": 25, "per_unit": 10,
        "inversion": False, "distance": "squared"}, steps=200, rate=0.15,
          losses={"opaque": constant(1e-3), "smooth": constant(1e-4)},
        cameras=replace(STILL_LIFE_CAMERAS, n=6, size=(64, 64), hold=25)),
)  # fmt: skip


def recipe(word: str, model: str) -> Lift:
    """What suits a model; raises ``SfumatoError`` for a method that no scene is lifted by."""
    rows = {row.word: row for row in (STILL_LIFE if model == "stilllife" else PUBLISHED)}
    word = index.find(word).word
    if word not in rows:
        raise unknown("method to lift by", word, sorted(rows))
    return rows[word]
