"""Edit videos by words: frame by frame or together, a part at a time, each frame kept as it comes.

Where frames are by themselves, those of a part are the images of one run: beyond a part nothing is held in memory, and
what was stopped goes on behind the frames that are there. Where a method looks across them all are one run, whose
latents are in memory and whose frames go through the network a part at a time (``sfumato.core.groups``); their way back
to noise lies on disk meanwhile, with the step that the run is at, so that it goes on there.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.denoising import denoise, unread_rows
from sfumato.core.marks import Mark
from sfumato.core.method import Phases
from sfumato.core.noise import Independent, Noises
from sfumato.core.plan import Plan
from sfumato.core.results import Sample
from sfumato.errors import SfumatoError
from sfumato.inversion import Path, invert
from sfumato.io.files import atomic, from_json, writable, write_json
from sfumato.io.progress import Listener, heard, lasting, progress, worth
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
"""Frames that go through the network together."""
_RECORD, _WORK = ".video.json", ".work"


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
    """Frames that go through the network together."""
    anchor: bool = False
    """Is the first frame painted again with every part, for what looks across frames but not across parts?"""
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
        if self.streamed and self.anchor:
            raise SfumatoError(
                "all frames of the video are one run, in which they see each other; leave the anchor out"
            )

    @property
    def streamed(self) -> bool:
        """Are all frames one run, because something looks across them? With a mask they are seen a part at a time."""
        sets = any(method.requires.set for method in self._all) and self.reads.mask is None
        return sets and all(method.requires.groups for method in self._all)

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
    """By the time of one prediction of rows that go together; what methods do beside is not in it."""
    bytes: int
    """Of memory that a run's taps take, as ``Plan.bytes``."""
    disk: int
    """Bytes of the frames, by twice the size of one of the video's as PNG."""
    held: int = 0
    """Bytes of memory for the latents of a run of all frames; 0 where there is none."""
    work: int = 0
    """Bytes on disk until all frames are painted: the frames' way back to noise."""

    def __str__(self) -> str:
        many = "frames" if self.frames > 1 else "frame"
        runs = f"{self.runs} runs" if self.runs > 1 else "a run"
        held = f"latents {mib(self.held)}, " if self.held else ""
        work = f", the way back to noise {mib(self.work)} until they are painted" if self.work else ""
        return (
            f"{self.frames} {many} in {runs}, {self.rows:.0f} rows of the network, about {lasting(self.seconds)} here; "
            f"{held}taps take {mib(self.bytes)}, frames on disk about {mib(self.disk)}{work}"
        )


@dataclass(frozen=True)
class Edited:
    """What became of a video."""

    frames: File
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
    path, inverting = _rehearsed(model, asked.edit, fitted[0])
    steps = len(path.levels) or asked.edit.start.steps
    edit, streamed = asked.edit.prepared(model), asked.streamed
    count = frames if streamed else len(fitted)
    plan = edit.plan(model, fitted, steps, memory, count, asked.chunk if streamed else None)
    rows, unread = plan.run.rows, ()
    if not asked.reads.controls:
        unread = unread_rows(plan, (path, *edit.methods), (Phases(), *plan.start().values()), path.stepper)
    rows = (len(rows) - sum(len(some) for some in unread) * rows.each / steps) / count
    each = rows * len(path.levels) * (1 + sum(plan.calls.values())) + inverting
    runs = 1 if streamed else math.ceil(frames / asked.together)
    painted = frames + (runs - 1) * asked.anchor
    with torch.no_grad():
        together = math.ceil(rows * min(count, asked.chunk))
        prompts = [p for some in plan.run.prompts.values() for p in some[:1]] * together
        cond = model.embed(prompts[:together])
        x = torch.zeros(together, model.channels, *plan.run.grid, device=model.device)
        seconds = _timed(model, x, cond, plan) / together
    disk = 2 * _png(some[0]) * frames
    held, work = (0, 0)
    if streamed:
        # of each stream what a step has and makes, and of each condition its prediction
        streams, conditions = len(plan.run.rows.streams), len(plan.run.rows.conditions)
        held = frames * path.image.nbytes * (2 + streams * (2 * conditions + 8))
        held += frames * fitted[0].pixels.nbytes * len(asked.reads.controls)
        work = frames * sum(x.nbytes for x in _tensors(path).values())
    return Cost(frames, runs, each * painted, each * painted * seconds, plan.bytes, disk, held, work)


def edit_video(
    model: Backbone,
    asked: VideoEdit,
    frames: File,
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
    key = _key(asked, settings or {})
    _claim(frames, key)
    edit, steps, plan, count, again = asked.edit.prepared(model), 0, None, 0, 0
    with heard(on_progress), progress("editing frames", total) as advance:
        if asked.streamed:
            with worth(total):
                return _together(model, asked, edit, frames, key, memory, advance, began)
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
                with worth(len(new)):
                    done = run_edits(net, fitted, {"": edit}, **options)[""]
                steps, plan = done.steps, done.plan
                for n, picture in zip(numbers, done.edited.pictures, strict=True):
                    if n in missing:
                        pictures.write(picture, files[n])
            count += len(new)
            advance(len(new))
    return Edited(frames, count, again, time.perf_counter() - began, steps, plan)


def beside(asked: VideoEdit, frames: File) -> Iterator[Picture]:
    """Each frame of the video beside what it became."""
    edited = videos.opened(frames).frames()
    for frame, became in zip(asked.footage.frames(), edited, strict=False):
        yield pictures.grid([frame, became], 2)


def mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _rehearsed(model: Backbone, edit: PictureEdit, fitted: Fitted) -> tuple[Path, float]:
    """A frame's path, and the rows that the network predicts to find it, by a network that says 0."""
    rows, other = [0], copy(model)

    def predict(x: Tensor, t: Any, cond: Cond) -> Tensor:
        rows[0] += len(x)
        return 0 * x + 0 * cond.text.sum()

    other.predict = predict  # pyright: ignore[reportAttributeAccessIssue]
    with heard(lambda event: None):
        path = invert(other, fitted.pixels, edit.source, edit.start)
    return path, rows[0]


_EACH = ("track", "uncond", "noises")
"""Of a path, what it has of each step."""


def _tensors(path: Path) -> dict[str, Tensor]:
    """All that a path has of its images."""
    found = {name: torch.stack([*steps]) for name in _EACH if (steps := getattr(path, name))}
    return found | {n: x for n in ("latents", "image", "ending") if (x := getattr(path, n)) is not None}


@dataclass(frozen=True)
class _Steps(Sequence[Tensor]):
    """Of each step what files have of their frames, read when it is asked for."""

    files: tuple[File, ...]
    name: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[n] for n in range(self.count)[i]]
        return _read(self.files, self.name, range(self.count)[i])


def _read(files: Iterable[File], name: str, step: int | None = None) -> Tensor:
    """What files have of their frames under a name, or of that what a step has."""
    from safetensors import safe_open

    parts = []
    for file in files:
        with safe_open(file, "pt") as kept:
            parts.append(kept.get_tensor(name) if step is None else kept.get_slice(name)[step])
    return torch.cat(parts)


def _inverted(model: Backbone, asked: VideoEdit, edit: PictureEdit, place: File) -> Path:
    """The path of all frames, found a part at a time into files; those that are there stay."""
    from safetensors.torch import save_file

    path, files = None, list[File]()
    for numbers, some in asked.parts():
        files.append(place / f"{numbers[0]:05d}.safetensors")
        fitted = asked.fitted(model, some)
        if path is None:
            path = _rehearsed(model, edit, fitted[0])[0]
        if not files[-1].exists():
            net = asked.reads.given(model.with_noises(Numbered(asked.noises, numbers)), numbers, fitted)
            found = invert(net, torch.stack([one.pixels for one in fitted]), edit.source, edit.start)
            with atomic(files[-1]) as part:
                save_file({n: x.detach().cpu().contiguous().clone() for n, x in _tensors(found).items()}, part)
    assert path is not None
    whole = {n: _read(files, n) for n in _tensors(path) if n not in _EACH}
    count = len(whole["latents"])
    steps: dict[str, Any] = {n: _Steps(tuple(files), n, len(getattr(path, n))) for n in _EACH if getattr(path, n)}
    negative = None if path.negative is None else path.negative.repeat(count)
    return replace(path, prompts=tuple(edit.streams(count)["source"]), negative=negative, **whole, **steps)


def _together(
    model: Backbone,
    asked: VideoEdit,
    edit: PictureEdit,
    frames: File,
    key: str,
    memory: int | None,
    advance: Callable[[int], None],
    began: float,
) -> Edited:
    """All frames as one run."""
    total, work = len(asked.footage), frames / _WORK
    files = [frames / f"{n:05d}.png" for n in range(total)]
    missing = {n for n, file in enumerate(files) if not file.exists()}
    if not missing:
        advance(total)
        return Edited(frames, total, total, time.perf_counter() - began, 0)
    edit.check(model, 1)
    _, some = next(asked.parts())
    plan = edit.plan(model, asked.fitted(model, some), edit.start.steps, memory, total, asked.chunk)
    path = _inverted(model, asked, edit, work)
    count = len(path.prompts)
    net = model.with_noises(Numbered(asked.noises, tuple(range(count))))
    if asked.reads.controls:
        # frames are read for their shapes alone, and not kept while the run goes on
        net = asked.reads.given(
            net, range(count), [one for _, some in asked.parts() for one in asked.fitted(net, some)]
        )
    prompts = edit.streams(count)
    mark = Mark(work / "step.safetensors", key)
    options = {"guide": edit.guide(model), "seed": asked.seed, "memory": memory, "group": asked.chunk, "mark": mark}
    out = denoise(net, prompts, start=path, methods=edit.methods, **options)
    source = out["source"].latents if "source" in out else path.image.to(out["target"].latents)
    for numbers, some in asked.parts():
        at = slice(numbers[0], numbers[-1] + 1)
        if missing.isdisjoint(numbers) and numbers[-1] < total:
            advance(len(numbers))
            continue
        target = Sample(model, out["target"].latents[at], ())
        changed, painted = target.differs(Sample(model, source[at], ())), target.images
        for n, one, x, cells in zip(numbers, asked.fitted(model, some), painted, changed, strict=True):
            if n in missing or n >= total:
                pictures.write(one.restore(pictures.picture(x), cells), frames / f"{n:05d}.png")
        advance(len(numbers))
    shutil.rmtree(work, ignore_errors=True)
    return Edited(frames, count, total - len(missing), time.perf_counter() - began, len(path.levels), plan)


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


def _claim(folder: File, key: str) -> None:
    """Make the folder ours; take away frames of other settings."""
    writable(folder)
    record, own = folder / _RECORD, sorted(folder.glob("[0-9]" * 5 + "*.png"))
    found = None
    with suppress(FileNotFoundError, ValueError):
        found = from_json(record.read_bytes(), dict).get("key")
    if found == key:
        return
    if own and not record.exists():
        raise SfumatoError(f"{folder} has pictures of another origin; give another place")
    for file in own:
        file.unlink()
    shutil.rmtree(folder / _WORK, ignore_errors=True)
    write_json(record, {"key": key})
