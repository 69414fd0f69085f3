"""Laws of unsupervised keypoints: the formulas written again, runs that go on where they stopped, every UNet."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import families
import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import SfumatoError
from sfumato.learning.texts import conditions, drawn, readers
from sfumato.methods.perceive.unsupervised_keypoints import (
    Keypoints,
    UnsupervisedKeypoints,
    furthest,
    peaks,
    regressed,
    regressor,
    shared_out,
    spots,
    unlikeness,
)
from sfumato.ops import memory
from sfumato.ops.warps import inverse
from sfumato.reading.reader import read

QUICK = UnsupervisedKeypoints(
    keypoints=3, tokens=12, steps=4, rate=0.05, images=2, grid=10, candidates=6, augmentations=3
)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return families.made(tmp_path_factory.mktemp("unsupervised-keypoints"))


def pictures(n=3, h=64, w=64):
    small = torch.rand(n, 3, h // 8, w // 8, generator=torch.Generator().manual_seed(0))
    return list(F.interpolate(small, (h, w), mode="bilinear"))


def some_maps(k=7, h=9, w=12, seed=0):
    return torch.rand(k, h, w, generator=torch.Generator().manual_seed(seed))


def test_interpolated_queries_are_the_queries_of_interpolated_hidden_states(made):
    """As published: hidden states are enlarged, projected to queries, and each place's softmax is over the tokens."""
    model = made("sd")
    texts, latents = drawn(model, 1, 12), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise, level = torch.randn_like(latents), model.schedule.at(QUICK.t)
    got = shared_out(QUICK.reads(model, texts, latents, noise), (10, 10))
    sites = readers(model, (8, 8), QUICK.parts, "this")
    hidden, hooks = {}, []
    for site in sites:
        module = model.network.get_submodule(site.path)

        def keep(module, args, named, site=site):
            hidden[site] = args[0] if args else named["hidden_states"]

        hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    cond = conditions(model, texts.expand(2, -1, -1))
    model.predict(level.alpha * latents + level.sigma * noise, QUICK.t, cond)
    for hook in hooks:
        hook.remove()
    wanted = torch.zeros(2, 12, 100)
    for site in sites:
        module = model.network.get_submodule(site.path)
        large = F.interpolate(
            hidden[site].transpose(1, 2).unflatten(2, site.grid((8, 8))), (10, 10), mode="bicubic", align_corners=False
        )
        q, k = module.to_q(large.flatten(2).transpose(1, 2)), module.to_k(cond.text)
        q, k = (x.unflatten(2, (site.heads, -1)).transpose(1, 2) for x in (q, k))
        probs = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        wanted += probs.mean(1).transpose(1, 2) / len(sites)
    torch.testing.assert_close(got.flatten(2), wanted, **CLOSE)
    torch.testing.assert_close(got.sum(1), torch.ones(2, 10, 10), **CLOSE)


def test_some_tokens_and_some_heads_at_a_time_are_the_same_maps_and_gradients(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 5, 4, 3, 3, generator=generator), torch.randn(1, 5, 8, 4, generator=generator)
    chosen = torch.tensor([6, 1])
    every = shared_out([(q, k)], (6, 6))
    torch.testing.assert_close(shared_out([(q, k)], (6, 6), chosen), every[:, chosen], **CLOSE)
    gradients = []
    for many in (memory.BUDGET, 36 * 8 * 2, 1):
        monkeypatch.setattr(memory, "BUDGET", many)
        a, b = q.clone().requires_grad_(), k.clone().requires_grad_()
        maps = shared_out([(a, b)], (6, 6), chosen)
        torch.testing.assert_close(maps.detach(), every[:, chosen], **CLOSE)
        gradients.append(torch.autograd.grad(maps.square().sum(), (a, b)))
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, two, **CLOSE)


def test_the_loss_is_its_formula(made):
    model = made("sd")
    method = replace(QUICK, equivariance=7.0, localisation=3.0)
    texts, latents = drawn(model, 1, 12), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    reads = method.reads(model, texts, latents, torch.zeros_like(latents))
    theta = method.transformation(torch.Generator().manual_seed(3), (8, 8))
    still, moved = shared_out(reads, (10, 10))
    taken = method.chosen(still, moved)
    back = F.grid_sample(
        moved[None], F.affine_grid(inverse(theta)[None], [1, 12, 10, 10], align_corners=False), align_corners=False
    )[0]
    wanted = torch.zeros(())
    for j in taken.tolist():
        best = int(still[j].argmax())
        y, x = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
        goal = (-((x - best % 10) ** 2 + (y - best // 10) ** 2) / (2 * (method.sigma * 10) ** 2)).exp()
        wanted = wanted + 3 * (still[j] - goal).square().mean() / 3 + 7 * (back[j] - still[j]).square().mean() / 3
    torch.testing.assert_close(method.loss(reads, theta), wanted, **CLOSE)


def test_candidates_are_those_nearest_to_a_spot_by_the_published_divergence():
    maps = some_maps()
    for j, got in enumerate(unlikeness(maps, 0.2)):
        at = peaks(maps)[j] * torch.tensor([12, 9])
        y, x = torch.meshgrid(torch.arange(9) + 0.5, torch.arange(12) + 0.5, indexing="ij")
        goal = (-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * (0.2 * 9) ** 2)).exp() + 1e-5
        p, q = goal / goal.sum(), maps[j].exp() / maps[j].exp().sum()
        torch.testing.assert_close(got, (p * (p / q).log()).sum(), **CLOSE)
    spot = (spots(maps[:1], 0.2) + 1e-5).log()
    torch.testing.assert_close(unlikeness(spot, 0.2), torch.zeros(1), atol=1e-6, rtol=0)
    assert torch.equal(peaks(spots(maps, 0.1)), peaks(maps))


def test_furthest_points_are_found_as_by_counting():
    points = torch.rand(15, 2, generator=torch.Generator().manual_seed(1))
    taken = list(max(itertools.combinations(range(15), 2), key=lambda two: math.dist(*points[list(two)].tolist())))
    while len(taken) < 6:
        rest = [i for i in range(15) if i not in taken]
        taken.append(max(rest, key=lambda i: min(math.dist(points[i].tolist(), points[j].tolist()) for j in taken[:])))
    assert furthest(points, 6).tolist() == taken
    assert sorted(furthest(points, 15).tolist()) == list(range(15))
    assert len(set(furthest(torch.zeros(5, 2), 4).tolist())) == 4


def test_transformations_are_turns_zooms_and_shifts_and_go_back():
    method = UnsupervisedKeypoints()
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        theta = method.transformation(generator, (64, 96))
        pixels = theta[:, :2] * torch.tensor([[1, 96 / 64], [64 / 96, 1]])  # of sides that differ: in pixels a turn
        assert 0.8 - 1e-4 <= float(pixels.det().sqrt()) <= 1 + 1e-4
        torch.testing.assert_close(pixels[:, 0].dot(pixels[:, 1]), torch.zeros(()), atol=1e-5, rtol=0)
        assert abs(math.degrees(math.atan2(float(pixels[0, 1]), float(pixels[0, 0])))) <= 15 + 1e-3
        assert theta[:, 2].abs().max() <= 0.25
        both = torch.cat([theta, torch.tensor([[0.0, 0, 1]])]) @ torch.cat(
            [inverse(theta), torch.tensor([[0.0, 0, 1]])]
        )
        torch.testing.assert_close(both, torch.eye(3), **CLOSE)


@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_keypoints_are_learned_written_read_and_found(made, family, tmp_path):
    model = made(family)
    asked = [p.requires_grad for p in model.network.parameters()]
    images = pictures(3, 64, 96)
    learned = QUICK.fit(model, images, side=64)
    assert learned.texts.shape[0] == 12 and len(set(learned.chosen)) == 3
    again = QUICK.fit(model, images, side=64)
    assert torch.equal(again.texts, learned.texts) and again.chosen == learned.chosen
    moved = (learned.texts - drawn(model, 1, 12)[0]).abs()
    assert moved.amax() > 0.05 and torch.isfinite(moved).all()
    learned.save(tmp_path / "points.safetensors")
    kept = Keypoints.load(tmp_path / "points.safetensors")
    assert kept.method == QUICK and kept.chosen == learned.chosen and torch.equal(kept.texts, learned.texts)
    with read(model, images[0], 64) as reader:
        at = kept.locate(reader)
        assert kept.maps(reader).shape == (3, 64, 96)
        assert torch.equal(at, learned.locate(reader))
    assert at.shape == (3, 2) and (at >= 0).all() and (at <= torch.tensor([96, 64])).all()
    assert [p.requires_grad for p in model.network.parameters()] == asked
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_images_run_together_or_one_by_one_give_the_same_gradient(made):
    model = made("sd")
    shown = torch.stack(pictures())
    with torch.no_grad():
        latents = model.encode(shown)
    texts = drawn(model, 1, 12)
    together, alone = (replace(QUICK, batch=n).gradient(model, texts, shown, latents, 1) for n in (2, 1))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(together, QUICK.gradient(model, texts, shown, latents, 2))


def test_an_interrupted_run_goes_on_bit_for_bit(made, tmp_path, monkeypatch):
    model, kept = made("sd"), tmp_path / "run.safetensors"
    whole = QUICK.fit(model, pictures(), side=64)
    ran = []
    gradient = UnsupervisedKeypoints.gradient

    def interrupted(self, *args):
        ran.append(args[-1])
        if len(ran) == 3:
            raise KeyboardInterrupt
        return gradient(self, *args)

    monkeypatch.setattr(UnsupervisedKeypoints, "gradient", interrupted)
    with pytest.raises(KeyboardInterrupt):
        QUICK.fit(model, pictures(), kept, side=64)
    assert kept.exists()
    out = QUICK.fit(model, pictures(), kept, every=1, side=64)
    assert ran == [0, 1, 2, 2, 3]
    assert torch.equal(out.texts, whole.texts) and out.chosen == whole.chosen
    longer = replace(QUICK, steps=5).fit(model, pictures(), kept, side=64)
    assert ran[-1] == 4 and not torch.equal(longer.texts, whole.texts)
    for other, images in ((replace(QUICK, rate=0.1), pictures()), (QUICK, pictures()[:2])):
        with pytest.raises(SfumatoError, match="is of another run, with other settings, data or another model"):
            other.fit(model, images, kept, side=64)


def test_the_tokens_taken_most_often_are_the_keypoints(made, monkeypatch):
    model = made("sd")
    takes = iter([[3, 5, 7], [3, 5, 9], [3, 9, 2]])
    monkeypatch.setattr(UnsupervisedKeypoints, "chosen", lambda *_: torch.tensor(next(takes)))
    monkeypatch.setattr(UnsupervisedKeypoints, "gradient", lambda self, model, texts, *_: torch.zeros_like(texts))
    assert QUICK.fit(model, pictures(), side=64).chosen == (3, 5, 9)


def test_a_regressor_is_least_squares_of_what_is_visible():
    generator = torch.Generator().manual_seed(0)
    found, weights = torch.rand(40, 3, 2, generator=generator), torch.randn(6, 4, generator=generator)
    truth = regressed(found, weights)
    torch.testing.assert_close(regressor(found, truth), weights, atol=1e-4, rtol=1e-4)
    visible = torch.rand(40, 2, generator=generator) > 0.4
    spoilt = torch.where(visible[..., None], truth, torch.full_like(truth, 99.0))
    torch.testing.assert_close(regressor(found, spoilt, visible), weights, atol=1e-4, rtol=1e-4)
    middle = torch.full((1, 3, 2), 0.5)
    torch.testing.assert_close(regressed(middle, weights), torch.full((1, 2, 2), 0.5))
    assert regressor(found, truth, ridge=10.0).norm() < 0.9 * weights.norm()


def test_what_it_cannot_do_is_said(made, tmp_path):
    for family in ("pixart", "sd3", "flux", "deepfloyd"):
        model = made(family)
        side = families.side(model)
        with pytest.raises(SfumatoError, match="cross-attention of a UNet"):
            QUICK.fit(model, [torch.rand(3, side, side)])
    model = made("sd")
    with pytest.raises(SfumatoError, match="of one shape, got 64 x 64, 96 x 64"):
        QUICK.fit(model, [*pictures(1), *pictures(1, 64, 96)], side=64)
    with pytest.raises(SfumatoError, match="got none"):
        QUICK.fit(model, [])
    with pytest.raises(SfumatoError, match="candidates for 30 keypoints"):
        UnsupervisedKeypoints(keypoints=30)
    with pytest.raises(SfumatoError, match="least and the greatest part"):
        UnsupervisedKeypoints(zoom=(1.2, 1.0))
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(SfumatoError, match="cannot read"):
        Keypoints.load(tmp_path / "no.safetensors")
    QUICK.fit(model, pictures(), tmp_path / "run.safetensors", side=64)
    with pytest.raises(SfumatoError, match="holds no keypoints"):
        Keypoints.load(tmp_path / "run.safetensors")
