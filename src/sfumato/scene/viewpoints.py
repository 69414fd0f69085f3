"""Where a run looks at its scene from: cameras drawn at random around it, and what is asked of what they see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.guidance import Guide
from sfumato.errors import SfumatoError
from sfumato.learning.seeds import Draws, generator
from sfumato.scene.cameras import Pinholes, looking, towards
from sfumato.scene.render import Shading
from sfumato.scene.view_words import DREAMFUSION, PROLIFICDREAMER, STILL_LIFE, SeenFrom, ViewWords

Range = tuple[float, float]


@dataclass(frozen=True)
class Views:
    """The viewpoints of one step."""

    cameras: Pinholes
    azimuths: tuple[float, ...]
    """In degrees, 0 sees the front."""
    elevations: tuple[float, ...]
    words: ViewWords = DREAMFUSION
    rng: torch.Generator | None = None
    """For samples that lie anywhere in their parts of a ray."""
    normals: bool = False
    """Are normals rendered as well?"""
    shading: Shading | None = None
    """None: albedo alone, which needs no normals."""

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def matrices(self) -> Float[Tensor, "b 4 4"]:
        return self.cameras.poses

    def prompts(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Each prompt with the word of its view."""
        return tuple(self.words.prompt(*of) for of in zip(asked, self.azimuths, self.elevations, strict=True))

    def guided(self, guide: Guide, asked: tuple[str, ...]) -> Guide:
        """A guidance by more than words, where that is asked for."""
        if self.words.way in ("off", "word"):
            return guide
        blends = [self.words.blend(*of) for of in zip(asked, self.azimuths, self.elevations, strict=True)]
        return SeenFrom(guide, tuple(blends), self.words.way == "perp-neg")


@dataclass(frozen=True)
class RandomCameras:
    """Cameras drawn anew in each step, as threestudio does; angles in degrees, distances as the scene's.

    Azimuths are stratified: each camera of a step has its own part of the circle. Of a step's elevations about half are
    uniform in degrees, and half uniform on the sphere, so that few look from near the pole. What names a view is where
    it was drawn, before it is jittered. World axes are this library's: up is y, azimuth 0 looks from +z.
    """

    n: int = 4
    size: tuple[int, int] = (64, 64)
    """Height and width of what they see, in pixels or in a latent scene's cells."""
    azimuth: Range = (-180.0, 180.0)
    elevation: Range = (-10.0, 45.0)
    distance: Range = (1.5, 2.0)
    """To the target."""
    fov: Range = (40.0, 70.0)
    """Vertical."""
    position: float = 0.1
    """Places differ by up to so much in each axis."""
    centre: float = 0.2
    """What they look at differs by so much in each axis, a standard deviation."""
    up: float = 0.02
    """So does what is up."""
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stratified: bool = True
    opposite: bool = False
    """Is half of the azimuths' range turned to the other side?"""
    words: ViewWords = DREAMFUSION
    hold: int = 1
    """Steps for which they stay where they are."""
    normals: bool = False
    """Are normals rendered as well, for losses on them?"""

    def __post_init__(self) -> None:
        ranges = {"azimuth": self.azimuth, "elevation": self.elevation, "distance": self.distance, "fov": self.fov}
        if broken := [k for k, (low, high) in ranges.items() if not low <= high or not math.isfinite(high - low)]:
            raise SfumatoError(f"a range goes upwards, got {broken[0]} {ranges[broken[0]]}")
        if self.n < 1 or self.hold < 1 or not self.distance[0] > 0 or not 0 < self.fov[0] <= self.fov[1] < 180:
            raise SfumatoError("cameras are one or more, at a distance above 0, of fields of view in 0 to 180 degrees")
        if not self.elevation[0] > -90 or not self.elevation[1] < 90 or min(self.position, self.centre, self.up) < 0:
            raise SfumatoError("elevations lie between -90 and 90 degrees, and jitters are from 0")

    def draw(self, draws: Draws) -> Views:
        """Those of a step."""
        step, draws = draws.step, draws if self.hold == 1 else Draws(draws.seed, draws.step // self.hold * self.hold)
        u = draws.each(self.n, lambda rng: torch.rand(8, generator=rng, dtype=torch.float64))
        normal = draws.each(self.n, lambda rng: torch.randn(6, generator=rng, dtype=torch.float64))
        part = (u[:, 0] + torch.arange(self.n)) / self.n if self.stratified else u[:, 0]
        half = (2 * part).floor() if self.opposite else torch.zeros_like(part)
        azimuth = _within(self.azimuth, 2 * part - half if self.opposite else part) + 180 * half
        low, high = (math.sin(math.radians(e)) for e in self.elevation)
        on_sphere = torch.rad2deg(torch.asin((low + u[:, 2] * (high - low)).clamp(-1, 1)))
        elevation = torch.where(u[:, 1] < 0.5, _within(self.elevation, u[:, 2]), on_sphere)
        a, e = azimuth.deg2rad(), elevation.deg2rad()
        away = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], 1)
        target = torch.tensor(self.target, dtype=torch.float64)
        eyes = target + _within(self.distance, u[:, 3])[:, None] * away + self.position * (2 * u[:, 4:7] - 1)
        at = target + self.centre * normal[:, :3]
        up = F.normalize(torch.tensor([0.0, 1.0, 0.0]) + self.up * normal[:, 3:], dim=1)
        cameras = looking(towards(eyes, at, up).float(), _within(self.fov, u[:, 7]).float(), self.size)
        azimuths, elevations = (tuple(cast("list[float]", x.tolist())) for x in (azimuth, elevation))
        return Views(cameras, azimuths, elevations, self.words, generator(draws.seed, step, 3), self.normals)


@dataclass(frozen=True)
class Stage:
    """What cameras are from a part of the run on; what is None is as it was before."""

    begin: float
    """In (0, 1)."""
    n: int | None = None
    size: tuple[int, int] | None = None
    azimuth: Range | None = None
    opposite: bool | None = None
    distance: Range | None = None
    fov: Range | None = None

    def __post_init__(self) -> None:
        if not 0 < self.begin < 1:
            raise SfumatoError(f"a stage begins within the run, above 0 and below 1, got {self.begin:g}")

    def of(self, cameras: RandomCameras) -> RandomCameras:
        """Cameras as this stage has them."""
        own = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        return replace(cameras, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True)
class RandomShading:
    """How the views of a step are lit: one kind for all, and a light for each (threestudio's material and numbers).

    A light's colour and what comes from all around add up to 1, so that no albedo leaves [0, 1].
    """

    after: float = 0.0
    """Part of the run in which there is albedo alone."""
    lit: float = 0.75
    """How often there is light behind that."""
    textureless: float = 0.5
    """How often, of that, things show no colour of their own."""
    bare: Literal["textureless", "normals"] = "textureless"
    """What they show then."""
    ambient: Range = (0.1, 0.1)
    """From all around, drawn in each step; (0, 1) is threestudio's soft shading."""
    strategy: Literal["dreamfusion", "magic3d"] = "dreamfusion"
    """A light stands in the camera's direction and a random one added, or up to 60 degrees away from the camera."""
    distance: Range = (0.8, 1.5)
    """Of the light to the target; where it is large, the light comes as from the sun."""
    perturb: float = 1.0
    """Standard deviation, in each axis, of what is added to the camera's place; of DreamFusion's strategy."""

    def __post_init__(self) -> None:
        parts = (self.after, self.lit, self.textureless, *self.ambient)
        if not all(0 <= part <= 1 for part in parts) or self.ambient[0] > self.ambient[1]:
            raise SfumatoError(f"how long, how often and how much is ambient are parts, from 0 to 1, got {parts}")
        if not 0 < self.distance[0] <= self.distance[1] or not self.perturb >= 0:
            raise SfumatoError(
                f"a light stands at a distance above 0, perturbed by 0 or more, got {self.distance}, {self.perturb:g}"
            )

    def draw(self, seed: int, step: int, progress: float, away: Float[Tensor, "b 3"]) -> Shading | None:
        """For cameras so far from the target, lights seen from there; None where there is albedo alone."""
        light, bare, ambient = (float(u) for u in torch.rand(3, generator=generator(seed, step, 4)))
        if progress < self.after or light >= self.lit:
            return None
        own = [generator(seed + i, step, 5) for i in range(len(away))]
        u = torch.stack([torch.rand(3, generator=rng, dtype=torch.float64) for rng in own])
        if self.strategy == "dreamfusion":
            normal = torch.stack([torch.randn(3, generator=rng, dtype=torch.float64) for rng in own])
            towards_it = F.normalize(away + self.perturb * normal, dim=1)
        else:
            ahead = F.normalize(away, dim=1)
            aside = F.normalize(torch.linalg.cross(torch.tensor([[0.0, 1.0, 0.0]]).to(ahead), ahead), dim=1)
            turn, angle = 2 * math.pi * u[:, :1], math.pi / 3 * u[:, 1:2]
            around = turn.cos() * aside + turn.sin() * torch.linalg.cross(ahead, aside)
            towards_it = angle.cos() * ahead + angle.sin() * around
        kind = self.bare if bare < self.textureless else "lambert"
        everywhere = self.ambient[0] + ambient * (self.ambient[1] - self.ambient[0])
        places = _within(self.distance, u[:, 2:]) * towards_it
        return Shading(kind, places.float(), everywhere, 1 - everywhere)


@dataclass(frozen=True)
class Staged:
    """Cameras of a run that goes through stages, and its light. A stage begins where what is held begins anew."""

    cameras: RandomCameras
    steps: int
    stages: tuple[Stage, ...] = ()
    shading: RandomShading | None = None

    def __post_init__(self) -> None:
        begins = [stage.begin for stage in self.stages]
        if begins != sorted(set(begins)):
            raise SfumatoError(f"stages come one behind the other, got {begins}")

    def at(self, step: int) -> RandomCameras:
        """Those of a step."""
        cameras = self.cameras
        for stage in self.stages:
            if stage.begin * self.steps <= step + 1e-6:
                cameras = stage.of(cameras)
        return cameras

    def parts(self) -> Iterator[tuple[int, Staged]]:
        """Where steps cost another amount: at how many, and what they are drawn from."""
        begins = [0, *(math.ceil(stage.begin * self.steps - 1e-6) for stage in self.stages), self.steps]
        counts: dict[tuple[int, tuple[int, int]], int] = {}
        for begin, end in pairwise(begins):
            cameras = self.at(begin)
            counts[cameras.n, cameras.size] = counts.get((cameras.n, cameras.size), 0) + end - begin
        for (n, size), count in counts.items():
            if count:
                yield count, replace(self, cameras=replace(self.cameras, n=n, size=size), stages=())

    def draw(self, draws: Draws) -> Views:
        """The viewpoints of a step."""
        held = draws.step // self.cameras.hold * self.cameras.hold
        views = self.at(held).draw(draws)
        if self.shading is None:
            return views
        target = torch.tensor(self.cameras.target, dtype=torch.float64)
        away = views.cameras.eyes.double() - target
        shading = self.shading.draw(draws.seed, held, held / self.steps, away)
        if shading is not None and shading.lights is not None:
            shading = replace(shading, lights=shading.lights + target.float())
        return replace(views, shading=shading)


def _within(ends: Range, part: Tensor) -> Tensor:
    return ends[0] + part * (ends[1] - ends[0])


DREAMFUSION_SD = RandomCameras(1)
"""Of threestudio's dreamfusion-sd, its SJC and its SDI, whose image has 512 x 512 pixels."""
PROLIFICDREAMER_SCENE = RandomCameras(1, distance=(1.0, 1.5), position=0.0, centre=0.0, up=0.0, words=PROLIFICDREAMER)
"""Of its ProlificDreamer and HiFA; 64 x 64 pixels, later 512."""
MAGIC3D_REFINE = RandomCameras(1, (512, 512), fov=(30.0, 45.0))
STABLE_DREAMFUSION = RandomCameras(
    1, elevation=(-15.0, 45.0), distance=(3.0, 3.5), fov=(10.0, 30.0), position=0.0, centre=0.0, up=0.0
)
"""Its polar angles are 45 to 105."""
STILL_LIFE_CAMERAS = RandomCameras(
    4, elevation=(12.0, 28.0), distance=(2.8, 3.3), fov=(40.0, 40.0), position=0.0, centre=0.0, up=0.0,
    target=(0.0, 0.45, 0.0), words=STILL_LIFE,
)  # fmt: skip
"""As the built-in model's own pictures of one thing are seen."""
