"""The one loop: from noise, or from an inverted image, to images, with methods taking part in each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypedDict, overload

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core import plan as plans
from sfumato.core.backbone import Backbone, check_model
from sfumato.core.brief import brief
from sfumato.core.conditions import Cond
from sfumato.core.fusing import Canvas, Together, seeing
from sfumato.core.gradients import gradients
from sfumato.core.groups import Group
from sfumato.core.guidance import CFG, Guide, Scales, guided
from sfumato.core.hints import hinting
from sfumato.core.marks import Mark
from sfumato.core.method import Energy, Maps, Method, Need, Phases, Run, Start, Step, joined, span
from sfumato.core.modes import unmoded
from sfumato.core.noise import Noises, seeds_of
from sfumato.core.plan import Plan
from sfumato.core.results import Sample, Trajectory
from sfumato.core.rows import Name, Rows, streams_of
from sfumato.core.schedule import Level, Levels, noise_in, noised
from sfumato.core.settings import Whole
from sfumato.core.sites import Grid
from sfumato.core.steppers import DDIM, DDPM, Move, Stepper, limiting
from sfumato.core.suited import suited
from sfumato.core.tapping import tapping
from sfumato.core.views import Views
from sfumato.errors import SfumatoError, finite, integer, shown
from sfumato.io.progress import progress
from sfumato.io.terminal import note

if TYPE_CHECKING:
    from typing_extensions import Unpack

Streams = Mapping[str, str | Sequence[str]]
Prompts = str | Sequence[str] | Streams
_Prepared = tuple[Run, dict[str, Phases], Plan, Cond]
_PLAINLY = "take DDIM (--stepper ddim)"


class Options(TypedDict, total=False):
    """What ``denoise`` takes by name."""

    methods: Sequence[Method]
    guide: Guide | Scales | None
    steps: int | None
    seed: int | Sequence[int]
    size: int | tuple[int, int] | None
    noises: Noises | None
    start: Start | Float[Tensor, "b c h w"] | None
    levels: Levels | None
    stepper: Stepper | None
    views: Views | None
    frames: int
    controls: Sequence[Any]
    memory: int | None
    trajectory: Trajectory | None
    callback: Callable[[Step], None] | None
    group: int | None
    mark: Mark | None


@overload
def denoise(model: Backbone, prompts: str, **options: Unpack[Options]) -> Sample: ...
@overload
def denoise(model: Backbone, prompts: Streams, **options: Unpack[Options]) -> dict[str, Sample]: ...
@overload
def denoise(model: Backbone, prompts: Sequence[str], **options: Unpack[Options]) -> Sample: ...
@overload
def denoise(model: Backbone, prompts: Prompts, **options: Unpack[Options]) -> Any: ...
@hinting()
@unmoded()
def denoise(
    model: Backbone,
    prompts: Prompts,
    *,
    methods: Sequence[Method] = (),
    guide: Guide | Scales | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    size: int | tuple[int, int] | None = None,
    noises: Noises | None = None,
    start: Start | Float[Tensor, "b c h w"] | None = None,
    levels: Levels | None = None,
    stepper: Stepper | None = None,
    views: Views | None = None,
    frames: int = 1,
    controls: Sequence[Callable[..., Any]] = (),
    memory: Whole | None = None,
    trajectory: Trajectory | None = None,
    callback: Callable[[Step], None] | None = None,
    group: int | None = None,
    mark: Mark | None = None,
) -> Any:
    """Images for prompts: a ``Sample``, or one a stream when ``prompts`` is a mapping.

    ``prompts`` of a stream may be several: a batch. ``seed`` is one for all streams (so that they start from the same
    noise; image i from seed + i) or one an image; ``noises`` says how that of several images goes together
    (``sfumato.methods.sets.noise``), of each its own unless the model says otherwise. ``start`` is an inversion's path
    or latents at the first level. ``guide`` is a guidance, or a scale, or one a stream, for the way in which the model
    is guided (``guided``), of 7.5 unless it was distilled to another; ``stepper`` the path's, or the checkpoint's
    scheduler's (``suited``). With ``views`` the image is a canvas of ``size``, which the network sees in windows of the
    model's own size, or as views say. With ``frames`` each prompt is a clip of so many images one after the other,
    which have one seed, of a model that attends over time. With ``group`` no more images of a stream than that go
    through the network at once, with the same result: what is read of others is kept, and the rest waits on the CPU.
    ``mark`` keeps where the run is after each step, and is where it goes on (``core.marks``). ``steps`` (50 unless the
    path says) and ``levels`` exclude each other.
    Ctrl-C and errors leave the model as it was. Raises ``SfumatoError`` for what cannot be run, before the first step,
    and after one that leads to what is not finite.
    """
    check_model(model)
    check_methods(methods)
    model = _of_methods(model, methods)
    asked = {"seed": seed, "methods": tuple(methods), "start": start}
    model = model if noises is None else model.with_noises(noises)
    streams = _in_frames(model, _streams(prompts), frames, methods, views)
    names, each = tuple(streams), len(next(iter(streams.values())))
    guide = guided(model, guide, streams=names)
    height, width = _sides(model, size)
    first = None
    if isinstance(start, Start) and start.undoes and frames > 1:
        raise SfumatoError("inversions take frames one by one, so their steps are not a clip's; start from its latents")
    if isinstance(start, Start):
        levels = start.levels if levels is None else levels
        stepper = stepper or (start.stepper if start.undoes else None)
        methods, first = (start, *methods), start.latents
    else:
        first = start
    _check_start(model, first, size)
    if levels is not None and steps is not None and len(levels) != steps:
        raise SfumatoError(f"the start has {len(levels)} steps, so it cannot be run with {steps}")
    seeds = seeds_of(seed, each // frames)
    noise = model.latents(seeds, height, width, frames) if first is None else first.to(model.device)
    grid = (noise.shape[-2], noise.shape[-1])
    if levels is None:
        levels = model.levels(50 if steps is None else steps, grid)
    x = _spread(noise if first is not None else levels.spread * noise, len(names), each)

    with torch.no_grad():
        seen = _canvas(model, views, grid, methods, each)
        methods = _ready(model, streams, methods)
        group = _grouped(group, each, methods, seen, frames)
        options = {"grid": grid, "memory": memory, "seen": seen, "frames": frames, "group": group}
        ready = partial(_prepared, model, streams, methods, guide, **options)
        stepper, levels, found, why = _visiting(model, stepper, levels, ready)
        run, phases, plan, cond = found
        x = x if group is None else x.cpu()
        if why:
            note(f"{why}, so steps are DDIM's and not those of the model's {model.schedule.kind}")
        path = start if isinstance(start, Start) and start.undoes else None
        if path is not None and len(path.levels) != len(levels):
            who = type(stepper).__name__
            raise SfumatoError(f"{who} asks the network at more levels than the path has; {_PLAINLY}")
        guide = run.guide or guide
        if controls:
            cond = replace(cond, controls=tuple(controls))
        finite(x, "the latents that the run starts from", model.remedy)
        parts, noise = tuple(phases.values()), _noise(model, x, seeds, frames)
        watched = trajectory is not None or callback is not None
        unread = () if cond.controls else unread_rows(plan, methods, parts, stepper, watched)
        if seen is not None:
            x, noise = seen.entered(x), seen.drawing(noise)
        if mark is not None:
            noise = mark.counting(noise)
        first, more = x, [x]
        for passed in count():
            with progress("painting", len(levels)) as advance:

                def watch(step: Step) -> None:
                    if trajectory is not None:
                        trajectory.note(step)
                    if callback is not None:
                        callback(step)
                    advance()

                at = mark if mark is not None and _marked(methods, parts, stepper) else None
                running = _Running(
                    run, plan, parts, guide, levels, stepper, cond, noise, seen, path is None, watch, at, unread
                )
                x = running(more[-1], passed)
            more = [start for p in parts if p.again and (start := p.again(passed, first, x, noise)) is not None]
            if not more:
                break
        x = (x if seen is None else seen.left(x)).float().to(model.device)
    around = views is not None and views.around
    about = {"steps": len(levels), "guidance": guide, **asked}
    about = {
        name: brief(value)
        for name, value in about.items()
        if not (value is None or (isinstance(value, tuple) and not value))
    }
    each_of = zip(names, x.split(each), strict=True)
    out = {name: Sample(model, of, streams[name], frames, around, about) for name, of in each_of}
    return out if isinstance(prompts, Mapping) else out["main"]


@hinting()
@unmoded()
def plan(
    model: Backbone,
    prompts: Prompts,
    *,
    methods: Sequence[Method] = (),
    guide: Guide | Scales | None = None,
    steps: int = 50,
    size: int | tuple[int, int] | None = None,
    stepper: Stepper | None = None,
    views: Views | None = None,
    frames: int = 1,
    memory: int | None = None,
    group: int | None = None,
) -> Plan:
    """What ``denoise`` would do with the same arguments, checked and priced, nothing run."""
    check_model(model)
    check_methods(methods)
    model = _of_methods(model, methods)
    height, width = _sides(model, size)
    grid = (height // model.factor, width // model.factor)
    levels = model.levels(steps, grid)
    streams = _in_frames(model, _streams(prompts), frames, methods, views)
    seen = _canvas(model, views, grid, methods, len(next(iter(streams.values()))))
    guide, methods = guided(model, guide, streams=streams), _ready(model, streams, methods)
    group = _grouped(group, len(next(iter(streams.values()))), methods, seen, frames)
    options = {"grid": grid, "memory": memory, "seen": seen, "frames": frames, "group": group}
    ready = partial(_prepared, model, streams, methods, guide, **options)
    return _visiting(model, stepper, levels, ready)[2][2]


def check_methods(methods: Any) -> None:
    """Refuse what is no list of methods, such as their words or classes."""
    if not isinstance(methods, Sequence) or not all(isinstance(method, Method) for method in methods):
        raise SfumatoError(
            f"methods are a list of them as they are set, such as [PromptToPrompt()], got {shown(methods)}"
        )


def _of_methods(model: Backbone, methods: Sequence[Method]) -> Backbone:
    """The model as the methods have it. Raises ``SfumatoError`` for two that paint by networks of their own."""
    own = [type(method).__name__ for method in methods if type(method).own_model is not Method.own_model]
    if len(own) > 1:
        raise SfumatoError(f"{own[0]} and {own[1]} each paint by a network of their own; give one of them")
    for method in methods:
        model = method.own_model(model)
    return model


def _canvas(model: Backbone, views: Views | None, grid: Grid, methods: Sequence[Method], images: int) -> Canvas | None:
    """How so many images of a stream are seen, as the methods have it; None: as they are."""
    if views is None:
        views = next((own for method in methods if (own := method.alone()) is not None), None)
    if views is None:
        return None
    for method in sorted(methods, key=lambda method: method.late):
        views = method.seeing(views)
    return seeing(model, views, grid, images)


def _grouped(group: int | None, images: int, methods: Sequence[Method], seen: Canvas | None, frames: int) -> int | None:
    """How many images of a stream go through the network at once; None: all."""
    if group is None or images <= (group := integer("a group of images", group)):
        return None
    if group < 1:
        raise SfumatoError(f"a group is of one image or more, got {group}")
    if seen is not None or frames > 1:
        whole = "a canvas and its views" if seen is not None else "the frames of a clip"
        raise SfumatoError(f"{whole} go through the network at once; leave the group out")
    if other := next((type(method).__name__ for method in methods if not method.in_groups), None):
        raise SfumatoError(f"{other} takes all images of a run at once; leave the group out")
    return group


def _marked(methods: Sequence[Method], phases: Sequence[Phases], stepper: Stepper) -> bool:
    """Is all that a run hands on from step to step known?"""
    return not stepper.remembers and all(m.in_groups for m in methods) and not any(p.again for p in phases)


def _ready(model: Backbone, streams: Mapping[str, tuple[str, ...]], methods: Sequence[Method]) -> list[Method]:
    """Methods that know what they find out before a run."""
    for method in methods:
        method.requires.check_model(model, type(method).__name__)
    for source, target in dict.fromkeys(zip(streams.get("source", ()), streams.get("target", ()), strict=False)):
        model.check_change(source, target)
    return [method.prepare(model, streams) for method in methods]


def _visiting(
    model: Backbone, stepper: Stepper | None, levels: Levels, prepared: Callable[[Levels], _Prepared]
) -> tuple[Stepper, Levels, _Prepared, str | None]:
    """A stepper, the levels that it visits, and the run through them. Without one it is the checkpoint's, or DDIM where
    that one cannot, and why.
    """
    chosen = stepper or suited(model.schedule)
    visits = chosen.visits(levels, model.schedule)
    found = prepared(visits)
    why = None
    if chosen.remembers and any(p.energy and p.energy.repeats > 1 for p in found[1].values()):
        why = f"{type(chosen).__name__} remembers the last step and cannot repeat one"
    elif _varied(chosen, model) and not found[0].rows.whole:
        why = f"the variance that {model.name} learned is of whole images, not of windows"
    if why is None:
        return chosen, visits, found, None
    if stepper is not None:
        raise SfumatoError(f"{why}; {_PLAINLY}")
    return DDIM(), levels, prepared(levels), why


def _prepared(
    model: Backbone,
    streams: Mapping[str, tuple[str, ...]],
    methods: Sequence[Method],
    guide: Guide,
    levels: Levels,
    grid: Grid,
    memory: int | None,
    seen: Canvas | None = None,
    frames: int = 1,
    group: int | None = None,
) -> _Prepared:
    """A run with its methods started and its plan checked, and what the network will read."""
    for method in methods:
        guide = method.around(guide)
    prompts = [p for some in streams.values() for p in some]
    own = None if seen is None else seen.prompts(prompts)
    alike = group is not None and _alike(model, guide, streams)
    conds = guide.embed(model, [some[0] for some in streams.values()] if alike else own or prompts)
    cond = replace(Cond.cat(list(conds.values())), frames=frames)
    rows = Rows(tuple(streams), tuple(conds), len(next(iter(streams.values()))), frames=frames)
    views, canvas = (None, None) if seen is None else (seen.given, seen.grid)
    if seen is not None:
        cond, rows, grid = cond if own else cond.repeat(seen.count), seen.rows(rows), seen.window
        cond = replace(cond, views=1 if isinstance(seen, Together) else seen.count)
        if seen.apart:
            each = own or [p for p in prompts for _ in range(seen.count)]
            streams = {n: tuple(each[i * rows.each : (i + 1) * rows.each]) for i, n in enumerate(streams)}
    run = Run(model, streams, rows, len(levels), grid, guide, levels, views, canvas, group, own is not None)
    phases = _start(methods, run)
    if alike and any(p.cond for p in phases.values()):
        cond = cond.repeat(rows.of_stream)
    return run, phases, plans.plan(run, phases, lambda: _start(methods, run), memory), cond


def _alike(model: Backbone, guide: Guide, streams: Mapping[str, tuple[str, ...]]) -> bool:
    """Do all images of each stream read the same? Then it is made once; a model that was ``given`` something has it an
    image."""
    return type(guide) is CFG and "embed" not in vars(model) and all(len(set(some)) == 1 for some in streams.values())


@dataclass(frozen=True)
class _Running:
    """What the steps of a run share, and the steps."""

    run: Run
    plan: Plan
    phases: tuple[Phases, ...]
    guide: Guide
    levels: Levels
    stepper: Stepper
    cond: Cond
    draw: Callable[[], Tensor]
    seen: Canvas | None
    limited: bool
    """Is what a step takes for data limited as the scheduler says? Not along a path that undoes an inversion's steps:
    what a limit takes away cannot be found again."""
    watch: Callable[[Step], None]
    mark: Mark | None = None
    unread: Sequence[frozenset[Name]] = ()
    """Of each step the rows that are not predicted; none of any. What guidance takes for them is what their stream has
    under its prompt, or nothing."""

    def __call__(self, x: Tensor, passed: int = 0) -> Tensor:
        move = self.stepper.start(self.run.model.schedule, len(self.levels))
        if self.limited:
            move = limiting(move, self.run.model.schedule)
        first = 0
        if self.mark is not None:
            first, x = self.mark.opened(x, [p.state for p in self.phases], self.draw)
        with tapping(self.run.model, self.plan) as begin:
            for i in range(first, len(self.levels)):
                step = Step(
                    i, self.levels[i], self.levels[i + 1], x, self.run, self.cond, passed=passed, draw=self.draw
                )
                if self.seen is not None:
                    self.seen.turn(i)
                    if not self.seen.apart:
                        step.split, step.merge = self.seen.split, self.seen.merge
                for p in self.phases:
                    if p.cond:
                        step.cond = p.cond(step, step.cond)
                for p in self.phases:
                    if p.before:
                        p.before(step)
                energies = [p.energy for p in self.phases if p.energy and _acts(p.energy, step)]
                for again in range(max((e.repeats for e in energies), default=1)):
                    if again:
                        step.x = noised(step.x_next, step.next, step.level, self.draw())
                    step.x_next = self._moved(step, self._predict(step, begin, move, energies))
                for p in self.phases:
                    if p.after:
                        p.after(step)
                self._check(step)
                if self.mark is not None:
                    self.mark.write(i + 1, step.x_next, [p.state for p in self.phases])
                self.watch(step)
                x = step.x_next
        return x

    def _predict(self, step: Step, begin: Callable[[Step], Any], move: Move, energies: Sequence[Energy]) -> Move:
        """From ``step.x`` to ``step.x0`` and ``step.eps``; gives what moves the step."""
        with torch.set_grad_enabled(any(e.through_network for e in energies)):
            if energies:
                step.x = step.x.detach().requires_grad_()
            shown = step.split(step.x) if step.offset is None else step.split(step.x) + step.offset
            predicted, variance = (
                self._by_turns(shown, step, begin) if self.run.group else self._whole(shown, step, begin)
            )
            conditions = step.run.rows.conditions
            if variance is not None:  # the prompt's own
                step.variance = variance.chunk(len(conditions))[conditions.index("cond")].detach()
            step.parts = dict(zip(step.run.rows.conditions, predicted.split(len(shown)), strict=True))
            prediction = self.guide.combine(step.parts, step.run.rows)
            step.x0, step.eps = x0, eps = self.run.model.schedule.x0_and_eps(prediction, shown, step.level)
            if self.seen is not None:
                move = self.seen.fuse(move, step, shown, x0, eps)
        if energies:
            _descend(step, energies)
        for p in self.phases:
            if p.denoised:
                before = step.x0
                p.denoised(step)
                if step.x0 is not before:
                    step.eps = noise_in(step.x, step.x0, step.level)
        return move

    def _whole(self, shown: Tensor, step: Step, begin: Callable[..., Any]) -> tuple[Tensor, Tensor | None]:
        """The prediction of all rows at once."""
        rows = step.run.rows
        n = len(rows.conditions)
        batch = shown.repeat(n, *[1] * (shown.ndim - 1)) if n > 1 else shown
        if not self.unread or not self.unread[step.i]:
            with begin(step):
                return self._predicted(batch, step.level, step.cond)
        here = replace(rows, without=self.unread[step.i])
        some = [i for name in here.names for i in range(len(rows))[rows[name]]]
        with begin(step, here):
            found, _ = self._predicted(batch[some], step.level, step.cond.of(some, rows.numbers))
        known = {name: found[here[name]] for name in here.names}
        none = torch.zeros_like(found[: here.each])
        return torch.cat([known.get(name, known.get((name[0], "cond"), none)) for name in rows.names]), None

    def _by_turns(self, shown: Tensor, step: Step, begin: Callable[..., Any]) -> tuple[Tensor, Tensor | None]:
        """The same of some images at a time; what is read of others waits in between."""
        run, kept, maps = self.run, {}, list[tuple[tuple[int, ...], dict[Need, Maps]]]()
        out: dict[int, Tensor] = {}
        for turn in self.plan.turns(step.i):
            step.maps = {}
            group = Group(turn.images, turn.later, kept)
            places = run.rows.places(turn.images)
            batch, cond = shown[places % len(shown)].to(run.model.device), run.some(turn.images, step.cond)
            with begin(step, replace(run.rows, of_stream=len(turn.images), group=group)):
                predicted = self._predicted(batch, step.level, cond)
            group.over()
            for n, part in enumerate(predicted):
                if part is not None:
                    if n not in out:
                        out[n] = part.new_empty(len(run.rows), *part.shape[1:], device="cpu")
                    out[n][places] = part.cpu()
            maps.append((turn.images, {need: found for need, found in step.maps.items() if not need.passes}))
        step.maps = joined(maps)
        return out[0], out.get(1)

    def _predicted(self, batch: Tensor, level: Level, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The network's prediction, its word on the variance put aside."""
        model = self.run.model
        if not _varied(self.stepper, model):
            return model.predict(batch, level.t, cond), None
        whole = model.with_variance(batch, level.t, cond)
        predicted, variance = whole[:, : model.channels], whole[:, model.channels :]
        if variance.shape != predicted.shape:
            raise SfumatoError(
                f"{model.schedule.kind} has variance_type {model.schedule.config['variance_type']!r}, and the network "
                f"of {model.name} says nothing of it; {_PLAINLY}"
            )
        return predicted, variance

    def _check(self, step: Step) -> None:
        """Raise ``SfumatoError`` where the step led to what is not finite: what of it was the first, and who did it."""
        if step.x_next.isfinite().all():
            return
        found: dict[str, tuple[Iterable[Tensor], tuple[str, ...]]] = {
            "the latents before it": ([step.x], ("before",)),
            "the network's prediction": (step.parts.values(), ("edits", "cond")),
            "the guided prediction": ([step.x0, step.eps], ("energy", "denoised")),
            "the latents after it": ([step.x_next], ("after", "noise")),
        }
        what, moments = next((what, by) for what, (xs, by) in found.items() if not all(x.isfinite().all() for x in xs))
        names = zip(self.plan.calls, self.phases, strict=True)
        who = ", ".join(name for name, p in names if any(getattr(p, moment) for moment in moments))
        streams = step.run.rows.streams
        lost = [s for s, x in zip(streams, step.x_next.chunk(len(streams)), strict=True) if not x.isfinite().all()]
        of = f" of {', '.join(lost)}" if len(streams) > 1 else ""
        by = f", with {who}" if who else ""
        raise SfumatoError(
            f"step {step.i + 1} of {step.run.steps}: {what}{of} became not finite{by}; {step.run.model.remedy()}"
        )

    def _moved(self, step: Step, move: Move) -> Tensor:
        chosen = next((z for p in self.phases if p.noise and (z := p.noise(step)) is not None), None)
        noise = self.draw if chosen is None else lambda: chosen
        if isinstance(self.stepper, DDPM) and chosen is None:
            strength = self.stepper.strength(self.run.model.schedule, step.level, step.next, step.variance)
            noise = lambda: strength * self.draw()  # noqa: E731
        return move(step.x, step.x0, step.eps, step.level, step.next, noise)


def unread_rows(
    plan: Plan, methods: Sequence[Method], phases: Sequence[Phases], stepper: Stepper, watched: bool = False
) -> tuple[frozenset[Name], ...]:
    """Of each step the first stream's rows that are not read, where it is somewhere after each step whatever guidance
    makes of it: those without its prompt, and all where no method has a part in the step, nor does anyone watch."""
    run = plan.run
    settled = any(isinstance(method, Start) and method.settled for method in methods)
    alone = run.rows.whole and run.group is None and run.rows.frames == 1 and not _varied(stepper, run.model)
    others = [(m, p) for m, p in zip(methods, phases, strict=True) if not isinstance(m, Start)]
    if not settled or not alone or type(run.guide) is not CFG or not all(m.prompted for m, _ in others):
        return ()
    every = frozenset(name for name in run.rows.names if name[0] == run.rows.streams[0])
    unprompted = every - {(run.rows.streams[0], "cond")}
    watched = watched or any(p.moments for _, p in others) or every == {*run.rows.names}
    busy = [watched or any(entry.active(i) for entry in plan.entries) for i in range(run.steps)]
    return tuple(unprompted if some else every for some in busy)


def _varied(stepper: Stepper, model: Backbone) -> bool:
    return isinstance(stepper, DDPM) and model.schedule.learns_variance


def _acts(energy: Energy, step: Step) -> bool:
    first, end = span(energy.steps, step.run.steps)
    return first <= step.i < end


def _descend(step: Step, energies: Sequence[Energy]) -> None:
    """All energies at once: eps gains sigma times the gradient of their sum by x (Bansal et al. 2023, eq. 6).

    Those that leave the network out see x0 as (x - sigma eps) / alpha with eps held.
    """
    _, alpha, sigma = step.level
    with torch.enable_grad():
        total = [e.loss(step) for e in energies if e.through_network]
        held = step.x0 = step.x0.detach().requires_grad_()
        total += [e.loss(step) for e in energies if not e.through_network]
        by_x, by_held = gradients(step.run.model, torch.stack(total).sum(), (step.x, held), materialize_grads=True)
    gradient = by_x + (by_held / alpha if alpha else 0)
    step.x = step.x.detach()
    step.eps = step.eps.detach() + sigma * gradient
    step.x0 = (step.x - sigma * step.eps) / alpha if alpha else held.detach()
    step.parts = {k: v.detach() for k, v in step.parts.items()}
    step.maps = {
        n: {s: {r: m.detach() for r, m in at.items()} for s, at in sites.items()} for n, sites in step.maps.items()
    }


def _streams(prompts: Prompts) -> dict[str, tuple[str, ...]]:
    named = prompts if isinstance(prompts, Mapping) else {"main": prompts}
    streams_of(list(named))
    if not all(isinstance(some, str | Sequence) for some in named.values()):
        raise SfumatoError(f"a prompt is a text, or several for a batch, got {shown(prompts)}")
    out = {name: (some,) if isinstance(some, str) else tuple(some) for name, some in named.items()}
    if wrong := [prompt for some in out.values() for prompt in some if not isinstance(prompt, str)]:
        raise SfumatoError(f"a prompt is a text, got {shown(wrong[0])}")
    if len({len(some) for some in out.values()}) > 1 or not all(out.values()):
        raise SfumatoError(
            f"streams have equally many prompts, got {', '.join(f'{n}: {len(s)}' for n, s in out.items())}"
        )
    return out


def _in_frames(
    model: Backbone,
    streams: dict[str, tuple[str, ...]],
    frames: int,
    methods: Sequence[Method],
    views: Views | None,
) -> dict[str, tuple[str, ...]]:
    """Prompts an image, where each was one of a clip. ``SfumatoError`` for clips that the model or a canvas has not."""
    model.check_frames(frames, any(method.lengthens for method in methods))
    if frames > 1 and views is not None:
        raise SfumatoError(f"a canvas of views is one image, not a clip of {frames} frames; leave views or frames out")
    return {name: tuple(p for p in some for _ in range(frames)) for name, some in streams.items()}


def _sides(model: Backbone, size: Any) -> tuple[int, int]:
    """Height and width in pixels of what is asked for: a side or both, or the model's own."""
    both = (
        (model.size,) * 2
        if size is None
        else tuple(size)
        if isinstance(size, Sequence) and not isinstance(size, str)
        else (size,) * 2
    )
    if len(both) != 2:
        raise SfumatoError(f"a size is a side in pixels or (height, width), got {shown(size)}")
    return integer("a side in pixels", both[0]), integer("a side in pixels", both[1])


def _check_start(model: Backbone, first: Any, size: Any) -> None:
    """Refuse latents to start from that are none of the model's, or of another size than is asked for."""
    if first is None:
        return
    if not isinstance(first, Tensor) or first.ndim != 4 or first.shape[1] != model.channels:
        got = tuple(first.shape) if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise SfumatoError(f"a run starts from latents (b, {model.channels}, h, w) or an inversion's path, got {got}")
    height, width = (n * model.factor for n in first.shape[-2:])
    model.check_size(height, width)
    if size is not None and _sides(model, size) != (height, width):
        asked = " x ".join(map(str, _sides(model, size)))
        raise SfumatoError(f"the start is of {height} x {width} pixels, so it cannot be painted at {asked}")


def _spread(x: Tensor, streams: int, each: int) -> Tensor:
    """Starts for all streams: one image's for all, one stream's for each, or all."""
    if len(x) == streams * each:
        return x
    if len(x) in (1, each):
        return x.expand(each, -1, -1, -1).repeat(streams, 1, 1, 1)
    raise SfumatoError(f"{streams} streams of {each} images cannot start from {len(x)} latents")


def _noise(model: Backbone, x: Tensor, seeds: Sequence[int], frames: int = 1) -> Callable[[], Tensor]:
    """Unit noise of stochastic steps, the same in all streams, from generators that are not the start's."""
    draw = model.noises.clips([seed + 0x5F0 for seed in seeds], x.shape[1:], frames)
    return lambda: draw().to(x).repeat(len(x) // (len(seeds) * frames), 1, 1, 1)


def _start(methods: Sequence[Method], run: Run) -> dict[str, Phases]:
    out: dict[str, Phases] = {}
    for method in methods:
        name = type(method).__name__
        method.requires.check(run, name)
        out[name if name not in out else f"{name} ({len(out) + 1})"] = method.start(run)
    return out
