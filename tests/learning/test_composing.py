"""Several concepts in one image: each one's network counts where its word is, and the plain one elsewhere."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from learners import own_models  # noqa: F401

from sfumato.core.rows import single
from sfumato.errors import SfumatoError
from sfumato.learning.composing import alike, apart, at_tokens, regions
from sfumato.learning.concepts import Concept

PROMPTS = ["a <a> and a <b>", "", "a <b>", "a duck"]


def made(model, word, seed, text=False):
    """A word, and a random change of some weights."""
    rng = torch.Generator().manual_seed(seed)
    ends = {"unet": ("mid_block.attentions.0.proj_in.weight", "conv_in.weight")}
    ends |= {"text_encoder": ("final_layer_norm.weight",)} if text else {}
    found = {
        f"{part}.{name}": 0.3 * torch.randn(weight.shape, generator=rng)
        for part, some in ends.items()
        for name, weight in getattr(model.pipe, part).named_parameters()
        if name.endswith(some)
    }
    rows = {key: torch.randn(row.shape, generator=rng) for key, row in model.vectors("cube").items()}
    return Concept(word, rows, found)


def predicted(model, prompts=PROMPTS):
    x = model.latents(list(range(len(prompts))), 64, 64)
    with torch.no_grad():
        return model.predict(x, 500.0, model.embed(prompts))


def test_regions_by_hand():
    seen = torch.tensor([[0.9, 0.6, 0.2, 0.5], [0.4, 0.8, 0.1, 0.5]]).view(2, 1, 2, 2)
    assert regions(seen, 0.5).flatten(1).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert regions(seen, 0.3).flatten(1).tolist() == [[1, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize("text", [False, True])
def test_each_counts_in_its_region(text, models):
    model = models("sd")
    a, b = made(model, "<a>", 1), made(model, "<b>", 2, text)
    left = torch.zeros(64, 64)
    left[:, :32] = 1
    both = apart(model, [a, b], {"<a>": left, "<b>": 1 - left})
    plain = Concept("<b>", b.rows).on(Concept("<a>", a.rows).on(model))
    found, base = predicted(both), predicted(plain)
    of = [predicted(plain.with_changes(each.changes)) for each in (a, b)]
    assert torch.equal(found[[1, 3]], base[[1, 3]]), "a prompt without their words is the plain network's"
    torch.testing.assert_close(found[0, ..., :4], of[0][0, ..., :4], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found[0, ..., 4:], of[1][0, ..., 4:], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found[2, ..., 4:], of[1][2, ..., 4:], atol=2e-6, rtol=1e-5)
    assert torch.equal(found[2, ..., :4], base[2, ..., :4])
    assert min((each - base)[[0, 2]].abs().max() for each in of) > 1e-3
    assert text == (not torch.equal(plain.with_changes(b.changes).embed(["a <b>"]).text, plain.embed(["a <b>"]).text))


def test_regions_of_several_words_of_one_concept_are_its_region(models):
    model = models("sd")
    a, b = made(model, "<a>", 1), made(model, "<b>", 2)
    two = Concept(a.word, a.rows, a.changes, others={"<c>": b.rows})
    left, top = torch.zeros(8, 8), torch.zeros(16, 16)
    left[:, :4] = top[:8] = 1
    corner = torch.ones(8, 8)
    corner[4:, 4:] = 0
    found = predicted(apart(model, [two, b], {"<a>": left, "<c>": top, "<b>": 1 - corner}))
    wanted = predicted(apart(model, [two, b], {"<c>": corner, "<b>": 1 - corner}))
    torch.testing.assert_close(found, wanted)


def test_words_that_read_the_same_are_found(models):
    model = models("sd")
    a, b = made(model, "<a>", 1), made(model, "<b>", 2)
    same = Concept("<c>", {key: rows.clone() for key, rows in a.rows.items()}, b.changes)
    assert alike([b, a, same]) == ("<a>", "<c>") and alike([a, b]) is None
    plain, spelled = Concept("<c>", a.rows), [Concept(word, {}, a.changes) for word in ("d", "e")]
    assert alike([a, plain]) is None, "a word alone changes nothing that could be mixed up"
    assert alike(spelled) is None, "words that are read as they are spelled are not the same"


def test_where_no_region_is_given_it_is_where_the_word_looks(models):
    model = models("sd")
    a, b = made(model, "<a>", 1), made(model, "<b>", 2)
    plain = Concept("<b>", b.rows).on(Concept("<a>", a.rows).on(model))
    both = apart(model, [a, b])
    found, base = predicted(both), predicted(plain)
    torch.testing.assert_close(predicted(apart(model, [b, a])), found)
    x = model.latents([0, 1, 2, 3], 64, 64)
    maps = []
    for concept, word in ((a, "<a>"), (b, "<b>")):
        own = plain.with_changes(concept.changes)
        sites = [s for s in own.sites if s.key == ("text",) and s.grid((8, 8)) == (8, 8)]
        cond = own.embed(PROMPTS)
        seen = own.maps(x, 500.0, cond, sites, lambda call: call.probs(("main", "cond")).mean(1))
        at = own.own.places(own, PROMPTS[0], word)
        row = torch.stack(list(seen.values())).mean(0)[0][:, at].mean(-1).view(8, 8)
        maps.append((row / row.amax(), own.predict(x, 500.0, cond)[0]))
    wins = maps[0][0] >= maps[1][0]
    where = [wins & (maps[0][0] > 0.5), ~wins & (maps[1][0] > 0.5)]
    wanted = base[0].clone()
    for mask, (_, own) in zip(where, maps, strict=True):
        assert 0 < mask.sum() < 64
        wanted = torch.where(mask, own, wanted)
    torch.testing.assert_close(found[0], wanted.detach(), atol=2e-5, rtol=1e-4)


def test_one_is_itself_and_taps_see_the_plain_network(models):
    model = models("sd")
    a, b = made(model, "<a>", 1), made(model, "<b>", 2)
    assert torch.equal(predicted(apart(model, [a])), predicted(a.on(model)))
    words = [Concept("<a>", a.rows), Concept("<b>", b.rows)]
    assert torch.equal(predicted(apart(model, words)), predicted(words[1].on(words[0].on(model))))
    both, seen = apart(model, [a, b]), []
    sites = {both.sites[0]: lambda call: seen.append(len(call.rows))}
    with both.tap(sites, single(4), (8, 8)) as tap:
        predicted(both)
        tap.check(both.network)
    assert seen == [4]
    assert torch.equal(predicted(model), predicted(models("sd"))), "the model stays as it was"


def test_keys_and_values_change_at_the_tokens_of_the_word_alone(models):
    """TARA's mask, against a network whose layers are rewritten for this prompt; and without the word nothing is."""
    model, made_of = models("sd"), []
    layers = {
        k: p for k, p in model.network.named_parameters() if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    for i, word in enumerate(("<a>", "<b>")):
        rng = torch.Generator().manual_seed(i)
        rows = {key: torch.randn(2, row.shape[-1], generator=rng) for key, row in model.vectors("cube").items()}
        changes = {f"unet.{key}": torch.randn(p.shape, generator=rng) for key, p in layers.items()}
        made_of.append(Concept(word, rows, changes))
    both, prompt = at_tokens(model, made_of), "a <a> and a <b>"
    plain = Concept("<b>", made_of[1].rows).on(Concept("<a>", made_of[0].rows).on(model))
    network = deepcopy(plain.network)
    for key in layers:
        layer, weight = network.get_submodule(key.removesuffix(".weight")), layers[key].detach()

        def rewritten(text, weight=weight, key=key):
            out = text @ weight.T
            for concept in made_of:
                at = plain.own.places(plain, prompt, concept.word)
                assert len(at) == 2
                out[:, at] = text[:, at] @ (weight + concept.changes[f"unet.{key}"]).T
            return out

        layer.forward = rewritten
    wanted = predicted(plain.with_parts({"unet": network}), [prompt])
    found = predicted(both, [prompt, "a duck"])
    torch.testing.assert_close(found[:1], wanted, atol=2e-5, rtol=1e-4)
    x = model.latents([0, 1], 64, 64)
    with torch.no_grad():
        base = plain.predict(x, 500.0, plain.embed([prompt, "a duck"]))
    torch.testing.assert_close(found[1], base[1], atol=2e-6, rtol=1e-5)
    assert (found[0] - base[0]).abs().max() > 1e-3
    assert torch.equal(predicted(both, ["a duck"]), predicted(plain, ["a duck"]))
    assert not any(module._forward_hooks for module in plain.network.modules()), "a hook is left"
    with pytest.raises(SfumatoError, match="only keys and values of cross-attention"):
        at_tokens(model, [made(model, "<a>", 1)])
    with pytest.raises(SfumatoError, match="learns no words"):
        at_tokens(models("sd3"), made_of)


def test_what_cannot_be_kept_apart_is_said(models):
    model = models("sd")
    a, b = made(model, "<a>", 1), made(model, "<b>", 2, text=True)
    with pytest.raises(SfumatoError, match=r"unknown word of a region '<c>'"):
        apart(model, [a, b], {"<c>": torch.zeros(4, 4)})
    with pytest.raises(SfumatoError, match=r"the region of '<a>' is a mask"):
        apart(model, [a, b], {"<a>": torch.full((4, 4), 2.0)})
    with pytest.raises(SfumatoError, match="'<c>' changes no weights"):
        apart(model, [a, b, Concept("<c>", a.rows)], {"<c>": torch.zeros(4, 4)})
    with pytest.raises(SfumatoError, match="a threshold is a part"):
        apart(model, [a, b], threshold=2)
    both = apart(model, [a, b])
    cond = both.embed(["a <b>"])
    changed = cond.__class__(cond.text + 1, cond.prompts, cond.extra)
    with pytest.raises(SfumatoError, match="'<b>' has a text encoder of its own"):
        both.predict(model.latents([0], 64, 64), 500.0, changed)
