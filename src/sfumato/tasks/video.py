"""Edit videos by words: frame by frame or together, a part at a time, each frame kept as it comes.

Frames of a part are the images of one run, so that methods across images act on them. Beyond a part nothing is held in
memory: frames are read, painted and written, and a run that was stopped goes on behind those that are there.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.noise import Independent, Noises
from sfumato.core.plan import Plan
from sfumato.errors import SfumatoError
from sfumato.inversion import invert
from sfumato.io.files import writable, write_json
from sfumato.io.progress import Listener, heard, progress
from sfumato.media import images, pictures
from sfumato.media import video as videos
from sfumato.media.images import Fit, Fitted
from sfumato.media.video import Video
from sfumato.methods.sets.noise import Numbered
from sfumato.tasks.edit import PictureEdit, run_edits
from sfumato.tasks.frames import Reads
from sfumato.tasks.kept import digest

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CHUNK = 8
"""Frames of a run."""
_RECORD = ".video.json"


@dataclass(frozen=True)
class Footage:
    """Which frames of a video are meant."""

    video: Video
    start: int = 0
    stop: int | None = None
    rate: Fraction | None = None
    """Frames a second; None is the video's own."""

    @property
    def fps(self) -> Fraction:
        return self.video.rate if self.rate is None else self.rate

    def __len__(self) -> int:
        """How many there are by the file's account."""
        stop = self.video.count if self.stop is None else min(self.stop, self.video.count)
        return sum(1 for _ in self.video.numbers(self.start, stop, self.rate))

    def frames(self) -> Iterator[Picture]:
        return self.video.frames(self.start, self.stop, self.rate)

    def check(self) -> None:
        """Raise ``SfumatoError`` where there are none."""
        if not len(self):
            end = "" if self.stop is None else self.stop
            raise SfumatoError(f"{self.video.path} has {self.video.count} frames, none of them in {self.start}:{end}")


@dataclass(frozen=True)
class VideoEdit:
    """An edit of a video as it is asked for."""

    footage: Footage
    edit: PictureEdit
    noises: Noises = field(default_factory=Independent)
    """How that of a frame goes with that of the others."""
    chunk: int = CHUNK
    """Frames that are painted together."""
    anchor: bool = False
    """Is the first frame painted again with every part, so that methods across frames see it?"""
    seed: int = 0
    fit: Fit = "whole"
    reads: Reads = field(default_factory=Reads)
    """What the network reads of each frame."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise SfumatoError(f"a part of a video has one frame or more, got {self.chunk}")
        alone = next((m for m in self._all if not m.requires.batch), None)
        if alone is not None and self.anchor:
            raise SfumatoError(f"{type(alone).__name__} edits one frame a run; leave the anchor out")

    @property
    def _all(self) -> tuple[Any, ...]:
        return (*self.edit.methods, self.edit.start)

    @property
    def together(self) -> int:
        """Frames of a run: one, where a method takes no more."""
        return self.chunk if all(method.requires.batch for method in self._all) else 1

    def parts(self) -> Iterator[tuple[tuple[int, ...], list[Picture]]]:
        """The numbers of the frames of each run, and the frames; the anchor is the first of both."""
        frames, first, at = self.footage.frames(), list[Any](), 0
        while some := list(islice(frames, self.together)):
            before = first if self.anchor else []
            yield (*range(len(before)), *range(at, at + len(some))), [*before, *some]
            first, at = first or some[:1], at + len(some)

    def fitted(self, model: Backbone, frames: Iterable[Picture]) -> list[Fitted]:
        return [images.fit(frame, model.size, model.multiple, self.fit) for frame in frames]


@dataclass(frozen=True)
class Cost:
    """What an edit of a video will take, before it is begun."""

    frames: int
    runs: int
    rows: float
    """That the network predicts in all."""
    seconds: float
    """By the time of one prediction of a run's rows; what methods do beside is not in it."""
    bytes: int
    """Of memory that a run's taps take, as ``Plan.bytes``."""
    disk: int
    """Bytes of the frames, by twice the size of one of the video's as PNG."""

    def __str__(self) -> str:
        many = "frames" if self.frames > 1 else "frame"
        runs = f"{self.runs} runs" if self.runs > 1 else "a run"
        return (
            f"{self.frames} {many} in {runs}, {self.rows:.0f} rows of the network, about {spoken(self.seconds)} here; "
            f"taps take {self.bytes / 2**20:.0f} MiB, frames on disk about {self.disk / 2**20:.0f} MiB"
        )


@dataclass(frozen=True)
class Edited:
    """What became of a video."""

    frames: Path
    """A folder of PNGs."""
    count: int
    again: int
    """Of those, how many were there before."""
    seconds: float
    steps: int
    """Of each run; 0 where none was needed."""
    plan: Plan | None = None


def price(model: Backbone, asked: VideoEdit, memory: int | None = None) -> Cost:
    """What an edit costs: its runs are planned, their predictions counted, and one of them timed."""
    asked.footage.check()
    frames, (_, some) = len(asked.footage), next(asked.parts())
    fitted = asked.fitted(model, some)
    start = asked.edit.start
    steps, inverting = _inverted_rows(model, asked.edit, fitted[0])
    plan = asked.edit.prepared(model).plan(model, fitted, steps or start.steps, memory)
    each = len(plan.run.rows) / len(fitted) * steps * (1 + sum(plan.calls.values())) + inverting
    runs = math.ceil(frames / asked.together)
    painted = frames + (runs - 1) * asked.anchor
    with torch.no_grad():
        prompts = [p for some in plan.run.prompts.values() for p in some] * len(plan.run.rows.conditions)
        cond = model.embed(prompts[: len(plan.run.rows)])
        x = torch.zeros(len(plan.run.rows), model.channels, *plan.run.grid, device=model.device)
        seconds = _timed(model, x, cond, plan)
    bits = 2 * _png(some[0])
    return Cost(frames, runs, each * painted, each * painted * seconds / len(plan.run.rows), plan.bytes, bits * frames)


def edit_video(
    model: Backbone,
    asked: VideoEdit,
    frames: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    memory: int | None = None,
    on_progress: Listener | None = None,
) -> Edited:
    """Paint each frame into a folder as ``00000.png`` and on. Frames of the same settings that are there stay.

    ``settings``: what else a result depends on, such as the model's name. Those of other settings are replaced; a
    folder with pictures of another origin is refused. Raises ``SfumatoError`` for what ``denoise`` refuses.
    """
    began, total = time.perf_counter(), len(asked.footage)
    asked.footage.check()
    _claim(frames, _key(asked, settings or {}))
    edit, steps, plan, count, again = asked.edit.prepared(model), 0, None, 0, 0
    with heard(on_progress), progress("editing frames", total) as advance:
        for numbers, some in asked.parts():
            new = numbers[asked.anchor and numbers[-1] >= asked.together :]
            files = {n: frames / f"{n:05d}.png" for n in new}
            missing = [n for n, file in files.items() if not file.exists()]
            again += len(new) - len(missing)
            if missing:
                net = model.with_noises(Numbered(asked.noises, numbers))
                fitted = asked.fitted(net, some)
                net = asked.reads.given(net, numbers, fitted)
                options = {"seed": asked.seed, "memory": memory, "inside": asked.reads.inside(net, fitted)}
                done = run_edits(net, fitted, {"": edit}, **options)[""]
                steps, plan = done.steps, done.plan
                for n, picture in zip(numbers, done.edited.pictures, strict=True):
                    if n in missing:
                        pictures.write(picture, files[n])
            count += len(new)
            advance(len(new))
    return Edited(frames, count, again, time.perf_counter() - began, steps, plan)


def beside(asked: VideoEdit, frames: Path) -> Iterator[Picture]:
    """Each frame of the video beside what it became."""
    edited = videos.opened(frames).frames()
    for frame, became in zip(asked.footage.frames(), edited, strict=False):
        yield pictures.grid([frame, became], 2)


def spoken(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _inverted_rows(model: Backbone, edit: PictureEdit, fitted: Fitted) -> tuple[int, float]:
    """Steps of a run, and the rows that the network predicts to invert a frame, found with a network that says 0."""
    rows, other = [0], copy(model)

    def predict(x: Tensor, t: Any, cond: Cond) -> Tensor:
        rows[0] += len(x)
        return 0 * x + 0 * cond.text.sum()

    other.predict = predict  # pyright: ignore[reportAttributeAccessIssue]
    with heard(lambda event: None):
        path = invert(other, fitted.pixels, edit.source, edit.start)
    return len(path.levels), rows[0]


def _timed(model: Backbone, x: Tensor, cond: Cond, plan: Plan) -> float:
    """Seconds of a prediction."""
    levels = model.levels(2, plan.run.grid)
    if getattr(model, "reads", model.channels) == 2 * model.channels:
        cond = replace(cond, image=x)
    taken = []
    for _ in range(2):  # the first one is to warm up
        began = time.perf_counter()
        model.predict(x, levels[1].t, cond)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        taken.append(time.perf_counter() - began)
    return taken[-1]


def _png(picture: Picture) -> int:
    from io import BytesIO

    file = BytesIO()
    picture.save(file, format="PNG")
    return file.tell()


def _key(asked: VideoEdit, settings: Mapping[str, Any]) -> str:
    of = {f: getattr(asked, f) for f in ("edit", "noises", "chunk", "anchor", "seed", "fit")}
    footage, of["reads"] = asked.footage, asked.reads.marks
    return digest(
        {**settings, **of, "video": mark(footage.video), "frames": [footage.start, footage.stop, footage.fps]}
    )


def mark(video: Video) -> str:
    """A word for what a video holds, without reading all of it."""
    sums = hashlib.sha256()
    for file in video.files or (video.path,):
        size = file.stat().st_size
        sums.update(f"{file.name if video.files else ''} {size}".encode())
        with file.open("rb") as data:
            for at in sorted({0, max(0, size - 2**16)}) if not video.files else (0,):
                data.seek(at)
                sums.update(data.read(2**16))
    return sums.hexdigest()


def _claim(folder: Path, key: str) -> None:
    """Make the folder ours; take away frames of other settings."""
    writable(folder)
    record, own = folder / _RECORD, sorted(folder.glob("[0-9]" * 5 + "*.png"))
    found = None
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(record.read_text(encoding="utf-8")).get("key")
    if found == key:
        return
    if own and not record.exists():
        raise SfumatoError(f"{folder} has pictures of another origin; give another place")
    for file in own:
        file.unlink()
    write_json(record, {"key": key})
