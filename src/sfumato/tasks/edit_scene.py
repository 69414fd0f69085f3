"""Edit a scene by words: its views are edited by a model that knows pictures alone, and the scene follows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.core.backbone import Backbone
from sfumato.core.brief import Shown
from sfumato.core.denoising import denoise
from sfumato.core.method import Method
from sfumato.core.schedule import Levels, Schedule, add_noise, joined
from sfumato.distill import Distillation, Images, distil
from sfumato.distill.generators import Generator
from sfumato.distill.loop import Gradient, Now
from sfumato.errors import SfumatoError, unknown
from sfumato.inversion import EditFriendly, Inversion, invert
from sfumato.inversion.path import noise_of
from sfumato.io.progress import Listener, heard, show
from sfumato.learning.loop import learn
from sfumato.learning.seeds import Draws, generator
from sfumato.media import pictures
from sfumato.methods.distill.delta_score import DeltaScore
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion
from sfumato.methods.edit.collaborative_editing import CollaborativeEditing
from sfumato.methods.edit.delta_denoising import CLEAN, Descent
from sfumato.methods.edit.instruct_pix2pix import InstructPix2Pix
from sfumato.metrics.perceptual import apart
from sfumato.scene import gaussians_fit
from sfumato.scene.cameras import Pinholes
from sfumato.scene.capture import Capture
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.gaussians import Recipe as Learning
from sfumato.scene.reconstruct import Recipe, Reconstruction, adam, falling, scene_for
from sfumato.scene.regularisers import total_variation
from sfumato.scene.render import FieldScene
from sfumato.scene.updating import Looks, Turns, Updating
from sfumato.stilllife import weights
from sfumato.tasks import recipes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

How = Literal["per-view", "instruct-nerf2nerf", "csd-edit", "dds", "sdi"]
METHODS: tuple[How, ...] = ("per-view", "instruct-nerf2nerf", "csd-edit", "dds", "sdi")
INSTRUCTED = ("per-view", "instruct-nerf2nerf", "csd-edit")
"""Those that can do what an instruction says."""


Editor = Callable[[Backbone, Images, Images, int], Images]
"""What edits views by a model that knows pictures alone: of (model, photographs, what the scene shows there, seed)."""


@dataclass(frozen=True)
class Noised:
    """Instruct-NeRF2NeRF's edit: what the scene looks like now, noised and painted on by the instruction.

    InstructPix2Pix reads the photograph beside it, so that errors do not add up. As published 20 steps from a level
    drawn of 0.02 to 0.98, guided by 7.5 to the text and 1.5 to the image. Steps go evenly from that level down.
    """

    instruction: str
    method: InstructPix2Pix = field(default_factory=lambda: InstructPix2Pix(steps=20))
    guidance: float | None = None
    least: float = 0.02
    most: float = 0.98

    def __call__(self, model: Backbone, photos: Images, seen: Images, seed: int) -> Images:
        shown = invert(model, photos, self.instruction, replace(self.method, steps=1, seed=seed))
        drawn = torch.rand((), generator=generator(seed, 1))
        levels = below(model.schedule, self.least + float(drawn) * (self.most - self.least), self.method.steps)
        with torch.no_grad():
            image = model.encode(seen.to(model.device))
        noisy = add_noise(image, noise_of(model, image, seed).to(image), levels[0])
        path = replace(shown, latents=noisy, levels=levels, image=image, track=(image,) * (len(levels) + 1))
        guide = self.method.guide(model, self.guidance)
        return denoise(model, {"target": [self.instruction] * len(photos)}, start=path, guide=guide, seed=seed)[
            "target"
        ].images


@dataclass(frozen=True)
class Pictures:
    """A picture's edit, of each view or of the set of them, along the path of the photographs.

    What goes downhill from the photographs (delta denoising, collaborative editing) goes on from the scene as it is.
    """

    target: str
    """What to do, or what there should be."""
    how: Inversion
    source: str = ""
    methods: tuple[Method, ...] = ()
    guidance: float | None = None

    def __call__(self, model: Backbone, photos: Images, seen: Images, seed: int) -> Images:
        how = replace(self.how, seed=seed) if hasattr(self.how, "seed") else self.how  # type: ignore[type-var]
        path = invert(model, photos, self.source, how)
        if isinstance(path, Descent):
            with torch.no_grad():
                path = replace(path, latents=torch.cat([path.image, model.encode(seen.to(model.device))]))
        prompts = {"source": [self.source] * len(photos)} if self.how.has_source else {}
        prompts["target"] = [self.target] * len(photos)
        guide = self.how.guide(model, self.guidance)
        out = denoise(model, prompts, start=path, methods=self.methods, guide=guide, seed=seed)
        return out["target"].images


@dataclass(frozen=True)
class SceneEdit:
    """An edit of a scene as it is asked for."""

    editor: Editor | Distillation
    """What edits views; or a gradient that moves the scene itself, whose prompt is ``target``."""
    turns: Turns = field(default_factory=Turns)
    steps: int = 600
    """Of the scene; of a distillation as well."""
    rate: float = 0.05
    target: str = ""
    views: int = 1
    """Of a step, of a distillation."""
    smooth: float = 0.0
    """Weight of the difference of neighbouring cells."""
    looks: float = 0.0
    """Weight of how unlike patches look to the VAE that ships; LPIPS is in this place in the authors' loss, at 1."""


def scene_edit(
    word: str,
    *,
    instruction: str = "",
    source: str = "",
    target: str = "",
    model: str = "",
    guidance: float | None = None,
    image_scale: float | None = None,
    together: int = 16,
    every: int | None = None,
    steps: int = 600,
    edit_steps: int | None = None,
) -> SceneEdit:
    """A published way to edit, by its word, of an instruction or of what the scene shows and should show.

    Of Instruct-NeRF2NeRF one view is edited every 10 steps, of CSD-Edit ``together`` every 2000 as published; of a run
    that has not that many steps, so that each view has its turn in the first half. ``model``: the name of the model,
    whose recipes are followed where there are some. Raises ``SfumatoError`` for words that are missing.
    """
    if word not in METHODS:
        raise unknown("way to edit a scene", word, METHODS)
    pair = bool(source and target)
    if (word in INSTRUCTED and not (instruction or pair)) or (word not in INSTRUCTED and not pair):
        needs = "what to do, or --from and --to" if word in INSTRUCTED else "--from and --to"
        raise SfumatoError(f"{word} needs {needs}: what the scene shows, and what it should show")
    if word == "instruct-nerf2nerf" and not instruction:
        raise SfumatoError("instruct-nerf2nerf does what an instruction says, such as 'make it blue'")
    suits = recipes_of(model)
    if word in ("dds", "sdi"):
        method = DeltaScore(source=source) if word == "dds" else ScoreDistillationViaInversion()
        method = method if guidance is None else replace(method, guidance=guidance)
        return SceneEdit(method, steps=steps, target=target, rate=0.05)
    scale = {} if image_scale is None else {"image_scale": image_scale}
    count = {} if edit_steps is None else {"steps": edit_steps}
    if word == "instruct-nerf2nerf":
        method, guides = suits(InstructPix2Pix(), steps=20)
        return SceneEdit(
            Noised(instruction, replace(method, **scale, **count), guides if guidance is None else guidance),
            Turns(1, every or 10), steps,
        )  # fmt: skip
    if word == "csd-edit":
        how, guides = suits(CollaborativeEditing())
    elif instruction:
        how, guides = suits(InstructPix2Pix())
    else:
        how, guides = suits(EditFriendly(steps=50))
    guides = None if word == "csd-edit" and instruction else guides
    editor = Pictures(
        instruction or target, replace(how, **(scale if hasattr(how, "image_scale") else {}), **count), source,
        guidance=guides if guidance is None else guidance,
    )  # fmt: skip
    turns = Turns(together, every or 2000) if word == "csd-edit" else Turns(8, 1, 1)
    return SceneEdit(editor, turns, steps)


def recipes_of(model: str) -> Callable[..., tuple[Any, float | None]]:
    """A method as it suits a model, and its guidance; as published, where nothing is known."""

    def suits(method: Any, **settings: Any) -> tuple[Any, float | None]:
        of = {InstructPix2Pix: "instruct-pix2pix", CollaborativeEditing: "collaborative-editing"}
        if not model.startswith("stilllife"):
            return replace(method, **settings), None
        if type(method) not in of:
            return replace(method, **settings), recipes.EDITING
        word = of[type(method)]
        found = recipes.find(word, "stilllife-instruct" if word == "instruct-pix2pix" else "stilllife")
        return replace(found.method, **settings), found.guidance

    return suits


@dataclass(frozen=True)
class EditedScene(Shown):
    """What became of a scene."""

    scene: Generator
    views: Float[Tensor, "n 3 h w"]
    """What it was moved to: the capture's views as they were edited; of a distillation as it is seen from there."""
    edited: int
    """Views that were edited, one as often as it was; of a distillation those that were rendered."""
    frames: tuple[Picture, ...]
    seconds: float

    @property
    def pictures(self) -> list[Picture]:
        """The views as pictures."""
        return list(map(pictures.picture, self.views))


def edit_scene(
    model: Backbone,
    capture: Capture,
    scene: Generator,
    edit: SceneEdit,
    *,
    masks: Bool[Tensor, "n h w"] | None = None,
    seed: int = 0,
    keep: Path | None = None,
    about: str = "",
    every: int = 50,
    frame_every: int = 0,
    on_progress: Listener | None = None,
) -> EditedScene:
    """Move ``scene``, which shows a capture, to what its edit should be; a run that was cut off goes on from ``keep``.

    ``masks``: where views may change, such as a thing's own. ``frame_every``: steps between two previews.
    Raises ``SfumatoError`` for what ``denoise`` and ``distil`` refuse.
    """
    began, film = time.perf_counter(), _Film(frame_every)
    splats = isinstance(scene, Gaussians)
    if splats:
        scene.learn_by(following(edit.steps))
    with heard(on_progress):
        if isinstance(edit.editor, Distillation):
            if masks is not None:
                raise SfumatoError("what moves the scene itself knows no masks; edit its views (csd-edit) for a part")
            method = _OfViews(edit.editor, model, capture, edit.views)
            distil(
                model, scene, edit.target, method, edit.steps,
                optimiser=gaussians_fit.ADAM if splats else lambda groups: adam(groups, edit.rate),
                viewpoints=method.views, regularisers=(lambda rendering: smooth(edit.smooth)(scene),),
                seed=seed, keep=keep, every=every,
                watch=film if frame_every else None,
            )  # fmt: skip
            views, count = scene.view(capture.cameras).images, edit.steps * edit.views  # pyright: ignore
        else:
            problem = Updating(
                scene, capture.cameras, capture.images, _renewing(model, capture, edit.editor, seed),
                within(edit.turns, len(capture), edit.steps), seed,
                masks=masks, counted=capture.masks, losses=(smooth(edit.smooth),),
                looks=Looks(unlike(), edit.looks) if edit.looks else None,
                watch=film if frame_every else None,
            )  # fmt: skip
            mark = f"{edit!r} of {len(capture)} views, seed {seed}, model {model.name} {about}"
            optimiser = gaussians_fit.ADAM(problem.groups()) if splats else adam(problem.groups(), edit.rate)
            learn(
                problem, optimiser, steps=edit.steps, rate=falling(LAST) if splats else None, keep=keep, about=mark,
                every=every,
            )  # fmt: skip
            views, count = problem.views, problem.edited
    return EditedScene(scene, views, count, tuple(film.frames), time.perf_counter() - began)


OWN = Recipe(cells=64, degree=0, rays=2048)
"""How a scene that is to be edited is learned: its colours do not turn, as what edits disagree in would hide there."""


def first_scene(
    capture: Capture,
    *,
    steps: int = 800,
    recipe: Recipe = OWN,
    seed: int = 0,
    keep: Path | None = None,
    about: str = "",
) -> FieldScene:
    """A scene that shows the capture as it is."""
    scene = scene_for(capture, recipe, seed)
    problem = Reconstruction(capture, scene, recipe, seed)
    learn(
        problem, adam(problem.groups(), recipe.rate), steps=steps, rate=falling(recipe.last), keep=keep, every=100,
        about=f"{recipe!r} in {steps} steps, seed {seed} {about}",
    )  # fmt: skip
    return scene


def first_gaussians(
    capture: Capture, count: int = 5000, *, steps: int = 600, seed: int = 0, keep: Path | None = None, about: str = ""
) -> Gaussians:
    """The same by 3D Gaussians, which need less work for sharper views (docs/gaussians.md)."""
    swept = gaussians_fit.swept_of(capture)
    scene = gaussians_fit.start(capture, count, recipe=gaussians_fit.quick(steps), seed=seed, swept=swept)
    gaussians_fit.fit(
        scene, capture, steps, coarse=int(gaussians_fit.COARSE * steps), seed=seed, swept=swept, keep=keep, every=100,
        about=f"{count} Gaussians in {steps} steps, seed {seed} {about}",
    )  # fmt: skip
    return scene


COLOURS, LAST = 0.05, 0.2
"""Of Gaussians that follow edits: the rate of colours, which go farther than in a fit that begins with those of
photographs (0.01 is 0.28 in 100 steps of Adam), and what is left of it at the end."""


def following(steps: int) -> Learning:
    """How Gaussians follow edits: as they are fitted, their colours faster, and without distances: edited views seldom
    agree in what a sweep compares, and each new edit would take another sweep."""
    quick = gaussians_fit.quick(steps)
    return replace(quick, rates=replace(quick.rates, base=COLOURS), widen=1, depth=0.0)


def unlike() -> Callable[[Images, Images], Float[Tensor, " b"]]:
    """How unlike pictures look to the VAE that ships: of what its decoder first makes of them, 1 - cosine."""
    vae = weights.module("vae")
    cell = autoencoders.factor(vae, "stilllife")

    def features(images: Images) -> list[Tensor]:
        h, w = (n // cell * cell for n in images.shape[-2:])
        found = autoencoders.features(vae, autoencoders.encode(vae, images[..., :h, :w]))
        assert found is not None
        return found

    def compare(shown: Images, wanted: Images) -> Float[Tensor, " b"]:
        vae.to(shown.device)
        with torch.no_grad():
            other = features(wanted)
        return apart(features(shown), other)

    return compare


def smooth(weight: float) -> Callable[[Generator], Tensor]:
    """A loss: the mean squared difference of neighbouring cells of a dense grid, nothing of other fields."""

    def loss(scene: Generator) -> Tensor:
        grid = getattr(getattr(scene, "field", None), "grid", None)
        return next(scene.parameters()).new_zeros(()) if grid is None else weight * total_variation(grid)

    return loss


def within(turns: Turns, views: int, steps: int) -> Turns:
    """Turns that come often enough for each view to have one in the first half of a run."""
    needed = -(-views // turns.views)
    return turns if turns.every * needed <= steps else replace(turns, every=max(1, steps // 2 // needed))


def _renewing(model: Backbone, capture: Capture, editor: Editor, seed: int) -> Callable:
    """Edits of views at the model's size, from noise of the step."""

    def edit(step: int, at: tuple[int, ...], seen: Images) -> Images:
        photos = fitted(model, capture.images[list(at)])
        own = int(torch.randint(2**30, (), generator=generator(seed, step, 2)))
        new = editor(model, photos, fitted(model, seen), own).float().cpu()
        return of_size(new, capture.cameras.size)

    return edit


def fitted(model: Backbone, images: Images) -> Images:
    """Images at the size that a model paints, of nearly their own shape."""
    h, w = images.shape[-2:]
    by = model.size / min(h, w)
    return of_size(images, tuple(max(1, round(n * by / model.multiple)) * model.multiple for n in (h, w)))  # pyright: ignore


def of_size(images: Images, size: tuple[int, int]) -> Images:
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def below(schedule: Schedule, part: float, steps: int) -> Levels:
    """Levels from a part of the training's, evenly down; as many as there are between, where those are fewer."""
    top = max(1, round(part * (schedule.train_steps - 1)))
    at = torch.linspace(top, top / steps, steps).round().long().clamp_min(1)
    return joined(schedule.at(at.unique().flip(0)), CLEAN)


@dataclass(frozen=True)
class CaptureViews:
    """Views of a capture, drawn in each step."""

    cameras: Pinholes = field(repr=False)
    n: int = 1

    def draw(self, draws: Draws) -> _Views:
        """Of a step, in any order, none twice."""
        at = torch.randperm(len(self.cameras), generator=generator(draws.seed, draws.step, 3))[: self.n]
        return _Views(self.cameras[at.tolist()], tuple(at.tolist()))


@dataclass(frozen=True)
class _Views:
    cameras: Pinholes
    at: tuple[int, ...]

    @property
    def matrices(self) -> Float[Tensor, "b 4 4"]:
        return self.cameras.poses

    def prompts(self, asked: tuple[str, ...]) -> Sequence[str]:
        return asked


class _OfViews(Distillation):
    """A gradient that is told what each view's photograph shows, where it goes by a source."""

    def __init__(self, method: Distillation, model: Backbone, capture: Capture, n: int):
        self.method, self.views = method, CaptureViews(capture.cameras, n)
        self.requires = method.requires  # type: ignore[misc]
        self.photos: Tensor | None = None
        if isinstance(method, DeltaScore):
            with torch.no_grad():
                parts = capture.images.to(model.device).split(8)
                self.photos = torch.cat([model.encode(part) for part in parts])

    def __repr__(self) -> str:
        return repr(self.method)

    def gradient(self, now: Now) -> Gradient | Images:
        if self.photos is None:
            return self.method.gradient(now)
        now.memory["source"] = self.photos[list(self.views.draw(now.draws).at)]
        found = self.method.gradient(now)
        del now.memory["source"]
        return found


@dataclass
class _Film:
    """Some views as they come."""

    every: int
    frames: list[Picture] = field(default_factory=list)
    most: int = 4

    def __call__(self, step: int, images: Images) -> None:
        if step % self.every == 0:
            some = images[:: max(1, len(images) // self.most)][: self.most].detach()
            self.frames.append(pictures.grid([pictures.picture(x.clamp(0, 1).cpu()) for x in some]))
            show(self.frames[-1])
