"""What can be distilled into a scene and what cannot (seed 000, chapters 4 and 6), and things of a scene by a word.

A still life of two things is learned from views on an arc; its latents, and where the things' words look, are lifted
into it and compared with what is read of views that were held out. ``table_4_1`` decodes the lifted latents;
``attention_injected_gain`` paints held views on the scene's depth, with lifted attention injected and without.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import controlnets
from sfumato.backbones.latent import Latent
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, columns
from sfumato.core.backbone import Backbone
from sfumato.distill import Images
from sfumato.learning.loop import Problem, learn
from sfumato.learning.seeds import generator
from sfumato.metrics.image import psnr, ssim
from sfumato.metrics.perceptual import apart
from sfumato.scene.capture import Capture
from sfumato.scene.features import FeatureField
from sfumato.scene.render import FieldScene
from sfumato.stilllife import captions
from sfumato.stilllife.captures import capture
from sfumato.stilllife.render import Rendering
from sfumato.stilllife.scene import Scene, sample_scene
from sfumato.tasks import inject_maps as inject
from sfumato.tasks import segment_scene as task
from sfumato.tasks.edit_scene import first_scene

VIEWS, ARC, HELD = 9, 60.0, (2, 6)
FIT, LIFT, TUNED = 250, 120, 40
"""Steps: of the scene, of what is lifted into it, and of the decoder's fine-tuning."""

MEANINGS = {
    "table_4_1": "decoded latents of views held out: a field of their own (dual) against the latents of the pictures "
    "themselves, dB (seed 000: about -8)",
    "table_4_1_tuned": "the same field's with the decoder fine-tuned on the views learned from, over those without, dB "
    "(seed 000: about +3)",
    "attention_in_3d": "part of the variance of views held out that lifted maps explain: words' attention less latents",
    "scene_segment_miou": "words' lifted maps against the true things, of views held out: mean IoU with the background",
    "scene_segment_over_views": "the same, less that of the same words read in each of these views alone",
    "attention_injected_gain": "views held out, painted on the scene's depth: mean IoU of the words' things with "
    "lifted attention of each head injected, less that without (seed 000, figure 6.15)",
}
TARGETS = {"attention_in_3d": Target(0.0), "scene_segment_over_views": Target(0.0)}
ROWS = ("the scene", "encoded, decoded", "simple", "dual", "dual, with direction", "dual, tuned", "encoded, tuned")
"""Of table 4.1."""
WAYS = ("depth alone", "words injected", "heads injected", "heads injected, noise")
EACH = 2
"""Paintings of each view held out."""


@dataclass(frozen=True, eq=False)
class World:
    """A still life of two kinds of things, seen from an arc of cameras."""

    scene: Scene
    shots: Capture
    seen: Rendering

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> World:
        while True:
            scene = sample_scene(rng, count=2)
            if scene.style == "photo" and len({t.kind for t in scene.things}) == 2:
                at = scene.camera
                cameras = [
                    replace(
                        at, azimuth=at.azimuth + ARC * (i / (VIEWS - 1) - 0.5), elevation=at.elevation + 8 * (i % 2)
                    )
                    for i in range(VIEWS)
                ]
                return cls(scene, *capture(scene, cameras))

    @property
    def learned(self) -> list[int]:
        return [i for i in range(VIEWS) if i not in HELD]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(t.kind for t in self.scene.things)

    @property
    def prompt(self) -> str:
        return captions.plain(self.scene)


def levels(session: Session, images: Images) -> list[Tensor]:
    """The oracle's features, the perceptual distance's."""
    oracle = session.oracle
    x, out = oracle.stem(F.pixel_unshuffle(images * 2 - 1, 2)), []
    for i, stage in enumerate(oracle.encode):
        x = stage(oracle.down[i - 1](x) if i else x)
        out.append(x)
    return out


@dataclass(eq=False)
class Tuning(Problem):
    """A decoder that is moved to make photographs of a scene's latents."""

    model: Backbone
    latents: Float[Tensor, "n c h w"]
    images: Images
    seed: int = 0

    def __post_init__(self) -> None:
        self.name = self.doing = "fine-tuning the decoder"
        vae: Any = self.model.vae  # type: ignore[attr-defined]
        for module in (vae.decoder, vae.post_quant_conv):
            module.requires_grad_(True)
        self.modules = {"decoder": vae.decoder, "post": vae.post_quant_conv}

    def loss(self, step: int) -> Float[Tensor, ""]:
        at = torch.randint(len(self.images), (2,), generator=generator(self.seed, step))
        return (self.model.decode(self.latents[at]) - self.images[at]).abs().mean()


def tuned(model: Backbone, latents: Float[Tensor, "n c h w"], images: Images, steps: int, seed: int = 0) -> Backbone:
    """The model with a decoder of its own, moved to these images; the other's stays as it is."""
    if not isinstance(model, Latent):
        raise TypeError("a decoder is fine-tuned of models with an autoencoder")
    own = copy.copy(model)
    own.vae = copy.deepcopy(model.vae)
    problem = Tuning(own, latents, images, seed)
    learn(problem, torch.optim.Adam(problem.groups(), lr=1e-4), steps=steps)
    return own


def coarse(features: FeatureField, cameras: Any, size: tuple[int, int]) -> Float[Tensor, "n k h w"]:
    """What a field shows at the size of the maps that it was moved to: the mean of each cell."""
    return F.adaptive_avg_pool2d(features.view(cameras), size)


def explained(found: Float[Tensor, "n k h w"], truth: Float[Tensor, "n k h w"]) -> float:
    """Part of the variance of each channel over all places that is explained; a mean over channels."""
    error = (found - truth).square().mean((0, 2, 3))
    return float((1 - error / truth.var((0, 2, 3), correction=0).clamp_min(1e-12)).mean())


def lifted(session: Session) -> Mapping[str, Figure]:
    """Latents and words' attention of the same scenes."""
    units = Units(None if session.out is None else session.out / "scene-features.jsonl")
    rng, rows = session.stream(32), dict[str, Row]()
    for w in range(session.n):
        world = World.drawn(rng)
        key = f"{w} {session.seed} {FIT} {LIFT} {TUNED} {VIEWS} {ARC} {EACH}"
        rows[f"world {w}"], _ = units.get(key, lambda world=world: measured(session, world))
    table = {name: {w: _of(row, name) for w, row in rows.items()} for name in ROWS}
    session.compared["latents in a scene, as table 4.1"] = Comparison(("psnr", "ssim", "perceptual"), table)
    parts = {name: {w: _of(row, name) for w, row in rows.items()} for name in ("lifted words", "views alone")}
    session.compared["things by words"] = Comparison(("miou",), parts)
    ways = {name: {w: _of(row, name) for w, row in rows.items()} for name in WAYS}
    session.compared["views painted on a scene's depth"] = Comparison(("miou", "psnr"), ways)
    kinds = {k: {w: _of(row, k) for w, row in rows.items()} for k in ("latents", "attention")}
    session.compared["what a lifted map explains"] = Comparison(("explained",), kinds)
    for group in (table, parts, ways, kinds):
        for name, found in group.items():
            keys = dict.fromkeys(k for row in found.values() for k in row)
            session.methods[f"in a scene: {name}"] = {k: float(np.mean(columns(found, k))) for k in keys}

    def of(name: str, key: str) -> Float[np.ndarray, " n"]:
        return np.array([row[f"{name}: {key}"] for row in rows.values()], dtype=float)

    return {
        "table_4_1": of("dual", "psnr") - of("encoded, decoded", "psnr"),
        "table_4_1_tuned": of("dual, tuned", "psnr") - of("dual", "psnr"),
        "attention_in_3d": of("attention", "explained") - of("latents", "explained"),
        "scene_segment_miou": of("lifted words", "miou"),
        "scene_segment_over_views": of("lifted words", "miou") - of("views alone", "miou"),
        "attention_injected_gain": of("heads injected", "miou") - of("depth alone", "miou"),
    }


def _of(row: Row, name: str) -> Row:
    return {key.rpartition(": ")[2]: value for key, value in row.items() if key.rpartition(": ")[0] == name}


def measured(session: Session, world: World) -> tuple[Row, Tensor]:
    """All figures of a world, and a sheet of its held views: photographs, decoded latents, things."""
    model, learned, held = session.model, world.learned, list(HELD)
    photos, unseen = world.shots[learned], world.shots[held]
    scene = first_scene(photos, steps=FIT, seed=session.seed)
    row: Row = {}

    def judged(name: str, images: Images) -> None:
        images = images.detach().clamp(0, 1).cpu()
        with torch.no_grad():
            far = apart(levels(session, images.to(session.device)), levels(session, unseen.images.to(session.device)))
        row[f"{name}: psnr"] = float(psnr(images, unseen.images).mean())
        row[f"{name}: ssim"] = float(ssim(images, unseen.images).mean())
        row[f"{name}: perceptual"] = float(far.mean())

    own, other = (task.latents(model, shots.images) for shots in (photos, unseen))
    size = (own.shape[-2], own.shape[-1])
    options: dict[str, Any] = {"steps": LIFT, "seed": session.seed}
    fields = {
        "simple": task.lift(scene, photos.cameras, own, "simple", **options),
        "dual": task.lift(scene, photos.cameras, own, **options),
        "dual, with direction": task.lift(scene, photos.cameras, own, degree=1, **options),
    }
    shown = {name: coarse(field, unseen.cameras, size) for name, field in fields.items()}
    with torch.no_grad():
        judged("the scene", scene.view(unseen.cameras).images)
        judged("encoded, decoded", model.decode(other))
        for name, found in shown.items():
            judged(name, model.decode(found))
    better = tuned(model, coarse(fields["dual"], photos.cameras, size), photos.images, TUNED, session.seed)
    with torch.no_grad():
        after = better.decode(shown["dual"])
        judged("dual, tuned", after)
        judged("encoded, tuned", better.decode(other))
        before = model.decode(shown["dual"])

    method, side = task.word_reader("stilllife", world.words, world.prompt)
    looks, truth = (task.word_maps(model, shots.images, method, side) for shots in (photos, unseen))
    field = task.lift(scene, photos.cameras, looks, **options)
    cells = (looks.shape[-2], looks.shape[-1])
    row["latents: explained"] = explained(shown["dual"], other)
    row["attention: explained"] = explained(coarse(field, unseen.cameras, cells), truth)
    most = field.view(photos.cameras, task.SMOOTH).amax((0, 2, 3))[:, None, None]
    lifted, single = field.view(unseen.cameras, task.SMOOTH) / most, F.interpolate(
        truth / truth.amax((2, 3), keepdim=True), unseen.images.shape[-2:], mode="bilinear", align_corners=False
    )  # fmt: skip
    things = world.seen.thing[held] + 1
    row["lifted words: miou"] = miou(lifted, things, method.threshold)
    row["views alone: miou"] = miou(single, things, method.threshold)
    row |= painted(session, world, scene, field.view(unseen.cameras, task.SMOOTH), method, side)
    sheet = [unseen.images, before.clamp(0, 1), after.clamp(0, 1), lifted[:, :1].clamp(0, 1).expand(-1, 3, -1, -1)]
    return row, torch.cat([torch.cat(list(x.cpu()), -1) for x in sheet], -2)


def painted(session: Session, world: World, scene: FieldScene, words: Tensor, method: Any, side: int | None) -> Row:
    """Views held out as they are painted on the scene's depth, and with what is lifted injected: ``words``, a map each,
    or maps of each head. Things are read in them as in photographs, and held against the true ones."""
    model, again = session.model, [*range(len(HELD))] * EACH
    unseen, row = world.shots[list(HELD)], Row()
    network = controlnets.read(controlnets.BUILT_IN, model)
    heads = inject.lift_attention(
        model, world.shots[world.learned], scene, world.prompt, world.words, steps=LIFT, seed=session.seed
    ).view(unseen.cameras)
    by_head = {word: {path: x[again] for path, x in of.items()} for word, of in heads.items()}
    shapes = {w: {"": x[again][:, None]} for w, x in zip(world.words, inject.soft(words).cpu().unbind(1), strict=True)}
    ways: dict[str, tuple[tuple[inject.GivenAttention, ...], float]] = {
        "depth alone": ((), 0.0),
        "words injected": ((inject.GivenAttention(shapes, spread=True),), 0.0),
        "heads injected": ((inject.GivenAttention(by_head),), 0.0),
        "heads injected, noise": ((inject.GivenAttention(by_head),), 1.0),
    }
    things, photos = world.seen.thing[list(HELD)][again] + 1, unseen.images[again]
    cameras = unseen.cameras[again]
    for name, (methods, eta) in ways.items():
        images = inject.paint_views(
            model, scene, cameras, world.prompt, network, methods, eta=eta, seed=session.seed
        ).clamp(0, 1)  # fmt: skip
        looks = task.word_maps(model, images, method, side)
        scores = F.interpolate(looks / looks.amax((2, 3), keepdim=True), things.shape[-2:], mode="bilinear")
        row[f"{name}: miou"] = miou(scores, things.cpu(), method.threshold)
        row[f"{name}: psnr"] = float(psnr(images, photos).mean())
    return row


def miou(scores: Float[Tensor, "n k h w"], truth: Tensor, threshold: float) -> float:
    """Mean IoU over the background and each word's thing, counted over all views; of a place the largest has it."""
    whole = torch.cat([torch.full_like(scores[:, :1], threshold), scores], 1).argmax(1)
    parts = []
    for k in range(scores.shape[1] + 1):
        a, b = whole == k, truth == k
        if b.any():
            parts.append(float((a & b).sum() / (a | b).sum()))
    return float(np.mean(parts))


MEASURES = ((tuple(MEANINGS), lifted),)
