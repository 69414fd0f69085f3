"""The bench of sets: what its measures say of images that are known."""

from __future__ import annotations

import pytest
import torch

from sfumato.bench import sets
from sfumato.bench.sets import panoramas
from sfumato.core.views import Ring, Tiles
from sfumato.methods.sets.spot_diffusion import Spots


@pytest.mark.parametrize("module", sets.MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_measure_says_what_it_means(module):
    keys = [key for some, _ in module.MEASURES for key in some]
    assert sorted(keys) == sorted(module.MEANINGS) and set(module.TARGETS) <= set(keys)


def test_no_key_is_measured_twice():
    keys = [key for module in sets.MODULES for key in module.MEANINGS]
    assert len(keys) == len(set(keys))


def test_a_seam_is_where_colours_jump_at_windows():
    even = torch.linspace(0, 1, 64).expand(2, 3, 16, 64)
    jumping = even + (torch.arange(64) >= 32) * 7 / 63
    assert panoramas.seam(even, [32], 8).tolist() == pytest.approx([1, 1], abs=1e-3)
    assert panoramas.seam(jumping, [32], 8).tolist() == pytest.approx([8, 8], abs=1e-3)
    assert panoramas.seam(jumping, [16, 32], 8).tolist() == pytest.approx([4.5, 4.5], abs=1e-3)
    assert panoramas.seam(even, [0], 8).tolist() == pytest.approx([63, 63], rel=1e-3)  # across the wrap


def test_the_edge_of_a_thing_is_no_seam():
    """A thing a quarter as high as the picture, whose edge is at the border and 40 times as steep as the rest."""
    edge = torch.linspace(0, 0.5, 64).expand(1, 3, 16, 64).clone()
    edge[..., :4, 32:] += 0.3175
    faint = edge[..., 4:, :].clone()
    assert panoramas.seam(edge, [32], 8).item() == pytest.approx(41**0.25, rel=1e-3)
    faint[..., 32:] += 0.5 / 63 * 2
    assert panoramas.seam(faint, [32], 8).item() == pytest.approx(3, rel=1e-3)
    flat = torch.zeros(1, 3, 16, 64)
    flat[..., 0, 32:] = 1.0
    assert 1 < panoramas.seam(flat, [32], 8).item() < 1.6


def test_borders_are_where_windows_begin_and_end():
    assert panoramas.borders(Tiles(1.0), (128, 512), 128, 8) == [128, 256, 384]
    assert panoramas.borders(Tiles(8), (128, 256), 128, 8) == [64, 128, 192]
    assert panoramas.borders(Ring(16), (128, 256), 128, 8) == [128]
    places = Spots().at(3).places(16, 32, (16, 16))
    at = panoramas.borders(Spots().at(3), (128, 256), 128, 8)
    assert set(at) == {8 * n for _, left in places for n in (left, left + 16) if 0 < n < 32}
    jumping = torch.linspace(0, 1, 256).expand(1, 3, 128, 256) + (torch.arange(256) >= at[0]) * 1.0
    assert panoramas.worst(jumping, Spots(), 128, 8).item() > 10 > panoramas.worst(jumping, Tiles(1.0), 128, 8).item()


def test_what_is_alike_is_not_apart():
    a = torch.eye(3)
    assert panoramas.apart(a) == pytest.approx(1) and panoramas.apart(a[:1].expand(3, 3)) == pytest.approx(0, abs=1e-6)
    assert panoramas.apart(a[:1], a) == pytest.approx(2 / 3)
