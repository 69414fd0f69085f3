"""Attention whose keys and values are other rows': against softmax written down, on every kind of attention."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core import attention
from sfumato.core.attention import FUSED, Call
from sfumato.core.rows import Rows
from sfumato.core.sites import Site
from sfumato.ops import memory

ROWS = Rows(("a", "b"), ("uncond", "cond"), 3)
NAME = ("b", "cond")
SITES = {
    "self": Site("x", 0, "up", ("image",), ("image",), 1, 2, 8),
    "behind": Site("x", 0, "double", ("image", "text"), ("image", "text"), 1, 2, 8),
    "before": Site("x", 0, "single", ("text", "image"), ("text", "image"), 1, 2, 8),
    "added": Site("x", 0, "up", ("image",), ("text", "image"), 1, 2, 8),
}
SOURCES = torch.tensor([[0, 2], [1, 0], [2, 1]])


def called(kind: str, seed: int = 0, **kernel):
    site, g = SITES[kind], torch.Generator().manual_seed(seed)
    sizes = {which: sum({"image": 4, "text": 3}[s] for s in of) for which, of in (("q", site.query), ("k", site.key))}
    q = torch.randn(len(ROWS), 2, sizes["q"], 8, generator=g)
    k, v = torch.randn(2, len(ROWS), 2, sizes["k"], 8, generator=g)
    return Call(site, ROWS, (2, 2), 0, {"q": q, "k": k, "v": v}, attn_mask=None, **kernel), q, k, v


def by_hand(kind: str, q, k, v, sources, bias=None):
    """Of the rows of ``NAME``: each row's own text, and the image's keys of its sources, one softmax."""
    site, out = SITES[kind], []
    image = slice(0, 4) if site.key[0] == "image" else slice(3, 7)
    text = slice(4, 7) if site.key[0] == "image" else slice(0, 3)
    for i, some in enumerate(sources.tolist()):
        at = [9 + s for s in some]  # the group is the last of four, of three rows each
        keys, values = (torch.cat([x[a][:, image] for a in at] + [x[9 + i][:, text]], 1).double() for x in (k, v))
        logits = q[9 + i].double() @ keys.transpose(-1, -2) / 8**0.5
        if bias is not None:
            logits[..., : bias.shape[1]] += bias[i].double()
        out.append(logits.softmax(-1) @ values)
    return torch.stack(out).float()


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("alike", [False, True])
def test_what_is_shared_is_one_softmax_over_all_that_is_read(kind, alike):
    sources = torch.tensor([[2, 0]] * 3) if alike else SOURCES
    bias = torch.linspace(-1, 2, 8).expand(3, 8) if alike else torch.linspace(-1, 2, 24).view(3, 8)
    for added in (None, bias):
        call, q, k, v = called(kind)
        plain = call.output()
        call, *_ = called(kind)
        call.share(NAME, sources, added)
        out = call.output()
        assert_same_but_for_rounding(out[9:], by_hand(kind, q, k, v, sources, added))
        assert_same_but_for_rounding(out[:9], plain[:9])  # other streams and conditions are left alone
        built, *_ = called(kind)
        built.share(NAME, sources, added)
        built.set_probs(NAME, built.probs(NAME))  # the same by probabilities
        assert_same_but_for_rounding(built.output(), out)


@pytest.fixture
def kernels(monkeypatch):
    """Shapes of queries and keys of each fused attention."""
    seen = []

    def fused(q, k, *rest, **kernel):
        seen.append((q.shape, k.shape))
        return FUSED(q, k, *rest, **kernel)

    monkeypatch.setattr(attention, "FUSED", fused)
    return seen


def test_few_rows_are_joined_at_a_time_with_the_same_result(monkeypatch, kernels):
    call, *_ = called("before")
    call.share(NAME, SOURCES)
    whole = call.output()
    assert [q[0] for q, _ in kernels] == [3, 9]
    monkeypatch.setattr(memory, "BUDGET", 1)
    call, *_ = called("before")
    call.share(NAME, SOURCES)
    assert_same_but_for_rounding(call.output(), whole)
    assert [q[0] for q, _ in kernels[2:]] == [1, 1, 1, 9]


def test_what_all_read_alike_is_not_copied_for_each(kernels):
    call, *_ = called("self")
    call.share(NAME, torch.tensor([[0, 1, 2]] * 3))
    call.output()
    assert kernels[0] == ((1, 2, 12, 8), (1, 2, 12, 8))


def test_itself_alone_is_plain_bit_for_bit():
    call, q, k, v = called("self")
    call.share(NAME, torch.arange(3)[:, None])
    assert torch.equal(call.output(), FUSED(q, k, v)) and not call.writes


@pytest.mark.parametrize("kind", ["before", "behind"])
def test_a_mask_goes_with_the_keys_that_it_is_of(kind):
    """Weights of words stay a row's own, and a mask of keys is that of the image that has them."""
    mask = torch.randn(len(ROWS), 1, 1, 7, generator=torch.Generator().manual_seed(4))
    for given in (mask, mask > -0.5):
        call, q, k, v = called(kind)
        call._kernel["attn_mask"] = given
        call.share(NAME, SOURCES)
        image = slice(0, 4) if kind == "behind" else slice(3, 7)
        text = slice(4, 7) if kind == "behind" else slice(0, 3)
        own = torch.where(given, 0.0, -torch.inf) if given.dtype == torch.bool else given
        bias = torch.stack(
            [
                torch.cat([own[9 + a, 0, 0, image] for a in some] + [own[9 + i, 0, 0, text]])
                for i, some in enumerate(SOURCES.tolist())
            ]
        )
        assert_same_but_for_rounding(call.output()[9:], by_hand(kind, q, k, v, SOURCES, bias))


@pytest.mark.parametrize("kind", ["before", "behind"])
def test_maps_to_words_are_of_the_softmax_over_all_that_is_read(kind):
    call, *_ = called(kind)
    call.share(NAME, SOURCES)
    words, images = call.block(NAME, "image->text"), call.block(NAME, "image->image")
    assert words.shape == (3, 2, 4, 3) and images.shape == (3, 2, 4, 8)
    torch.testing.assert_close(words.sum(-1) + images.sum(-1), torch.ones(3, 2, 4))
    fresh, *_ = called(kind)
    fresh.share(NAME, SOURCES)
    memory_of, memory.BUDGET = memory.BUDGET, 1
    try:
        torch.testing.assert_close(fresh.mean(NAME, "image->text"), words.mean(1))  # a head after the other
    finally:
        memory.BUDGET = memory_of
    doubled = words * 2
    call.set_block(NAME, "image->text", doubled)
    assert torch.equal(call.block(NAME, "image->text"), doubled)
