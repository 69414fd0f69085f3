"""The bench of views and illusions, on the tiny model: it measures what it says, and judges as it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.bench import report
from sfumato.bench.session import Session
from sfumato.bench.sets import views as bench
from sfumato.stilllife.oracle import Reading, ReadThing

ROBOT = ReadThing("robot", "red", "plain", (0, 0, 9, 9), (4.5, 4.5), 81, True)


def seen(*things: ReadThing, ground: str = "sand") -> Reading:
    return Reading(things, ground, "day", "photo", np.zeros((16, 16), int))


@pytest.fixture
def session(here, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 1)
    return Session(1, 0, torch.device("cpu"))


def test_every_key_is_measured(session):
    measured = [key for keys, _ in bench.MEASURES for key in keys]
    assert sorted(measured) == sorted(bench.MEANINGS) and set(bench.TARGETS) <= set(bench.MEANINGS)
    found = report.gather(report.Report("v", 1, 0, "cpu", bench.MEANINGS, bench.TARGETS), bench.MEASURES, session)
    assert not found.why and set(found.figures) == set(bench.MEANINGS)
    assert set(found.methods) >= {
        "views: set",
        "views: grid",
        "views: apart",
        "illusions: illusion",
        "illusions: one prompt",
    }


def test_four_views_are_one_thing_when_all_read_the_same():
    back, tile = replace(ROBOT, face=False), {"ground": "sand"}
    four: list[Any] = [seen(ROBOT, **tile), seen(back), seen(back), seen(back)]
    small = replace(ROBOT, kind="duck", pixels=30)
    assert all(bench.viewed(four, "robot", "red").values())
    assert all(bench.viewed([seen(small, ROBOT), *four[1:]], "robot", "red").values())

    def judged(k: int, reading: Reading, kind: str = "robot") -> set[str]:
        row = bench.viewed([*four[:k], reading, *four[k + 1 :]], kind, "red")
        return {key for key, value in row.items() if not value}

    assert judged(0, four[0], "duck") == {"asked"}
    assert judged(1, seen(replace(back, colour="blue"))) == {"asked", "one", "identity"}
    assert judged(2, seen(ROBOT)) == {"views", "identity"}
    assert judged(3, seen(back, ground="snow")) == {"world", "identity"}
    assert judged(3, seen()) == {"asked", "one", "views", "identity"}


def test_a_picture_is_read_as_a_thing_that_is_among_others():
    reading = seen(replace(ROBOT, kind="duck"), ROBOT)
    assert bench.read_as(reading, "red", "robot") and not bench.read_as(reading, "blue", "robot")
