"""Few-shot segmentation: the attention given to masks, restated plainly, and the paper's fused keys; every family."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import torch

from sfumato.core.attention import Call
from sfumato.core.rows import single
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.few_shot import FeatureMatching, FewShot, Support, given_inside, share
from sfumato.ops import memory
from sfumato.reading.reader import read

SITE = Site("somewhere", 0, "up", ("image",), ("image",), 1, 2, 8)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shots(model, n: int = 2):
    """Readers of pictures with a bright square, and where it is."""
    readers, masks = [], []
    for i in range(n + 1):
        picture, mask = torch.rand(3, 48, 56, generator=torch.Generator().manual_seed(i)) * 0.3, torch.zeros(48, 56)
        mask[8 + 4 * i : 32 + 4 * i, 8:36] = 1
        readers.append(read(model, (picture + 0.7 * mask).clamp(0, 1), families.side(model)))
        masks.append(mask)
    return readers, masks


def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Call:
    return Call(SITE, single(len(q)), (2, 3), 0, {"q": q, "k": k, "v": v})


@pytest.mark.parametrize("many", [2**24, 20])
def test_the_share_is_the_attention_that_goes_inside(monkeypatch, many):
    monkeypatch.setattr(memory, "BUDGET", many)
    q, k, inside = noise(2, 3, 6, 4), noise(3, 10, 4, seed=1), torch.rand(10)
    wanted = ((q @ k.transpose(1, 2) / 2).softmax(-1) @ inside).mean(1)
    torch.testing.assert_close(share(q, k, inside), wanted)
    torch.testing.assert_close(share(q, k, torch.ones(10)), torch.ones(2, 6))


def test_balanced_it_is_a_half_where_all_of_the_support_is_alike():
    q, k, v = noise(1, 2, 6, 4), noise(1, 2, 6, 4, seed=1), noise(1, 2, 6, 4, seed=2)
    alike = Support(torch.zeros(2, 10, 4), torch.zeros(2, 10, 4), (torch.arange(10) < 3).float())
    torch.testing.assert_close(given_inside(call(q, k, v), alike, False, False), torch.full((1, 6), 0.3))
    torch.testing.assert_close(given_inside(call(q, k, v), alike, False, True), torch.full((1, 6), 0.5))


def test_fused_the_image_attends_to_its_own_and_the_supports_values():
    q, k, v = (noise(1, 2, 6, 4, seed=s) for s in range(3))
    support = Support(noise(2, 10, 4, seed=3), noise(2, 10, 4, seed=4), torch.ones(10))
    fused, plain = call(q, k, v), call(q, k, v)
    given_inside(fused, support, True, False)
    given_inside(plain, support, False, False)
    keys, values = torch.cat([k[0], support.keys], 1), torch.cat([v[0], support.values], 1)
    torch.testing.assert_close(fused.output()[0], (q[0] @ keys.transpose(1, 2) / 2).softmax(-1) @ values)
    torch.testing.assert_close(plain.output()[0], (q[0] @ k[0].transpose(1, 2) / 2).softmax(-1) @ v[0])


def test_shots_lie_side_by_side():
    parts = [Support(noise(2, n, 4), noise(2, n, 4, seed=1), torch.rand(n)) for n in (3, 5)]
    both = Support.of(parts)
    assert both.keys.shape == (2, 8, 4) and torch.equal(both.values[:, 3:], parts[1].values)
    assert torch.equal(both.inside, torch.cat([parts[0].inside, parts[1].inside]))


def test_fusing_the_image_with_itself_changes_nothing_that_is_read(models):
    """Its own keys twice give the same attention as once, so the pass with them is the pass without."""
    readers, masks = shots(models("sd"))
    a, b = (FewShot(fuse=fuse)(readers[0], readers[:1], masks[:1]).scores for fuse in (True, False))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    last = models("sd").sites[-2].path
    for layers in ((), (last,)):  # where it is read behind other sites, those are fused as well
        a, b = (FewShot(fuse=fuse, layers=layers)(readers[0], readers[1:], masks[1:]).scores for fuse in (True, False))
        assert (a - b).abs().max() > 1e-5


def test_the_supports_order_does_not_matter_and_its_masks_do(models):
    readers, masks = shots(models("sd"))
    method = FewShot()
    ab, ba = method(readers[2], readers[:2], masks[:2]), method(readers[2], readers[1::-1], masks[1::-1])
    torch.testing.assert_close(ab.scores, ba.scores, atol=1e-5, rtol=1e-5)
    turned = method(readers[2], readers[:2], [1 - mask for mask in masks[:2]])
    torch.testing.assert_close(turned.scores[1], 1 - ab.scores[1], atol=1e-5, rtol=1e-5)
    cut = replace(method, mask="multiply")(readers[2], readers[:2], masks[:2])
    assert (cut.scores[1] - ab.scores[1]).abs().max() > 1e-5


def test_feature_matching_is_the_nearest_cell_inside_or_out(models):
    """An image is its own support: each cell's most alike is itself, so that its own mask comes out."""
    readers, masks = shots(models("sd"))
    found = FeatureMatching(blocks=(1,), ensemble=1)(readers[0], readers[:1], masks[:1])
    cells = torch.nn.functional.interpolate(masks[0][None, None], found.scores.shape[1:], mode="area")[0, 0] >= 0.5
    assert torch.equal(found.scores[1] > 0.5, cells)


def test_what_they_cannot_do_is_said(models):
    readers, masks = shots(models("sd"))
    for method in (FewShot(), FeatureMatching(ensemble=1)):
        for match, support, given in (
            ("each support image has a mask", readers[:1], masks[:2]),
            ("each support image has a mask", [], []),
            (r"a mask of \(48, 5\)", readers[:1], [masks[0][:, :5]]),
            ("masks are empty", readers[:1], [masks[0] * 0]),
        ):
            with pytest.raises(SfumatoError, match=match):
                method(readers[2], support, given)
    with pytest.raises(SfumatoError, match="same model"):
        FewShot()(readers[2], shots(models("sd2"))[0][:1], masks[:1])
    with pytest.raises(SfumatoError, match="unknown mask 'concatenate'; known: attention, multiply"):
        FewShot(mask="concatenate")  # pyright: ignore
    with pytest.raises(SfumatoError, match="leaves no site"):
        FewShot(layers=("nowhere",))(readers[2], readers[:1], masks[:1])
    with pytest.raises(SfumatoError, match="nothing to tell the thing from"):
        FeatureMatching(ensemble=1)(readers[2], readers[:1], [torch.ones(48, 56)])
