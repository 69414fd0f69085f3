"""The bench of wide edits: what its measures say of strips that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.bench.sets import wide
from sfumato.core.views import Tiles
from sfumato.stilllife import change
from sfumato.stilllife.moves import strip


@pytest.fixture(scope="module")
def case() -> Any:
    scene = change.sample_counterfactual(np.random.default_rng(3), "recolour", 1)
    before, after = (strip(np.random.default_rng(5), 96, 32, row=[one]).images for one in (scene.before, scene.after))
    return wide.Case("", "", scene.after.things[0].kind, scene.after.things[0].colour, before, after, 0)


def test_a_row_of_one_thing_in_another_colour_is_the_same_elsewhere(case):
    changed = (case.after - case.before).abs().amax((0, 1)) > 0.1
    assert 0.02 < changed.float().mean() < 0.5
    assert all(part.any() for part in changed.split(32, -1))  # of each window something


def test_things_of_a_row_come_in_turn():
    rng = np.random.default_rng(1)
    one, two = (change.sample_counterfactual(rng, "recolour", 1).before for _ in range(2))
    world = strip(np.random.default_rng(5), 128, 32, row=[one, two]).scenes[0]
    assert [t.kind for t in world.things] == [(one, two)[i % 2].things[0].kind for i in range(len(world.things))]
    assert world.ground == one.ground and len({t.x for t in world.things}) == len(world.things)


def test_a_seam_is_an_error_that_lies_at_borders(case):
    truth, at = case.after, [32, 64]
    even = truth + torch.linspace(0, 1, 96)  # each step is off by as much
    assert wide.seam(even, truth, at, 8) == pytest.approx(1, abs=1e-3)
    apart = even + (torch.arange(96) // 32) * 2 / 95
    assert wide.seam(apart, truth, at, 8) == pytest.approx(3, abs=1e-2)
    assert wide.seam(even, even + 0.2 * truth, at, 8) != 1


def test_the_spread_is_of_what_is_off_in_each_window(case):
    assert wide.spread(case.after, case, 32) == 0
    assert wide.spread(case.after + 0.3, case, 32) == pytest.approx(0, abs=1e-6)  # alike in all
    off = torch.zeros(1, 3, 1, 96)
    off[:, :, :, 32:64] = 0.3
    assert wide.spread(case.after + off, case, 32) == pytest.approx(2 / 3 * 0.3 * 3**0.5, abs=1e-5)


def test_all_ways_ask_for_as_many_windows():
    for how in wide.ways().values():
        views = how.alone()
        assert views is not None
        assert all(views.at(i).count(16, 48, (16, 16)) == wide.WINDOWS for i in range(9))
    apart = wide.ways()["windows apart"]
    assert apart.bandwidth == "off" and Tiles(apart.stride).places(16, 48, (16, 16)) == ((0, 0), (0, 16), (0, 32))
    assert replace(apart, stride=0.25) == wide.ways()["the same windows, sharing nothing"]
