"""Blocks of few keys of large joint attention are made, reduced and written without the rest, to the same numbers."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.rows import Rows
from sfumato.core.sites import Site
from sfumato.methods.edit import PromptToPrompt
from sfumato.ops import memory

ROWS = Rows(("a", "b"), ("cond",), 2)
A, B = (("a", "cond"), ("b", "cond"))
PAIR = "image->text"
SITES = {
    "behind": Site("x", 0, "double", ("image", "text"), ("image", "text"), 1, 2, 8),
    "before": Site("x", 0, "single", ("text", "image"), ("text", "image"), 1, 2, 8),
    "added": Site("x", 0, "up", ("image",), ("text", "image"), 1, 2, 8),
}
MASKS = {
    "none": None,
    "keys": torch.linspace(-2, 1, 19)[None, None, None],
    "rows": torch.arange(4 * 19).view(4, 1, 1, 19) % 5 != 0,
    "queries": torch.arange(19 * 19).sin().view(1, 1, 19, 19),  # a constant for each query would change nothing
}


@pytest.fixture(params=["whole", "apart"])
def size(request, monkeypatch):
    """Small attention is made whole; by a smaller budget, of five queries at a time, it is large."""
    if request.param == "apart":
        monkeypatch.setattr(memory, "BUDGET", 2 * 2 * 19 * 5)
    return request.param


def tensors(kind: str):
    site, g = SITES[kind], torch.Generator().manual_seed(1)
    queries = 19 if len(site.query) > 1 else 16
    return [torch.randn(4, 2, n, 8, generator=g) for n in (queries, 19, 19)]


def called(kind: str, mask=None, given=None) -> Call:
    return Call(SITES[kind], ROWS, (4, 4), 0, dict(zip("qkv", given or tensors(kind), strict=True)), attn_mask=mask)


def by_hand(kind: str, mask=None):
    """The whole attention of all rows, in double, and where its block lies."""
    q, k, _ = (x.double() for x in tensors(kind))
    logits = q @ k.transpose(-1, -2) / 8**0.5
    if mask is not None:
        mask = mask[..., : q.shape[2], :]
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    words = slice(16, 19) if SITES[kind].key[0] == "image" else slice(0, 3)
    image = slice(3, 19) if SITES[kind].query[0] == "text" else slice(0, 16)
    return logits.softmax(-1), (..., image, words)


def queries_of(kind: str, mask):
    return mask if mask is None or mask.shape[-2] == 1 or kind != "added" else mask[..., :16, :]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", SITES)
def test_a_block_is_its_part_of_the_whole(size, kind, mask):
    mask = queries_of(kind, MASKS[mask])
    whole, at = by_hand(kind, mask)
    call = called(kind, mask)
    assert_same_but_for_rounding(call.block(B, PAIR), whole[2:][at].float())
    assert_same_but_for_rounding(called(kind, mask).mean(B, PAIR), whole[2:][at].mean(1).float())
    assert (B in call._probs) == (size == "whole")  # or there would be nothing won


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", SITES)
def test_what_is_written_to_a_block_is_attended_to(size, kind, mask):
    mask = queries_of(kind, MASKS[mask])
    whole, at = by_hand(kind, mask)
    call = called(kind, mask)
    call.set_block(B, PAIR, 2 * call.block(A, PAIR))
    call.set_block(B, PAIR, call.block(B, PAIR) + 0.1)  # once more
    whole[2:][at] = 2 * whole[:2][at] + 0.1
    assert_same_but_for_rounding(call.mean(B, PAIR), whole[2:][at].mean(1).float())
    assert_same_but_for_rounding(call.output(), (whole @ tensors(kind)[2].double()).float())
    assert_same_but_for_rounding(call.probs(B), whole[2:].float())


def test_the_whole_has_what_was_written_to_a_block_and_what_is_written_to_it_counts(size):
    whole, at = by_hand("behind")
    call = called("behind")
    call.set_block(B, PAIR, torch.zeros(2, 2, 16, 3))
    whole[2:][at] = 0
    call.set_probs(B, 3 * call.probs(B))
    out = (whole[2:] * 3) @ tensors("behind")[2][2:].double()
    assert_same_but_for_rounding(call.output()[2:], out.float())
    call = called("behind")
    call.set_block(B, PAIR, torch.zeros(2, 2, 16, 3))
    call.set_logits(B, call.logits(B))  # as it was, without the block
    assert_same_but_for_rounding(call.output(), called("behind").output())


@pytest.mark.parametrize("kind", SITES)
def test_gradients_go_through_blocks(size, kind):
    plain = [x.double().requires_grad_() for x in tensors(kind)]
    q, k, v = plain
    whole, (_, image, words) = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1), by_hand(kind)[1]
    left = torch.ones_like(whole)
    left[2:, :, image, words] = 0.5
    loss = whole[:2, :, image, words].square().sum() + ((whole * left) @ v).square().sum()
    expected = torch.autograd.grad(loss, plain)
    given = [x.requires_grad_() for x in tensors(kind)]
    call = called(kind, given=given)
    call.set_block(B, PAIR, call.block(B, PAIR) / 2)
    found = torch.autograd.grad(call.block(A, PAIR).square().sum() + call.output().square().sum(), given)
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_but_for_rounding(mine, theirs.float())


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_an_edit_is_the_same_in_parts(models, monkeypatch, family):
    model = models(family)
    prompts = {"source": "a red cube on grass", "target": "a blue cube on grass"}

    def edited():
        found = denoise(model, prompts, methods=[PromptToPrompt()], steps=2, seed=3, size=512)
        return found["target"].latents

    whole = edited()
    monkeypatch.setattr(memory, "BUDGET", 2**18)
    made = []
    monkeypatch.setattr(Call, "_part", lambda *args, part=Call._part: made.append(1) or part(*args))
    assert_same_but_for_rounding(edited(), whole)
    assert made


def test_the_way_back_keeps_no_whole(monkeypatch):
    """What is kept for it: queries, keys and the block, and never a row of all keys a query."""
    monkeypatch.setattr(memory, "BUDGET", 2 * 2 * 19 * 5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        called("behind", given=[x.requires_grad_() for x in tensors("behind")]).block(B, PAIR)
    assert kept and not any(x.shape[-1] == 19 for x in kept)
