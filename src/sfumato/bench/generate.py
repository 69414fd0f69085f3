"""``sfumato bench generate``: does the built-in model paint what it is told? The oracle reads what it painted.

Prompts are drawn from the grammar, from seeds that no training run uses. A figure has a value a sample where it can, so
that its interval can be told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from sfumato.bench.report import Figure, Report, Target, gather
from sfumato.bench.session import Session
from sfumato.io.device import choose
from sfumato.io.files import write_text
from sfumato.stilllife import change, networks, paint, weights
from sfumato.stilllife.captions import Said, SaidThing, caption
from sfumato.stilllife.obedience import PROMPTS, obeyed
from sfumato.stilllife.oracle import Reading, matches
from sfumato.stilllife.render import pinhole, render
from sfumato.stilllife.scene import Scene, sample_scene
from sfumato.tasks import recipes

STEPS, GUIDANCE = 30, 5.0
READABLE = (
    "recolour",
    "reshape",
    "material",
    "ground",
    "light",
    "style",
    "add",
    "remove",
)  # changes the oracle can see

MEANINGS = {
    "single": "kind and colour right, one thing",
    "single_scene": "ground and light right too",
    "pair": "two things, both kinds and colours, bound right",
    "relation": "the pair in the stated relation",
    "view": "robot: face seen in front view, not in back view",
    "style": "style as asked",
    "vae_psnr": "reconstruction of fresh renders, dB",
    "frechet_clip": "Frechet distance of CLIP features to renders",
    "frechet_clip_floor": "the same, of renders to other renders",
    "clip_score": "CLIP similarity of paintings to their captions",
    "clip_score_rendered": "the same, of renders",
    "seconds_per_image": f"{STEPS} steps, batch 1",
    "seconds_per_image_batch8": f"{STEPS} steps, batch 8",
    "instruct": "InstructPix2Pix: edit applied",
    "instruct_rendered": "the same, of the true results",
    "depth": "ControlNet: relative error of the depth its silhouettes imply",
    "depth_rendered": "the same, of renders",
    "depth_chance": "the same, against another image's depth",
    "detail": "high-frequency energy of paintings over that of renders of the same scenes",
    "vae_detail": "the same, of reconstructions over what they reconstruct",
    "frechet_over_floor": "Frechet distance over its floor",
}
STREAMS = {
    "single": 0,
    "single_scene": 1,
    "pair": 2,
    "relation": 3,
    "view": 4,
    "style": 5,
    "vae_psnr": 6,
    "frechet_clip": 7,
    "instruct": 13,
    "depth": 15,
}
"""The random numbers of a measure, which keep to it."""
TARGETS = {
    "single": Target(0.96),
    "single_scene": Target(0.88),
    "pair": Target(0.50),
    "relation": Target(0.35),
    "view": Target(0.85),
    "style": Target(0.92),
    "detail": Target(0.45),
    "vae_psnr": Target(30.0),
    "vae_detail": Target(0.80),
    "frechet_over_floor": Target(1.25, at_least=False),
    "seconds_per_image": Target(3.0, at_least=False),
    "instruct": Target(0.70),
    "depth": Target(0.05, at_least=False),
}


class GenerateSession(Session):
    """What the measures share."""

    def rng(self, what: str) -> np.random.Generator:
        """A generator for one measure, the same whatever else is measured."""
        return self.stream(STREAMS[what])

    @cached_property
    def pipe(self) -> Any:
        return weights.pipeline("stilllife", self.device)

    def paint(self, prompts: Sequence[str], what: str, **rest: Any) -> Float[Tensor, "n 3 128 128"]:
        """Paint one image a prompt, and keep the first ones to look at if there is a place to."""
        first = int(self.rng(what).integers(2**30))
        pipe = rest.pop("pipe", None) or self.pipe
        images = paint.paint(
            pipe,
            prompts,
            range(first, first + len(prompts)),
            steps=STEPS,
            guidance=GUIDANCE,
            batch=8 if self.device.type == "cpu" else 64,
            what=f"bench: {what}",
            **rest,
        )
        self.keep_said(what, prompts, images)
        return images

    def keep_said(self, what: str, prompts: Sequence[str], images: Float[Tensor, "n 3 h w"]) -> None:
        """The first images, and what they were painted from."""
        self.keep(what, images[:64])
        if self.out is not None:
            write_text(self.out / f"{what}.txt", "".join(f"{p}\n" for p in prompts[:64]))


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything. What cannot be (of a relative that does not ship, say) is None, and ``why`` says why."""
    session = GenerateSession(n, seed, choose(device), out)
    return gather(Report("generate", n, seed, str(session.device), MEANINGS, TARGETS), MEASURES, session, out)


def obedience(key: str) -> Callable[[GenerateSession], dict[str, Figure]]:
    """The share of paintings of one class of prompts in which the oracle sees what was said."""

    def measure(session: GenerateSession) -> dict[str, Figure]:
        rng = session.rng(key)
        stated = [PROMPTS[key](rng, i) for i in range(session.n)]
        readings = session.oracle.read(session.paint([s.phrase(rng) for s in stated], key))
        return {key: obeyed(key, readings, stated)}

    return measure


def fresh(rng: np.random.Generator, n: int, device: torch.device) -> tuple[list[Scene], Float[Tensor, "n 3 128 128"]]:
    """Scenes as training draws them, and their renders."""
    scenes = [sample_scene(rng) for _ in range(n)]
    parts = [render(scenes[i : i + 32], device=device).images.cpu() for i in range(0, n, 32)]
    return scenes, torch.cat(parts)


def reconstruction(session: GenerateSession) -> dict[str, Figure]:
    from sfumato.metrics.image import psnr
    from sfumato.metrics.looks import detail

    vae: Any = weights.module("vae").to(session.device)
    _, images = fresh(session.rng("vae_psnr"), session.n, session.device)
    again = networks.reconstruct(vae, images)
    return {
        "vae_psnr": psnr(again, images).double().numpy(),
        "vae_detail": float(detail(again).mean() / detail(images).mean()),
    }


def likeness(session: GenerateSession) -> dict[str, Figure]:
    """Paintings of captions as training words them, beside renders of the same scenes and of others."""
    from sfumato.metrics.clip import clip_features, clip_score, frechet
    from sfumato.metrics.looks import detail

    clip = session.clip
    rng = session.rng("frechet_clip")
    scenes, renders = fresh(rng, session.n, session.device)
    _, others = fresh(rng, session.n, session.device)
    words = [caption(s, rng) for s in scenes]
    painted = session.paint(words, "frechet_clip")
    features = [clip_features(x, clip) for x in (painted, renders, others)]
    far, floor = frechet(features[0], features[2]), frechet(features[1], features[2])
    return {
        "detail": float(detail(painted).mean() / detail(renders).mean()),
        "frechet_clip": far,
        "frechet_clip_floor": floor,
        "frechet_over_floor": far / floor,
        "clip_score": clip_score(painted, words, clip, session.tokenizer).double().cpu().numpy(),
        "clip_score_rendered": clip_score(renders, words, clip, session.tokenizer).double().cpu().numpy(),
    }


def speed(session: GenerateSession) -> dict[str, Figure]:
    """Seconds an image, decoding included, in float32: the middle of three runs after one to warm up."""

    def seconds(batch: int) -> float:
        taken = []
        for i in range(4):
            began = time.perf_counter()
            words = ["a red cube on grass"] * batch
            paint.paint(
                session.pipe, words, range(batch), steps=STEPS if i else 2, guidance=GUIDANCE, what="bench: speed"
            )
            taken.append((time.perf_counter() - began) / batch)
        return float(np.median(taken[1:]))

    return {"seconds_per_image": seconds(1), "seconds_per_image_batch8": seconds(8)}


def instruct(session: GenerateSession) -> dict[str, Figure]:
    """Edits of renders by instruction. Applied: all things as they should be, the new ground, light or style too."""
    pipe = weights.pipeline("stilllife-instruct", session.device)
    image_scale = recipes.find("instruct-pix2pix", "stilllife-instruct").method.image_scale
    rng = session.rng("instruct")
    edits = []
    for i in range(session.n):
        op = READABLE[i % len(READABLE)]
        edits.append(change.sample_counterfactual(rng, op, 2 if op == "remove" else 1 + i // len(READABLE) % 2))
    before, after = change.render_pairs(edits, device=str(session.device))
    oracle = session.oracle
    painted = session.paint(
        [e.instruction for e in edits],
        "instruct",
        pipe=pipe,
        each=lambda start, stop: {"image": before[start:stop], "image_guidance_scale": image_scale},
    )
    return {
        name: np.array([applied(r, e) for r, e in zip(oracle.read(images), edits, strict=True)], float)
        for name, images in (("instruct", painted), ("instruct_rendered", after))
    }


def applied(reading: Reading, edit: change.Counterfactual) -> bool:
    """Does the oracle see the scene after the change, in all that the change is about?"""
    after, what = edit.after, edit.change
    things = [SaidThing(t.kind, t.colour) for t in after.things]
    if isinstance(what, change.Rematerial):
        things[what.thing] = replace(things[what.thing], material=what.material)
    stated = Said(
        tuple(things),
        ground=after.ground if isinstance(what, change.Reground) else None,
        light=after.light if isinstance(what, change.Relight) else None,
        style=after.style if isinstance(what, change.Restyle) else None,
    )
    verdicts = matches(reading, stated)
    return all(verdicts[k] is not False for k in ("things", "ground", "light", "style"))


def depth(session: GenerateSession) -> dict[str, Figure]:
    """Paintings on the depth of renders of one or two things; see ``depth_error``."""
    pipe = weights.pipeline("stilllife-depth", session.device)
    rng = session.rng("depth")
    scenes = [sample_scene(rng, count=1 + i % 2) for i in range(session.n)]
    truth = [render(scenes[i : i + 32], device=session.device) for i in range(0, session.n, 32)]
    depths = torch.cat([t.depth.cpu() for t in truth])
    things = torch.cat([t.thing.cpu() >= 0 for t in truth])
    oracle = session.oracle
    condition = networks.depth_image(depths)
    painted = session.paint(
        [caption(s, rng) for s in scenes], "depth", pipe=pipe, each=lambda start, stop: {"image": condition[start:stop]}
    )
    read = oracle.read(painted)
    rendered = oracle.read(torch.cat([t.images.cpu() for t in truth]))
    other = [*range(1, session.n), 0]

    def error(readings: Sequence[Reading], at: Sequence[int]) -> Figure:
        return np.array(
            [
                depth_error(torch.from_numpy(r.mask > 0), scenes[i], depths[i], things[i])
                for r, i in zip(readings, at, strict=True)
            ]
        )

    here = range(session.n)
    return {"depth": error(read, here), "depth_rendered": error(rendered, here), "depth_chance": error(read, other)}


def depth_error(
    seen: Bool[Tensor, "h w"], scene: Scene, depth: Float[Tensor, "h w"], thing: Bool[Tensor, "h w"]
) -> float:
    """Mean relative error, off the sky, of the depth that a silhouette implies against the true one.

    A pixel in the silhouette is taken to lie as deep as the nearest true pixel of a thing, any other on the ground. So
    what counts is where things stand in the picture, not the relief within them.
    """
    ground = ground_depth(scene, depth.shape[-1])
    row, column = distance_transform_edt(~thing.numpy(), return_distances=False, return_indices=True)
    implied = torch.where(seen, depth[torch.from_numpy(row), torch.from_numpy(column)], ground)
    judged = depth.isfinite() & implied.isfinite()
    return float(((implied - depth).abs() / depth)[judged].mean())


def ground_depth(scene: Scene, size: int) -> Float[Tensor, "size size"]:
    """Depth of the bare ground under a scene's camera, inf above the horizon."""
    origin, ray = pinhole([scene], size)
    down = -ray[0, ..., 1]
    return torch.where(down > 1e-6, origin[0, ..., 1] / down.clamp(min=1e-6), torch.inf)


MEASURES: tuple[tuple[tuple[str, ...], Callable[[GenerateSession], dict[str, Figure]]], ...] = (
    *(((key,), obedience(key)) for key in PROMPTS),
    (("vae_psnr", "vae_detail"), reconstruction),
    (
        ("detail", "frechet_clip", "frechet_clip_floor", "frechet_over_floor", "clip_score", "clip_score_rendered"),
        likeness,
    ),
    (("seconds_per_image", "seconds_per_image_batch8"), speed),
    (("instruct", "instruct_rendered"), instruct),
    (("depth", "depth_rendered", "depth_chance"), depth),
)
