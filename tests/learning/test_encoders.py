"""Encoders that say what word a picture is: what they learn, what they give, and their files."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from learners import own_models  # noqa: F401
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.learning import encoders, encoding
from sfumato.learning.concepts import Concept
from sfumato.learning.encoders import Encoder, Offset, Pretrained
from sfumato.learning.encoding import Encoding, Pretraining, pretrain
from sfumato.learning.lessons import Lesson
from sfumato.learning.merging import summed, weighted
from sfumato.learning.teaching import Part
from sfumato.reading.reader import Noise, extract, feature

QUICK = Pretraining(rate=1e-2, batch=2, hidden=8)


@pytest.fixture
def lesson(models):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    return Lesson.of(models("sd"), images)


def sees(images):
    return images.mean((2, 3))


def weights(model):
    return dict(model.network.named_parameters())


def test_an_offset_multiplies_each_number_of_a_weight():
    made = Offset(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5], [1.0]]))
    assert made(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[1.5, 4.0], [6.0, 12.0]]


def test_offsets_that_learn_are_those_that_are_kept_and_the_model_is_not_changed(models):
    model = models("sd")
    plain = encoders.none(model)
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in plain} == {"to_q", "to_k", "to_v"}
    own, learned = encoders.offset(model, plain)
    x, cond = torch.ones(1, 4, 8, 8), model.embed(["a cube"])
    before = model.predict(x, 300.0, cond)
    assert torch.equal(own.predict(x, 300.0, cond), before)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in learned.named.values():
            value.add_(torch.randn(value.shape, generator=rng))
    changed = model.with_changes({name: value.detach() for name, value in learned.named.items()})
    torch.testing.assert_close(changed.predict(x, 300.0, cond), own.predict(x, 300.0, cond))
    assert (changed.predict(x, 300.0, cond) - before).abs().max() > 1e-3
    assert torch.equal(model.predict(x, 300.0, cond), before)
    own.predict(x, 300.0, cond).sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in learned.named.values())
    assert all(p.grad is None for p in model.network.parameters())


def test_offsets_of_concepts_are_weighted_and_added_up(models):
    model = models("sd")
    stem = next(key for key in weights(model) if key.endswith("attn1.to_q.weight")).removesuffix(".weight")
    wide = weights(model)[f"{stem}.weight"]
    drawn = [torch.randn(side, generator=torch.Generator().manual_seed(i)) for i, side in enumerate((*wide.shape,) * 2)]
    one, two = (
        Concept(word, {}, {f"unet.{stem}.scale_A": low[None], f"unet.{stem}.scale_B": high[:, None]})
        for word, high, low in (("<a>", *drawn[:2]), ("<b>", *drawn[2:]))
    )
    products = [torch.outer(*drawn[:2]), torch.outer(*drawn[2:])]
    both = model
    for concept in summed([one, two], [0.5, 2.0]):
        both = concept.on(both)
    wanted = wide * (1 + 0.5 * products[0] + 2 * products[1])
    torch.testing.assert_close(weights(both)[f"{stem}.weight"], wanted)
    half = weights(weighted(one, 0.5).on(model))[f"{stem}.weight"]
    torch.testing.assert_close(half, wide * (1 + 0.5 * products[0]))
    added = {f"unet.{stem}.weight": torch.ones_like(wide), **one.changes}  # what is multiplied is the model's own
    torch.testing.assert_close(weights(model.with_changes(added))[f"{stem}.weight"], wide * (1 + products[0]) + 1)
    with pytest.raises(SfumatoError, match="one half is missing"):
        model.with_changes({f"unet.{stem}.scale_A": drawn[1][None]})
    with pytest.raises(SfumatoError, match=r"scale'.*has as"):
        model.with_changes({f"unet.{stem}.scale_A": torch.ones(1, 3), f"unet.{stem}.scale_B": torch.ones(2, 1)})


def test_features_are_told_apart_and_a_new_encoder_says_the_domains_word(models, lesson):
    model = models("sd")
    found = encoders.described(model, lesson, encoders.seen_layers(model), 261, sees)
    widths = [layer.width for layer in model.layers if layer.kind == "hidden" and layer.stage in ("down", "mid")]
    assert found.shape == (3, 2 * sum(widths) + 3) and torch.equal(found[:, -3:], sees(lesson.pictures))
    first = next(layer for layer in model.layers if layer.path in encoders.seen_layers(model))
    maps = extract(model, lesson.latents[:, 0], model.embed([""]), Noise(261), [first], feature)[first].flatten(2)
    wanted = torch.cat([maps.mean(2), (maps - maps.mean(2, keepdim=True)).square().mean(2).sqrt()], 1)
    torch.testing.assert_close(found[:, : 2 * first.width], wanted, atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-4
    new = Encoder(found.shape[1], {"clip_l": 16}, 2, 8).begin(found, torch.Generator().manual_seed(0))
    given = new(found)["clip_l"]
    assert given.shape == (3, 2, 16) and not given.any()
    new.out["clip_l"].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    once = new(found)["clip_l"]
    again = new.begin(5 * found + 3, torch.Generator().manual_seed(0))
    again.out["clip_l"].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again(5 * found + 3)["clip_l"], once, atol=1e-3, rtol=1e-3)
    assert once.abs().max() > 0.1
    new.begin(found, torch.Generator().manual_seed(0))
    seen = (found - new.mean) / new.deviation
    assert seen.mean(0).abs().max() < 1e-4 and (seen.std(0) - 1).abs().max() < 0.1


def problem_of(model, lesson, **options):
    made = Encoder(2, {"clip_l": 16}, 1, 4).begin(torch.zeros(1, 2), torch.Generator().manual_seed(0))
    made.out["clip_l"].weight.data[:, 0] = 0.25
    made.out["clip_l"].bias.data.fill_(2.0)
    made.inner[1].bias.data[0] = 1.0
    for layer in made.inner:
        layer.weight.data.zero_()
    first = {"clip_l": torch.zeros(1, 16)}
    return Encoding(model, [Part(lesson, ("a <encoded>",), 2)], encoder=made, features=torch.zeros(3, 2), first=first,
                    penalty=0.1, **options)  # fmt: skip


def test_what_counts_is_the_offsets_squared_length_alone_a_mean_over_pictures(models, lesson):
    problem = problem_of(models("sd"), lesson, scale=0.1)
    taught = problem.teach(0, 0)
    problem.first["clip_l"].fill_(7.0)  # of the word nothing counts but how far it is moved
    problem.cond([taught])
    assert problem.given["clip_l"].shape == (2, 1, 16)
    assert float(problem.beside([taught], torch.zeros(1)).detach()) == pytest.approx(0.1 * 16 * 2.25**2)
    assert problem.rows(problem.given)["clip_l"].unique().tolist() == pytest.approx([7.225])


def test_pictures_of_one_thing_have_the_mean_of_their_words_and_others_their_own_captions(models, lesson):
    problem = problem_of(models("sd"), lesson, together=True)
    problem.encoder.inner[0].weight.data[0, 0] = problem.encoder.inner[1].weight.data[0, 0] = 1.0
    problem.features = torch.tensor([[0.0, 0], [1, 0], [5, 0]])
    assert problem.offsets([0])["clip_l"].unique().tolist() == pytest.approx([2.25 + 0.25 * 2])
    each = replace(
        problem, together=False, each=("zero <encoded>", "one <encoded>", "two <encoded>"), model=models("sd")
    )
    assert each.offsets([2, 0])["clip_l"][:, 0, 0].tolist() == pytest.approx([3.5, 2.25])
    taught = each.teach(0, 5)
    assert taught.captions == tuple(each.each[i] for i in taught.drawn.which)


def test_levels_below_a_part_are_not_seen(models, lesson):
    later = problem_of(models("sd"), lesson, since=0.9)
    times = torch.cat([later.levels(0, step).t for step in range(20)])
    assert times.min() >= 900 and times.max() < 1000 and len(times.unique()) > 10


def left_out(x, y, ridge, i):
    """What ridge regression with a free intercept finds of row i from all others."""
    rest = [k for k in range(len(x)) if k != i]
    mid, to = x[rest].mean(0), y[rest].mean(0)
    apart = x[rest] - mid
    square = apart.T @ apart + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    return to + (x[i] - mid) @ torch.linalg.solve(square, apart.T @ (y[rest] - to))


@pytest.mark.parametrize("noise", [0.1, 4.0])
def test_names_are_learned_by_the_ridge_that_finds_each_from_the_others(noise):
    rng = torch.Generator().manual_seed(5)
    features, begin = 3 * torch.randn(9, 4, generator=rng) + 1, {"clip_l": torch.ones(2, 3)}
    true = features @ torch.randn(4, 6, generator=rng) + noise * torch.randn(9, 6, generator=rng)
    made = Encoder(4, {"clip_l": 3}, 2, 8).begin(features, rng)
    encoding.learn_names(made, features, begin, [{"clip_l": row.view(2, 3)} for row in true], 0.1)
    x, y = made.seen(features).double(), (true - 1).double() / 0.1
    ridges = [each * float(x.square().sum()) / 9 for each in encoding.RIDGES]
    missed = [sum(float((left_out(x, y, r, i) - y[i]).square().sum()) for i in range(9)) for r in ridges]
    best = ridges[missed.index(min(missed))]
    weight = torch.linalg.solve(x.T @ x + best * torch.eye(4).double(), x.T @ (y - y.mean(0)))
    with torch.no_grad():
        given = made(features)["clip_l"].flatten(1)
    torch.testing.assert_close(given, (x @ weight + y.mean(0)).float(), atol=1e-3, rtol=1e-4)
    assert (missed.index(min(missed)) > 3) == (noise > 1), "noise does not hold weights back"
    with torch.no_grad():
        made.out["clip_l"].bias.fill_(2.0)
        torch.testing.assert_close(made(features)["clip_l"].flatten(1), given + 2)


def test_names_need_no_network_and_are_kept_in_the_file(models, lesson, tmp_path):
    model, names = models("sd"), ("red cube", "blue sphere", "red cube")
    still = replace(QUICK, rate=0.0, vectors=2)
    found = pretrain(model, lesson, "cube", still, names=names, steps=1)
    one = Lesson.of(model, lesson.pictures[:1])
    alone = pretrain(model, one, "cube", still, names=names[:1], steps=1)
    wanted = encoders.first(model, names[0], 2)["clip_l"]
    torch.testing.assert_close(alone.word(model, lesson)["clip_l"], wanted)  # nothing tells one from the other
    features = found.features(model, lesson)
    with torch.no_grad():
        words = encoders.first(model, "cube", 2)["clip_l"] + 0.1 * found.encoder(features)["clip_l"]
    known = torch.stack([encoders.first(model, each, 2)["clip_l"] for each in names])
    torch.testing.assert_close(words.mean(0), known.mean(0))
    assert (words[0] - words[1]).abs().max() > 1e-3
    assert not any("straight" in name for name, _ in found.encoder.named_parameters()), "names are learned further"
    found.save(tmp_path / "named.safetensors")
    assert same(Pretrained.load(tmp_path / "named.safetensors"), found)
    with pytest.raises(SfumatoError, match="3 pictures have a name each, got 1"):
        pretrain(model, lesson, "cube", QUICK, names=["duck"], steps=1)


def same(one, other):
    pairs = [(one.encoder.state_dict(), other.encoder.state_dict()), (one.offsets, other.offsets)]
    return all(a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items()) for a, b in pairs)


def test_a_pre_training_goes_on_bit_for_bit_and_leaves_the_model_alone(models, lesson, tmp_path):
    model, captions = models("sd"), ("a {} on grass", "the {}", "a {}")
    before = {key: value.detach().clone() for key, value in model.network.state_dict().items()}

    def run(steps=4, settings=QUICK, **options):
        return pretrain(model, lesson, "cube", settings, captions=captions, sees=sees, steps=steps, **options)

    def cut(run):
        if run.step == 2:
            raise KeyboardInterrupt

    whole = run()
    with suppress(KeyboardInterrupt):
        run(keep=tmp_path / "run", on_progress=cut)
    assert same(whole, run(keep=tmp_path / "run")) and not same(whole, run(2))
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())
    words = [whole.word(model, Lesson.of(model, lesson.pictures[i : i + 1])) for i in range(2)]
    assert not torch.equal(words[0]["clip_l"], words[1]["clip_l"]), "all pictures are the same word"
    for other in ({"seed": 1}, {"settings": replace(QUICK, penalty=0.5)}, {"about": "others"}):
        with pytest.raises(SfumatoError, match="is of another run"):
            run(keep=tmp_path / "run", **other)
    whole.save(tmp_path / "encoder.safetensors")
    found = Pretrained.load(tmp_path / "encoder.safetensors", sees)
    assert same(found, whole) and found.digest == whole.digest and found.about["pictures"] == 3
    assert torch.equal(found.word(model, lesson)["clip_l"], whole.word(model, lesson)["clip_l"])
    with pytest.raises(SfumatoError, match="sees what a CLIP makes of pictures, and there is none"):
        Pretrained.load(tmp_path / "encoder.safetensors").word(model, lesson)
    found.check(model)
    with pytest.raises(SfumatoError, match=r"of another model than .*: it gives words"):
        found.check(models("sdxl"))
    with pytest.raises(SfumatoError, match=r"it sees 'mid_block.never'"):
        replace(found, layers=("mid_block.never",)).check(model)
    with pytest.raises(SfumatoError, match=r"it changes 'unet.x.scale_A'"):
        replace(found, offsets={"unet.x.scale_A": torch.ones(1)}).check(model)


def test_what_no_encoder_can_learn_from_or_be_read_from_is_one_line(models, lesson, tmp_path):
    with pytest.raises(SfumatoError, match="gives a word, which Stable Diffusion 1, 2, XL and the built-in model"):
        pretrain(models("flux"), lesson, "cube", QUICK, steps=1)
    with pytest.raises(SfumatoError, match="3 pictures have a caption each, got 1"):
        pretrain(models("sd"), lesson, "cube", QUICK, captions=["a {}"], steps=1)
    with pytest.raises(SfumatoError, match="a template has a place for the word"):
        pretrain(models("sd"), lesson, "cube", QUICK, captions=["a {}", "a", "{}"], steps=1)
    with pytest.raises(SfumatoError, match=r"there is no encoder .*; sfumato train-encoder makes one"):
        Pretrained.load(tmp_path / "none.safetensors")
    Concept("<a>", {"clip_l": torch.zeros(1, 16)}).save(tmp_path / "concept.safetensors")
    with pytest.raises(SfumatoError, match=r"concept\.safetensors is no encoder"):
        Pretrained.load(tmp_path / "concept.safetensors")
    made = Pretrained(Encoder(3, {"clip_l": 16}), {}, "cube", ("mid_block",), 261, 0.1)
    made.encoder.mean = nn.Buffer(torch.zeros(4))
    made.save(tmp_path / "damaged.safetensors")
    with pytest.raises(SfumatoError, match=r"is damaged .*; make it anew"):
        Pretrained.load(tmp_path / "damaged.safetensors")
    with pytest.raises(SfumatoError, match="sees 3 features of a picture"):
        Pretrained(Encoder(3, {"clip_l": 16}), {}, "cube", ("mid_block",), 261, 0.1).word(models("sd"), lesson)
    for bad in ({"vectors": 0}, {"batch": 0}, {"since": 1.0}, {"rate": -1.0}):
        with pytest.raises(SfumatoError):
            Pretraining(**bad)
