"""Flow that is found: of what moves evenly, and of clips of the world, whose own is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.metrics.video import warp_error
from sfumato.ops import flow
from sfumato.ops.blur import blur
from sfumato.ops.motion import Motion
from sfumato.ops.warps import Similarity


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (2.5, 0.0), (-1.25, 4.0)])
def test_what_moves_evenly_is_found_to_a_tenth_of_a_pixel(right, down):
    wide = blur(torch.rand(1, 3, 84, 100, generator=torch.Generator().manual_seed(0)), 2.0) * 4 - 1.5
    frames = torch.cat([wide, Similarity(right / 100, down / 84)(wide)])[..., 10:-10, 10:-10]
    found = flow.found(frames)
    inside = (slice(None), slice(10, -10), slice(10, -10))
    for way, sign in ((found.forward, 1), (found.backward, -1)):
        away = way[inside] * torch.tensor([80.0, 64.0]) - sign * torch.tensor([right, down])
        assert away.norm(dim=-1).median() < 0.1
    assert found.gone[inside].float().mean() < 0.05


def test_a_clip_s_flow_is_found_where_it_comes_back():
    from sfumato.stilllife import moves
    from sfumato.stilllife.scene import sample_scene

    clip = moves.clip(sample_scene(np.random.default_rng(3), count=2), 8, size=64)
    flows = (clip.forward, clip.backward, clip.forward_occluded, clip.backward_occluded)
    true, found = Motion.of_pixels(*flows), flow.found(clip.frames)
    both = ~(true.gone | found.gone)
    away, way = ((64 * x).norm(dim=-1)[both].median() for x in (found.forward - true.forward, true.forward))
    assert both.float().mean() > 0.3 and way > 1.5 and away < 0.5  # pixels
    assert warp_error(clip.frames, found).mean() < 2 * warp_error(clip.frames, true).mean()


def test_a_frame_alone_moves_nowhere():
    with pytest.raises(SfumatoError, match="two frames or more, got 1"):
        flow.found(torch.zeros(1, 3, 16, 16))


def test_a_pair_s_flow_is_its_own_whatever_is_found_beside_it():
    wide = blur(torch.rand(3, 3, 48, 60, generator=torch.Generator().manual_seed(0)), 2.0) * 4 - 1.5
    frames = torch.cat([wide[:1], Similarity(0.02, 0.0)(wide[:1]), 0.1 * wide[1:]])[..., 6:-6, 6:-6].clamp(0, 1)
    both, alone = flow.found(frames), flow.found(frames[:2])
    assert torch.equal(both.forward[:1], alone.forward) and torch.equal(both.gone[:1], alone.gone)


def test_what_is_lost_leaves_or_comes_back_elsewhere():
    def way(x: float, y: float) -> torch.Tensor:
        return torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(1, 2, 12, 16)

    leaves = flow._lost(way(3, -2), way(-3, 2))[0]
    wanted = torch.zeros(12, 16, dtype=torch.bool)
    wanted[:, -3:] = wanted[:2] = True
    assert torch.equal(leaves, wanted)
    # one is said to come back where it is within a hundredth of both ways' squares and a half
    for there, back, lost in ((3, -2, True), (3, -2.25, False), (30, -25, True), (30, -26, False)):
        wide = flow._lost(way(there, 0).repeat(1, 1, 1, 8), way(back, 0).repeat(1, 1, 1, 8))[0, :, :90]
        assert bool(wide.all() if lost else not wide.any()), (there, back)


@pytest.mark.parametrize("iterations", [5, 16])
def test_a_long_way_is_found_from_coarse_to_fine_and_what_goes_out_is_gone(iterations):
    wide = blur(torch.rand(1, 3, 84, 140, generator=torch.Generator().manual_seed(0)), 5.0) * 9 - 4
    wide[:, 0] = 0.5  # all colours count
    frames = torch.cat([wide, Similarity(12 / 140, 0.0)(wide)])[..., 10:-10, 20:-20]
    found = flow.found(frames, iterations)  # of a pixel at most, at each of three sizes
    away = found.forward[:, 10:-10, 10:-30] * torch.tensor([100.0, 64.0]) - torch.tensor([12.0, 0.0])
    assert away.norm(dim=-1).median() < 0.2
    assert found.gone[..., -8:].float().mean() > 0.9 and found.gone[..., 10:-30].float().mean() < 0.1
    assert found.new[..., :8].float().mean() > 0.9 and found.new[..., 30:-10].float().mean() < 0.1
