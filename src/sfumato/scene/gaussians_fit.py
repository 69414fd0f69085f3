"""Gaussians from a capture: where they begin, and what they learn by (Kerbl et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.distill.generators import Rendering
from sfumato.errors import SfumatoError
from sfumato.learning.loop import Problem, Run, learn
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.scene.backgrounds import Background, Outdoors, Plain
from sfumato.scene.capture import Capture
from sfumato.scene.gaussians import KERBL, Gaussians, Growth, Rates, Recipe, extent_of, near
from sfumato.scene.splatting import NEAR
from sfumato.scene.sweep import NEAREST, Swept, sweep

ADAM = partial(torch.optim.Adam, eps=1e-15)
"""The authors' optimiser; rates are those of the Gaussians."""
STRUCTURE = 0.2
"""Part of the loss that is 1 - SSIM; the rest is the mean absolute difference."""
PIXELS = 2.5
"""What is drawn is no larger than so many pixels of the camera by which it is drawn."""

DEPTH = 0.3
"""Weight of distances that a sweep finds; else what shows little, such as snow, becomes mist before it."""
COARSE = 0.2
"""Part of a run in which images have half as many pixels a side."""
VIEWS = 64
"""Of a capture with more only so many, evenly, are swept for points."""


def quick(steps: int = 600, growth: bool = False, most: int | None = 8000) -> Recipe:
    """For minutes on a CPU and few views, found by measuring: other rates than the authors', and little of each step.

    Opacities and scales cost something, and a part of the Gaussians is left out in each step: views are few, and else
    are learned by heart. Their number stays where it begins unless they are to grow, in the first half of the run.
    """
    rates = Rates(means=1.6e-4 * 4, last=1.6e-6 * 4, steps=steps, opacities=0.05, scales=1e-2, base=1e-2, rest=5e-4)
    every = max(1, steps // 20)
    own = Growth(start=every, stop=steps // 2 + 1, every=every, reset=steps, most=most) if growth else None
    return Recipe(rates, own, max(1, steps // 4), opacity=0.01, size=0.01, drop=0.3, depth=DEPTH)


def ssim(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"] | None = None
) -> Float[Tensor, ""]:
    """Mean structural similarity (Wang et al. 2004) of images in [0, 1]: windows of 11, sigma 1.5, zeros outside.

    ``mask``: pixels that count, as the middles of windows.
    """
    x = torch.arange(11).to(a) - 5
    bell = (-x.square() / (2 * 1.5**2)).exp()
    bell = (bell / bell.sum()).expand(a.shape[1], 1, 1, 11)

    def mean(image: Tensor) -> Tensor:
        rows = F.conv2d(image, bell, padding=(0, 5), groups=a.shape[1])
        return F.conv2d(rows, bell.mT, padding=(5, 0), groups=a.shape[1])

    first, second = mean(a), mean(b)
    of_a, of_b = mean(a * a) - first.square(), mean(b * b) - second.square()
    both = mean(a * b) - first * second
    c, d = 0.01**2, 0.03**2
    each = (2 * first * second + c) * (2 * both + d) / ((first.square() + second.square() + c) * (of_a + of_b + d))
    return each.mean() if mask is None else _counted(each, mask)


def _counted(values: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
    weight = mask[:, None].to(values)
    return (values * weight).sum() / (weight.sum() * values.shape[1]).clamp_min(1)


def photometric(
    shown: Float[Tensor, "b c h w"],
    images: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b h w"] | None = None,
    structure: float = STRUCTURE,
) -> Float[Tensor, ""]:
    """The authors' loss: (1 - s) mean |difference| + s (1 - SSIM); outside of ``mask`` nothing counts."""
    if mask is not None:
        shown = torch.where(mask[:, None], shown, images)
    far = (shown - images).abs()
    far = far.mean() if mask is None else _counted(far, mask)
    return (1 - structure) * far + structure * (1 - ssim(shown, images, mask))


def start(
    capture: Capture,
    n: int = 4000,
    *,
    degree: int = 0,
    background: Background | None = None,
    recipe: Recipe = KERBL,
    seed: int = 0,
    swept: Swept | None = None,
) -> Gaussians:
    """Gaussians at a capture's sparse points, or where it has fewer than ``n``, others beside them.

    The others lie on rays through pixels that are drawn, as far away as a sweep finds them (``swept``; made here where
    it is not given), in the pixels' colours; of two cameras or one, anywhere along them. What is nearer than the
    capture's ``near_plane`` is never seen.
    """
    if n < 1:
        raise SfumatoError(f"a scene begins with one Gaussian or more, got {n}")
    rng = generator(seed)
    known = torch.zeros(0, 3) if capture.points is None else capture.points.float()
    if len(known) > n:
        known = known[(some := torch.randperm(len(known), generator=rng)[:n])]
        shown = None if capture.colours is None else capture.colours[some]
    else:
        shown = capture.colours
    colours = torch.full_like(known, 0.5) if shown is None else shown.float()
    cameras, (h, w) = capture.cameras.to("cpu"), capture.cameras.size
    m = n - len(known)
    some = swept_views(capture)
    nth = torch.randint(len(some), (m,), generator=rng)
    camera = some[nth]
    x, y = torch.randint(w, (m,), generator=rng), torch.randint(h, (m,), generator=rng)
    rays = cameras.through(camera, torch.stack([x, y], 1) + 0.5)
    found = swept_of(capture) if m and swept is None else swept
    if m and found is not None:
        away = found.away
        away = away[nth, y * away.shape[1] // h, x * away.shape[2] // w]
    else:
        far = capture.span[1]
        close = NEAREST * (cameras.eyes - capture.middle.cpu()).norm(dim=1).clamp_max(far)[camera]
        away = 1 / torch.lerp(1 / close, torch.full((m,), 1 / far), torch.rand(m, generator=rng))
    points = torch.cat([known, rays.at(away[:, None])[:, 0]])
    colours = torch.cat([colours, capture.images.cpu()[camera, :, y, x]])
    spread = near(points)
    spread[len(known) :].clamp_(max=PIXELS * away / cameras.focal[camera].mean(1))
    if background is None:
        background = Outdoors() if capture.alphas is None else Plain()
    return Gaussians(
        points, colours, scales=spread[:, None].expand(-1, 3), degree=degree, extent=extent_of(cameras),
        near_plane=max(NEAR, capture.near_plane), background=background, recipe=recipe, seed=seed,
    )  # fmt: skip


def swept_views(capture: Capture) -> Int[Tensor, " v"]:
    """Which of a capture's views are swept: ``VIEWS`` of them at most, evenly."""
    return torch.linspace(0, len(capture) - 1, min(len(capture), VIEWS)).round().long()


def swept_of(capture: Capture) -> Swept | None:
    """What a sweep finds, a row for each of ``swept_views``: seconds of work; None of two views or one."""
    return sweep(capture[swept_views(capture)]) if len(capture) > 2 else None


@dataclass(eq=False)
class Fitting(Problem):
    """Gaussians are to look as a capture does; each step shows one of its images, all of them in turn."""

    generator: Gaussians
    capture: Capture
    coarse: int = 0
    """Steps in which images have half as many pixels a side."""
    seed: int = 0
    swept: Swept | None = None
    """What a sweep finds; made where it is not given and the recipe holds distances to it."""
    name: str = "Gaussians"
    doing: str = "fitting Gaussians"
    modules: dict = field(init=False)

    def __post_init__(self) -> None:
        self.modules = {"generator": self.generator}
        self.rates = {f"generator.{k}": rate for k, rate in self.generator.rates.items()}

    @cached_property
    def small(self) -> Capture:
        h, w = self.capture.cameras.size
        return self.capture.resized(max(h // 2, 1), max(w // 2, 1))

    @cached_property
    def rows(self) -> dict[int, int]:
        """In which row of the sweep a view is."""
        return {view: row for row, view in enumerate(swept_views(self.capture).tolist())}

    def _off(self, view: int, seen: Rendering) -> Float[Tensor, ""]:
        """How far inverse distances are from those of the sweep where that is sure, in the nearest it looked at."""
        if self.swept is None:
            self.swept = swept_of(self.capture)
        if self.swept is None or view not in self.rows or seen.alpha is None or seen.depth is None:
            return seen.images.new_zeros(())
        row, (away, sure, close) = self.rows[view], self.swept
        inverse = seen.alpha / seen.depth.clamp_min(self.generator.near_plane)
        inverse = F.interpolate(inverse, away.shape[1:], mode="area")[0, 0]
        off = (inverse - 1 / away[row].to(inverse)).abs() * close[row].to(inverse)
        return (off * sure[row].to(inverse)).mean()

    def loss(self, step: int) -> Float[Tensor, ""]:
        n = len(self.capture)
        order = torch.randperm(n, generator=generator(self.seed, step // n))
        one = order[step % n : step % n + 1]
        of = (self.small if step < self.coarse else self.capture)[one]
        like = self.generator.means
        mask = None if of.masks is None else of.masks.to(like.device)
        recipe = self.generator.recipe
        if part := recipe.drop * self.fraction:
            kept = torch.rand(len(self.generator), generator=generator(self.seed, n, step)) >= part
            self.generator.kept = kept.to(like) / (1 - part)
        try:
            seen = self.generator.render(of.cameras)
        finally:
            self.generator.kept = None
        loss = photometric(seen.images, of.images.to(like), mask)
        if recipe.depth:
            loss = loss + recipe.depth * self._off(int(one), seen)
        if recipe.opacity:
            loss = loss + recipe.opacity * self.generator.opacities.sigmoid().mean()
        return loss + recipe.size * self.generator.scales.exp().mean() if recipe.size else loss

    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        self.generator.after_backward(step, optimisers)

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self.generator.after_step(step, optimisers)


def fit(
    gaussians: Gaussians,
    capture: Capture,
    steps: int,
    *,
    coarse: int = 0,
    seed: int = 0,
    swept: Swept | None = None,
    keep: Path | None = None,
    every: int | None = None,
    seconds: float | None = None,
    about: str = "",
    on_progress: Callable[[Run], None] | None = None,
) -> Run:
    """Move Gaussians until they look as a capture does; they are as many as their recipe lets grow.

    ``swept``: what ``swept_of`` found of the capture, where it is known. ``keep``: a checkpoint, each ``every`` steps
    or so many ``seconds``, from which the same call goes on, bit for bit; ``about`` says of which run it is.
    """
    if gaussians.latent:
        raise SfumatoError("a capture has pixels, and these Gaussians latents; make them with latent=False")
    problem = Fitting(gaussians, capture, coarse, seed, swept)
    about = about or f"{len(capture)} images, {steps} steps, seed {seed}, {gaussians.recipe}, coarse {coarse}"
    return learn(problem, ADAM(problem.groups()), steps=steps, keep=keep, about=about, every=every, seconds=seconds,
                 on_progress=on_progress)  # fmt: skip
