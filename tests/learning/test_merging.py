"""Concepts in one model: sums, and the constrained least squares of Custom Diffusion against its conditions."""

from __future__ import annotations

import re

import pytest
import torch
from learners import own_models  # noqa: F401

from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept
from sfumato.learning.merging import _tokens, merged, summed, weighted

LAYERS = ("attn2.to_k.weight", "attn2.to_v.weight")
WORDS = ("<duck>", "<cat>")
CAPTIONS = ("a red cube on grass", "the blue sphere", "a duck and a cube on grass", "a red duck on the blue cube")


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair(models):
    """Two words of two vectors, and what each makes of keys and values."""
    model = models("sd")
    weights = {k: p for k, p in model.network.named_parameters() if k.endswith(LAYERS)}
    made = []
    for i, word in enumerate(WORDS):
        changes = {f"unet.{k}": drawn(10 * i + n, *p.shape) for n, (k, p) in enumerate(weights.items())}
        made.append(Concept(word, {"clip_l": 0.1 * drawn(i, 2, 16)}, changes))
    return model, made


def on(model, concepts):
    for concept in concepts:
        model = concept.on(model)
    return model


def weight(model, key):
    return dict(model.network.named_parameters())[key.removeprefix("unet.")].detach().double()


def test_one_concept_is_itself(pair):
    model, (one, _) = pair
    assert merged([one], model, CAPTIONS) == (one,)


def test_each_word_reads_as_its_own_model_reads_it(pair):
    model, concepts = pair
    both = on(model, merged(concepts, model, CAPTIONS))
    for concept in concepts:
        own = concept.on(model)
        tokens = _tokens(concept, model, "photo of a {}")
        assert tokens.shape == (2, 16)
        for key in concept.changes:
            said, wanted = (tokens @ weight(each, key).T for each in (both, own))
            torch.testing.assert_close(said, wanted, atol=1e-5, rtol=1e-4)
            assert (wanted - tokens @ weight(model, key).T).abs().max() > 0.1


def test_of_all_such_weights_it_is_the_one_that_reads_captions_most_as_before(pair):
    """Least squares under equations by Lagrange's conditions: the gradient is a combination of the constraints."""
    model, concepts = pair
    both = on(model, merged(concepts, model, CAPTIONS))
    seen = torch.cat([model.embed([c]).text[0].double() for c in CAPTIONS])
    words = torch.cat([_tokens(c, model, "photo of a {}") for c in concepts])
    for key in concepts[0].changes:
        gradient = (weight(both, key) - weight(model, key)) @ (seen.T @ seen)
        rest = gradient - torch.linalg.lstsq(words.T, gradient.T).solution.T @ words
        assert rest.norm() < 1e-4 * gradient.norm()
        assert gradient.norm() > 1e-3


def test_order_and_low_rank_do_not_matter(pair):
    model, (one, two) = pair
    key = next(iter(two.changes))
    low, high = drawn(1, 2, 16), drawn(2, len(two.changes[key]), 2)
    stem = key.removesuffix("weight")
    thin = Concept(two.word, two.rows, {f"{stem}lora_A": low, f"{stem}lora_B": high})
    wide = Concept(two.word, two.rows, {key: high @ low})
    a, b, c = (
        merged([one, thin], model, CAPTIONS),
        merged([one, wide], model, CAPTIONS),
        merged([wide, one], model, CAPTIONS),
    )
    for layer in one.changes:
        torch.testing.assert_close(a[0].changes[layer], b[0].changes[layer])
        torch.testing.assert_close(c[0].changes[layer], b[0].changes[layer], atol=1e-5, rtol=1e-4)
    assert [each.word for each in c] == ["<cat>", "<duck>"] and not c[1].changes


def test_offsets_that_multiply_weights_are_merged_as_what_they_add(pair):
    model, (one, two) = pair
    key = next(iter(two.changes))
    stem, plain = key.removesuffix("weight"), weight(model, key)
    low, high = drawn(1, 2, 16), drawn(2, len(plain), 2)
    scales = {f"{stem}scale_A": low, f"{stem}scale_B": high}
    scaled = Concept(two.word, two.rows, {key: two.changes[key], **scales})
    added = Concept(two.word, two.rows, {key: two.changes[key] + (plain * (high @ low)).float()})
    found, wanted = (merged([one, each], model, CAPTIONS)[0].changes for each in (scaled, added))
    assert found.keys() == wanted.keys() == one.changes.keys()
    for layer, value in wanted.items():
        torch.testing.assert_close(found[layer], value, atol=1e-5, rtol=1e-4)
    out = re.sub("attn2.to_[kv]", "attn1.to_out.0", stem)  # as wide as it is high
    query = {f"{out}scale_A": drawn(1, 2, len(plain)), f"{out}scale_B": high}
    with pytest.raises(SfumatoError, match="only keys and values"):
        merged([one, Concept(two.word, two.rows, query)], model, CAPTIONS)
    with pytest.raises(SfumatoError, match="learned with another kind of model"):
        merged(
            [one, Concept(two.word, two.rows, {f"{stem}scale_A": low[:, :3], f"{stem}scale_B": high})], model, CAPTIONS
        )


def test_sums_are_of_what_is_added(models):
    model = models("sd")
    one, two = [f"unet.{k}" for k in dict(model.network.named_parameters()) if k.endswith("to_q.weight")][:2]
    out, width = weight(model, one).shape
    downs, ups = ([drawn(n + i, *shape) for i in (0, 1)] for n, shape in ((0, (3, width)), (2, (out, 3))))
    stem, full = one.removesuffix("weight"), drawn(4, *weight(model, two).shape)
    concepts = [
        Concept(word, {}, {f"{stem}lora_A": down, f"{stem}lora_B": up, two: full})
        for word, down, up in zip(WORDS, downs, ups, strict=True)
    ]
    first, second = summed(concepts, [0.5, -2.0])
    assert first.changes[f"{stem}lora_A"].shape[0] == 6 and not second.changes
    products = [up @ down for up, down in zip(ups, downs, strict=True)]
    wanted = {one: 0.5 * products[0] - 2 * products[1], two: -1.5 * full}
    half = {one: 0.5 * products[0], two: 0.5 * full}
    both = summed([concepts[0], Concept("<it>", {}, {one: products[1]})])  # low-rank and not, of one layer
    mixed = {one: products[0] + products[1], two: full}
    for found, added in (
        (on(model, [first, second]), wanted),
        (weighted(concepts[0], 0.5).on(model), half),
        (on(model, both), mixed),
    ):
        for key, value in added.items():
            change = weight(found, key) - weight(model, key)
            torch.testing.assert_close(change, value.double(), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_merged_is_said(pair):
    model, (one, two) = pair
    with pytest.raises(SfumatoError, match="give some"):
        merged([one, two], model, [])
    other = Concept("<it>", {}, {"unet.conv_in.weight": torch.zeros(1)})
    with pytest.raises(SfumatoError, match="only keys and values"):
        merged([one, other], model, CAPTIONS)
    many = Concept("<it>", {"clip_l": drawn(0, 15, 16)}, one.changes)
    with pytest.raises(SfumatoError, match="17 vectors of words"):
        merged([two, many], model, CAPTIONS)
    with pytest.raises(SfumatoError, match="one half is missing"):
        merged([one, Concept("<it>", {}, {"unet.a.lora_A": torch.zeros(1, 1)})], model, CAPTIONS)
