"""DiffSeg's clustering against loops that restate it, its aggregation against the formula, and runs on every family."""

from __future__ import annotations

import families
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sfumato.core.choice import choose
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.diff_seg import (
    COCO,
    DiffSeg,
    anchored,
    brought,
    cluster,
    divergence,
    k_means_from,
    self_attention,
)
from sfumato.reading.reader import Noise, Reader


def distributions(n: int, d: int, seed: int = 0, sharp: float = 2.0):
    return (sharp * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))).softmax(1)


def half_symmetric(p, q):
    """The definition, of two distributions."""
    return float(((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2)


def test_divergence_is_half_of_both_kullback_leibler_divergences():
    p, q = distributions(5, 30), distributions(7, 30, 1)
    wanted = torch.tensor([[half_symmetric(a, b) for b in q] for a in p])
    torch.testing.assert_close(divergence(p, q), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(divergence(p, p).diagonal(), torch.zeros(5), atol=1e-5, rtol=0)


def test_divergence_of_maps_with_zeros_is_finite():
    p = torch.eye(4)
    assert divergence(p, p).isfinite().all() and divergence(p, p)[0, 1] > 10


def by_loops(maps, anchors, threshold, passes):
    """The published procedure, one pair at a time."""
    found = []
    for a in anchors.tolist():
        near = [m for j, m in enumerate(maps) if j == a or half_symmetric(maps[a], m) < threshold]
        found.append(torch.stack(near).mean(0))
    for _ in range(passes - 1):
        matched, means = set(), []
        for i, one in enumerate(found):
            if i in matched:
                continue
            near = [j for j, other in enumerate(found) if j == i or half_symmetric(one, other) < threshold]
            matched |= set(near)
            means.append(torch.stack([found[j] for j in near]).mean(0))  # those matched before among them
        found = means
    return torch.stack(found)


def in_groups():
    """36 maps, six and six much alike."""
    return 0.4 * distributions(36, 36) + 0.6 * distributions(6, 36, 1, sharp=3).repeat_interleave(6, 0)


@pytest.mark.parametrize(("threshold", "passes"), [(0.6, 3), (0.9, 3), (0.9, 1), (1.2, 2), (1.5, 4)])
def test_clustering_is_the_published_one(threshold, passes):
    maps, anchors = in_groups(), anchored((6, 6), 4)
    found = cluster(maps, anchors, threshold, passes)
    torch.testing.assert_close(found, by_loops(maps, anchors, threshold, passes))


def test_thresholds_of_that_test_merge_some_and_not_all():
    counts = [len(cluster(in_groups(), anchored((6, 6), 4), t)) for t in (0.1, 0.6, 0.9, 1.2, 1.5, 100)]
    assert counts[0] == 16 and counts[-1] == 1 and counts == sorted(set(counts), reverse=True)


def test_blocks_that_attend_within_themselves_are_the_segments():
    """Two halves, each attending evenly to itself: two proposals, whichever way they are asked for."""
    left = (torch.arange(64) % 8 < 4).float()
    maps = torch.where((left[:, None] == left), 1.0, 0.01)
    maps /= maps.sum(1, keepdim=True)
    found = cluster(maps, anchored((8, 8), 4), 0.9)
    assert torch.equal(found.argmax(0), (found[0] < found[1]).long()) and len(found) == 2
    assert torch.equal(found.argmax(0), 1 - left.long())


def test_anchors_lie_as_published_and_as_many_as_fit():
    rows = anchored((64, 64), 16).view(16, 16)
    assert rows[:, 0].div(64, rounding_mode="floor").tolist() == list(range(1, 64, 4))
    assert (rows[0] % 64).tolist() == list(range(1, 64, 4))
    assert anchored((4, 6), 16).tolist() == list(range(24))
    assert len(anchored((32, 8), 16)) == 16 * 8


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **kwargs or {})


def test_clustering_multiplies_the_anchors_maps_with_all_three_times_and_loops_over_no_cells():
    """A grid of 64 by 64 with 256 anchors takes 0.26 s so; cell by cell it would be minutes."""
    anchors, asked = 64, []
    for side in (16, 32):
        cells = side**2
        with Operations() as operations, FlopCounterMode(display=False) as multiplied:
            cluster(distributions(cells, cells), anchored((side, side), 8), 0.9)
        asked.append(operations.count)
        among_themselves = 2 * 2 * anchors * anchors * cells + 2 * anchors * anchors * cells  # at most, in each pass
        most = 3 * 2 * anchors * cells * cells + 2 * among_themselves
        assert 3 * 2 * anchors * cells * cells <= multiplied.get_total_flops() <= most
    assert asked[0] == asked[1] < 10 * anchors


@pytest.mark.parametrize("spread", ["nearest", "bilinear"])
def test_a_coarse_map_keeps_the_sums_of_its_rows(spread):
    maps = distributions(12, 12)
    fine = brought(maps, (3, 4), (7, 9), spread)
    torch.testing.assert_close(fine.sum(1), torch.ones(63))
    if spread == "nearest":  # each query is that of its coarse cell
        keys = F.interpolate(maps[5].view(1, 1, 3, 4), (7, 9), mode="bilinear").flatten()
        torch.testing.assert_close(fine.view(7, 9, -1)[3, 3], keys / keys.sum())


def test_the_sum_weighs_grids_by_their_side(models):
    """Made again from the maps of all heads: the mean over a grid's sites, its share, and rows that sum to one."""
    model = models("sd")
    reader = Reader(model, torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)), 64)
    sites = choose(model, "image->image", reader.grid)
    found, grid = self_attention(reader, sites, Noise(300, "none"))
    seen = reader.extract(sites, lambda c: c.block(c.rows.names[0], "image->image").mean(1), Noise(300, "none"))
    assert grid == (8, 12) and {s.scale for s in sites} == {1, 2}
    wanted = torch.zeros(96, 96)
    for side, share in ((8, 8 / 12), (4, 4 / 12)):
        maps = torch.stack([m for s, m in seen.items() if min(s.grid(reader.grid)) == side]).mean(0)
        keys = F.interpolate(maps.view(1, -1, side, side * 3 // 2), grid, mode="bilinear")[0].flatten(1)
        keys = keys / keys.sum(1, keepdim=True)
        y, x = torch.meshgrid(torch.arange(8) * side // 8, torch.arange(12) * side // 8, indexing="ij")
        wanted += share * keys[(y * (side * 3 // 2) + x).flatten()]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", families.SOME)
def test_each_query_attends_to_one_in_all_on_every_family(models, family):
    model = models(family)
    side = families.side(model)
    image = torch.rand(3, side, side + side // 2, generator=torch.Generator().manual_seed(1))
    reader = Reader(model, image, side)
    sites = choose(model, "image->image", reader.grid)
    maps, grid = self_attention(reader, sites, Noise(300, "none"))
    torch.testing.assert_close(maps.sum(1), torch.ones(len(maps)), atol=1e-4, rtol=0)
    assert len(maps) == grid[0] * grid[1] and DiffSeg()(reader).scores.shape[1:] == grid


def test_an_image_of_one_colour_is_one_segment(models):
    out = COCO(Reader(models("sd"), torch.full((3, 64, 64), 0.5), 64))
    assert out.scores.isfinite().all() and len(out.scores) == 1 and not out.labels.any()


def test_k_means_goes_on_from_the_proposals():
    points = torch.cat([torch.randn(20, 3) + 5, torch.randn(30, 3) - 5])
    centres = k_means_from(points, torch.stack([points[0], points[-1], torch.full((3,), 1e3)]))
    torch.testing.assert_close(centres, torch.stack([points[:20].mean(0), points[20:].mean(0)]))


def test_what_it_cannot_do_is_said(models):
    for anchors in (0, -0.5, 1.5):
        with pytest.raises(SfumatoError, match="anchors of DiffSeg"):
            DiffSeg(anchors=anchors)
    with pytest.raises(SfumatoError, match="above 0"):
        DiffSeg(threshold=0)
    with pytest.raises(SfumatoError, match="leaves no site"):
        DiffSeg(stage="nowhere")(Reader(models("sd"), torch.rand(3, 64, 64), 64))
