"""How far a work is: whoever asked hears all of it and may end it; else there is a bar."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from PIL import Image
from rich.console import Console

from sfumato.io.progress import Bar, Cell, Lines, Progress, Stopped, counted, heard, lasting, progress, show, worth


def test_a_listener_hears_a_work_and_the_works_inside_it():
    events = []
    with heard(events.append), progress("whole", 2) as advance:
        with progress("part", 1) as inner:
            inner()
            show(Image.new("RGB", (1, 1)))
        advance(2, "nearly")
    assert [(e.what, e.done, e.of, e.depth, e.over) for e in events] == [
        ("whole", 0, 2, 0, False),
        ("part", 0, 1, 1, False),
        ("part", 1, 1, 1, False),
        ("part", 1, 1, 1, False),
        ("part", 1, 1, 1, True),
        ("nearly", 2, 2, 0, False),
        ("nearly", 2, 2, 0, True),
    ]
    assert [e.preview is not None for e in events].index(True) == 3


def test_the_nearest_listener_is_the_one_that_hears_and_only_as_long_as_it_lasts():
    outer, inner = [], []
    with heard(outer.append), progress("whole", 1) as advance:
        with heard(inner.append), progress("part", 1):
            pass
        with heard(None), progress("other", 1):
            pass
        advance()
    assert {(e.what, e.depth) for e in inner} == {("part", 0)}
    assert {(e.what, e.depth) for e in outer} == {("whole", 0), ("other", 1)}


def test_a_listener_ends_the_work_between_two_of_its_steps():
    done = []

    def listen(event: Progress) -> None:
        if event.done >= 2:
            raise Stopped

    with pytest.raises(Stopped), heard(listen), progress("work", 9) as advance:
        for i in range(9):
            done.append(i)
            advance()
    assert done == [0, 1]
    heard_now = []
    with heard(heard_now.append), progress("work", 1):
        pass
    assert heard_now[0].depth == 0, "what was cut off is no longer around"


def test_the_bar_has_a_line_for_each_work_and_none_when_all_are_over():
    bar, lines = Bar(Console(stderr=True)), []
    with pytest.raises(ZeroDivisionError), heard(bar), progress("whole", 2) as advance:
        advance()
        with progress("part", 4) as inner:
            inner(3, "painting")
            lines = [(t.description, t.completed, t.total) for t in bar.lines.tasks]
            raise ZeroDivisionError
    assert lines == [("whole", 1.75, 2), ("painting", 3, 4)]
    assert not bar.lines.tasks


def test_works_one_after_the_other_are_counted_by_one_over_them_all():
    events = []
    with heard(events.append), counted("both", 2):
        for name in ("one", "two", "one more than was said"):
            with progress(name, 3) as advance:
                advance(3)
        with counted("alone", 1), progress("inner", 1):
            pass
    assert [(e.done, e.of, e.over) for e in events if e.what == "both"] == [
        (0, 2, False),
        (1, 2, False),
        (2, 2, False),
        (2, 2, False),
        (2, 2, False),
        (2, 2, True),
    ]
    assert "alone" not in {e.what for e in events}


def test_a_notebook_shows_bars_under_the_cell(monkeypatch):
    """By what every kernel has: IPython's display, whose handle takes what is shown anew."""
    shown, ended = [], []

    class Handle:
        def update(self, value: object) -> None:
            shown.append(value._repr_html_())  # pyright: ignore[reportAttributeAccessIssue]
            ended.append(repr(value))

    class ZMQInteractiveShell: ...

    def display(value: object, display_id: bool) -> Handle:
        assert display_id and not shown
        Handle().update(value)
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", place := ModuleType("IPython.display"))
    place.display = display  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)  # how a kernel is known
    monkeypatch.setattr(Cell, "every", 0.0)
    with progress("images of <b>", 2) as advance, progress("painting", 4) as inner:
        inner(2)
        advance()
    assert shown[2].startswith('<div><progress value="0.250"></progress> images of &lt;b&gt; 0 of 2, 0 s so far, about')
    assert shown[2].endswith('</div><div><progress value="0.500"></progress> painting 2 of 4</div>')
    assert (shown[-1], ended[2], ended[-1]) == ("", "images of <b> 0 of 2, painting 2 of 4", "")


def test_a_notebook_is_not_drawn_more_often_than_it_can_be_read(monkeypatch):
    drawn, times = [], iter((0.0, 0.0, 0.1, 0.1, 0.2, 0.25, 0.3, 0.35))
    cell = Cell(lambda: next(times))
    cell.handle = type("Handle", (), {"update": lambda self, value: drawn.append(repr(value))})()
    monkeypatch.setitem(sys.modules, "IPython.display", ModuleType("IPython.display"))
    sys.modules["IPython.display"].display = None  # pyright: ignore[reportAttributeAccessIssue]
    with heard(cell), progress("work", 9) as advance:
        for _ in range(5):
            advance()
    assert drawn == ["work 0 of 9", "work 3 of 9", ""]


def test_without_a_terminal_a_line_tells_every_ten_seconds(capsys, monkeypatch):
    times = iter((0.0, 0.0, 1.0, 9.9, 10.0, 12.0, 30.0, 40.0, 41.0, 60.0))
    monkeypatch.setattr(Lines, "every", 10.0)
    with heard(Lines(lambda: next(times))), progress("images", 4) as advance:  # 0
        advance()  # 1
        with progress("painting", 10) as inner:  # 9.9
            inner(5)  # 10: 1.5 of 4
            inner()  # 12
            inner(2)  # 30: 1.8 of 4
        advance()  # over at 40, 2 of 4 at 41
    assert capsys.readouterr().err.splitlines() == [
        "images 1 of 4, painting 5 of 10: 10 s so far, about 17 s left",
        "images 1 of 4, painting 8 of 10: 30 s so far, about 37 s left",
        "images 1 of 4: 40 s so far, about 40 s left",
    ]


def test_what_is_left_knows_of_works_of_several_steps_and_of_several_works_a_step(capsys, monkeypatch):
    """A batch of four images is four steps; an edit is an inversion, and then a painting."""
    monkeypatch.setattr(Lines, "every", 0.0)
    clock = iter(range(0, 900, 10))
    with heard(Lines(lambda: next(clock))), progress("images", 8) as advance:
        with worth(4), progress("painting", 2) as inner:
            inner()
        advance(4)
        with progress("inverting", 2) as inner:
            inner()
        with progress("painting", 2) as inner:
            inner()
        advance()
    lines = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "10 s so far",
        "20 s so far",
        "30 s so far, about 1.5 min left",  # 2 of 8
        "40 s so far, about 40 s left",  # the batch is over: 4
        "50 s so far, about 50 s left",
        "60 s so far, about 60 s left",
        "70 s so far, about 54 s left",  # 4.5 of 8
        "80 s so far, about 48 s left",  # 5, for all that is known
        "1.5 min so far, about 70 s left",  # it is the first of two
        "1.7 min so far, about 68 s left",
        "1.8 min so far, about 66 s left",
        "2.0 min so far, about 72 s left",
    ]


def test_stderr_without_a_terminal_gets_lines(capsys, monkeypatch):
    monkeypatch.setattr(Lines, "every", 0.0)
    with progress("images", 2) as advance:
        advance()
    out, err = capsys.readouterr()
    assert not out and err.startswith("images 0 of 2: 0 s so far\nimages 1 of 2: ")


def test_a_painting_is_heard_step_by_step(here):
    from sfumato.backbones.load import load
    from sfumato.core.denoising import denoise

    events = []
    with heard(events.append), torch.no_grad():
        denoise(load("stilllife"), "a red cube", steps=3)
    assert [e.done for e in events if not e.over] == [0, 1, 2, 3] and events[-1].of == 3


def test_images_of_a_batch_are_as_many_steps(here):
    from sfumato.backbones.load import load
    from sfumato.tasks.generate import generate

    events = []
    generate(load("stilllife"), "a red cube", (0, 1, 2), steps=1, together=2, on_progress=events.append)
    assert [e.worth for e in events if e.depth] == [2, 2, 2, 1, 1, 1]


def test_times_are_told_as_a_person_tells_them():
    assert [lasting(s) for s in (9.6, 89.4, 90, 210, 599, 601, 5399, 7200)] == [
        "10 s", "89 s", "1.5 min", "3.5 min", "10.0 min", "10 min", "90 min", "2.0 h"
    ]  # fmt: skip
