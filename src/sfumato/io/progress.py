"""How far a work is: told by what works, heard by who asked for it, or else by a bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


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
    work = _Work(outer[-1].listener if outer else _LISTENER.get() or Bar(), what, total, len(outer))
    token = _WORKS.set((*outer, work))
    try:
        work.tell()
        yield work.advance
    finally:
        _WORKS.reset(token)
        work.tell(over=True)


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

    def tell(self, **more: Any) -> None:
        self.listener(Progress(self.what, self.done, self.of, self.depth, **more))

    def advance(self, steps: float = 1, what: str | None = None) -> None:
        self.done += steps
        self.what = what or self.what
        self.tell()


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_WORKS: ContextVar[tuple[_Work, ...]] = ContextVar("works", default=())


class Bar:
    """A line for each work on stderr, gone when it is over. Silent where stderr is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self.lines = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.tasks: list[Any] = []

    def __call__(self, event: Progress) -> None:
        if event.depth == len(self.tasks):
            self.lines.start()
            self.tasks.append(self.lines.add_task(event.what, total=event.of))
        self.lines.update(self.tasks[event.depth], completed=event.done, description=event.what)
        if event.over:
            self.lines.remove_task(self.tasks.pop())
        if not self.tasks:
            self.lines.stop()


def lasting(seconds: float) -> str:
    """A time as a person says it: ``"45 s"``, ``"3.5 min"``, ``"40 min"``, ``"2.0 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 600 else 0}f} min"
    return f"{seconds / 3600:.1f} h"
