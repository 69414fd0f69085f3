"""Edits of a scene against the scene that they should have led to, which is rendered: one thing in another colour.

Views lie on an arc; some of them no edit ever sees, and what the edited scene shows there is judged. How well the
edited pictures go together is measured before a scene averages it away: each is warped into its neighbour by the true
geometry, which a new colour leaves as it was.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.generate import applied
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, columns
from sfumato.core.backbone import Backbone
from sfumato.distill import Images
from sfumato.distill.generators import Generator
from sfumato.io.progress import progress
from sfumato.metrics.image import psnr
from sfumato.scene.capture import Capture
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.store import load_scene, save_scene
from sfumato.scene.updating import Turns
from sfumato.stilllife import change
from sfumato.stilllife.captures import capture
from sfumato.stilllife.render import Rendering
from sfumato.tasks import kept
from sfumato.tasks.edit_scene import SceneEdit, edit_scene, first_gaussians, scene_edit

VIEWS, ARC, HELD = 11, 75.0, (1, 3, 5, 7, 9)
MOST = 3
"""Worlds."""
COUNT, FIT, STEPS = 3000, 200, 150
"""Gaussians; steps of their first fit, and of each edit's fit."""
PAINTED, AGAIN, EVERY = 12, 8, 8
"""Steps in which InstructPix2Pix paints a view once, and in which it does so within Instruct-NeRF2NeRF, each so many
steps of the fit."""
NEAR = 0.03
"""World units by which a point may miss the surface that a neighbour sees, and be the same."""

MEANINGS = {
    "edit_scene_success": f"CSD-Edit: views that no edit saw, read as asked by the oracle; of n scenes, {MOST} at most",
    "edit_scene_success_over_per_view": "the same, less that of views edited each alone",
    "edit_scene_consistency": "edited pictures warped into their neighbours by true geometry, mean error: CSD-Edit "
    "over per-view editing",
    "edit_scene_to_truth": "CSD-Edit: views that no edit saw, against the counterfactual's, dB",
    "edit_scene_to_truth_over_in2n": "the same, less that of Instruct-NeRF2NeRF (seed 004 has CSD-Edit ahead)",
    "edit_scene_truth_read": "views that no edit saw of a scene that follows the true edited views, read as asked: "
    "below 1 nothing above says much",
}
TARGETS = {
    "edit_scene_success_over_per_view": Target(0.0),
    "edit_scene_consistency": Target(1.0, at_least=False),
    "edit_scene_to_truth_over_in2n": Target(0.0),
    "edit_scene_truth_read": Target(1.0),
}


@dataclass(frozen=True, eq=False)
class World:
    """A still life with a thing of another colour, both from an arc of cameras."""

    edit: change.Counterfactual
    before: Capture
    after: Capture
    seen: Rendering
    """What is known of the views before."""

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> World:
        while True:
            edit = change.sample_counterfactual(rng, "recolour", 1)
            if edit.before.style == "photo":
                break
        at = edit.before.camera
        parts = [i / (VIEWS - 1) - 0.5 for i in range(VIEWS)]
        cameras = [replace(at, azimuth=at.azimuth + ARC * p, elevation=at.elevation + 8 * (i // 2 % 2)) for i, p in
                   enumerate(parts)]  # fmt: skip
        (before, seen), (after, _) = capture(edit.before, cameras), capture(edit.after, cameras)
        return cls(edit, before, after, seen)

    @property
    def learned(self) -> list[int]:
        return [i for i in range(VIEWS) if i not in HELD]

    def judged(self, session: Session, scene: Generator, views: Images) -> tuple[Row, Tensor]:
        """Of views that were held out, as the scene shows them, and of the pictures that it was moved to."""
        held = list(HELD)
        shown = scene.view(self.before.cameras[held]).images.clamp(0, 1).cpu()  # pyright: ignore
        readings = session.oracle.read(shown)
        own = scene.view(self.before.cameras[self.learned]).images.clamp(0, 1).cpu()  # pyright: ignore
        row: Row = {
            "success": float(np.mean([applied(r, self.edit) for r in readings])),
            "to_truth": float(psnr(shown, self.after.images[held]).mean()),
            "warp_error": self.apart(views.cpu()),
            "to_own_pictures": float(psnr(own, views.cpu()).clamp_max(100).mean()),
        }
        return row, torch.cat(list(shown), -1)

    def apart(self, views: Images) -> float:
        """Mean error of each picture that is learned from, warped into the next, where both see the same surface."""
        at, errors = self.learned, []
        for i, (a, b) in enumerate(pairwise(at)):
            x, y, same = self._into(a, b)
            errors.append(float((views[i][:, same] - views[i + 1][:, y[same], x[same]]).abs().mean()))
        return float(np.mean(errors))

    def _into(self, a: int, b: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each pixel of view ``a`` its column and row in ``b``, and whether that one sees the same surface."""
        h, w = self.before.cameras.size
        known = (self.seen.thing[a] >= 0) | self.seen.ground[a]
        points = torch.where(known[..., None], self.seen.position[a], 0.0).view(-1, 3)
        found = self.before.cameras[[b]].seen(points)[0].view(h, w, 3)
        x, y = found[..., 0].floor().long(), found[..., 1].floor().long()
        inside = known & (x >= 0) & (x < w) & (y >= 0) & (y < h) & (found[..., 2] > 0)
        x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
        return x, y, inside & ((self.seen.depth[b][y, x] - found[..., 2]).abs() < NEAR)


@dataclass(frozen=True)
class Tried:
    """A way to edit and the model that it asks."""

    make: Callable[[World], SceneEdit]
    model: str = "stilllife-instruct"


def _instructed(word: str, **options: object) -> Callable[[World], SceneEdit]:
    def make(world: World) -> SceneEdit:
        own = {"instruction": world.edit.instruction, "model": "stilllife-instruct", "steps": STEPS}
        return scene_edit(word, **{**own, **options})  # pyright: ignore[reportArgumentType]

    return make


def _scored(word: str) -> Callable[[World], SceneEdit]:
    def make(world: World) -> SceneEdit:
        source, target = world.edit.captions
        return scene_edit(word, source=source, target=target, model="stilllife", steps=STEPS)

    return make


def _together(world: World) -> SceneEdit:
    """All views once, as the recipe has it."""
    source, target = world.edit.captions
    made = scene_edit("csd-edit", source=source, target=target, model="stilllife", together=VIEWS, steps=STEPS)
    return replace(made, turns=Turns(VIEWS, STEPS, 1))


METHODS: dict[str, Tried] = {
    "per-view": Tried(_instructed("per-view", edit_steps=PAINTED)),
    "Instruct-NeRF2NeRF": Tried(_instructed("instruct-nerf2nerf", edit_steps=AGAIN, every=EVERY)),
    "CSD-Edit": Tried(_together, "stilllife"),
    "DDS": Tried(_scored("dds"), "stilllife"),
    "SDI": Tried(_scored("sdi"), "stilllife"),
}
"""InstructPix2Pix by the instruction, all else by the captions, each with its recipe for the built-in model."""
TRUTH, NONE = "the truth's views", "no edit"


@dataclass(frozen=True)
class Knowing:
    """An editor that knows: what a scene that follows the counterfactual's own views comes to."""

    views: Images = field(repr=False)

    def __call__(self, model: Backbone, photos: Images, seen: Images, seed: int) -> Images:
        return self.views


@dataclass
class Begun:
    """The scene of a world's photographs, which all ways start from: fitted once, and kept where a bench is kept."""

    photos: Capture
    seed: int
    units: Units
    key: str
    _made: Gaussians | None = None

    def scene(self) -> Gaussians:
        """One that may be written to."""
        if self._made is None:
            self._made = self._read_or_fitted()
        return copy.deepcopy(self._made)

    def _read_or_fitted(self) -> Gaussians:
        own, part = (self.units.beside(self.key, ending) for ending in (".safetensors", ".part.safetensors"))
        if own is not None and own.exists():
            scene = load_scene(own)[0]
            assert isinstance(scene, Gaussians)
            return scene
        made = first_gaussians(self.photos, COUNT, steps=FIT, seed=self.seed, keep=part, about=self.key)
        if own is not None and part is not None:
            save_scene(own, made)
            part.unlink(missing_ok=True)
        return made


def edits(session: Session) -> Mapping[str, Figure]:
    """Every way on every world, from the same scene of the photographs."""
    units = Units(None if session.out is None else session.out / "scene-edits.jsonl")
    rows: dict[str, dict[str, Row]] = {name: {} for name in (*METHODS, TRUTH, NONE)}
    rng, n = session.stream(31), min(session.n, MOST)

    def measure(name: str, w: int, key: str, world: World, begun: Begun, edit: SceneEdit) -> tuple[Row, Tensor]:
        scene = begun.scene()
        if name == NONE:
            return world.judged(session, scene, begun.photos.images)
        model = session.named(METHODS[name].model if name in METHODS else "stilllife")
        so_far, spent = units.beside(key, ".part.safetensors"), time.process_time()
        done = edit_scene(model, begun.photos, scene, edit, seed=session.seed, keep=so_far, about=key, every=25)
        spent = time.process_time() - spent
        row, picture = world.judged(session, done.scene, done.views)
        session.keep(f"edit-scene-{w}-{name.replace(' ', '-').replace(',', '')}", done.views)
        if so_far is not None:
            so_far.unlink(missing_ok=True)
        return {**row, "seconds": spent}, picture

    with progress("bench: edits of scenes", n * len(rows)) as advance:
        for w in range(n):
            world = World.drawn(rng)
            photos = world.before[world.learned]
            own = f"{w} {session.seed} {COUNT} {FIT} {VIEWS} {world.edit.instruction}"
            begun = Begun(photos, session.seed, units, f"fit {own}")
            for name in rows:
                if name in METHODS:
                    edit = METHODS[name].make(world)
                else:
                    edit = SceneEdit(Knowing(world.after.images[world.learned]), Turns(VIEWS, 1, 1), STEPS)
                key = f"{name} {own} {kept.digest(repr(edit))}"
                work = partial(measure, name, w, key, world, begun, edit)
                rows[name][f"world {w}"], _ = units.get(key, work)
                advance()
    keys = ("success", "to_truth", "warp_error", "to_own_pictures", "seconds")
    session.compared["edits of scenes"] = Comparison(keys, rows)
    for name, found in rows.items():
        session.methods[f"edit of a scene: {name}"] = {
            key: float(np.mean(values)) for key in keys if (values := columns(found, key))
        }

    def of(name: str, key: str) -> Float[np.ndarray, " n"]:
        return np.array(columns(rows[name], key))

    return {
        "edit_scene_success": of("CSD-Edit", "success"),
        "edit_scene_success_over_per_view": of("CSD-Edit", "success") - of("per-view", "success"),
        "edit_scene_consistency": float(of("CSD-Edit", "warp_error").mean() / of("per-view", "warp_error").mean()),
        "edit_scene_to_truth": of("CSD-Edit", "to_truth"),
        "edit_scene_to_truth_over_in2n": of("CSD-Edit", "to_truth") - of("Instruct-NeRF2NeRF", "to_truth"),
        "edit_scene_truth_read": of(TRUTH, "success"),
    }


MEASURES = ((tuple(MEANINGS), edits),)
