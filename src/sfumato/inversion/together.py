"""Several images in one run: each stream, or group of streams, follows an inverted path of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.core.conditions import Cond
from sfumato.core.method import Phases, Run, Step
from sfumato.errors import SfumatoError
from sfumato.inversion.path import Path


def together(paths: Mapping[str | tuple[str, ...], Path]) -> Together:
    """Where a run starts whose streams are of different images.

    ``together({("source", "target"): path, "appearance": other})``: source and target follow ``path`` as if they were
    alone, the first of them held to its image; so does the appearance its own. The run's prompts name the streams in
    this order. Raises ``SfumatoError`` for paths of different levels, steppers, sizes or numbers of images.
    """
    parts = tuple(((key,) if isinstance(key, str) else key, path) for key, path in paths.items())
    if not parts:
        raise SfumatoError("together joins paths of images, got none")
    first = parts[0][1]
    for _, path in parts[1:]:
        shapes = [tuple(p.latents.shape) for p in (first, path)]
        if shapes[0] != shapes[1]:
            raise SfumatoError(f"paths go together when their latents have one shape, got {shapes[0]} and {shapes[1]}")
        if path.levels != first.levels or path.stepper != first.stepper:
            raise SfumatoError(
                "these paths do not go together, their levels differ; invert both images in the same way"
            )

    def gathered(of: Callable[[Path], Tensor]) -> Tensor:
        return torch.cat([of(path).repeat(len(streams), 1, 1, 1) for streams, path in parts])

    return Together(
        gathered(lambda path: path.latents),
        first.levels,
        tuple(p for streams, path in parts for _ in streams for p in path.prompts),
        gathered(lambda path: path.image),
        first.stepper,
        parts=parts,
    )


@dataclass(frozen=True, eq=False)
class Together(Path):
    """The paths of a run's streams; see ``together``."""

    parts: tuple[tuple[tuple[str, ...], Path], ...] = ()

    def start(self, run: Run) -> Phases:
        names = tuple(name for streams, _ in self.parts for name in streams)
        if run.rows.streams != names:
            raise SfumatoError(
                f"this start is of the streams {', '.join(names)}, in this order; the run has "
                f"{', '.join(run.rows.streams)}"
            )
        parts = [_Part(run, streams, path) for streams, path in self.parts]
        noisy = [p for p in parts if p.phases.noise]
        if noisy and len(noisy) < len(parts):
            raise SfumatoError("of these paths some bring the noise of their steps and some do not; invert all alike")

        def each(phase: str, field: str) -> Callable[[Step], None] | None:
            if not any(getattr(p.phases, phase) for p in parts):
                return None

            def run_all(step: Step) -> None:
                setattr(step, field, torch.cat([p.does(phase, field, step) for p in parts]))

            return run_all

        def cond(step: Step, now: Cond) -> Cond:
            conditions = {}
            for p in parts:
                conditions.update(p.conditions(step, now))
            return Cond.cat([conditions[name] for name in run.rows.names])

        def noise(step: Step) -> Tensor | None:
            drawn = [z for p in noisy if p.phases.noise and (z := p.phases.noise(p.sees(step))) is not None]
            return torch.cat(drawn) if drawn else None

        return Phases(
            cond=cond if any(p.phases.cond for p in parts) else None,
            before=each("before", "x"),
            denoised=each("denoised", "x0"),
            noise=noise if noisy else None,
            after=each("after", "x_next"),
        )


class _Part:
    """Streams of a run, and what their path does, which sees them alone."""

    def __init__(self, run: Run, streams: tuple[str, ...], path: Path):
        self.whole = run
        rows = replace(run.rows, streams=streams)
        self.run = replace(run, prompts={s: run.prompts[s] for s in streams}, rows=rows)
        self.phases = path.start(self.run)
        if self.phases.edits or self.phases.needs or self.phases.looks or self.phases.energy:
            raise SfumatoError(f"{type(path).__name__} writes or reads the network's maps, so it starts alone")
        self.images = slice(run.images(streams[0]).start, run.images(streams[-1]).stop)

    def sees(self, step: Step) -> Step:
        """The step of these streams alone."""
        at = self.images
        cond = Cond.cat([step.cond[self.whole.rows[name]] for name in self.run.rows.names])
        known = {name: getattr(step, name)[at] for name in ("x", "x0", "eps", "x_next")}
        return replace(step, run=self.run, cond=cond, parts={}, maps={}, **known)

    def does(self, phase: str, field: str, step: Step) -> Tensor:
        seen, do = self.sees(step), getattr(self.phases, phase)
        if do:
            do(seen)
        return getattr(seen, field)

    def conditions(self, step: Step, now: Cond) -> dict[tuple[str, str], Cond]:
        """What the path makes of the conditions of its rows."""
        seen = Cond.cat([now[self.whole.rows[name]] for name in self.run.rows.names])
        if self.phases.cond:
            seen = self.phases.cond(self.sees(step), seen)
        return {name: seen[self.run.rows[name]] for name in self.run.rows.names}
