"""Walks against the formula written again, things grown from a cell of a known graph, and runs on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.methods.perceive.propagation import Propagation, cell, grown
from sfumato.reading.reader import Reader


def two_parts(n: int = 20, within: float = 1.0, across: float = 0.1):
    """Self-attention of cells in two parts, the first a quarter of them."""
    thing = torch.arange(n) < n // 4
    maps = torch.where(thing[:, None] == thing, within, across) * (
        0.5 + torch.rand(n, n, generator=torch.Generator().manual_seed(0))
    )
    return maps / maps.sum(1, keepdim=True), thing


def test_shares_are_of_walkers_that_came_from_the_seeds_and_from_elsewhere():
    maps, _ = two_parts()
    seeds = torch.zeros(20, dtype=torch.bool)
    seeds[[1, 3, 4]] = True
    for walks in (1, 3):
        power = torch.linalg.matrix_power(maps, walks)
        ours, others = power[seeds].mean(0), power[~seeds].mean(0)
        found = grown(maps, seeds, torch.ones_like(seeds), walks, 1.5)
        torch.testing.assert_close(found[1], ours / (ours + 1.5 * others))
        torch.testing.assert_close(found.sum(0), torch.ones(20))
        assert torch.equal(found.argmax(0).bool(), ours > 1.5 * others)


def test_one_cell_grows_to_its_whole_part():
    maps, thing = two_parts(across=0.3)
    seeds = torch.zeros_like(thing)
    seeds[2] = True
    inside = torch.ones_like(thing)
    once = grown(maps, seeds, inside, 1, 2.0).argmax(0).bool()
    often = grown(maps, seeds, inside, 1, 2.0, rounds=3).argmax(0).bool()
    assert (once != thing).any() and torch.equal(often, thing)


def test_a_round_begins_where_walkers_of_the_last_came_so_many_times_as_often():
    maps, _ = two_parts(across=0.3)
    seeds = torch.arange(20) < 2
    inside = torch.ones_like(seeds)
    share = grown(maps, seeds, inside, 1, 2.5)[1]
    start = share > 0.5
    assert (start != (share / (1 - share) > 1 / 2.5)).any()  # where as often would be enough
    again = grown(maps, seeds, inside, 1, 2.5, rounds=2)
    torch.testing.assert_close(again, grown(maps, start, inside, 1, 2.5))


def test_nothing_outside_of_a_box_is_the_things():
    maps, thing = two_parts()
    box = torch.arange(20) < 3
    found = grown(maps, box, box, 2, 1.2, 3).argmax(0).bool()
    assert torch.equal(found, box) and (found != thing).any()


def test_a_box_larger_than_the_thing_shrinks_to_it():
    maps, thing = two_parts()
    box = torch.arange(20) < 9
    assert torch.equal(grown(maps, box, box, 1, 1.5, 3).argmax(0).bool(), thing)


def test_maps_that_tell_nothing_give_numbers():
    even = torch.full((9, 9), 1 / 9)
    seeds = torch.arange(9) == 4
    for start in (seeds, torch.ones_like(seeds)):
        found = grown(even, start, start, 2, 1.5, 3)
        assert found.isfinite().all()


def test_a_point_lies_in_its_cell_up_to_the_edge():
    assert cell(torch.tensor([[0.99, 0.0]]), (2, 3)).nonzero().item() == 2
    assert cell(torch.tensor([[1.0, 1.0]]), (2, 3)).nonzero().item() == 5
    assert cell(torch.tensor([[0.0, 0.5]]), (2, 3)).nonzero().item() == 3


def test_what_it_cannot_do_is_said(models):
    reader = Reader(models("sd"), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), 64)
    refused: tuple[tuple[str, dict[str, Any]], ...] = (
        ("give one of them", {}),
        ("give one of them", {"click": (1, 1), "box": (0, 0, 9, 9)}),
        ("lies outside", {"click": (70, 1)}),
        ("lies outside", {"box": (0, 0, 65, 9)}),
        ("left, top, right and bottom", {"box": (9, 0, 5, 9)}),
    )
    for match, options in refused:
        with pytest.raises(SfumatoError, match=match):
            Propagation(**options)(reader)
