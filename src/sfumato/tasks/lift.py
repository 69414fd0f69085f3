"""Lift a prompt, or a picture, to a scene in three dimensions by what a model knows of images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Shown
from sfumato.distill import Distillation, Images, Rendering, distil
from sfumato.distill.loop import Regulariser
from sfumato.errors import SfumatoError
from sfumato.io.memory import peaked
from sfumato.io.progress import Listener, heard, lasting, show
from sfumato.media import pictures
from sfumato.scene import regularisers as losses_of
from sfumato.scene.backgrounds import Background, Directional, Horizon
from sfumato.scene.cameras import Pinholes, orbit
from sfumato.scene.fields import Field, Voxels
from sfumato.scene.fields_hash import HashGrid
from sfumato.scene.gaussians import Gaussians, ball
from sfumato.scene.lifting import Lifting, Ramped, SeenIn, begun
from sfumato.scene.regions import Box
from sfumato.scene.render import FieldScene, Sampling
from sfumato.scene.viewpoints import Staged
from sfumato.tasks.lift_recipes import GAUSSIANS, Lift, Loss

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LOSSES: dict[Loss, Any] = {
    "orientation": losses_of.Orientation,
    "sparsity": losses_of.Sparsity,
    "opacity": losses_of.Opacity,
    "opaque": losses_of.Opaque,
    "z-variance": losses_of.ZVariance,
    "distortion": losses_of.Distortion,
    "convexity": losses_of.Convexity,
    "emptiness": losses_of.Emptiness,
    "smooth": None,
}
OF_NORMALS = ("orientation", "convexity")
TURN = 8
"""Views of a finished scene, and places from which its preview looks on the way."""


@dataclass(frozen=True)
class Given:
    """A picture of the thing, and what is known of it."""

    picture: Float[Tensor, "3 h w"]
    azimuth: float = 0.0
    """Where it was seen from; 0 is the front."""
    elevation: float = 20.0
    mask: Float[Tensor, "h w"] | None = None
    depth: Float[Tensor, "h w"] | None = None
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Smooth:
    """The total variation of a dense grid, whatever is rendered."""

    field: nn.Module

    def __repr__(self) -> str:
        return "Smooth()"

    def __call__(self, rendering: Rendering) -> Float[Tensor, ""]:
        grid = getattr(self.field, "grid", None)
        if not isinstance(grid, Tensor) or grid.ndim != 5:
            raise SfumatoError("smooth is a loss on a dense grid, and this field is none; take another, such as opaque")
        return losses_of.total_variation(grid)


@dataclass(frozen=True)
class Cost:
    """What a run is expected to take."""

    seconds: float
    megabytes: float
    """Beside the model, at most."""

    def __str__(self) -> str:
        return f"about {lasting(self.seconds)} and {self.megabytes:.0f} MB beside the model"


@dataclass(frozen=True)
class Lifted(Shown):
    """What a run came to."""

    scene: FieldScene | Gaussians
    cameras: Pinholes
    """Eight around it."""
    views: Float[Tensor, "8 3 H W"]
    """What they see, in [0, 1], on the CPU."""
    alpha: Float[Tensor, "8 1 h w"]
    frames: tuple[Picture, ...]
    """Previews on the way, a little turned each, and the first of the views."""
    strength: tuple[float, ...]
    """Of each step's gradient, of a run that went on those since then."""
    remarks: tuple[str, ...]
    """What is odd about it."""

    @property
    def pictures(self) -> list[Picture]:
        """The views as pictures."""
        return list(map(pictures.picture, self.views))


def blank(recipe: Lift, model: Backbone, seed: int = 0) -> FieldScene | Gaussians:
    """The scene that a run begins with: a blob, or a ball of Gaussians, before a background."""
    latent = recipe.space == "latent"
    channels = model.channels if latent else 3
    behind: Background = {"horizon": Horizon, "directions": Directional, "plain": Background}[recipe.behind](
        channels, latent
    )
    if recipe.kind == "gaussians":
        some = ball(
            GAUSSIANS, recipe.half / 2, centre=recipe.centre, channels=channels, latent=latent,
            extent=4 * recipe.half / 2, background=behind, seed=seed,
        )  # fmt: skip
        some.rates = {**some.rates, "background": recipe.behind_rate}
        some.random_background = recipe.random_background
        return some.to(model.device)
    region = Box(recipe.centre, recipe.half)
    made: Field
    if recipe.kind == "voxels":
        made = Voxels(recipe.cells, channels, region, latent, **recipe.made)
    else:
        made = HashGrid(
            channels=channels, region=region, latent=latent, seed=seed, blob=recipe.blob, blob_radius=0.5, **recipe.made
        )
    scene = begun(FieldScene(made, behind, Sampling(recipe.samples)), recipe.blob)
    scene.random_background = recipe.random_background
    rates: dict[str, float] = {}
    if recipe.networks is not None:
        rates = {f"field.{name}": recipe.networks for name in ("first", "thick", "colour") if hasattr(made, name)}
    scene.rates = {**scene.rates, **rates, "background": recipe.behind_rate}
    return scene.to(model.device)


def lift(
    model: Backbone,
    prompt: str,
    recipe: Lift,
    *,
    method: Distillation | None = None,
    steps: int | None = None,
    given: Given | None = None,
    seed: int = 0,
    keep: Path | None = None,
    every: int = 50,
    frame_every: int = 0,
    scene: FieldScene | Gaussians | None = None,
    on_progress: Listener | None = None,
) -> Lifted:
    """A scene of ``prompt``; ``given``: one that also looks like a picture from where that was taken.

    ``method``: in the place of the recipe's. ``keep``: a checkpoint, each ``every`` steps, from which the same call
    goes on. ``frame_every``: steps between two previews. ``scene``: to begin with, in the place of a blob.

    Raises ``SfumatoError`` where the scene is empty, or full, for long, and for what is not finite.
    """
    steps = recipe.steps if steps is None else steps
    scene = blank(recipe, model, seed) if scene is None else scene
    lifting = _lifting(scene, recipe, model, steps)
    film = _Film(lifting, model, _around(recipe, model, TURN), frame_every, steps)
    with heard(on_progress):
        records = distil(
            model, lifting, prompt, method or recipe.method, steps, viewpoints=_cameras(recipe, model, steps),
            regularisers=_losses(recipe, model, scene, given), watch=film, keep=keep, every=every, seed=seed,
            **_options(recipe),
        )  # fmt: skip
    cameras = _around(recipe, model, TURN)
    views, alpha = seen(scene, model, cameras)
    film.frames.append(pictures.picture(views[0]))
    return Lifted(
        scene, cameras, views, alpha, tuple(film.frames), tuple(r.strength for r in records), _remarks(views, alpha)
    )


def cost(model: Backbone, prompt: str, recipe: Lift, method: Distillation | None = None, steps: int | None = None,
         given: Given | None = None) -> Cost:  # fmt: skip
    """What a run would take, by some steps at each of its sizes on a scene that is let go."""
    steps = recipe.steps if steps is None else steps
    method = method or recipe.method
    scene = blank(recipe, model)
    lifting, lasting = _lifting(scene, recipe, model, steps), getattr(method, "refresh", 1)
    seconds = megabytes = 0.0
    for count, views in _cameras(recipe, model, steps).parts():
        times = [time.perf_counter()]

        def begin(views: Staged = views, times: list[float] = times) -> None:
            distil(
                model, lifting, prompt, method, 3, viewpoints=views,
                regularisers=_losses(recipe, model, scene, given), watch=lambda *_: times.append(time.perf_counter()),
                **_options(recipe),
            )  # fmt: skip

        _, most = peaked(begin, model.device)
        times.append(time.perf_counter())
        first, second = times[2] - times[1], times[-1] - times[-2]
        each = second if lasting == 1 else (first + (lasting - 1) * second) / lasting
        seconds, megabytes = seconds + count * each, max(megabytes, most)
    return Cost(seconds, megabytes)


def _lifting(scene: FieldScene | Gaussians, recipe: Lift, model: Backbone, steps: int) -> Lifting:
    size = None if recipe.space == "latent" else (model.size, model.size)
    return Lifting(scene, steps, size)


def _options(recipe: Lift) -> dict[str, Any]:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}[recipe.optimiser]
    adam = partial(kind, lr=recipe.rate, betas=recipe.betas, eps=recipe.eps)
    return {"optimiser": adam, "clip": recipe.clip, "reduction": recipe.reduction}


def _cameras(recipe: Lift, model: Backbone, steps: int) -> Staged:
    if recipe.shading is not None and (recipe.kind == "gaussians" or recipe.space == "latent"):
        what = "Gaussians have no field's normals" if recipe.kind == "gaussians" else "latents are no colours"
        raise SfumatoError(f"{what}, so no light falls on them; leave shading out, or take voxels of pixels")
    cameras, stages = recipe.cameras, recipe.stages
    if recipe.space == "latent":  # the network's own cells, in all stages
        cameras = replace(cameras, size=(model.size // model.factor,) * 2)
        stages = tuple(replace(stage, size=None) for stage in stages)
    cameras = replace(cameras, normals=any(name in OF_NORMALS for name in recipe.losses))
    return Staged(cameras, steps, stages, recipe.shading)


def _losses(recipe: Lift, model: Backbone, scene: FieldScene | Gaussians, given: Given | None) -> Sequence[Regulariser]:
    found: list[Regulariser] = []
    for name, ramp in recipe.losses.items():
        found.append(Ramped(Smooth(getattr(scene, "field", scene)) if name == "smooth" else LOSSES[name](), ramp))
    if given is not None:
        if isinstance(scene, Gaussians):
            raise SfumatoError("a picture holds the rays of a field, and Gaussians have none; take voxels")
        h, w = given.picture.shape[-2:]
        camera = _around(recipe, model, 1, (h, w), given.azimuth, given.elevation)
        found.append(SeenIn(scene, given.picture, camera, given.mask, given.depth, given.weight))
    return found


def _around(
    recipe: Lift,
    model: Backbone,
    n: int,
    size: tuple[int, int] | None = None,
    first: float = 0.0,
    elevation: float | None = None,
) -> Pinholes:
    """Cameras around, as far and as high as the middle of those that are drawn in the end."""
    of = _cameras(recipe, model, recipe.steps).at(recipe.steps)
    return orbit(
        n, size or of.size, elevation=sum(of.elevation) / 2 if elevation is None else elevation,
        distance=sum(of.distance) / 2, fov=sum(of.fov) / 2, target=of.target, first=first,
    )  # fmt: skip


@torch.no_grad()
def seen(
    scene: FieldScene | Gaussians, model: Backbone, cameras: Pinholes
) -> tuple[Float[Tensor, "n 3 H W"], Float[Tensor, "n 1 h w"]]:
    """Views of a scene at the model's size, and how much of them it fills."""
    if scene.space == "pixel":
        cameras = cameras.resized(model.size, model.size)
    shown = scene.view(cameras)
    images = model.decode(shown.images) if scene.space == "latent" else shown.images
    assert shown.alpha is not None
    return images.clamp(0, 1).cpu(), shown.alpha.cpu()


def _remarks(views: Tensor, alpha: Tensor) -> tuple[str, ...]:
    out = []
    filled = float(alpha.mean())
    if filled < 0.01:
        out.append(f"there is next to nothing in it: {filled:.1%} of the views are filled")
    if filled > 0.9:
        out.append(f"nearly everything is covered, {filled:.0%} of the views: it may be a wall before the cameras")
    if float((views.amax(1) - views.amin(1)).mean()) > 0.8:
        out.append("its colours are as saturated as can be; take a lower guidance")
    return tuple(out)


@dataclass
class _Film:
    """Previews of a run as they come, each from a little further around."""

    lifting: Lifting
    model: Backbone
    cameras: Pinholes
    every: int
    steps: int
    frames: list[Picture] = field(default_factory=list)

    def __call__(self, step: int, images: Images) -> None:
        if self.every and step % self.every == 0:
            camera = self.cameras[[(step // self.every) % len(self.cameras)]]
            self.frames.append(pictures.picture(seen(self.lifting.scene, self.model, camera)[0][0]))
            show(self.frames[-1])
