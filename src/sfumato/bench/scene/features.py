"""What can be distilled into a scene and what cannot (seed 000, chapters 4 and 6), and things of a scene by a word.

A still life of two things is learned from views on an arc; its latents, where the things' words look, and what
that makes of each pixel are lifted into it and compared with what is read of views that were held out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

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
from sfumato.tasks import segment_scene as task
from sfumato.tasks.edit_scene import first_scene

VIEWS, ARC, HELD = 9, 60.0, (2, 6)
ALIKE = ("cube", "sphere", "cylinder", "cone")
FIT, LIFT, TUNED = 250, 120, 40
"""Steps: of the scene, of what is lifted into it, and of the decoder's fine-tuning."""

MEANINGS = {
    "table_4_1": "decoded latents of views held out: a field of their own (dual) against the latents of the pictures "
    "themselves, dB (seed 000: about -8)",
    "table_4_1_tuned": "the same field's with the decoder fine-tuned on the views learned from, over those without, dB "
    "(seed 000: about +3)",
    "attention_in_3d": "part of the variance of views held out that lifted maps explain: words' attention less latents",
    "scene_segment_miou": "things by words: what each view makes of its pixels, cut and lifted, against the true "
    "things of views held out: mean IoU with the background",
    "scene_segment_over_views": "the same without a graph cut, less what is read in each of these views alone",
    "scene_segment_over_cut_views": "the same, less what is read and cut in each of these views alone",
}
TARGETS = dict.fromkeys(("attention_in_3d", "scene_segment_over_views", "scene_segment_over_cut_views"), Target(0.0))
ROWS = ("the scene", "encoded, decoded", "simple", "dual", "dual, with direction", "dual, tuned", "encoded, tuned")
"""Of table 4.1."""
PARTS = ("votes lifted", "views alone", "cut votes lifted", "views alone, cut", "maps lifted", "true masks lifted")
"""Ways to find things of words in views held out: by what views make of their pixels, lifted, and by what is read in
each of the views held out itself, as it is and with borders moved to the pictures' edges; by lifted maps and a part of
their greatest value; and by what an unerring reader of the views would have lifted."""
EACH = 2
"""Paintings of each view held out."""


@dataclass(frozen=True, eq=False)
class World:
    """A still life of two things, seen from an arc of cameras."""

    scene: Scene
    shots: Capture
    seen: Rendering
    words: tuple[str, ...]
    prompt: str

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> World:
        """Of two kinds."""
        while True:
            scene = sample_scene(rng, count=2)
            if scene.style == "photo" and len({t.kind for t in scene.things}) == 2:
                return cls.of(scene, tuple(t.kind for t in scene.things), captions.plain(scene))

    @classmethod
    def twins(cls, rng: np.random.Generator) -> World:
        """Of one shape beside each other, in two colours, of which the prompt does not say which is where."""
        while True:
            kind = str(rng.choice(ALIKE))
            scene = sample_scene(rng, count=2, kinds=(kind,), style="photo", relation="left of", same=False)
            first, other = (replace(t, material="plain") for t in scene.things)
            if first.colour != other.colour:
                scene = replace(scene, things=(first, replace(other, shape=first.shape, size=first.size)))
                prompt = replace(captions.facts(scene), relation=None).phrase()
                return cls.of(scene, tuple(f"{t.colour} {kind}" for t in scene.things), prompt)

    @classmethod
    def of(cls, scene: Scene, words: tuple[str, ...], prompt: str) -> World:
        at = scene.camera
        cameras = [
            replace(at, azimuth=at.azimuth + ARC * (i / (VIEWS - 1) - 0.5), elevation=at.elevation + 8 * (i % 2))
            for i in range(VIEWS)
        ]
        return cls(scene, *capture(scene, cameras), words, prompt)

    @property
    def learned(self) -> list[int]:
        return [i for i in range(VIEWS) if i not in HELD]


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


@dataclass(eq=False)
class Stage:
    """A world, and the scene that is learned of it."""

    session: Session
    world: World

    @cached_property
    def scene(self) -> FieldScene:
        return first_scene(self.photos, steps=FIT, seed=self.session.seed)

    @property
    def photos(self) -> Capture:
        return self.world.shots[self.world.learned]

    @property
    def unseen(self) -> Capture:
        return self.world.shots[list(HELD)]

    @property
    def things(self) -> Tensor:
        """Of views held out: 0 where no thing is, then the words' in their order."""
        return self.world.seen.thing[list(HELD)].cpu() + 1

    @property
    def options(self) -> dict[str, Any]:
        return {"steps": LIFT, "seed": self.session.seed}

    @cached_property
    def reader(self) -> tuple[Any, int | None]:
        return task.word_reader("stilllife", self.world.words, self.world.prompt)


Measured = Callable[[Stage], tuple[Row, Tensor]]


def gathered(session: Session, stream: int, drawn: Callable[[Any], World], parts: Mapping[str, Measured]) -> list[Row]:
    """A row of each world, of all parts, each of which is kept by itself."""
    units = Units(None if session.out is None else session.out / "scene-features.jsonl")
    rng, rows = session.stream(stream), list[Row]()
    for w in range(session.n):
        stage = Stage(session, drawn(rng))
        rows.append({})
        for name, measure in parts.items():
            key = f"{name} {w} {session.seed} {FIT} {LIFT} {TUNED} {VIEWS} {ARC} {EACH}"
            rows[-1] |= units.get(key, lambda measure=measure, stage=stage: measure(stage))[0]
    return rows


def compared(session: Session, title: str, rows: Sequence[Row], names: Sequence[str], keys: tuple[str, ...]) -> None:
    """Ways beside each other, in the report."""
    table = {n: {f"world {w}": {k: row[f"{n}: {k}"] for k in keys} for w, row in enumerate(rows)} for n in names}
    session.compared[title] = Comparison(keys, table)
    for name, found in table.items():
        session.methods[f"{title}: {name}"] = {k: float(np.mean(columns(found, k))) for k in keys}


def of(rows: Sequence[Row], name: str, key: str) -> Float[np.ndarray, " n"]:
    return np.array([row[f"{name}: {key}"] for row in rows], dtype=float)


def lifted(session: Session) -> Mapping[str, Figure]:
    """Latents and words' attention of the same scenes."""
    rows = gathered(session, 32, World.drawn, {"latents": latents, "things": things})
    compared(session, "latents in a scene, as table 4.1", rows, ROWS, ("psnr", "ssim", "perceptual"))
    compared(session, "things of a scene by words", rows, PARTS, ("miou",))
    compared(session, "what a lifted map explains", rows, ("latents", "attention"), ("explained",))
    return {
        "table_4_1": of(rows, "dual", "psnr") - of(rows, "encoded, decoded", "psnr"),
        "table_4_1_tuned": of(rows, "dual, tuned", "psnr") - of(rows, "dual", "psnr"),
        "attention_in_3d": of(rows, "attention", "explained") - of(rows, "latents", "explained"),
        "scene_segment_miou": of(rows, "cut votes lifted", "miou"),
        "scene_segment_over_views": of(rows, "votes lifted", "miou") - of(rows, "views alone", "miou"),
        "scene_segment_over_cut_views": of(rows, "cut votes lifted", "miou") - of(rows, "views alone, cut", "miou"),
    }


def latents(stage: Stage) -> tuple[Row, Tensor]:
    """Lifted latents and what is decoded of them, and a sheet: photographs, decoded before and after tuning."""
    session, scene, photos, unseen = stage.session, stage.scene, stage.photos, stage.unseen
    model, row = session.model, Row()

    def judged(name: str, images: Images) -> None:
        images = images.detach().clamp(0, 1).cpu()
        with torch.no_grad():
            far = apart(levels(session, images.to(session.device)), levels(session, unseen.images.to(session.device)))
        row[f"{name}: psnr"] = float(psnr(images, unseen.images).mean())
        row[f"{name}: ssim"] = float(ssim(images, unseen.images).mean())
        row[f"{name}: perceptual"] = float(far.mean())

    own, other = (task.latents(model, shots.images) for shots in (photos, unseen))
    size = (own.shape[-2], own.shape[-1])
    fields = {
        "simple": task.lift(scene, photos.cameras, own, "simple", **stage.options),
        "dual": task.lift(scene, photos.cameras, own, **stage.options),
        "dual, with direction": task.lift(scene, photos.cameras, own, degree=1, **stage.options),
    }
    shown = {name: coarse(field, unseen.cameras, size) for name, field in fields.items()}
    row["latents: explained"] = explained(shown["dual"], other)
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
    return row, sheet(unseen.images, before, after)


def things(stage: Stage) -> tuple[Row, Tensor]:
    """Things by words, and a sheet: photographs, what was found in them by lifted votes, the true things."""
    model, scene, photos, unseen = stage.session.model, stage.scene, stage.photos, stage.unseen
    (method, side), truth = stage.reader, stage.things
    looks, others = (task.word_maps(model, shots.images, method, side) for shots in (photos, unseen))
    field = task.lift(scene, photos.cameras, looks, **stage.options)
    cells, size = (looks.shape[-2], looks.shape[-1]), unseen.images.shape[-2:]
    most = field.view(photos.cameras, task.SMOOTH).amax((0, 2, 3))[:, None, None]
    maps = field.view(unseen.cameras, task.SMOOTH) / most
    attention = explained(coarse(field, unseen.cameras, cells), others)
    single = F.interpolate(others / others.amax((2, 3), keepdim=True), size, mode="bilinear", align_corners=False)

    cut, known = task.cutter("stilllife"), stage.world.seen.thing[stage.world.learned].cpu() + 1
    cast = [task.votes(model, photos.images, method, side, c) for c in (None, cut)]
    cast.append(F.one_hot(known, 3).permute(0, 3, 1, 2).float())
    field = task.lift(scene, photos.cameras, torch.cat(cast, 1), resolution=task.FINE, **stage.options)
    plain, cuts, exact = (x.argmax(1).cpu() for x in field.view(unseen.cameras).split(3, 1))
    found = {
        "votes lifted": plain,
        "views alone": above(single, method.threshold),
        "cut votes lifted": cuts,
        "views alone, cut": task.votes(model, unseen.images, method, side, cut).argmax(1),
        "maps lifted": above(maps, method.threshold),
        "true masks lifted": exact,
    }
    row: Row = {f"{name}: miou": miou(labels, truth) for name, labels in found.items()}
    row["attention: explained"] = attention
    return row, sheet(unseen.images, *(x[:, None].expand(-1, 3, -1, -1) / 2 for x in (truth, *found.values())))


def sheet(*rows: Images) -> Float[Tensor, "3 h w"]:
    """Rows of pictures."""
    return torch.cat([torch.cat(list(x.clamp(0, 1).cpu()), -1) for x in rows], -2)


def above(scores: Float[Tensor, "n k h w"], threshold: float) -> Int[Tensor, "n h w"]:
    """The largest above a threshold, from 1; else 0."""
    return torch.cat([torch.full_like(scores[:, :1], threshold), scores], 1).argmax(1).cpu()


def miou(found: Int[Tensor, "n h w"], truth: Int[Tensor, "n h w"]) -> float:
    """Mean IoU over the background and each word's thing, counted over all views."""
    pairs = [(found == k, truth == k) for k in truth.unique()]
    return float(np.mean([float((a & b).sum() / (a | b).sum()) for a, b in pairs]))


MEASURES = ((tuple(MEANINGS), lifted),)
