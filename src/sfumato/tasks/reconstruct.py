"""A field learned from a capture, and how well it shows views that it was not learned from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.core.brief import Shown
from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener, heard, progress, show
from sfumato.learning.loop import Run, learn
from sfumato.media import pictures
from sfumato.metrics.image import psnr, ssim
from sfumato.metrics.perceptual import apart
from sfumato.scene import gaussians_fit
from sfumato.scene.cameras import Pinholes, orbit
from sfumato.scene.capture import Capture
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.reconstruct import Recipe, Reconstruction, adam, falling, scene_for
from sfumato.scene.render import FieldScene
from sfumato.scene.sweep import Swept
from sfumato.stilllife import weights

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PREVIEWS = 20
"""Of a run."""
WHOLE_TURN = 270.0
"""Cameras that see so many degrees of a scene have seen it all around."""


@dataclass(frozen=True)
class Figures:
    """How well views are shown: each on its own."""

    names: tuple[str, ...]
    psnr: tuple[float, ...]
    """In dB, over the pixels that count."""
    ssim: tuple[float, ...]
    perceptual: tuple[float, ...]
    """1 - cosine of what the decoder of the VAE that ships first makes of them; 0 is alike."""

    def means(self) -> dict[str, float]:
        return {key: float(np.mean(getattr(self, key))) for key in ("psnr", "ssim", "perceptual")}


@dataclass(frozen=True)
class Reconstructed(Shown):
    """What a run came to."""

    scene: FieldScene | Gaussians
    figures: Figures
    """Of what was held out."""
    shown: Float[Tensor, "m 3 h w"]
    """What was held out, as the scene shows it."""
    truth: Float[Tensor, "m 3 h w"]
    seconds: float
    """Of learning, those before an interruption included."""

    @property
    def pictures(self) -> list[Picture]:
        """What was held out, as the scene shows it."""
        return list(map(pictures.picture, self.shown))


def reconstruct(
    capture: Capture,
    recipe: Recipe = Recipe(),  # noqa: B008
    *,
    steps: int = 2000,
    held_out: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    keep: Path | None = None,
    on_progress: Listener | None = None,
) -> Reconstructed:
    """Learn a field from a capture but for every ``held_out``-th view, and see how it shows those.

    The rest is ``learn``'s: a run that was cut off goes on from ``keep``. Raises ``SfumatoError`` where a scene empties
    or comes to nothing, and for a checkpoint of another run.
    """
    if steps < 1:
        raise SfumatoError(f"a run has one step or more, got {steps}")
    train, held = capture.split(held_out)
    scene = scene_for(train, recipe, seed).to(device)
    preview = held[[0]]
    every = max(1, steps // PREVIEWS)

    def watch(step: int) -> None:
        if step % every == 0:
            show(pictures.picture(_small(scene, preview.cameras)))

    problem = Reconstruction(train, scene, recipe, seed, watch if on_progress is not None else None)
    about = f"{recipe!r} of {digest(train)} in {steps} steps, seed {seed}"
    with heard(on_progress):
        run = learn(
            problem, adam(problem.groups(), recipe.rate), steps=steps, rate=falling(recipe.last), keep=keep,
            about=about, seconds=60,
        )  # fmt: skip
        scene.at_step(1.0)
        shown = seen(scene, held.cameras)
    return Reconstructed(scene, figures(shown, held), shown, held.images, run.elapsed)


@dataclass(frozen=True)
class Ahead:
    """How long a run will take, and what was made to see."""

    seconds: float
    swept: Swept | None
    spent: float
    """Seconds in which views were swept."""


def reconstruct_by_gaussians(
    capture: Capture,
    count: int = 5000,
    *,
    ahead: Ahead | None = None,
    steps: int = 600,
    held_out: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    keep: Path | None = None,
    on_progress: Listener | None = None,
) -> Reconstructed:
    """The same by 3D Gaussians, ``count`` in the beginning; ``ahead``: of the same views, which are not swept again."""
    if steps < 1:
        raise SfumatoError(f"a run has one step or more, got {steps}")
    train, held = capture.split(held_out)
    began = time.perf_counter()
    swept = gaussians_fit.swept_of(train) if ahead is None else ahead.swept
    recipe = gaussians_fit.quick(steps)
    gaussians = gaussians_fit.start(train, count, recipe=recipe, seed=seed, swept=swept).to(device)
    begun = time.perf_counter() - began + (0.0 if ahead is None else ahead.spent)
    preview, every = held[[0]].cameras, max(1, steps // PREVIEWS)

    def watch(run: Run) -> None:
        if run.step % every == 0:
            show(pictures.picture(_small(gaussians, preview)))

    about = f"{count} Gaussians of {digest(train)} in {steps} steps, seed {seed}"
    with heard(on_progress):
        run = gaussians_fit.fit(
            gaussians, train, steps, coarse=int(gaussians_fit.COARSE * steps), seed=seed, swept=swept, keep=keep,
            about=about, seconds=60, on_progress=None if on_progress is None else watch,
        )  # fmt: skip
        shown = seen(gaussians, held.cameras)
    return Reconstructed(gaussians, figures(shown, held), shown, held.images, begun + run.elapsed)


def seconds_of(capture: Capture, recipe: Recipe, steps: int, device: str | torch.device = "cpu") -> float:
    """About how long learning takes here, by one step at each of its stages."""
    total, ends = 0.0, (*recipe.stages, 1.0) if recipe.field == "voxels" else (1.0,)
    begin = 0.0
    for i, end in enumerate(ends):
        cells = max(8, recipe.cells // 2 ** (len(ends) - 1 - i))
        scene = scene_for(capture, replace(recipe, cells=cells, stages=()), 0).to(device)
        if scene.occupancy is not None:
            scene.occupancy.update(scene.field, torch.Generator().manual_seed(0))
        problem = Reconstruction(capture, scene, recipe, 0)
        optimiser = adam(problem.groups(), recipe.rate)
        times = []
        for step in range(2):
            began = time.perf_counter()
            problem.loss(step).backward()
            optimiser.step()
            optimiser.zero_grad()
            times.append(time.perf_counter() - began)
        total += min(times) * steps * (end - begin)
        begin = end
    return total


def seconds_of_gaussians(capture: Capture, count: int, steps: int, device: str | torch.device = "cpu") -> Ahead:
    """About how long they take here, by their start and two steps of as many as there are in the beginning."""
    first = time.perf_counter()
    swept = gaussians_fit.swept_of(capture)
    spent = time.perf_counter() - first
    gaussians = gaussians_fit.start(capture, count, recipe=gaussians_fit.quick(steps), swept=swept).to(device)
    problem, times = gaussians_fit.Fitting(gaussians, capture, swept=swept), []
    for step in range(2):
        began = time.perf_counter()
        problem.loss(step).backward()
        times.append(time.perf_counter() - began)
    return Ahead(time.perf_counter() - first + min(times) * max(0, steps - 2), swept, spent)


def digest(capture: Capture) -> str:
    """A word for what a capture holds."""
    parts = (capture.images, capture.cameras.poses, capture.cameras.focal)
    return hashlib.sha256(b"".join(x.cpu().contiguous().numpy().tobytes() for x in parts)).hexdigest()[:16]


def seen(scene: FieldScene | Gaussians, cameras: Pinholes) -> Float[Tensor, "n 3 h w"]:
    """Images of a scene, in [0, 1] on the CPU, one after the other."""
    out = []
    with progress("looking", len(cameras)) as advance:
        for i in range(len(cameras)):
            out.append(scene.view(cameras[i : i + 1]).images.clamp(0, 1).cpu())
            advance()
    return torch.cat(out)


def _small(scene: FieldScene | Gaussians, cameras: Pinholes, side: int = 96) -> Float[Tensor, "3 h w"]:
    h, w = cameras.size
    part = min(1.0, side / max(h, w))
    return scene.view(cameras.resized(max(1, round(h * part)), max(1, round(w * part)))).images[0].clamp(0, 1)


def figures(shown: Float[Tensor, "n 3 h w"], truth: Capture) -> Figures:
    """How near images are to a capture's, over the pixels that count."""
    where = truth.masks
    both = shown, truth.images.to(shown)
    close = psnr(*both, where).clamp(max=100.0)
    return Figures(
        truth.names, tuple(close.tolist()), tuple(ssim(*both, where).tolist()), tuple(perceptual(*both, where).tolist())
    )


@torch.no_grad()
def perceptual(
    a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], mask: Tensor | None = None
) -> Float[Tensor, " n"]:
    """How unlike images look to the VAE that ships: of what its decoder first makes of their latents, 1 - cosine.

    What does not count is alike in both; borders that fill no cell are left out.
    """
    vae = weights.module("vae")
    cell = autoencoders.factor(vae, "stilllife")
    h, w = (n // cell * cell for n in a.shape[-2:])
    if mask is not None:
        a = torch.where(mask[:, None], a, b)
    each = []
    for x, y in zip(a.cpu().split(1), b.cpu().split(1), strict=True):
        one, two = (autoencoders.features(vae, autoencoders.encode(vae, i[..., :h, :w])) for i in (x, y))
        each.append(apart(one or [x], two or [y]))
    return torch.cat(each)


def turning(capture: Capture, n: int = 48, size: tuple[int, int] | None = None) -> Pinholes:
    """Cameras that go around a scene once; back and forth, where it was seen from one side only."""
    eyes = capture.cameras.eyes - capture.middle
    away = float(eyes.norm(dim=-1).median())
    elevation = float(torch.rad2deg(torch.asin((eyes[:, 1] / eyes.norm(dim=-1)).clamp(-1, 1))).median())
    azimuth = torch.rad2deg(torch.atan2(eyes[:, 0], eyes[:, 2])).sort().values
    gaps = torch.cat([azimuth.diff(), azimuth[:1] + 360 - azimuth[-1:]])
    widest = int(gaps.argmax())
    first, width = float(azimuth[(widest + 1) % len(azimuth)]), 360 - float(gaps[widest])
    h, w = size or capture.cameras.size
    fov = float(torch.rad2deg(2 * torch.atan(capture.cameras.size[0] / 2 / capture.cameras.focal[:, 1])).median())
    where = {"elevation": elevation, "distance": away, "fov": fov, "target": capture.middle.tolist()}
    if width >= WHOLE_TURN:
        return orbit(n, (h, w), first=first, **where)
    parts = 0.5 - 0.5 * torch.cos(torch.arange(n) / n * 2 * torch.pi)
    each = [orbit(1, (h, w), first=first + width * float(part), **where) for part in parts]
    poses, focal, centre = (torch.cat([getattr(c, k) for c in each]) for k in ("poses", "focal", "centre"))
    return Pinholes(poses, focal, centre, (h, w))


def frames(scene: FieldScene | Gaussians, cameras: Pinholes) -> Iterator[Picture]:
    """A film of them, as it is made."""
    with progress("turning", len(cameras)) as advance:
        for i in range(len(cameras)):
            yield pictures.picture(scene.view(cameras[i : i + 1]).images[0].clamp(0, 1))
            advance()


def beside(done: Reconstructed, most: int = 8) -> Picture:
    """What was held out: the truth above, what the scene shows below."""
    some: Sequence[int] = np.linspace(0, len(done.truth) - 1, min(most, len(done.truth))).round().astype(int).tolist()
    rows = [done.truth[some], done.shown[some]]
    return pictures.grid([pictures.picture(x) for row in rows for x in row], len(some))


def about(capture: Capture, done: Reconstructed, /, **more: Any) -> dict[str, Any]:
    """What a scene's file says of itself: what it was learned from, and how well."""
    cameras = capture.cameras
    return {
        **more, **done.figures.means(), "views": len(capture), "middle": capture.middle.tolist(),
        "distance": float((cameras.eyes - capture.middle).norm(dim=-1).median()), "size": list(cameras.size),
        "world": None if capture.world is None else capture.world.tolist(),
    }  # fmt: skip
