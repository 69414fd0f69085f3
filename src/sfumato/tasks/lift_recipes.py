"""How scenes are lifted by each method: as it was published, and on the built-in model, found by measuring.

Published numbers are threestudio's (28d9d80) unless said. Recipes are of first stages, from a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from sfumato.distill.gradients import Reduction
from sfumato.errors import unknown
from sfumato.learning.annealing import Ramp, Times, constant, linear, piecewise
from sfumato.methods import index
from sfumato.scene.view_words import DREAMFUSION, PROLIFICDREAMER, Way
from sfumato.scene.viewpoints import (
    DREAMFUSION_SD,
    PROLIFICDREAMER_SCENE,
    STABLE_DREAMFUSION,
    STILL_LIFE_CAMERAS,
    RandomCameras,
    RandomShading,
    Stage,
)

if TYPE_CHECKING:
    from sfumato.distill.generators import Space
    from sfumato.distill.loop import Distillation

Loss = Literal["orientation", "sparsity", "opaque", "z-variance", "distortion", "convexity", "opacity",
               "emptiness", "smooth"]  # fmt: skip
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
    """As they are at first."""
    stages: tuple[Stage, ...] = ()
    """What changes of them, by parts of the run: a run of fewer steps goes through all."""
    shading: RandomShading | None = None
    """How things are lit, of fields of pixels; None: not at all."""
    random_background: float = 0.0
    """How often one random colour is behind the scene."""
    space: Space = "pixel"
    kind: Kind = "hash"
    cells: int = 0
    """Of a dense grid, a side."""
    samples: int = 512
    """Of a ray."""
    half: float = 2.0
    """Of the scene's cube."""
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    blob: float = 10.0
    """Raw density in the middle of what a field begins as; 0: the same everywhere."""
    rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    """Of Adam and its kin."""
    eps: float = 1e-15
    """Adam's."""
    networks: float | None = None
    """Rate of a hash grid's networks; None: the same."""
    optimiser: Literal["adam", "adamw", "adamax"] = "adam"
    made: Mapping[str, Any] = field(default_factory=dict)
    """What else the field is made with."""
    behind: Behind = "directions"
    behind_rate: float = 1e-3
    losses: Mapping[Loss, Ramp] = field(default_factory=dict)
    """What else is descended, and how much; of means over pixels."""
    clip: Ramp | None = None
    reduction: Reduction = "batch"

    def of(self, kind: Kind) -> Lift:
        """Of something else; what only a dense grid can be asked for is left out, and of Gaussians light."""
        losses = {name: ramp for name, ramp in self.losses.items() if name != "smooth" or kind == "voxels"}
        shading = None if kind == "gaussians" else self.shading
        made = HASH if kind == "hash" and self.preset == "still-life" else {"made": {}}
        return replace(self, kind=kind, losses=losses, shading=shading, cells=self.cells or CELLS, **made)

    def of_views(self, n: int) -> Lift:
        """With so many cameras in each step of all stages."""
        stages = tuple(replace(stage, n=None) for stage in self.stages)
        return replace(self, cameras=replace(self.cameras, n=n), stages=stages)

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
DREAMFUSION_LIGHT = RandomShading(after=0.2001)
"""dreamfusion-sd.yaml: ambient_only_steps 2001 of 10000, then three in four steps lit, half of them textureless."""
SDI_LIGHT = RandomShading(after=0.1, lit=0.3, textureless=0.75)
STABLE_DREAMFUSION_LIGHT = RandomShading(lit=1.0, textureless=0.2, ambient=(0.1, 1.0), distance=(1e3, 1e3))
"""Light as from the sun; its normals in the place of latents, in the first fifth, are not of other models than SD."""
_AT_LAST = (Stage(0.2, size=(512, 512)),)
"""resolution_milestones 5000 of 25000 steps."""
_SDS = partial(
    Lift, preset="published", cameras=replace(DREAMFUSION_SD, size=(64, 64)), shading=DREAMFUSION_LIGHT,
    losses={"orientation": piecewise((0.0, 10.0), (0.5, 1000.0)), "sparsity": constant(1.0)}, made=PROGRESSIVE,
)  # fmt: skip
_VSD = partial(
    Lift, preset="published", steps=25_000, cameras=PROLIFICDREAMER_SCENE, stages=_AT_LAST, random_background=0.5,
    half=1.0, networks=1e-3, optimiser="adamw",
    losses={"sparsity": constant(10.0), "opaque": _jump(0.0, 1000.0, 0.4)},
)  # fmt: skip
_BAGEL = replace(
    STABLE_DREAMFUSION, n=4, size=(512, 512), distance=(5.2, 5.5), fov=(math.degrees(0.32), math.degrees(0.6)),
    position=0.025, centre=0.05, up=0.01,
)  # fmt: skip


def _nearer(k: int) -> Stage:
    """LucidDreamer's views after k of 500 steps each: distances times 0.95, the least field of view times 0.75."""
    near, far, narrow = max(3.5, 5.2 * 0.95**k), max(5.0, 5.5 * 0.95**k), max(0.16, 0.32 * 0.75**k)
    return Stage(k / 10, distance=(near, far), fov=(math.degrees(narrow), math.degrees(0.6)))


PUBLISHED = (
    _SDS("score-distillation", source="dreamfusion-sd.yaml"),
    Lift("score-jacobian-chaining", "published", "the authors' code, and sjc.yaml", optimiser="adamax",
         betas=(0.9, 0.999), eps=1e-8, space="latent", kind="voxels", cells=100, rate=0.05, behind_rate=1e-4,
         half=1.0, blob=0.0, made={"shift": -1.0}, losses={"emptiness": _jump(1e4, 2e5, 0.5001)},
         cameras=replace(DREAMFUSION_SD, size=(64, 64), distance=(1.5, 1.5), position=0.0, centre=0.0, up=0.0)),
    Lift("score-distillation-via-inversion", "published", "Lukoianov et al. 2024 and sdi.yaml", made=PROGRESSIVE,
         cameras=replace(DREAMFUSION_SD, size=(512, 512), words=replace(DREAMFUSION, way="perp-neg")),
         shading=SDI_LIGHT, losses={
             "orientation": constant(0.1), "sparsity": piecewise((0.0, 0.15), (0.3, 0.0)),
             "opaque": constant(0.1), "z-variance": constant(1.0),
             "convexity": _jump(0.1, 0.0, 0.4)}),
    _VSD("variational-score-distillation", source="prolificdreamer.yaml, its first stage"),
    _VSD("entropic-score-distillation", source="prolificdreamer.yaml with the guidance of its copy at 0.5"),
    Lift("hifa", "published", "hifa.yaml", steps=25_000, random_background=0.5, half=1.0, networks=1e-3,
         cameras=replace(PROLIFICDREAMER_SCENE, size=(512, 512), words=DREAMFUSION),
         losses={"sparsity": constant(1.0), "z-variance": constant(100.0)}),
    Lift("interval-score-matching", "published", "LucidDreamer's bagel.yaml, of Gaussians there; a field here",
         steps=5000, cameras=_BAGEL, stages=tuple(map(_nearer, range(1, 9))), random_background=0.66,
         reduction="sum"),
    _SDS("noise-free-score-distillation", source="as score distillation's, at the method's guidance of 7.5"),
    _VSD("score-distillation-bridge", source="sds-bridge.yaml, its switch at 20k of 25k steps"),
    _SDS("classifier-score-distillation", source="csd-if.yaml, of latents here", settings={"negative":
         "oversaturated color, ugly, tiling, low quality, noisy", "against": piecewise((0.0, 0.0), (0.5, 1.0)),
         "weighting": "one", "normalised": True}, rate=1e-3, betas=(0.9, 0.999), half=1.0, random_background=0.5,
         made={"levels": 12, "growth": 1.3703509847201236},
         cameras=replace(PROLIFICDREAMER_SCENE, distance=(1.5, 2.0), stratified=False, azimuth=(-30.0, 30.0),
                         opposite=True, words=replace(PROLIFICDREAMER, way="perp-neg")),
         stages=(Stage(0.1, azimuth=(-180.0, 180.0), opposite=False),),
         shading=RandomShading(after=0.5001, lit=0.5, textureless=1.0, bare="normals", distance=(1.5, 2.0),
                               perturb=0.1),
         losses={"orientation": piecewise((0.0, 1.0), (0.5, 100.0)),
                 "sparsity": piecewise((0.0, 10.0), (0.5, 1.0))}),
    Lift("collaborative-score-distillation", "published", "Kim et al. 2023, D.2: stable-dreamfusion, a set of 4",
         cameras=replace(STABLE_DREAMFUSION, n=4), shading=STABLE_DREAMFUSION_LIGHT, random_background=0.5,
         half=1.0, networks=1e-3,
         losses={"orientation": constant(1e-2), "opaque": piecewise((0.0, 0.0), (0.5, 1e-3 / math.log(2)))}),
    Lift("score-iterative-reconstruction", "published", "MicroDreamer, text to 3D: 50 rounds of 15 steps, 4 views",
         steps=800, cameras=replace(STABLE_DREAMFUSION, n=4, hold=15, size=(128, 128)), reduction="mean"),
)  # fmt: skip

MEASURED = "found by measuring, docs/lift.md"
ONCE = "as score distillation's there; measured on one prompt, docs/lift.md"
_HERE = partial(
    Lift, preset="still-life", source=ONCE, steps=150,
    kind="voxels", cells=40, samples=40, half=0.75,
    centre=(0.0, 0.55, 0.0), rate=0.1, eps=1e-8, behind="horizon", behind_rate=0.05,
    cameras=replace(STILL_LIFE_CAMERAS, n=4, size=(64, 64)), reduction="mean",
    losses={"opaque": constant(1e-3)},
)  # fmt: skip
HASH: dict[str, Any] = {"made": {"levels": 8, "log_size": 14, "base": 8}, "rate": 0.01, "eps": 1e-15}
"""Of a hash grid that a CPU can run, as fine as 106 cells a side, at threestudio's rate."""
CELLS, GAUSSIANS = 40, 3000
"""Of a dense grid, a side, and how many there are at first, where a recipe is of something else."""
IN_LATENTS: dict[str, Any] = {"space": "latent", "cells": 24, "samples": 32, "shading": None, "random_background": 0.0}
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
    _HERE("hifa", settings={"guidance": 20.0}, cameras=_FEW),
    _HERE("interval-score-matching", cameras=_FEW),
    _HERE("noise-free-score-distillation"),
    _HERE("score-distillation-bridge", settings={"guidance": 20.0}),
    _HERE("classifier-score-distillation"),
    _HERE("collaborative-score-distillation"),
    _HERE("score-iterative-reconstruction", source=MEASURED, settings={
        "guidance": 5.0, "times": Times(linear(0.9, 0.4)), "begin": 0.125, "refresh": 25, "per_unit": 10,
        "inversion": False, "distance": "squared", "anchor": 0.6}, steps=200, rate=0.15,
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
