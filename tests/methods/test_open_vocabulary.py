"""Names of segments: PACL's formula written again, and votes that are plain to see."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.methods.perceive.open_vocabulary import compatibility, label, similarity
from sfumato.reading.results import Segments


def test_compatibility_is_the_published_formula():
    draw = torch.Generator().manual_seed(0)
    patches, texts = torch.randn(9, 4, generator=draw), torch.randn(3, 4, generator=draw)
    for i, text in enumerate(texts):
        s = torch.stack([(p * text).sum() / (p.norm() * text.norm()) for p in patches])
        torch.testing.assert_close(similarity(patches, texts)[i], s)
        a = s.exp() / s.exp().sum()
        v = torch.stack([w * p for w, p in zip(a, patches, strict=True)]).sum(0)
        torch.testing.assert_close(compatibility(patches, texts)[i], (v * text).sum() / (v.norm() * text.norm()))
    with pytest.raises(SfumatoError, match="do not compare"):
        compatibility(patches, texts[:, :3])


def quarters() -> Segments:
    scores = torch.zeros(4, 8, 8)
    for i in range(4):
        scores[i, 4 * (i // 2) : 4 * (i // 2) + 4, 4 * (i % 2) : 4 * (i % 2) + 4] = 1 + i
    return Segments(scores, (8, 8))


def test_each_segment_is_named_by_the_largest_mean_of_the_unit_maps():
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    out = label(quarters(), maps, ("sky", "sea"))
    unit = [m / m.square().sum().sqrt() for m in maps]
    for i in range(4):
        inside = quarters().labels == i
        best = max(range(2), key=lambda n: float(unit[n][inside].mean()))
        assert (out.labels[inside] == out.names.index(("sky", "sea")[best])).all()


def test_a_map_of_a_larger_scale_has_no_more_votes():
    maps = torch.full((2, 8, 8), 0.1)
    maps[0, :4], maps[1, 4:] = 1, 1
    for scale in (1, 1000):
        out = label(quarters(), maps * torch.tensor([1, scale]).view(2, 1, 1), ("above", "below"))
        assert torch.equal(out.labels, (torch.arange(8) > 3).long()[:, None].expand(8, 8))
        assert out.names == ("above", "below") and out.scores.shape == (2, 8, 8)


def test_a_name_that_wins_nowhere_is_left_out_and_maps_may_be_coarse():
    maps = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 0.5]], [[0.1, 0.1], [0.1, 0.1]]])
    out = label(quarters(), maps, ("corner", "rest", "none"))
    assert out.names == ("corner", "rest") and torch.equal(out.labels == 0, quarters().labels == 3)


def test_what_it_cannot_do_is_said():
    with pytest.raises(SfumatoError, match="1 names and 2 maps"):
        label(quarters(), torch.ones(2, 8, 8), ("one",))
