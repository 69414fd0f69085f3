"""Clips from words: the built-in model with its motion adapter, beside frames that it paints each by itself.

The oracle reads every frame. Consistency alone is won by a clip in which nothing moves, so what moves is measured by
found flow, as far as it is followed, and stands beside true clips', round which the camera swings by 30 degrees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.session import Session
from sfumato.bench.sets.views import largest, things
from sfumato.bench.units import Row, columns, timed
from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.noise import Independent, Noises
from sfumato.io.progress import progress
from sfumato.methods.sets.noise import Mixed, Shared
from sfumato.metrics.clip import clip_features, frechet
from sfumato.metrics.video import warp_error
from sfumato.ops import flow
from sfumato.ops.motion import Motion
from sfumato.stilllife import moves
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.oracle import Reading
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import sample_scene

STEPS, GUIDANCE, FRAMES, SWING = 20, 5.0, 16, 30.0

MEANINGS = {
    "motion_identity": "clips of the motion adapter: the frames' part that is read as the clip's commonest kind, "
    "colour and ground",
    "motion_flow": "their mean way from frame to frame, by found flow, over that of true clips",
    "motion_success": "the part of their frames that is read as the prompt's kind, colour and ground",
}
TARGETS: dict[str, Target] = {}
"""Beside each stand frames by themselves, of own, mixed and shared noise, and true clips."""
KEYS = ("identity", "whole", "success", "flow", "followed", "warp_error", "change", "seconds")
"""``whole``: all frames are alike; ``followed``: the part of a frame whose flow comes back to where it was, without
which neither flow nor warp error says anything; ``change``: the mean square of what a frame differs from the next by.
"""


@dataclass(frozen=True)
class Way:
    """How the frames of a clip are painted."""

    noises: Noises = field(default_factory=Independent)
    adapter: bool = True


WAYS = {
    "adapter": Way(),
    "adapter, mixed noise": Way(Mixed(1.0)),
    "frames, own noise": Way(adapter=False),
    "frames, mixed noise": Way(Mixed(1.0), adapter=False),
    "frames, shared noise": Way(Shared(), adapter=False),
}


@dataclass
class MotionSession(Session):
    @cached_property
    def moving(self) -> Backbone:
        """``SfumatoError`` where no adapter ships."""
        return load("stilllife", motion="stilllife", device=self.device)


def judged(frames: Float[Tensor, "n 3 h w"], readings: Sequence[Reading], asked: tuple[str, str, str] | None) -> Row:
    """What is read of a clip's frames, and how they go over into each other."""
    seen = [None if (t := largest(r)) is None else (t.kind, t.colour, r.ground) for r in readings]
    _, most = Counter(seen).most_common(1)[0] if any(seen) else (None, 0)
    found = flow.found(frames)
    return {
        "identity": most / len(seen),
        "whole": float(most == len(seen)),
        "success": None if asked is None else float(np.mean([one == asked for one in seen])),
        "flow": way(found, frames.shape[-1]),
        "followed": float((~found.gone).float().mean()),
        "warp_error": float(warp_error(frames, found).nanmean()),
        "change": float((frames[1:] - frames[:-1]).square().mean()),
    }


def way(motion: Motion, size: int) -> float:
    """The mean way, in pixels, of what is seen in both of two frames."""
    far = motion.forward.norm(dim=-1) * size
    seen = (~motion.gone).to(far)
    return float((far * seen).sum() / seen.sum().clamp_min(1))


def painted(session: MotionSession, asked: Way, prompt: str, seed: int) -> Float[Tensor, "n 3 h w"]:
    options = {"guide": GUIDANCE, "steps": STEPS}
    if asked.adapter:
        return denoise(
            session.moving.with_noises(asked.noises), prompt, frames=FRAMES, seed=seed, **options
        ).images.cpu()
    if isinstance(asked.noises, Shared):  # all frames are one image
        return denoise(session.model, prompt, seed=seed, **options).images.cpu().expand(FRAMES, -1, -1, -1)
    seeds = [seed + i for i in range(FRAMES)]
    return denoise(session.model.with_noises(asked.noises), [prompt] * FRAMES, seed=seeds, **options).images.cpu()


def true_clip(session: MotionSession, i: int) -> Float[Tensor, "n 3 h w"]:
    scene = sample_scene(session.stream(34, i), count=1)
    ends = [replace(scene, camera=replace(scene.camera, azimuth=part * SWING)) for part in (-0.5, 0.5)]
    return render(moves.between(ends[0], ends[1], FRAMES), device=session.device).images.cpu()


def clips(session: MotionSession) -> Mapping[str, Figure]:
    """Clips of held-out seeds, each way, and as many true ones."""
    _ = session.moving
    found: dict[str, dict[str, Row]] = {name: {} for name in ("true clips", *WAYS)}
    shown: dict[str, list[Tensor]] = {name: [] for name in found}
    with progress("bench: motion", session.n * len(found)) as advance:
        for i, thing in enumerate(things(session, 33, TRAINED, 1)):
            unit, asked = f"motion {i}", (thing.kinds[0], thing.colour, thing.ground)
            prompt = thing.prompt(0)
            ways: dict[str, Callable[[], Tensor]] = {"true clips": lambda i=i: true_clip(session, i)}
            ways |= {name: lambda w=w, p=prompt, s=thing.seed: painted(session, w, p, s) for name, w in WAYS.items()}
            for name, work in ways.items():
                frames, cost = timed(work, session.device)
                row = judged(frames, session.oracle.read(frames), None if name == "true clips" else asked)
                found[name][unit] = {**row, "seconds": cost["seconds"]}
                shown[name].append(frames)
                advance()
    features = {name: clip_features(torch.cat(each), session.clip) for name, each in shown.items()}
    for name, rows in found.items():
        means = {key: float(np.mean(columns(rows, key))) for key in KEYS if columns(rows, key)}
        means["frechet"] = frechet(features[name], features["true clips"])
        session.methods[f"motion: {name}"] = means
        session.keep(f"motion-{name}".replace(" ", "-").replace(",", ""), torch.cat(shown[name])[:128], FRAMES)
    session.compared["motion"] = Comparison(KEYS, found)
    own, true = (np.array(columns(found[name], "flow")) for name in ("adapter", "true clips"))
    return {
        "motion_identity": np.array(columns(found["adapter"], "identity")),
        "motion_success": np.array(columns(found["adapter"], "success")),
        "motion_flow": float(own.mean() / true.mean()),
    }


MEASURES: tuple[tuple[tuple[str, ...], Callable[[MotionSession], Mapping[str, Figure]]], ...] = (
    (("motion_identity", "motion_flow", "motion_success"), clips),
)
