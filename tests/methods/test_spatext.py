"""SpaText: maps by hand, guidance and loss in closed form, what is drawn, resuming, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import maps
import pytest
import torch
from learners import own_models  # noqa: F401

from sfumato.backbones.clips import opened
from sfumato.core.denoising import denoise
from sfumato.core.schedule import add_noise
from sfumato.errors import SfumatoError
from sfumato.learning.heads import Given, Head, train
from sfumato.methods import heads
from sfumato.methods.control.spatext import SpaText, described
from sfumato.methods.control.spatio_textual import (
    SpaTextHead,
    embedded,
    lengthened,
    linear_prior,
    masked_crop,
    reading_maps,
    spatio_textual,
    with_map,
)
from sfumato.methods.perceive.clip_patches import ClipPatches
from sfumato.methods.perceive.stego import STEGO
from sfumato.prompts.layout import Layout, Region

PROMPT = "a red cube on grass"
LAYOUT = Layout((Region("a blue duck", (0.0, 0.0, 0.5, 0.5)), Region("the sphere", (0.5, 0.5, 1.0, 1.0))))
HEAD = SpaTextHead(batch=2, rate=1e-2, steps=2)


@pytest.fixture
def model(models):
    return models("sd")


@pytest.fixture(scope="module")
def seen(models):
    """Three pictures with two segments and one that is too small."""
    side = models("sd").size
    pixels = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.full((3, side, side), -1)
    labels[:, : side // 2, : side // 2] = 4
    labels[:, side // 2 :, side // 4 :] = 7
    labels[:, -4:, -4:] = 2
    captions = ("a red cube on grass", "a blue duck", "the sphere")
    phrases = [["", "", "sphere", "", "red cube", "", "", "blue duck"]] * 3
    return pixels, {"labels": labels, "captions": captions, "phrases": phrases}


@pytest.fixture(scope="module")
def examples(models, seen):
    return HEAD.examples(models("sd"), ClipPatches(), seen[0], **seen[1])


def test_a_map_holds_each_regions_embedding_where_it_lies_and_the_smaller_one_where_two_do():
    a, b = torch.zeros(4, 4), torch.zeros(4, 4)
    a[:, :3], b[1, 2:] = 1, 1
    embeddings = torch.tensor([[1.0, 2.0], [5.0, 7.0]])
    for order in ([0, 1], [1, 0]):
        found = spatio_textual(torch.stack([a, b])[order], embeddings[order])
        wanted = torch.tensor([[1, 1, 1, 0], [1, 1, 5, 5], [1, 1, 1, 0], [1, 1, 1, 0]])
        assert torch.equal(found[0], wanted.float())
        assert torch.equal(found[1], torch.where(wanted == 5, 7, 2 * wanted).float())
    assert torch.allclose(lengthened(embeddings).norm(dim=1), torch.tensor(2.0).sqrt())


def test_a_crop_is_the_square_around_a_segment_and_black_outside_of_it():
    pixels, mask = torch.arange(1.0, 76.0).view(3, 5, 5), torch.zeros(5, 5, dtype=torch.bool)
    mask[1, 2], mask[3, 2] = True, True
    found = masked_crop(pixels, mask)
    wanted = torch.zeros(3, 3, 3)
    wanted[:, 0, 1], wanted[:, 2, 1] = pixels[:, 1, 2], pixels[:, 3, 2]
    assert torch.equal(found, wanted)
    assert torch.equal(masked_crop(pixels, torch.ones(5, 5, dtype=torch.bool)), pixels)


def test_the_prior_is_least_squares_with_a_ridge():
    rng = torch.Generator().manual_seed(0)
    x, true, bias = torch.randn(50, 3, generator=rng), torch.randn(2, 3, generator=rng), torch.tensor([3.0, -1.0])
    weight, found = linear_prior(x, x @ true.T + bias, ridge=0.0)
    assert torch.allclose(weight, true, atol=1e-5) and torch.allclose(found, bias, atol=1e-5)
    # one number: 2 x + 1 of 0, 1, 2, whose squares sum to 2; a ridge of a half is 1 more
    weight, found = linear_prior(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]]), ridge=0.5)
    assert weight.item() == pytest.approx(4 / 3) and found.item() == pytest.approx(3 - 4 / 3)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_network_that_was_widened_answers_as_before_whatever_the_map(models, family):
    model = models(family)
    own, _ = reading_maps(model, 5)
    rng = torch.Generator().manual_seed(1)
    x, map = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 5, 8, 8, generator=rng)
    cond = model.embed([PROMPT, ""])
    before = model.predict(x, 500.0, cond)
    torch.testing.assert_close(own.predict(x, 500.0, with_map(cond, map)), before)
    assert model.reads == 4 and own.reads == 9 and torch.equal(model.predict(x, 500.0, cond), before)


def test_a_head_gives_a_model_the_weights_that_were_learned(model):
    _, weights = reading_maps(model, 5)
    network = HEAD.network(5)
    with torch.no_grad():
        for i, weight in enumerate(weights.values()):
            weight += 0.1 * (1 + i % 3)
    network.gain(model.network, weights)
    for name, value in network.on(model).network.named_parameters():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [None, 2.0, 3.0])
def test_guidance_is_the_published_formula(model, scale):
    """u + s (c - u) with text and map in c; or u + s (t - u) + s_r (r - u)."""
    seen = []
    method = SpaText(LAYOUT, maps.file(model), scale)
    denoise(model, PROMPT, methods=[method], guide=3.0, steps=1, size=64, seed=5, callback=seen.append)
    head = heads.load(maps.file(model))
    own = head.network.on(model)
    x, t = model.latents([5], 64, 64), seen[0].level.t
    embeddings = described(head, model, LAYOUT.phrases)
    map = torch.zeros(1, maps.WIDTH, 8, 8)
    map[0, :, :4, :4], map[0, :, 4:, 4:] = embeddings[0, :, None, None], embeddings[1, :, None, None]
    empty, text = model.embed([""]), model.embed([PROMPT])

    def predicted(cond, map):
        return own.predict(x, t, with_map(cond, map))

    u, none = predicted(empty, torch.zeros_like(map)), torch.zeros_like(map)
    if scale is None:
        wanted = u + 3 * (predicted(text, map) - u)
    else:
        wanted = u + 3 * (predicted(text, none) - u) + scale * (predicted(empty, map) - u)
    torch.testing.assert_close(seen[0].eps, wanted, atol=1e-4, rtol=1e-4)
    assert (predicted(text, map) - predicted(text, none)).abs().max() > 0.01


def test_the_loss_is_the_models_own_and_what_is_new_learns_at_once(model, examples):
    problem = HEAD.problem(examples, HEAD.network(maps.WIDTH))
    seen = problem.seen(0)
    x0 = examples.maps(seen.which)
    noisy = add_noise(x0, seen.noise, seen.at)
    error = model.predict(noisy, seen.at.t, model.embed(seen.captions)) - seen.noise
    torch.testing.assert_close(problem.loss(0), error.square().mean())
    problem.loss(0).backward()
    first = problem.moved["conv_in.weight"].grad
    assert bool((first[:, 4:].flatten(2).abs().amax(2) > 0).any()) and first.shape[1] == 4 + maps.WIDTH


def test_errors_of_other_pictures_are_the_models_own_until_it_has_learned(model, seen):
    """Three pictures in batches of one; a head that learned nothing has the same with maps and without."""
    none = Head(HEAD, ClipPatches(), HEAD.network(maps.WIDTH), {"width": maps.WIDTH}, (), model.name)
    found = HEAD.errors(none, model, ClipPatches(), seen[0], **seen[1])
    assert found["error"] == pytest.approx(found["error_without_map"], rel=1e-6) and 0.5 < found["error"] < 2
    learned = HEAD.errors(maps.head(model), model, ClipPatches(), seen[0], **seen[1])
    assert learned["error"] != learned["error_without_map"]


def test_segments_are_one_to_k_of_the_large_ones_and_their_embeddings_those_of_their_crops(examples, seen):
    assert set(examples.labels.unique().tolist()) == {-1, 0, 1}  # the small one is none
    crop = masked_crop(seen[0][1], seen[1]["labels"][1] == 7)
    wanted = lengthened(embedded(opened("stilllife", "cpu"), [crop]))[0]
    torch.testing.assert_close(examples.texts[1, 1], wanted, atol=1e-4, rtol=1e-4)
    problem = HEAD.problem(examples, HEAD.network(maps.WIDTH))
    counts = []
    for step in range(40):
        for i, map in zip(problem.seen(step).which, problem.seen(step).maps, strict=True):
            each = {tuple(v) for v in map.flatten(1).T.round(decimals=3).tolist() if any(v)}
            known = {tuple(v) for v in examples.texts[i].round(decimals=3).tolist()}
            assert each <= known
            counts.append(len(each))
    assert set(counts) == {0, 1, 2} and counts.count(1) > 20 and counts.count(2) > 20
    worded = replace(HEAD, worded=1.0, drop=0.0, most=1, least=0.1)
    problem = worded.problem(examples, worded.network(maps.WIDTH))
    head = Head(HEAD, ClipPatches(), problem.network, {"width": maps.WIDTH}, (), "")
    meant = described(head, problem.model, ["red cube", "blue duck"])
    for map in problem.seen(0).maps:
        inside = map.flatten(1).T[map.flatten(1).abs().amax(0) > 0][0]
        assert min((inside - each).abs().max() for each in meant) < 1e-4
    one = replace(HEAD, most=1, boxes=1.0)
    labels = torch.full((8, 8), -1)
    labels[1, 1] = labels[3, 4] = 0
    _, (box,) = one.masks(labels, (8, 8), torch.Generator())
    assert torch.equal(box.nonzero().amin(0), torch.tensor([1, 1])) and float(box.sum()) == 3 * 4


def test_caption_and_map_are_each_dropped_by_themselves(examples):
    many = replace(HEAD, batch=50)
    problem = many.problem(examples, many.network(maps.WIDTH))
    steps = [problem.seen(step) for step in range(10)]
    blind = torch.cat([each.maps.flatten(1).abs().amax(1) == 0 for each in steps])
    silent = torch.tensor([not caption for each in steps for caption in each.captions])
    for dropped in (blind, silent):
        assert 30 <= int(dropped.sum()) <= 70  # of 500, three deviations
    assert 1 <= int((blind & silent).sum()) <= 15


def test_a_run_that_was_cut_off_goes_on_bit_for_bit_and_a_file_holds_all(model, examples, tmp_path):
    def cut(run):
        if run.step == 1:
            raise KeyboardInterrupt

    method = replace(HEAD, falls=0.5, warmup=2)
    options = {"model": model, "source": ClipPatches(), "steps": 2}
    whole = train(method, examples, **options)
    with suppress(KeyboardInterrupt):
        train(method, examples, **options, keep=tmp_path / "cut", on_progress=cut)
    found = train(method, examples, **options, keep=tmp_path / "cut")
    found.save(tmp_path / "head.safetensors")
    read = heads.load(tmp_path / "head.safetensors")
    for other in (found, read):
        assert other.network.state_dict().keys() == whole.network.state_dict().keys()
        for key, value in whole.network.state_dict().items():
            assert torch.equal(value, other.network.state_dict()[key]), key
    assert read.method == method and float(whole.network.changes["conv_in/weight"][:, 4:].abs().max()) > 0
    with pytest.raises(SfumatoError, match="another run"):
        train(replace(method, drop=0.2), examples, **options, keep=tmp_path / "cut")
    half = train(replace(method, kept=0.5), examples, **options).network.changes
    for key, value in whole.network.changes.items():
        parts = (value[:, :4] / 2, value[:, 4:]) if key == "conv_in/weight" else (value / 2,)
        torch.testing.assert_close(half[key], torch.cat(parts, 1) if len(parts) > 1 else parts[0])
    assert [method.paced(2.0, step, step / 4) for step in range(4)] == [1.0, 2.0, 2.0, 1.0]


def test_what_cannot_be_is_refused(models, model, seen, tmp_path):
    with pytest.raises(SfumatoError, match="train-head stilllife:400 spatext makes its --head"):
        denoise(model, PROMPT, methods=[SpaText(LAYOUT)], steps=1)
    with pytest.raises(SfumatoError, match="needs a layout"):
        denoise(model, PROMPT, methods=[SpaText(head=maps.file(model))], steps=1, size=64)
    twice = [SpaText(LAYOUT, maps.file(model)), SpaText(LAYOUT, maps.file(model), 2.0)]
    with pytest.raises(SfumatoError, match="SpaText and SpaText each paint by a network of their own; give one"):
        denoise(model, PROMPT, methods=twice, steps=1)
    with pytest.raises(SfumatoError, match=r"cannot read those of|or train anew"):
        denoise(models("sd2"), PROMPT, methods=[SpaText(LAYOUT, maps.file(model))], steps=1)
    other = maps.head(model)
    with pytest.raises(SfumatoError, match=r"changes .*sd2 does not have|which .* does not have"):
        other.network.on(models("sdxl"))
    with pytest.raises(SfumatoError, match="first layer of a UNet"):
        reading_maps(models("pixart"), 4)
    sizes = {"width": 4, "labels": 0}
    wrong = Head(STEGO(), Given(), STEGO().network(**sizes), sizes)
    wrong.save(tmp_path / "stego.safetensors")
    with pytest.raises(SfumatoError, match="a head of STEGO, which reads"):
        denoise(model, PROMPT, methods=[SpaText(LAYOUT, tmp_path / "stego.safetensors")], steps=1)
    with pytest.raises(SfumatoError, match="described by a CLIP, not by Given"):
        HEAD.examples(model, Given(), seen[0], **seen[1])
    with pytest.raises(SfumatoError, match="these have none; give labels"):
        HEAD.examples(model, ClipPatches(), seen[0])
    with pytest.raises(SfumatoError, match="no segment covers 90%"):
        replace(HEAD, least=0.9).examples(model, ClipPatches(), seen[0], **seen[1])
    with pytest.raises(SfumatoError, match="this head paints"):
        HEAD.answer(other, [], (8, 8))
