"""DIFT reads what a plain hook reads, and matches as published; so does transport, on every family."""

from __future__ import annotations

from dataclasses import replace

import families
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.methods.perceive.dift import DAVIS, DIFT, HPATCHES, joined, standardised
from sfumato.methods.perceive.optimal_transport import AUTHORS, OptimalTransport, carried
from sfumato.ops.correspondence import sampled
from sfumato.reading.reader import Noise, read

POINTS = torch.tensor([[10.5, 20.0], [40.0, 3.5], [0.0, 48.0]])


def image(h=48, w=56, seed=0):
    return torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed))


def readers(model):
    side = families.side(model)
    return read(model, image(), side), read(model, image(56, 48, 1), side)


def test_its_feature_is_what_a_plain_hook_sees(models):
    model = models("sd")
    reader, method, seen = read(model, image(), 64), DIFT(ensemble=3), []
    hook = model.network.up_blocks[1].register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        model.predict(Noise(261, "gaussian", 0, 3).of(model, reader.latents), 261, model.embed([""] * 3))
    hook.remove()
    assert torch.equal(method.features(reader), seen[0].mean(0))


def test_the_network_stops_behind_its_block(models):
    model, ran = models("sd"), []
    hooks = [
        m.register_forward_hook(lambda m, a, o: ran.append(m))
        for m in (*model.network.up_blocks, model.network.conv_out)
    ]
    DIFT(blocks=(0,), ensemble=1).features(read(model, image(), 64))
    for hook in hooks:
        hook.remove()
    assert not any(m in ran for m in (model.network.up_blocks[1], model.network.conv_out))


def test_an_image_is_encoded_once_for_all_its_noises(models, monkeypatch):
    model, times = models("sd"), []
    encode = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, x: times.append(len(x)) or encode(self, x))
    a, b = readers(model)
    for method in (DIFT(ensemble=4), replace(HPATCHES, blocks=(0,)), replace(DAVIS, blocks=(1,))):
        method(a, b, POINTS)
    assert times == [1, 1]


def test_it_matches_as_the_paper_says(models):
    """Features of both images made as large as they are, the point's cosine with all pixels, the best."""
    a, b = readers(models("sd"))
    method = DIFT(ensemble=2, refine="image")
    fa, fb = (F.interpolate(method.features(r)[None], r.size, mode="bilinear", align_corners=False)[0] for r in (a, b))
    pixels = [[10, 20], [40, 3]]
    found = method(a, b, torch.tensor(pixels) + 0.5)
    for n, (x, y) in enumerate(pixels):
        scores = F.cosine_similarity(fa[:, y, x, None, None], fb, 0)
        at = found.target[n].long()
        torch.testing.assert_close(found.target[n], at + 0.5)
        assert float(scores[at[1], at[0]]) == pytest.approx(float(scores.max()), abs=1e-5)  # which may be alike for two
        assert float(found.scores[n]) == pytest.approx(float(scores.max()), abs=1e-5)


@pytest.mark.parametrize("name", families.SOME)
def test_every_family_matches_an_image_with_itself(models, name):
    """A tiny transformer's tokens may be alike; the best is as good as the point."""
    method, (a, _) = DIFT(ensemble=2, cycle=0.1), readers(models(name))
    same, f = method(a, a, POINTS), method.features(a)
    at, to = (sampled(f, p / torch.tensor([56.0, 48.0])) for p in (POINTS, same.target))
    assert (F.cosine_similarity(at, to) > 0.95).all()


def test_cycle_is_off_unless_asked(models):
    a, b = readers(models("sd"))
    assert DIFT(ensemble=1)(a, b, POINTS).sure.all()
    assert not DIFT(ensemble=1, cycle=0.0)(a, b, POINTS).sure.any()
    assert DIFT(ensemble=1, cycle=2.0)(a, b, POINTS).sure.all()


def test_masks_and_edits_are_carried(models):
    a, b = readers(models("sd"))
    mask = torch.zeros(48, 56)
    mask[:, :28] = 1
    carried_over = DIFT(ensemble=1, blocks=(1,), temperature=1e-3, topk=1).masks(a, a, mask[None])
    assert float((carried_over.labels == mask).float().mean()) > 0.9
    video = replace(DAVIS, blocks=(1,))
    assert tuple(video.masks(a, b, mask[None]).labels.shape) == (56, 48)
    edited, where = DIFT(ensemble=1).edit(a, 1 - a.pixels, b, mask * 0)
    assert torch.equal(edited, b.pixels) and not where.any()
    with pytest.raises(SfumatoError, match="masks are"):
        video.masks(a, b, mask)


def test_layers_side_by_side_weigh_the_same():
    a, b = torch.randn(3, 4, 4) * 100, torch.randn(5, 2, 2)
    both = joined([a, b])
    assert both.shape == (8, 4, 4)
    torch.testing.assert_close(both[:3].norm(dim=0), torch.ones(4, 4))
    torch.testing.assert_close(both[:3], F.normalize(a, dim=0))
    assert joined([a]) is a


def test_standard_channels_have_mean_0_and_variance_1_over_both_images():
    a, b = standardised(torch.randn(3, 4, 4) * 9 + 5, torch.randn(3, 2, 6))
    cells = torch.cat([a.flatten(1), b.flatten(1)], 1)
    torch.testing.assert_close(cells.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(cells.std(1), torch.ones(3))


def test_a_plan_carries_points_to_parts_of_a_cell():
    plan = torch.zeros(2, 2, 2, 2)
    for y, x in np.ndindex(2, 2):
        plan[y, x, y, 1 - x] = 0.25  # a mirror
    at = torch.tensor([[0.25, 0.25], [0.75, 0.75]])
    to, share = carried(plan, at)
    torch.testing.assert_close(to, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    torch.testing.assert_close(share, torch.ones(2))
    torch.testing.assert_close(carried(plan, torch.tensor([[0.5, 0.25]]))[0], torch.tensor([[0.5, 0.25]]))


def test_transport_has_masses_uniform_or_by_attention(models):
    model = models("sd")
    a, b = readers(model)
    method = OptimalTransport(ensemble=1)
    fa, fb = method.both(a, b)
    plan = method.plan(a, b, fa, fb)
    torch.testing.assert_close(plan.sum((0, 1)).flatten(), torch.full((72,), 1 / 72), rtol=1e-3, atol=0)
    mass = replace(method, masses="attention").mass(b, (9, 8))
    assert mass is not None and mass.shape == (72,) and (mass > 0).all()
    weighed = replace(method, masses="attention").plan(a, b, fa, fb)
    torch.testing.assert_close(weighed.sum((0, 1)).flatten(), mass / mass.sum(), rtol=1e-3, atol=0)
    kept = replace(method, dustbin=0.3).plan(a, b, fa, fb)
    assert kept.shape == plan.shape and float(kept.sum()) < 1
    assert AUTHORS.iterations == 1


def test_what_they_cannot_do_is_said(models):
    a, b = readers(models("sd"))
    for match, method in (
        ("has the up blocks 0, 1, not 7", DIFT(blocks=(7,))),
        ("unknown hidden layer of .* 'nowhere'; known: .*mid_block", DIFT(layers=("nowhere",))),
    ):
        with pytest.raises(SfumatoError, match=match):
            method(a, b, POINTS)
    with pytest.raises(SfumatoError, match="unknown refine 'much'; known: none, local, image"):
        DIFT(refine="much")  # pyright: ignore
    with pytest.raises(SfumatoError, match=r"point 60, 3 lies outside of the image of 56 x 48"):
        DIFT()(a, b, torch.tensor([[60.0, 3]]))
    with pytest.raises(SfumatoError, match="one block or several"):
        DIFT(blocks=())
    with pytest.raises(SfumatoError, match="unknown masses 'cam'; known: uniform, attention"):
        OptimalTransport(masses="cam")  # pyright: ignore
    with pytest.raises(SfumatoError, match="its own refinement"):
        OptimalTransport(refine="local")
