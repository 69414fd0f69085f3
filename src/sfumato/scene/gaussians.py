"""3D Gaussians as a ``Generator``: what distillation and reconstruction move (Kerbl et al. 2023).

Parameters are means, logarithms of scales, quaternions (w, x, y, z), logits of opacities and spherical harmonics of
colours, with the authors' activations and learning rates; their number changes as ``growth`` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.distill.generators import Generator, Rendering
from sfumato.errors import SfumatoError
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.ops.memory import chunks
from sfumato.scene import harmonics
from sfumato.scene.backgrounds import Background
from sfumato.scene.cameras import Pinholes, orbit
from sfumato.scene.splatting import NEAR, Backend, Projected, Splats, blend, project, rotations

Y0 = math.sqrt(1 / (4 * math.pi))
"""The first harmonic."""
PARTS = ("means", "scales", "quaternions", "opacities", "base", "rest")
"""Names of the parameters that Gaussians have a row of."""
NEIGHBOURS = 3
"""By whose mean distance a Gaussian is as large as it is in the beginning."""


@dataclass(frozen=True)
class Rates:
    """Learning rates; the defaults are the authors'."""

    means: float = 1.6e-4
    """Times the scene's extent."""
    last: float = 1.6e-6
    """Of the means after ``steps``, reached evenly in the logarithm; then it stays."""
    steps: int = 30_000
    scales: float = 5e-3
    quaternions: float = 1e-3
    opacities: float = 0.05
    base: float = 2.5e-3
    rest: float = 2.5e-3 / 20
    background: float = 1e-2
    """Where it learns; the authors' does not."""

    def of_means(self, step: int, extent: float) -> float:
        """In a step."""
        part = min(step / self.steps, 1.0)
        return extent * math.exp((1 - part) * math.log(self.means) + part * math.log(self.last))


@dataclass(frozen=True)
class Growth:
    """Clone, split and prune as the authors do (section 5.2); the defaults are theirs."""

    start: int = 500
    """Steps before the first."""
    stop: int = 15_000
    every: int = 100
    threshold: float = 2e-4
    """Of a mean's gradient in the image, whose halves are its unit, on average over the views that see it."""
    size: float = 0.01
    """Part of the extent: smaller ones are cloned, larger ones split in two."""
    shrink: float = 1.6
    """By how much the two are smaller."""
    faint: float = 0.005
    """Of opacity: what is below goes."""
    large: float = 0.1
    """Part of the extent: what is larger goes, once opacities were reset."""
    reset: int = 3000
    """Steps after which opacities are brought to twice ``faint`` at most."""
    most: int | None = None
    """Gaussians; those with the largest gradients come first."""


@dataclass(frozen=True)
class Recipe:
    """How Gaussians learn."""

    rates: Rates = Rates()
    growth: Growth | None = Growth()
    widen: int = 1000
    """Steps after which colours have one more degree of harmonics."""
    opacity: float = 0.0
    """Times the mean opacity, a part of ``fit``'s loss; 0.01 in Kheradmand et al. 2024."""
    size: float = 0.0
    """Times the mean scale, likewise."""
    drop: float = 0.0
    """Part of the Gaussians that a step of ``fit`` does not see in the end, growing from 0, the others the denser for
    it: against learning single views by heart (Park et al. 2025, DropGaussian: 0.2)."""
    depth: float = 0.0
    """Times the mean difference between inverse distances and those that a plane sweep of the capture finds where
    several of its cameras agree, in units of the inverse of the nearest; a part of ``fit``'s loss."""


KERBL = Recipe()
"""Kerbl et al. 2023, for 30 000 steps."""
DREAM = Recipe(
    Rates(means=1e-3, last=2e-5, steps=300, quaternions=5e-3, base=1e-2, rest=1e-2 / 20),
    Growth(start=0, stop=3000, every=50, threshold=0.01, faint=0.01, large=0.1, reset=700),
)
"""DreamGaussian's (Tang et al. 2024), for 500 steps from 5000 in a ball of radius 0.5; its extent is 4."""


class Gaussians(Generator):
    """Gaussians, and what is behind them.

    ``colours``: in [0, 1], or latents as they are where it is ``latent``. ``degree``: of harmonics, at most; 0 is one
    colour from all sides. ``extent``: of the cameras, by which rates and sizes go. ``near_plane``: nothing nearer to a
    camera, along its axis, is seen by it. ``seed``: of what splits.
    """

    normals: bool = False
    """Do renderings have normals, whoever looks? They are the shortest axes, towards the camera."""
    random_background: float = 0.0
    """How often a drawn viewpoint sees one random colour behind the scene."""
    kept: Tensor | None = None
    """What opacities are multiplied by for now: zeros leave Gaussians out."""
    backend: Backend = "auto"
    """Who draws: ``auto`` is gsplat on CUDA, where it is installed, and plain torch elsewhere."""

    def __init__(
        self,
        means: Float[Tensor, "g 3"],
        colours: Float[Tensor, "g c"],
        *,
        scales: Float[Tensor, "g 3"] | None = None,
        opacity: float = 0.1,
        degree: int = 0,
        latent: bool = False,
        extent: float = 1.0,
        near_plane: float = NEAR,
        background: Background | None = None,
        recipe: Recipe = KERBL,
        seed: int = 0,
    ):
        super().__init__()
        g, c = len(means), colours.shape[1]
        if not g or colours.shape != (g, c) or not extent > 0 or not 0 < near_plane < math.inf:
            raise SfumatoError(
                f"there are no {g} Gaussians of {tuple(colours.shape)} colours, extent {extent:g}, seen from "
                f"{near_plane:g} on"
            )
        self.space = "latent" if latent else "pixel"
        self.latent, self.degree, self.extent = latent, degree, float(extent)
        self.near_plane, self.recipe, self.seed = float(near_plane), recipe, seed
        spread = near(means)[:, None].expand(-1, 3) if scales is None else scales
        one = torch.tensor([1.0, 0, 0, 0]).to(means).expand(g, 4)
        base = colours if latent else (colours - 0.5) / Y0
        rest = torch.zeros(g, harmonics.count(degree) - 1, c).to(means)
        values = (means, spread.log(), one, torch.full((g,), math.log(opacity / (1 - opacity))).to(means), base, rest)
        for name, value in zip(PARTS, values, strict=True):
            self.register_parameter(name, nn.Parameter(value.detach().clone().contiguous()))
        self.background: Background = background or Background(c, latent)
        self.register_buffer("pulled", torch.zeros(g).to(means))
        self.register_buffer("views", torch.zeros(g).to(means))
        self.register_buffer("bands", torch.tensor(0))
        self._seen: list[tuple[Projected, tuple[int, int]]] = []
        self._set_rates()

    means: nn.Parameter
    scales: nn.Parameter
    quaternions: nn.Parameter
    opacities: nn.Parameter
    base: nn.Parameter
    rest: nn.Parameter
    pulled: Tensor
    """Sums of the lengths of means' gradients in images, since the last growth."""
    views: Tensor
    """How many views they are of."""
    bands: Tensor
    """Degree of the harmonics that are shown."""

    def _set_rates(self) -> None:
        rates = self.recipe.rates
        of = {name: getattr(rates, name) for name in PARTS[1:]}
        of |= {"means": rates.means * self.extent}
        if any(p.requires_grad for p in self.background.parameters()):
            of["background"] = rates.background
        if not self.rest.numel():
            self.rest.requires_grad_(False)
            del of["rest"]
        self.rates = of

    def __len__(self) -> int:
        return len(self.means)

    def settings(self) -> dict[str, Any]:
        """What ``of_settings`` makes Gaussians of, as JSON has it, beside their state."""
        shape = {"degree": self.degree, "channels": self.base.shape[1], "latent": self.latent}
        return {**shape, "extent": self.extent, "near_plane": self.near_plane}

    @classmethod
    def of_settings(
        cls,
        degree: int,
        channels: int,
        latent: bool,
        extent: float,
        near_plane: float = NEAR,
        background: Background | None = None,
    ) -> Gaussians:
        """One, which grows to the number that its state has when it is loaded."""
        means, colours = torch.zeros(1, 3), torch.zeros(1, channels)
        return cls(means, colours, scales=torch.ones(1, 3), degree=degree, latent=latent, extent=extent,
                   near_plane=near_plane, background=background)  # fmt: skip

    # what is seen

    def splats(self) -> Splats:
        """With their activations."""
        opacities = self.opacities.sigmoid()
        if self.kept is not None:
            opacities = (opacities * self.kept).clamp_max(1)
        return Splats(self.means, self.quaternions, self.scales.exp(), opacities)

    def values(self, seen: Projected, eyes: Float[Tensor, "n 3"]) -> Float[Tensor, "m c"]:
        """Colours as they are seen, from 0, or latents."""
        bands = int(self.bands)
        base = self.base[seen.gaussian]
        out = base if self.latent else 0.5 + Y0 * base
        if bands:
            ways = F.normalize(self.means[seen.gaussian] - eyes[seen.camera], dim=-1)
            of = harmonics.basis(ways, bands)[:, 1:, None]
            out = out + (of * self.rest[seen.gaussian, : of.shape[1]]).sum(1)
        return out if self.latent else out.clamp_min(0)

    def render(self, viewpoints: Any = None) -> Rendering:
        """What ``viewpoints.cameras`` see (or cameras themselves), (b, c, h, w) each; None: four around it.

        Of viewpoints it reads ``rng`` and ``normals`` (are they wanted?) where they have them. Pixels brighter than 1
        are shown as 1, and pulled as if they were not.
        """
        cameras = getattr(viewpoints, "cameras", viewpoints)
        cameras = (orbit(4, (64, 64)) if cameras is None else cameras).to(self.means)
        n, size = len(cameras), cameras.size
        splats = self.splats()
        seen = project(splats, cameras, self.backend, self.near_plane)
        if torch.is_grad_enabled() and self.recipe.growth is not None and seen.means.requires_grad:
            seen.means.retain_grad()
            self._seen.append((seen, size))
        shown = [self.values(seen, cameras.eyes), seen.depth[:, None]]
        if normals := self.normals or getattr(viewpoints, "normals", False):
            shown.append(self.axes(seen, cameras.eyes))
        image = blend(seen, splats.opacities[seen.gaussian], torch.cat(shown, 1), n, size, self.backend)
        c = shown[0].shape[1]
        directions = cameras.rays().directions
        rng = getattr(viewpoints, "rng", None)
        behind = self._behind(directions, rng).permute(0, 3, 1, 2)
        pixels = image.values[:, :c] + (1 - image.opacity) * behind
        if not self.latent:
            pixels = pixels + (pixels.clamp(0, 1) - pixels).detach()
        ahead = -(directions * cameras.poses[:, None, None, :3, 2]).sum(-1)[:, None]
        depth = image.values[:, c : c + 1] / image.opacity.clamp_min(1e-6) / ahead
        turned = F.normalize(image.values[:, c + 1 :], dim=1, eps=1e-6) if normals else None
        extra = {"rays": directions.permute(0, 3, 1, 2), "poses": cameras.poses}
        return Rendering(pixels, image.opacity, depth, turned, extra)

    @torch.no_grad()
    def view(self, cameras: Pinholes, normals: bool = False) -> Rendering:
        """The same without gradients, a camera at a time."""
        before, self.normals = self.normals, normals
        try:
            parts = [self.render(cameras[i : i + 1]) for i in range(len(cameras))]
        finally:
            self.normals = before
        images, alpha, depth = (torch.cat([getattr(p, k) for p in parts]) for k in ("images", "alpha", "depth"))
        turned = torch.cat([p.normals for p in parts if p.normals is not None]) if normals else None
        return Rendering(images, alpha, depth, turned)

    def axes(self, seen: Projected, eyes: Float[Tensor, "n 3"]) -> Float[Tensor, "m 3"]:
        """Shortest axes, in the world, on the side that is seen."""
        shortest = self.scales.detach().argmin(1)
        axis = rotations(self.quaternions)[torch.arange(len(self), device=shortest.device), :, shortest]
        axis = axis[seen.gaussian]
        away = ((self.means[seen.gaussian] - eyes[seen.camera]) * axis).sum(1, keepdim=True) > 0
        return torch.where(away, -axis, axis)

    def _behind(self, directions: Float[Tensor, "n h w 3"], rng: torch.Generator | None) -> Tensor:
        if rng is None or not self.random_background or float(torch.rand((), generator=rng)) >= self.random_background:
            return self.background(directions)
        colours = torch.rand(len(directions), self.base.shape[1], generator=rng).to(directions)
        return colours[:, None, None].expand(*directions.shape[:3], -1)

    # how they learn

    def learn_by(self, recipe: Recipe) -> None:
        """Go on by another recipe than the one that they were made with."""
        self.recipe = recipe
        self._set_rates()

    def at_step(self, progress: float) -> None:
        """Nothing: what changes over a run goes by its steps."""

    @torch.no_grad()
    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        """Means go by the rate of the step; where they are pulled is noted."""
        if (name := _name(optimisers, self.means)) is not None:
            optimisers.rate_of(name, self.recipe.rates.of_means(step, self.extent))
        for seen, (height, width) in self._seen:
            if (pull := seen.means.grad) is not None:
                cameras = int(seen.camera.max()) + 1 if len(seen.camera) else 1
                length = (pull * pull.new_tensor([width / 2, height / 2])).norm(dim=1) * cameras
                self.pulled.index_add_(0, seen.gaussian, length)
                self.views.index_add_(0, seen.gaussian, torch.ones_like(length))
        self._seen.clear()

    @torch.no_grad()
    def after_step(self, step: int, optimisers: Optimisers) -> None:
        """Every so many steps: more where they are pulled, fewer where they are not seen."""
        done, growth = step + 1, self.recipe.growth
        self.bands.fill_(min(self.degree, done // self.recipe.widen))
        if growth is None or done >= growth.stop:
            return
        if done > growth.start and done % growth.every == 0:
            self.grow(growth, step, optimisers)
        if done % growth.reset == 0:
            top = math.log(2 * growth.faint / (1 - 2 * growth.faint))
            self._replace(optimisers, {"opacities": self.opacities.clamp_max(top)}, torch.zeros_like)

    def grow(self, growth: Growth, step: int, optimisers: Optimisers) -> None:
        """Clone the small and split the large where gradients are, drop the faint and the large."""
        scales = self.scales.exp()
        mean = self.pulled / self.views.clamp_min(1)
        wanted = mean >= growth.threshold
        if growth.most is not None and int(wanted.sum()) > (room := max(growth.most - len(self), 0)):
            first = torch.sort(mean, descending=True, stable=True).indices[:room]
            wanted = wanted & torch.zeros_like(wanted).index_fill(0, first, True)
        small = scales.amax(1) <= growth.size * self.extent
        clone, split = (wanted & small).nonzero()[:, 0], (wanted & ~small).nonzero()[:, 0]
        noise = torch.randn(2, len(split), 3, generator=generator(self.seed, step)).to(scales)
        offsets = (rotations(self.quaternions[split]) @ (noise * scales[split])[..., None])[..., 0]
        halves = split.repeat(2)
        added = {name: p[torch.cat([clone, halves])] for name, p in self._parts().items()}
        added["means"][len(clone) :] += offsets.flatten(0, 1)
        added["scales"][len(clone) :] -= math.log(growth.shrink)
        old = torch.ones_like(wanted)
        old[split] = False
        self._prune(growth, step, optimisers, old, added)

    def _prune(
        self, growth: Growth, step: int, optimisers: Optimisers, old: Bool[Tensor, " g"], added: dict[str, Tensor]
    ) -> None:
        """Keep some of the old ones and add others, those of them that are to stay."""

        def stays(scales: Tensor, opacities: Tensor) -> Tensor:
            seen = opacities.sigmoid() >= growth.faint
            return seen & (scales.exp().amax(1) <= growth.large * self.extent) if step + 1 > growth.reset else seen

        old = old & stays(self.scales, self.opacities)
        new = stays(added["scales"], added["opacities"])
        if not bool(old.any()) and not bool(new.any()):
            raise SfumatoError(
                f"step {step}: all {len(self)} Gaussians are fainter than {growth.faint:g} or too large, and nothing "
                "is left; take lower rates, a lower threshold or another seed"
            )
        kept, many = old.nonzero()[:, 0], int(new.sum())
        self._replace(
            optimisers,
            {name: torch.cat([p[kept], added[name][new]]) for name, p in self._parts().items()},
            lambda moment: torch.cat([moment[kept], moment.new_zeros(many, *moment.shape[1:])]),
        )

    def _parts(self) -> dict[str, nn.Parameter]:
        return {name: getattr(self, name) for name in PARTS}

    def _replace(self, optimisers: Optimisers, values: Mapping[str, Tensor], moved: Callable[[Tensor], Tensor]) -> None:
        """Put others in the place of parameters; what is noted of them is forgotten where their number changes."""
        for name, value in values.items():
            old = getattr(self, name)
            parameter = nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)
            setattr(self, name, parameter)
            if (known := _name(optimisers, old)) is not None:
                optimisers.replace(known, parameter, moved)
        if "means" in values:
            self.pulled, self.views = (torch.zeros(len(self)).to(self.pulled) for _ in range(2))

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        """Grow to the number of Gaussians that is read."""
        if isinstance(found := state_dict.get(f"{prefix}means"), Tensor) and len(found) != len(self):
            g = len(found)
            for name, p in self._parts().items():
                setattr(self, name, nn.Parameter(p.new_zeros(g, *p.shape[1:]), requires_grad=p.requires_grad))
            self.pulled, self.views = (torch.zeros(g).to(self.pulled) for _ in range(2))
        super()._load_from_state_dict(state_dict, prefix, *rest)  # pyright: ignore[reportArgumentType]


def _name(optimisers: Optimisers, parameter: Tensor) -> str | None:
    """Of what is learned, under whatever module it lies; None for what is not."""
    return next((name for name, p in optimisers.named.items() if p is parameter), None)


def near(points: Float[Tensor, "g 3"]) -> Float[Tensor, " g"]:
    """Root mean square distance to the nearest three others, at least 0.0003."""
    k = min(NEIGHBOURS, len(points) - 1)
    if not k:
        return torch.full_like(points[:, 0], 0.1)
    rows = [torch.cdist(some, points).topk(k + 1, largest=False).values[:, 1:] for some in chunks(points, len(points))]
    return torch.cat(rows).square().mean(1).clamp_min(1e-7).sqrt()


def extent_of(cameras: Pinholes) -> float:
    """How far apart cameras stand: 1.1 times the farthest one's distance from their mean, as the authors have it."""
    return 1.1 * float((cameras.eyes - cameras.eyes.mean(0)).norm(dim=1).max().clamp_min(1e-3))


def ball(
    n: int = 5000,
    radius: float = 0.5,
    *,
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0),
    channels: int = 3,
    latent: bool = False,
    extent: float = 4.0,
    background: Background | None = None,
    recipe: Recipe = DREAM,
    seed: int = 0,
) -> Gaussians:
    """Gaussians drawn evenly in a ball around ``centre``, grey (latents 0), to distil into; defaults as ``DREAM``."""
    if n < 1 or not radius > 0:
        raise SfumatoError(f"a ball of Gaussians has one or more and a radius above 0, got {n}, {radius:g}")
    rng = generator(seed)
    way = F.normalize(torch.randn(n, 3, generator=rng), dim=1)
    means = radius * torch.rand(n, 1, generator=rng) ** (1 / 3) * way
    colours = torch.zeros(n, channels) if latent else torch.full((n, channels), 0.5)
    colours = colours + 0.02 * (torch.rand(n, channels, generator=rng) - 0.5)
    means = means + torch.tensor(centre)
    return Gaussians(means, colours, latent=latent, extent=extent, background=background, recipe=recipe, seed=seed)
