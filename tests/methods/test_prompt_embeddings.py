"""Laws of prompt embeddings: batched, cached and cut short they are the published loop."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import families
import pytest
import torch
import torch.nn.functional as F

from sfumato.bench.ports.prompt_embeddings import published_fit
from sfumato.core.taps import Enough
from sfumato.errors import SfumatoError
from sfumato.learning.texts import conditions, drawn, frozen, readers, token_map
from sfumato.methods.perceive.prompt_embeddings import PUBLISHED, PromptEmbeddings, enlarged, some, waves
from sfumato.reading.reader import read

UNETS = ("sd", "sd2", "sdxl")
QUICK = PromptEmbeddings(steps=2, restarts=2, bank=3, found=5, rate=0.05)
POINTS = torch.tensor([[30.5, 20.5], [3.5, 60.5]])
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return families.made(tmp_path_factory.mktemp("prompt-embeddings"))


def image(model, seed=0, h=64, w=64):
    small = torch.rand(1, 3, h // 8, w // 8, generator=torch.Generator().manual_seed(seed))
    return read(model, F.interpolate(small, (h, w), mode="bilinear")[0], 64)


@pytest.mark.parametrize(
    "method",
    [replace(QUICK, steps=4), replace(PUBLISHED, steps=4, restarts=2, bank=3, found=5, rate=0.05, batch=3)],
    ids=["corrected", "published"],
)
def test_batched_it_finds_the_texts_of_the_published_loop(made, method):
    model = made("sd")
    reader = image(model, 0, 64, 96)
    texts = method.fit(reader, POINTS)
    assert texts.shape == (2, 2, 77, 16)
    for i, point in enumerate(POINTS):
        for restart in range(2):
            wanted = published_fit(method, reader, point, restart, method.steps)
            torch.testing.assert_close(texts[i, restart], wanted, **CLOSE)
    start = drawn(model, 2, seed=0)
    assert (texts - start).abs().amax() > 0.1


@pytest.mark.parametrize("family", UNETS)
def test_it_matches_on_every_unet_and_leaves_no_trace(made, family):
    model = made(family)
    asked = [p.requires_grad for p in model.network.parameters()]
    before = [p.clone() for p in model.network.parameters()]
    with image(model, 0) as source, image(model, 1) as target:
        found = QUICK(source, target, POINTS)
        again = QUICK(source, target, POINTS)
        alone = QUICK(source, target, POINTS[1:])
    assert found.target.shape == (2, 2) and torch.isfinite(found.scores).all()
    assert (found.target >= 0).all() and (found.target <= 64).all()
    assert torch.equal(found.target, again.target)
    torch.testing.assert_close(alone.scores, found.scores[1:], **CLOSE)
    assert [p.requires_grad for p in model.network.parameters()] == asked
    assert all(p.grad is None for p in model.network.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.network.parameters(), before, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())


def test_an_image_is_encoded_once_for_all_that_is_asked(made, monkeypatch):
    model = made("sd")
    encoded = []
    encode = model.encode
    monkeypatch.setitem(vars(model), "encode", lambda x: (encoded.append(len(x)), encode(x))[1])
    with image(model) as reader:
        QUICK(reader, reader, POINTS)
        QUICK(reader, reader, POINTS[:1])
    assert sum(encoded) == 9


def test_the_loss_goes_down_and_the_text_lights_up_where_it_was_asked_to(made):
    """On a random network, whose maps are alike everywhere, the brightest pixel comes nearer."""
    model = made("sd")
    method = replace(QUICK, steps=40, restarts=1, rate=0.1, sigma=0.15)
    with image(model) as reader:
        at = torch.tensor([[16.0, 16.0]])
        fitted = method.fit(reader, at)
        down, across = waves(at / 64, (64, 64), 0.15)
        goal = down[:, :, None] * across[:, None]

        def away(texts):
            return float((method.maps(reader, texts) - goal).square().mean())

        assert away(fitted) < 0.9 * away(drawn(model, 1, seed=0)[None])


def test_texts_whose_loss_stalls_stop_and_the_others_go_on():
    method = PromptEmbeddings(patience=2, tolerance=0.1)
    losses = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.5, 0.95, 1.2], [0.5, 0.9, 1.2]])
    rows = torch.arange(3)
    assert method.going(losses, rows).tolist() == [0]
    assert method.going(losses[:3], rows).tolist() == [0, 1, 2]
    assert PromptEmbeddings().going(losses, rows).tolist() == [0, 1, 2]


def test_a_stalled_text_stays_as_it_is(made):
    model = made("sd")
    with image(model) as reader:
        short = replace(QUICK, steps=2, patience=1, tolerance=1.0).fit(reader, POINTS)
        long = replace(QUICK, steps=9, patience=1, tolerance=1.0).fit(reader, POINTS)
    assert torch.equal(short, long)


def test_crops_hold_their_points_and_lie_where_the_published_ones_may():
    """Of 100 pixels, crops of 80: a point of the middle may have any, one in a corner only that corner's."""
    method = PromptEmbeddings(crop=0.8, bank=5)
    within, side = torch.tensor([100, 100]), torch.tensor([80, 80])
    luck = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))

    def chosen(x, y):
        return set(method.choose(torch.tensor([[x, y]]).expand(200, 2), luck, within, side).tolist())

    assert chosen(50.0, 50.0) == set(range(25))
    assert chosen(1.0, 1.0) == {0}
    assert chosen(99.0, 1.0) == {4}
    assert chosen(1.0, 99.0) == {20}
    # 12 pixels inside of the crop: one that begins at 0, 5 or 10 of the five places 0, 5, 10, 15, 20
    assert chosen(22.0, 1.0) == {0, 1, 2}


def test_the_bank_has_the_corners_and_each_crop_lies_where_it_says(made):
    model = made("sd")
    method = replace(QUICK, crop=0.75)
    with image(model, 0, 64, 96) as reader:
        latents, starts = method.crops(reader)
        assert starts.tolist() == [[x, y] for y in (0, 8, 16) for x in (0, 12, 24)]
        crop = F.interpolate(reader.shown[None, :, 8:56, 24:96], (64, 96), mode="bilinear", align_corners=False)
        with torch.no_grad():
            torch.testing.assert_close(latents[5:6], model.encode(crop), **CLOSE)
    chosen = some(5, 12, torch.Generator().manual_seed(0)).tolist()
    assert chosen[:4] == [0, 4, 20, 24] and len(set(chosen)) == 12


@pytest.mark.parametrize("layers", ["mean", "each"])
def test_the_loss_is_that_of_enlarged_maps_and_a_gaussian(layers):
    """On sides that differ, with sites of two resolutions."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(3, h, w, generator=generator) for h, w in ((2, 3), (4, 6), (4, 6))]
    centre, method = torch.rand(3, 2, generator=generator), PromptEmbeddings(layers=layers, sigma=0.1)
    y, x = torch.meshgrid((torch.arange(16) + 0.5) / 16, (torch.arange(24) + 0.5) / 24, indexing="ij")
    goal = torch.stack([(-((x - c[0]) ** 2 + (y - c[1]) ** 2) / (2 * 0.1**2)).exp() for c in centre])
    large = torch.stack([enlarged(m, (16, 24)) for m in maps])
    large = large.mean(0, keepdim=True) if layers == "mean" else large
    wanted = (large - goal).square().mean((0, 2, 3))
    torch.testing.assert_close(method.loss(maps, centre, (16, 24)), wanted, atol=1e-6, rtol=1e-5)


def test_one_token_is_read_as_if_all_were_made(made):
    """Also by half of the heads; and the network ends after the last site."""
    model = made("sd")
    sites = readers(model, (8, 8), (1.0, 1.0), "this")
    cond = conditions(model, drawn(model, 2, 5))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    half = slice(1, None)
    one = model.maps(x, 140, cond, sites, lambda call: token_map(call, 3, half))
    probs = model.maps(x, 140, cond, sites, lambda call: call.probs(("main", "cond")))
    for site in sites:
        torch.testing.assert_close(one[site].flatten(1), probs[site][:, half, :, 3].mean(1))
    with pytest.raises(SfumatoError, match="no token 9 in a text of 5"):
        model.maps(x, 140, cond, sites, lambda call: token_map(call, 9))
    ran = []
    hook = model.network.conv_out.register_forward_hook(lambda *_: ran.append(1))
    with suppress(Enough):
        model.maps(x, 140, cond, sites[:1], lambda call: token_map(call, 1))
    hook.remove()
    assert not ran


def test_learned_texts_stand_in_for_the_prompt_and_nothing_else(made):
    model = made("sdxl")
    texts = drawn(model, 3, 9, seed=1)
    cond = conditions(model, texts)
    assert texts.shape == (3, 9, 32) and texts.dtype == torch.float32 and torch.equal(cond.text, texts)
    assert torch.equal(cond.extra["pooled"], model.embed_negative([""]).extra["pooled"].expand(3, -1))
    assert torch.equal(texts, drawn(model, 3, 9, seed=1))
    weights = list(model.network.parameters())
    weights[0].requires_grad_(True)
    with pytest.raises(ZeroDivisionError), frozen(model.network):
        assert not any(p.requires_grad for p in weights)
        raise ZeroDivisionError
    assert weights[0].requires_grad
    weights[0].requires_grad_(False)


def test_what_it_cannot_do_is_said(made):
    for family in ("pixart", "sd3", "flux", "deepfloyd"):
        model = made(family)
        side = families.side(model)
        with (
            read(model, torch.rand(3, side, side)) as reader,
            pytest.raises(SfumatoError, match="cross-attention of a UNet"),
        ):
            QUICK(reader, reader, POINTS[:1] / 8)
    with pytest.raises(SfumatoError, match="give 4 crops, not 20"):
        PromptEmbeddings(bank=2)
    with image(made("sd")) as reader, pytest.raises(SfumatoError, match="lies outside"):
        PromptEmbeddings().fit(reader, torch.tensor([[65.0, 3.0]]))
