"""How far a work is: told by what works, heard by who asked for it, or else by bars or lines on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from rich.console import Console


@dataclass(frozen=True)
class Progress:
    """What a listener hears: at the beginning, after each step, and at the end."""

    what: str
    done: float
    of: int
    depth: int = 0
    """How many works it is a part of, which are heard as well."""
    preview: Picture | None = None
    """What it looks like so far, where that can be seen."""
    worth: float = 1
    """How many steps of the work around it this one is, with others until that goes on."""
    over: bool = False
    """The last that is heard of it, finished or not."""


Listener = Callable[[Progress], None]
"""It may raise ``Stopped`` to end the work."""


class Stopped(Exception):
    """Whoever listens wants no more of it. What was kept until then is kept."""


@contextmanager
def heard(listener: Listener | None) -> Iterator[None]:
    """Until it is left, work tells ``listener`` how far it is, in place of the bar; None leaves who listens."""
    if listener is None:
        yield
        return
    tokens = _LISTENER.set(listener), _WORKS.set(())
    try:
        yield
    finally:
        _LISTENER.reset(tokens[0])
        _WORKS.reset(tokens[1])


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Around a work of so many steps: yields ``advance(steps=1, what=None)``."""
    outer = _WORKS.get()
    listener = outer[-1].listener if outer else _LISTENER.get() or _stderr()
    work = _Work(listener, what, total, len(outer), worth=outer[-1].each if outer else 1)
    token = _WORKS.set((*outer, work))
    try:
        work.tell()
        yield work.advance
    finally:
        _WORKS.reset(token)
        work.tell(over=True)
        if outer and outer[-1].counts:
            outer[-1].advance(min(1, outer[-1].of - outer[-1].done))


@contextmanager
def counted(what: str, works: int) -> Iterator[None]:
    """Around so many works one after the other: one over them all, which counts those that are over."""
    if works < 2:
        yield
        return
    with progress(what, works):
        _WORKS.get()[-1].counts = True
        yield


@contextmanager
def worth(steps: float) -> Iterator[None]:
    """Around works inside of the innermost that are together so many steps of it, and not one: images of one batch."""
    outer = _WORKS.get()[-1:]
    for work in outer:
        work.each = steps
    try:
        yield
    finally:
        for work in outer:
            work.each = 1


def show(preview: Picture) -> None:
    """Tell what the innermost work looks like so far."""
    for work in _WORKS.get()[-1:]:
        work.tell(preview=preview)


@dataclass
class _Work:
    listener: Listener
    what: str
    of: int
    depth: int
    done: float = 0
    counts: bool = False
    """Is each work inside of it a step of it?"""
    worth: float = 1
    each: float = 1
    """What a work inside of it is worth."""

    def tell(self, **more: Any) -> None:
        self.listener(Progress(self.what, self.done, self.of, self.depth, worth=self.worth, **more))

    def advance(self, steps: float = 1, what: str | None = None) -> None:
        self.done += steps
        self.what = what or self.what
        self.tell()


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_WORKS: ContextVar[tuple[_Work, ...]] = ContextVar("works", default=())


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Around what takes a while and cannot say how far it is: a mark that turns, where stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else nullcontext():
        yield


def _stderr() -> Listener:
    """Bars on a terminal and in a notebook, else lines."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        return Cell()
    return Bar(console) if console.is_terminal else Lines()


class _Works(list[Progress]):
    """What was heard of works inside of each other, the outermost first."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[list[Progress]] = []
        """Of each, the works inside of it that are over since it went on."""

    def hear(self, event: Progress) -> None:
        at, before = event.depth, self[event.depth : event.depth + 1]
        ended = self.ended[at] if before and before[0].done == event.done else []
        self[at:], self.ended[at:] = ([], []) if event.over else ([event], [ended])
        if event.over and at:
            self.ended[at - 1].append(event)

    def parts(self) -> list[float]:
        """What is done of each. As nobody knows how many works come in a step, those until now count alike."""
        out: list[float] = []
        for i, (work, ended) in reversed([*enumerate(zip(self, self.ended, strict=True))]):
            some = [*ended, *self[i + 1 : i + 2]]
            inner = some[-1].worth * (len(ended) + sum(out[:1])) / len(some) if some else 0.0
            out.insert(0, min(1.0, (work.done + inner) / max(1, work.of)))
        return out


class Lines:
    """A line on stderr every ten seconds, of the outermost work and what it is about; none of what is sooner done."""

    every: ClassVar[float] = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.begun = clock, clock()
        self.last, self.works = self.begun, _Works()

    def __call__(self, event: Progress) -> None:
        self.works.hear(event)
        now = self.clock()
        if not self.works or now - self.last < self.every:
            return
        self.last, passed = now, now - self.begun
        at = ", ".join(f"{work.what} {work.done:g} of {work.of:g}" for work in self.works)
        print(f"{at}: {_lasting(self.works, passed)}", file=sys.stderr, flush=True)


def _lasting(works: _Works, passed: float) -> str:
    """How long works have taken, and how much is left of the outermost."""
    part = works.parts()[0]
    left = f", about {lasting(passed / part - passed)} left" if part else ""
    return f"{lasting(passed)} so far{left}"


class Cell:
    """In a notebook: a bar for each work under the cell, gone when it is over. It needs no widgets."""

    every: ClassVar[float] = 0.2

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.begun = clock, clock()
        self.last, self.works, self.handle = -math.inf, _Works(), None

    def __call__(self, event: Progress) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]  # every kernel has it

        self.works.hear(event)
        now = self.clock()
        if self.works and now - self.last < self.every:
            return
        self.last = now
        if self.handle is None:
            self.handle: Any = display(self, display_id=True)
        else:
            self.handle.update(self)

    def __repr__(self) -> str:
        return ", ".join(f"{work.what} {work.done:g} of {work.of:g}" for work in self.works)

    def _repr_html_(self) -> str:
        """What the cell shows: a line a work, the first with what is left."""
        words = [f"{escape(w.what)} {w.done:g} of {w.of:g}" for w in self.works]
        if words:
            words[0] += f", {_lasting(self.works, self.clock() - self.begun)}"
        rows = zip(self.works.parts(), words, strict=True)
        return "".join(f'<div><progress value="{part:.3f}"></progress> {text}</div>' for part, text in rows)


class Bar:
    """A line for each work on a terminal, gone when it is over."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.lines = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.tasks, self.works = list[Any](), _Works()

    def __call__(self, event: Progress) -> None:
        self.works.hear(event)
        if event.over:
            self.lines.remove_task(self.tasks.pop())
        elif event.depth == len(self.tasks):
            self.lines.start()
            self.tasks.append(self.lines.add_task(event.what, total=event.of))
        for task, work, part in zip(self.tasks, self.works, self.works.parts(), strict=True):
            self.lines.update(task, completed=part * work.of, description=work.what)
        if not self.tasks:
            self.lines.stop()


def lasting(seconds: float) -> str:
    """A time as a person says it: ``"45 s"``, ``"3.5 min"``, ``"40 min"``, ``"2.0 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 600 else 0}f} min"
    return f"{seconds / 3600:.1f} h"
