"""A field learned from images whose cameras are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.learning.loop import Problem
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.scene import volume
from sfumato.scene.backgrounds import Harmonic
from sfumato.scene.capture import Capture
from sfumato.scene.fields import Field, Voxels
from sfumato.scene.fields_hash import HashGrid
from sfumato.scene.fields_networks import NeRF, Residual
from sfumato.scene.regions import Box, Region, Space
from sfumato.scene.regularisers import total_variation
from sfumato.scene.render import FieldScene
from sfumato.scene.sampling import Sampling

KINDS = {"voxels": Voxels, "hash": HashGrid, "nerf": NeRF, "residual": Residual}
CLEAR = 0.02
"""Of images of things that are cut out, more is transparent than this; less may be borders that a lens left."""
EMPTY = 1e-3
"""A scene that fills less of its views than this has gone."""
LOOKED = 0.1
"""Part of a run after which a scene must be better than one colour, and be there."""


@dataclass(frozen=True)
class Recipe:
    """How a field is learned; the defaults are for two cores of a CPU and a few minutes."""

    field: str = "voxels"
    """voxels, hash, nerf or residual."""
    cells: int = 128
    """Of voxels, a side, in the end."""
    stages: tuple[float, ...] = (0.2, 0.5)
    """Parts of the run at which voxels have twice as many cells a side: coarse first."""
    degree: int = 0
    """Of the spherical harmonics by which colours change with the view."""
    rays: int = 2048
    """A step, drawn from all pixels."""
    samples: int = 32
    coarse: int = 96
    """Even parts of a ray, of which the occupancy says where samples go; 0: samples are even themselves."""
    skip: float = 0.0
    """Samples that would be less opaque by the occupancy are left out."""
    reach: float = 3.0
    """In space: up to how many radii parts of rays are even."""
    rate: float = 0.1
    """Of Adam; falls to ``last`` of it, evenly in its logarithm."""
    last: float = 0.1
    start: float = 0.1
    """How thick all is at first: the optical depth of half of the region."""
    distortion: float = 0.002
    variation: float = 1e-3
    """Weight of the total variation of voxels, of a slab in each step."""

    def __post_init__(self) -> None:
        if self.field not in KINDS:
            raise SfumatoError(f"a field is one of {', '.join(KINDS)}, got {self.field}")
        if self.cells < 8 or self.rays < 1 or not self.rate > 0 or not 0 < self.last <= 1:
            raise SfumatoError(f"a field has 8 cells a side or more, rays and a rate above 0, got {self}")
        if list(self.stages) != sorted(self.stages) or not all(0 < s < 1 for s in self.stages):
            raise SfumatoError(f"stages are parts of a run in their order, got {self.stages}")


def region_of(capture: Capture) -> Region:
    """Where a capture's scene is: of cut-out things a box around what all cameras look at, else all of space.

    In space the cube in which cells are of one size reaches half way to the median camera.
    """
    middle = tuple(capture.middle.tolist())
    away = (capture.cameras.eyes - capture.middle).norm(dim=-1)
    clear = capture.alphas is not None and capture.alphas < 0.5
    if clear is not False and float((clear if capture.masks is None else clear[capture.masks]).float().mean()) > CLEAR:
        h, w = capture.cameras.size
        seen = (torch.tensor([w, h]).to(away) / 2 / capture.cameras.focal).amin(-1)
        return Box(middle, float((away * seen).median()))
    return Space(middle, 0.5 * float(away.median()))


def scene_for(capture: Capture, recipe: Recipe, seed: int = 0) -> FieldScene:
    """A scene that has learned nothing yet."""
    region = region_of(capture)
    near = capture.near_plane / region.radius if isinstance(region, Space) else capture.near_plane
    sampling = Sampling(recipe.samples, near, recipe.reach, recipe.coarse, recipe.skip)
    return FieldScene(_field(recipe, region, seed), Harmonic(degree=2 if isinstance(region, Space) else 0), sampling)


def _field(recipe: Recipe, region: Region, seed: int) -> Field:
    size = region.radius if isinstance(region, Space) else region.half
    cells = recipe.cells / (4 if isinstance(region, Space) else 2)
    gain = cells / size  # raw numbers of about 1 are opaque in a cell
    shift = math.log(math.expm1(recipe.start / cells))
    if recipe.field == "voxels":
        first = recipe.cells // 2 ** len(recipe.stages)
        return Voxels(first, region=region, degree=recipe.degree, shift=shift, gain=gain)
    if recipe.field == "hash":
        grid = {"levels": 8, "log_size": 14, "growth": 1.5}
        return HashGrid(**grid, region=region, degree=recipe.degree, shift=shift, gain=gain, seed=seed)
    kind = NeRF if recipe.field == "nerf" else Residual
    return kind(
        width=64, depth=4, frequencies=6, region=region, degree=recipe.degree, shift=shift, gain=gain, seed=seed
    )


@dataclass(eq=False)
class Reconstruction(Problem):
    """Rays drawn from all pixels, and how far what the scene shows there is from them: the mean squared difference."""

    capture: Capture
    scene: FieldScene
    recipe: Recipe = Recipe()
    seed: int = 0
    watch: Callable[[int], None] | None = None
    """Sees each step's number before it is made."""
    error: float = field(default=0.0, init=False)
    """The last step's mean squared difference, without what is added to it."""

    def __post_init__(self) -> None:
        self.name, self.doing = "the reconstruction", "reconstructing"
        self.modules = {"generator": self.scene}
        self.rates = {f"generator.{k}": r for k, r in self.scene.rates.items()}
        like = next(self.scene.parameters())
        self.cameras = self.capture.cameras.to(like)
        images = self.capture.images
        self.pixels = images.permute(0, 2, 3, 1).reshape(-1, images.shape[1]).to(like)
        self.some = None if self.capture.masks is None else self.capture.masks.flatten().nonzero()[:, 0]
        self.spread = float(self.pixels.var(0, correction=0).mean())

    def loss(self, step: int) -> Float[Tensor, ""]:
        if self.watch is not None:
            self.watch(step)
        self.scene.at_step(self.fraction)
        rng = generator(self.seed, step)
        chosen = torch.randint(len(self.pixels if self.some is None else self.some), (self.recipe.rays,), generator=rng)
        chosen = chosen if self.some is None else self.some[chosen]
        h, w = self.cameras.size
        place = torch.stack([chosen % w, chosen // w % h], -1) + 0.5
        device = self.pixels.device
        rays = self.cameras.through((chosen // (h * w)).to(device), place.to(self.pixels))
        seen = self.scene.trace(rays, rng)
        error = F.mse_loss(seen.values, self.pixels[chosen.to(device)])
        self.error, self.opacity = float(error.detach()), float(seen.opacity.detach().mean())
        loss = error
        if self.recipe.distortion:
            loss = loss + self.recipe.distortion * volume.distortion(seen.weights, seen.parts).mean()
        if self.recipe.variation and isinstance(self.scene.field, Voxels):
            loss = loss + self.recipe.variation * _slab(self.scene.field.grid, rng)
        return loss

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self._grow(optimisers)
        self.scene.after_step(step, optimisers)
        if self.fraction >= LOOKED and step % 25 == 0:
            if self.opacity < EMPTY:
                raise SfumatoError(
                    f"step {step} of {self.name}: nothing is left of the scene, its opacity is {self.opacity:.1g}; "
                    "take a lower rate or less distortion, or see that the cameras are right"
                )
            if self.error > self.spread:
                raise SfumatoError(
                    f"step {step} of {self.name}: what it shows is further from the images than one colour is; take a "
                    "lower rate, or see that the cameras are right"
                )

    def _grow(self, optimisers: Optimisers) -> None:
        """Finer voxels, where their time has come."""
        own = self.scene.field
        if not isinstance(own, Voxels) or self.recipe.field != "voxels":
            return
        over = sum(self.fraction >= stage for stage in self.recipe.stages)
        cells = self.recipe.cells // 2 ** (len(self.recipe.stages) - over)
        if cells <= own.resolution:
            return
        finer = own.refined(cells)
        for name, parameter in finer.named_parameters():
            shape = parameter.shape[-3:]

            def moved(moment: Tensor, shape: torch.Size = shape) -> Tensor:
                return F.interpolate(moment, shape, mode="trilinear", align_corners=False)

            optimisers.replace(f"generator.field.{name}", parameter, moved)
        self.scene.field = finer


def _slab(grid: Float[Tensor, "1 k d h w"], rng: torch.Generator, thick: int = 8) -> Float[Tensor, ""]:
    """The total variation of a few layers across the first axis, anywhere."""
    first = int(torch.randint(max(1, grid.shape[2] - thick + 1), (), generator=rng))
    return total_variation(grid[:, :, first : first + thick])


def falling(last: float) -> Callable[[float, int, float], float]:
    """A rate that falls to a part of itself, evenly in its logarithm."""
    return lambda own, step, fraction: own * last**fraction


def adam(groups: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """With moments as grids are learned with, all of a kind at once."""
    return torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.99), eps=1e-15, fused=True)
