"""Where a run looks at its scene from: cameras drawn at random around it, and what is asked of what they see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.guidance import Guide
from sfumato.errors import SfumatoError
from sfumato.learning.seeds import Draws, generator
from sfumato.scene.cameras import Pinholes, looking, towards
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
        azimuth = _within(self.azimuth, part)
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
