"""Clips of the world, edited by words: are the frames what they should be, and does each go over into the next?

A case is a clip of 16 frames in which the camera swings by 30 degrees, and its counterfactual: the same clip of the
scene with one thing changed, whose flow and occlusion are exact. All frames are edited as the images of one run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.generate import applied
from sfumato.bench.memory import allocated
from sfumato.bench.real import real
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, columns, timed
from sfumato.core.method import Method
from sfumato.core.noise import Independent, Noises
from sfumato.inversion import Direct, Inversion
from sfumato.io.progress import progress
from sfumato.media import pictures
from sfumato.media import video as videos
from sfumato.media.images import fit, tensor
from sfumato.methods.edit import PlugAndPlay, SDEdit
from sfumato.methods.sets import FateZero, Pix2Video, SharedAttention, TokenFlow
from sfumato.methods.sets.noise import Advected, IntegralWarp, Mixed, Progressive, Shared
from sfumato.metrics.image import psnr
from sfumato.metrics.video import warp_error
from sfumato.ops import flow
from sfumato.ops.motion import Motion
from sfumato.stilllife import change, moves
from sfumato.stilllife.render import render
from sfumato.tasks.edit import PictureEdit, run_edits
from sfumato.tasks.recipes import EDITING, find
from sfumato.tasks.starts import start_of
from sfumato.tasks.video import Footage, VideoEdit, edit_video

STEPS, FRAMES, REAL = 20, 16, 8
DAVIS = ("a white cube on stone by day", "a red cube on stone by day")
"""A car is none of the model's words; a cube is what is most like one."""
KINDS = ("recolour", "ground", "reshape", "material")
KEYS = ("success", "warp_error", "excess", "psnr_to_truth", "seconds", "peak_mb")
PER_FRAME = ("SDEdit", "Plug-and-Play", "Prompt-to-Prompt", "InstructPix2Pix")
"""Editing in which nothing of a frame depends on another."""
BESIDE = {
    "Plug-and-Play, TokenFlow": "Plug-and-Play",
    "Plug-and-Play, TokenFlow, shared noise": "Plug-and-Play, shared noise",
    "Prompt-to-Prompt, TokenFlow": "Prompt-to-Prompt",
    "CSD-Edit": "InstructPix2Pix",
}
"""Editing of all frames together, and of each by itself, with which its paper compares it."""

MEANINGS = {
    "video_edit_success": "frames of 16-frame clips that are read as asked, edited by CSD-Edit as one set",
    "video_warp_error": "warp error beyond the VAE's, TokenFlow's or CSD-Edit's, over that of the same editing of each "
    "frame by itself, of those that succeed as often; 1 where none does",
    "video_over_best": "the least of TokenFlow's and CSD-Edit's, over the least of any editing of each frame by itself",
    "video_to_truth": "CSD-Edit's frames against the counterfactual clip, dB",
    "csd_video_consistency": "CSD-Edit's warp error beyond the VAE's, over the least of FateZero's, Pix2Video's and "
    "InstructPix2Pix's of each frame",
    "video_shared_noise": "the same of Plug-and-Play by one noise for all frames, over that by own ones",
    "noise_mean": "largest mean of an image's noise, all kinds of noise, in standard deviations of a mean",
    "noise_variance": "largest distance of a variance from 1, in its standard deviations",
    "noise_neighbours": "largest correlation of neighbouring cells, in its standard deviations",
    "noise_along_flow": "correlation of noise that a clip's flow carried with the first frame's, a frame later",
    "noise_blended": "variance of two independent noises blended: the mistake that the laws see",
    "davis_warp_error": "a real clip, edited: warp error of one noise for all over that of own ones, by found flow",
    "memory_per_frame": "MiB that editing a video takes more a frame, from 16 to 64 frames: the most of SDEdit (frames "
    "by themselves), SharedAttention and TokenFlow (which look across them)",
}
TARGETS = {
    "video_warp_error": Target(0.5, at_least=False),
    "noise_mean": Target(5.0, at_least=False),
    "noise_variance": Target(5.0, at_least=False),
    "noise_neighbours": Target(5.0, at_least=False),
    "memory_per_frame": Target(2.0, at_least=False),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A clip, what should become of it, and where its parts go."""

    edit: change.Counterfactual
    before: Float[Tensor, "n 3 h w"]
    after: Float[Tensor, "n 3 h w"]
    motion: Motion
    """Of what it should become."""
    seed: int


@dataclass(frozen=True)
class Asked:
    """How the frames of a case are edited."""

    start: Inversion
    methods: Sequence[Method] = ()
    guidance: float | None = EDITING
    noises: Noises = field(default_factory=Independent)
    model: str = "stilllife"
    prompts: tuple[str, str] | None = None
    """Where they are not the case's captions."""

    @property
    def unit(self) -> str:
        """A name for what is asked."""
        of = "" if self.model == "stilllife" else f" {self.model}"
        return f"{self.start!r} {self.methods!r} {self.guidance} {type(self.noises).__name__}{of}"


Runner = Callable[[Case], Asked]
_OWN = Independent()


def _sdedit(noises: Callable[[Case], Noises]) -> Runner:
    return lambda case: Asked(SDEdit(0.6, steps=STEPS, seed=case.seed), noises=noises(case))


def _holding(word: str, *more: Method, noises: Noises = _OWN) -> Runner:
    row = find(word)
    return lambda case: Asked(start_of(row.start, STEPS, EDITING, case.seed), (row.method, *more), row.guidance, noises)


def _across(method: Method) -> Runner:
    return lambda case: Asked(start_of(None, STEPS, EDITING, case.seed), (method,))


def _together(case: Case) -> Asked:
    row = find("collaborative-editing")
    return Asked(replace(row.method, seed=case.seed), (), row.guidance)


def _instructed(case: Case) -> Asked:
    row = find("instruct-pix2pix", "stilllife-instruct")
    start = replace(row.method, seed=case.seed, steps=STEPS)
    prompts = case.edit.captions[0], case.edit.instruction
    return Asked(start, (), row.guidance, model=row.model, prompts=prompts)


RUNNERS: dict[str, Runner] = {
    "SDEdit": _sdedit(lambda case: _OWN),
    "SDEdit, shared noise": _sdedit(lambda case: Shared()),
    "SDEdit, noise along the flow": _sdedit(lambda case: IntegralWarp(case.motion)),
    "Plug-and-Play": _holding("plug-and-play"),
    "Plug-and-Play, shared noise": _holding("plug-and-play", noises=Shared()),
    "Plug-and-Play, TokenFlow": _holding("plug-and-play", TokenFlow(every=4)),
    "Plug-and-Play, TokenFlow, shared noise": _holding("plug-and-play", TokenFlow(every=4), noises=Shared()),
    "Prompt-to-Prompt": _holding("prompt-to-prompt"),
    "Prompt-to-Prompt, TokenFlow": _holding("prompt-to-prompt", TokenFlow(every=4)),
    "FateZero, at all grids": _across(FateZero(finest=1.0)),
    "Pix2Video": _across(Pix2Video()),
    "InstructPix2Pix": _instructed,
    "CSD-Edit": _together,
}
"""Each as it suits the built-in model; their frames are the images of one run."""


@dataclass
class ClipSession(Session):
    @cached_property
    def units(self) -> Units:
        return Units(None if self.out is None else self.out / "clips-units.jsonl")

    @cached_property
    def cases(self) -> list[Case]:
        return [case(self.stream(31, i), KINDS[i % len(KINDS)], self.seed + i) for i in range(self.n)]


def case(rng: np.random.Generator, kind: str, seed: int, frames: int = FRAMES, size: int = 128) -> Case:
    """A clip of a scene of one thing, and the same of its counterfactual."""
    edit = change.sample_counterfactual(rng, kind, 1)
    ways = []
    for scene in (edit.before, edit.after):
        at = scene.camera
        ways.append(moves.between(scene, replace(scene, camera=replace(at, azimuth=at.azimuth + 30)), frames))
    after = moves.film(ways[1], size)
    flows = (after.forward, after.backward, after.forward_occluded, after.backward_occluded)
    motion = Motion.of_pixels(*(each.cpu() for each in flows))
    return Case(edit, render(ways[0], size).images.cpu(), after.frames.cpu(), motion, seed)


def edited(session: ClipSession, case: Case, asked: Asked) -> tuple[Float[Tensor, "n 3 h w"], dict[str, float]]:
    """The frames as ``sfumato video`` would write them, with seconds and peak memory."""
    model = session.named(asked.model).with_noises(asked.noises)
    fitted = [fit(pictures.picture(frame), model.size, model.multiple) for frame in case.before]
    edit = PictureEdit(*(asked.prompts or case.edit.captions), asked.start, asked.methods, asked.guidance)
    done, cost = timed(lambda: run_edits(model, fitted, {"": edit}, seed=case.seed)[""], session.device)
    return torch.stack([tensor(picture) for picture in done.edited.pictures]), cost


def judged(session: ClipSession, case: Case, frames: Float[Tensor, "n 3 h w"]) -> Row:
    readings = session.oracle.read(frames)
    return {
        "success": float(np.mean([applied(reading, case.edit) for reading in readings])),
        "warp_error": float(warp_error(frames, case.motion).mean()),
        "psnr_to_truth": float(psnr(frames, case.after).clamp_max(100).mean()),
    }


def editing(session: ClipSession) -> Mapping[str, Figure]:
    """All methods on all clips, beside the truth, no edit, and what the VAE alone makes of the truth."""
    beside = ("truth", "no edit", "VAE alone")
    found: dict[str, dict[str, Row]] = {name: {} for name in (*beside, *RUNNERS)}
    with progress("bench: clips", session.n * len(found)) as advance:
        for i, case in enumerate(session.cases):
            with torch.no_grad():
                made = session.model.decode(session.model.encode(case.after.to(session.device))).cpu()
            shown: dict[str, Tensor] = dict(zip(beside, (case.after, case.before, made), strict=True))
            unit = f"{KINDS[i % len(KINDS)]} {i}"
            for name, frames in shown.items():
                found[name][unit] = judged(session, case, frames)
                advance()
            floor = found["VAE alone"][unit]["warp_error"] or 0.0
            for name, runner in RUNNERS.items():
                asked = runner(case)
                measure = partial(_measured, session, case, asked)
                row, strip = session.units.get(f"{session.seed} {i} {name} {STEPS} {asked.unit}", measure)
                found[name][unit], shown[name] = dict(row), torch.stack(strip.split(case.after.shape[-1], -1))
                advance()
            for rows in found.values():
                rows[unit]["excess"] = (rows[unit]["warp_error"] or 0.0) - floor
            if session.out is not None:
                strips = [pictures.sheet(frames[::3], len(frames[::3])) for frames in shown.values()]
                pictures.write(pictures.labelled(strips, list(shown), 1), session.out / f"clip-{i}.png")
    session.compared["clips"] = Comparison(KEYS, found)
    means = {
        name: {key: float(np.mean(columns(rows, key))) for key in KEYS if columns(rows, key)}
        for name, rows in found.items()
    }
    session.methods |= means
    return {
        "video_edit_success": np.array(columns(found["CSD-Edit"], "success")),
        "video_to_truth": np.array(columns(found["CSD-Edit"], "psnr_to_truth")),
        **consistency(means),
    }


def consistency(means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Ratios of warp errors beyond the VAE's, by the methods' means."""
    excess, success = ({name: row[key] for name, row in means.items()} for key in ("excess", "success"))
    fair = [excess[one] / excess[alone] for one, alone in BESIDE.items() if success[one] >= success[alone] - 1e-6]
    others = ("FateZero, at all grids", "Pix2Video", "InstructPix2Pix")
    return {
        "video_warp_error": min(fair, default=1.0),
        "video_over_best": min(excess[name] for name in BESIDE) / min(excess[name] for name in PER_FRAME),
        "video_shared_noise": excess["Plug-and-Play, shared noise"] / excess["Plug-and-Play"],
        "csd_video_consistency": excess["CSD-Edit"] / min(excess[name] for name in others),
    }


def _measured(session: ClipSession, case: Case, asked: Asked) -> tuple[Row, Tensor]:
    """A row, and the frames side by side."""
    frames, cost = edited(session, case, asked)
    return {**judged(session, case, frames), **cost}, torch.cat(list(frames), -1)


def noise(session: ClipSession) -> Mapping[str, Figure]:
    """Statistics of every kind of noise, those that a flow carries along a true clip's."""
    motion = session.cases[0].motion
    shape, seeds = (64, 16, 16), [session.seed + i for i in range(FRAMES)]
    kinds = (Independent(), Shared(), Mixed(1.0), Progressive(2.0), Advected(motion), IntegralWarp(motion))
    drawn = {type(kind).__name__: kind.draw(seeds, shape) for kind in kinds}
    rows: dict[str, dict[str, float]] = {}
    for name, x in drawn.items():
        n = x[0].numel()
        pairs = [(x[..., 1:], x[..., :-1]), (x[:, :, 1:], x[:, :, :-1])]
        rows[name] = {
            "mean": float(x.mean((1, 2, 3)).abs().max()) * math.sqrt(n),
            "variance": float((x.square().mean((1, 2, 3)) - 1).abs().max()) * math.sqrt(n / 2),
            "neighbours": max(float((a * b).mean((1, 2, 3)).abs().max()) * math.sqrt(a[0].numel()) for a, b in pairs),
            "along the flow": _along(x, motion),
        }
    session.methods |= {f"noise: {name}": row for name, row in rows.items()}
    worst = {f"noise_{key}": max(row[key] for row in rows.values()) for key in ("mean", "variance", "neighbours")}
    a, b = drawn["Independent"][:2]
    blended = float((0.5 * a + 0.5 * b).square().mean())
    return {**worst, "noise_along_flow": rows["IntegralWarp"]["along the flow"], "noise_blended": blended}


def _along(x: Float[Tensor, "n c h w"], motion: Motion) -> float:
    """Correlation of each frame's noise with the next one's, in the cells nearest to where the flow leads."""
    next, seen = motion.back(x, "nearest")
    weight = seen[:, None].float()
    return float(((x[:-1] * next) * weight).sum() / (weight.sum() * x.shape[1]))


def memory(session: ClipSession) -> Mapping[str, Figure]:
    """The same edits of a video of 16 frames and of 64, 8 at a time: by themselves, and by methods that look across."""
    dice, found = np.random.default_rng(0), {}
    words = "a red cube", "a blue cube"
    edits = {
        "SDEdit": PictureEdit(*words, SDEdit(0.4, steps=2, seed=0), (), 1.0),
        "SharedAttention": PictureEdit(*words, Direct(steps=2), (SharedAttention("first+previous"),), EDITING),
        "TokenFlow": PictureEdit(*words, Direct(steps=2), (PlugAndPlay(), TokenFlow()), EDITING),
    }
    with tempfile.TemporaryDirectory() as place:
        frames = (pictures.picture(torch.from_numpy(dice.random((3, 128, 128), np.float32))) for _ in range(64))
        clip = videos.opened(videos.write(frames, Path(place) / "clip", Fraction(12)))
        for name, edit in edits.items():
            peaks = []
            for n in (16, 64):
                asked, out = VideoEdit(Footage(clip, 0, n), edit), Path(place) / f"{name}-{n}"
                peaks.append(_peak(partial(edit_video, session.model, asked, out), session.device))
            found[name] = (peaks[1] - peaks[0]) / 48
            session.methods[f"memory: {name}"] = {"MiB": peaks[1], "MiB a frame": found[name]}
    return {"memory_per_frame": max(found.values())}


def _peak(work: Callable[[], Any], device: torch.device) -> float:
    """MiB that torch allocates at most; a process has more or less by what it gives back."""
    return timed(work, device)[1]["peak_mb"] if device.type == "cuda" else allocated(work).peak / 2**20


def davis(session: ClipSession) -> Mapping[str, Figure]:
    """Frames of a real car, which the built-in model never saw, edited as far as it goes."""
    frames = list(videos.opened(real("davis_car_shadow") / "images").frames(0, REAL))
    model = session.model
    fitted = [fit(frame, model.size, model.multiple) for frame in frames]
    seen = torch.stack([one.pixels for one in fitted])
    motion = flow.found(seen)
    with torch.no_grad():
        shown = {"the clip": seen, "VAE alone": model.decode(model.encode(seen.to(session.device))).cpu()}
    edit = PictureEdit(*DAVIS, SDEdit(0.5, steps=STEPS, seed=session.seed), (), EDITING)
    for name, noises in {"own noise": Independent(), "shared noise": Shared()}.items():
        net = model.with_noises(noises)
        done, cost = timed(partial(run_edits, net, fitted, {"": edit}, seed=session.seed), session.device)
        shown[name] = done[""].edited.painted.cpu()
        session.methods[f"davis: {name}"] = {"seconds": cost["seconds"]}
    errors = {name: float(warp_error(images, motion).mean()) for name, images in shown.items()}
    for name, error in errors.items():
        session.methods.setdefault(f"davis: {name}", {})["warp_error"] = error
    session.keep("davis", torch.cat(list(shown.values())), REAL)
    return {"davis_warp_error": errors["shared noise"] / errors["own noise"]}


MEASURES: tuple[tuple[tuple[str, ...], Callable[[Any], Mapping[str, Figure]]], ...] = (
    (("noise_mean", "noise_variance", "noise_neighbours", "noise_along_flow", "noise_blended"), noise),
    (("memory_per_frame",), memory),
    (("davis_warp_error",), davis),
    (
        (
            *("video_edit_success", "video_to_truth", "video_warp_error", "video_over_best"),
            *("video_shared_noise", "csd_video_consistency"),
        ),
        editing,
    ),
)
