"""Views painted on a scene's depth with lifted attention injected (seed 000, section 6.3, figure 6.15).

Of two kinds of things, which depth tells apart, and of two things of one shape, which it cannot: the prompt has both
colours, and what is lifted alone says which is where. The oracle reads the colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.backbones import controlnets
from sfumato.bench.report import Figure, Target
from sfumato.bench.scene.features import EACH, Stage, World, above, compared, gathered, miou, of, sheet
from sfumato.bench.session import Session
from sfumato.bench.units import Row
from sfumato.distill import Images
from sfumato.methods.control.given_attention import Given, GivenAttention
from sfumato.metrics.image import psnr
from sfumato.stilllife import captions
from sfumato.stilllife.oracle import TRAITS, Oracle, mean, mirrored, pool
from sfumato.stilllife.scene import COLOURS
from sfumato.tasks import inject_maps as inject
from sfumato.tasks import segment_scene as task

MEANINGS = {
    "attention_injected_gain": "views held out, painted on the scene's depth: mean IoU of the words' things with "
    "lifted attention of each head injected, less that without (seed 000, figure 6.15)",
    "attention_injected_colours": "views held out of two things of one shape, painted on the scene's depth by a prompt "
    "without sides: part of the things that have their own colour with lifted attention of each head injected, less "
    "that without",
}
TARGETS = {"attention_injected_colours": Target(0.0)}
WAYS = ("depth alone", "depth alone, noise", "words injected", "heads injected", "heads injected, noise")
TWIN_WAYS = ("depth alone", "sides said", "words injected", "heads injected", "true masks injected")
Maps = Mapping[str, Given]


def again(stage: Stage) -> list[int]:
    """Views held out, each as often as it is painted."""
    return [*range(len(stage.unseen))] * EACH


def painted(stage: Stage, prompt: str, maps: Maps | None = None, *, spread: bool = False, eta: float = 0.0) -> Images:
    """Views held out, on the scene's depth, with this attention injected."""
    model, cameras = stage.session.model, stage.unseen.cameras[again(stage)]
    network = controlnets.read(controlnets.BUILT_IN, model)
    methods = [] if maps is None else [GivenAttention(maps, spread=spread)]
    shown = inject.paint_views(
        model, stage.scene, cameras, prompt, network, methods, eta=eta, seed=stage.session.seed
    )  # fmt: skip
    return shown.clamp(0, 1)


def heads(stage: Stage) -> Maps:
    """Of each head, as the scene has them."""
    world = stage.world
    found = inject.lift_attention(
        stage.session.model, stage.photos, stage.scene, world.prompt, world.words, **stage.options
    ).view(stage.unseen.cameras)
    return {word: {path: x[again(stage)] for path, x in of.items()} for word, of in found.items()}


def words(stage: Stage) -> Maps:
    """A shape a word, as the scene has it."""
    method, side = stage.reader
    looks = task.word_maps(stage.session.model, stage.photos.images, method, side)
    field = task.lift(stage.scene, stage.photos.cameras, looks, **stage.options)
    return shapes(stage, inject.soft(field.view(stage.unseen.cameras, task.SMOOTH)).cpu())


def shapes(stage: Stage, maps: Float[Tensor, "n k h w"]) -> Maps:
    return {word: {"": x[again(stage)][:, None]} for word, x in zip(stage.world.words, maps.unbind(1), strict=True)}


def kinds(stage: Stage) -> tuple[Row, Tensor]:
    """Things read in the paintings as in photographs and held against the true ones; a sheet with a row a way."""
    row, prompt, by_head, by_word = Row(), stage.world.prompt, heads(stage), words(stage)
    (method, side), truth, photos = stage.reader, stage.things[again(stage)], stage.unseen.images[again(stage)]
    ways: dict[str, Images] = {
        "depth alone": painted(stage, prompt),
        "depth alone, noise": painted(stage, prompt, eta=1.0),
        "words injected": painted(stage, prompt, by_word, spread=True),
        "heads injected": painted(stage, prompt, by_head),
        "heads injected, noise": painted(stage, prompt, by_head, eta=1.0),
    }
    for name, images in ways.items():
        looks = task.word_maps(stage.session.model, images, method, side)
        scores = F.interpolate(looks / looks.amax((2, 3), keepdim=True), truth.shape[-2:], mode="bilinear")
        row[f"{name}: miou"] = miou(above(scores, method.threshold), truth)
        row[f"{name}: psnr"] = float(psnr(images, photos).mean())
    return row, sheet(photos, *ways.values())


def colours(stage: Stage) -> tuple[Row, Tensor]:
    """Which of the things have their own colour, read at the true things' places; a sheet with a row a way."""
    row, prompt, truth = Row(), stage.world.prompt, stage.things[again(stage)]
    photos, masks = stage.unseen.images[again(stage)], torch.stack([stage.things == k for k in (1, 2)], 1).float()
    ways: dict[str, Images] = {
        "photographs": photos,
        "depth alone": painted(stage, prompt),
        "sides said": painted(stage, captions.plain(stage.world.scene)),
        "words injected": painted(stage, prompt, words(stage), spread=True),
        "heads injected": painted(stage, prompt, heads(stage)),
        "true masks injected": painted(stage, prompt, shapes(stage, masks), spread=True),
    }
    wanted = [COLOURS.index(t.colour) for t in stage.world.scene.things]
    for name, images in ways.items():
        row[f"{name}: right"] = right(stage.session.oracle, images, truth, wanted)
        row[f"{name}: psnr"] = float(psnr(images, photos).mean()) if name != "photographs" else None
    return row, sheet(*ways.values())


@torch.no_grad()
def right(oracle: Oracle, images: Images, things: Int[Tensor, "n h w"], wanted: Sequence[int]) -> float:
    """Part of the things, counted from 1, at whose places the oracle reads these colours."""
    at = images.to(next(oracle.parameters()).device)
    found = pool(mean(oracle(at), mirrored(oracle(at.flip(-1)))).traits, things.to(at.device))
    first = len(TRAITS["kind"])
    colour = found[:, : len(wanted), first : first + len(COLOURS)].argmax(-1).cpu()
    return float((colour == torch.tensor(wanted)).float().mean())


def injected(session: Session) -> Mapping[str, Figure]:
    """Worlds of two kinds and of two things alike."""
    rows = gathered(session, 32, World.drawn, {"kinds": kinds})
    compared(session, "views painted on a scene's depth", rows, WAYS, ("miou", "psnr"))
    twins = gathered(session, 33, World.twins, {"colours": colours})
    compared(session, "things alike painted on a scene's depth", twins, TWIN_WAYS, ("right", "psnr"))
    return {
        "attention_injected_gain": of(rows, "heads injected", "miou") - of(rows, "depth alone", "miou"),
        "attention_injected_colours": of(twins, "heads injected", "right") - of(twins, "depth alone", "right"),
    }


MEASURES = ((tuple(MEANINGS), injected),)
