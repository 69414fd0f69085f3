"""Normalised cuts against every cut there is, the recursion on graphs whose parts are known, and runs on families."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from sfumato.core.choice import choose
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.normalised_cut import NormalisedCut, affinity, bisected, heads, recursive_cut
from sfumato.ops.regions import spectral
from sfumato.reading.reader import Noise, Reader


def cost(graph, inside) -> float:
    """cut(A, B) / assoc(A, V) + cut(A, B) / assoc(B, V)."""
    cut = graph[inside][:, ~inside].sum()
    return float(cut / graph[inside].sum() + cut / graph[~inside].sum())


def parts(*sizes: int, within: float = 1.0, across: float = 0.02, seed: int = 0):
    """A graph of groups, and which group each node is in, in a shuffled order."""
    draw = torch.Generator().manual_seed(seed)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=draw)]
    noise = 0.5 + torch.rand(len(groups), len(groups), generator=draw).double()
    graph = torch.where(groups[:, None] == groups, within, across) * (noise + noise.T) / 2
    return graph, groups


def same(labels, groups) -> bool:
    """Are these the same partition?"""
    return bool(((labels[:, None] == labels) == (groups[:, None] == groups)).all())


def test_the_cut_is_the_cheapest_of_all_where_two_parts_are_plain():
    graph, groups = parts(4, 6)
    inside, found = bisected(graph)
    every = [torch.tensor(c).bool() for c in product((0, 1), repeat=10) if 0 < sum(c) < 10]
    assert found == pytest.approx(min(cost(graph, c) for c in every))
    assert found == pytest.approx(cost(graph, inside)) and same(inside.long(), groups)


def test_the_cost_is_that_of_the_cut_that_is_made():
    for seed in range(5):
        draw = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed)).double()
        graph = draw + draw.T
        inside, found = bisected(graph)
        assert 0 < inside.sum() < 9 and found == pytest.approx(cost(graph, inside))


def test_parts_are_found_by_recursion_and_tau_ends_it():
    graph, groups = parts(5, 7, 4, 6)
    assert same(recursive_cut(graph, 0.5), groups)
    assert not recursive_cut(graph, 0.01).any()
    assert len(recursive_cut(graph, 2.0).unique()) > 4


def test_affinities_are_cosines_from_zero_to_one_to_a_power():
    f = torch.nn.functional.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    cosine = torch.tensor([[float((a * b).sum()) for b in f] for a in f])
    wanted = ((cosine - cosine.min()) / (cosine.max() - cosine.min())) ** 10
    torch.testing.assert_close(affinity(f, 10), wanted)
    assert (affinity(f[:1].expand(5, -1), 10) == 1).all()


def test_the_feature_is_what_the_encoders_last_self_attention_gives(models):
    """Its heads side by side, through its last linear map, are what its module returns."""
    model = models("sd")
    reader = Reader(model, torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)), 64)
    sites = [s for s in choose(model, "image->image", reader.grid) if s.stage == "down"]
    given: list[Any] = []
    module = model.network.get_submodule(sites[-1].path)
    hook = module.register_forward_hook(lambda m, args, out: given.append(out))
    try:
        found = reader.extract(sites[-1:], heads, Noise(50))[sites[-1]]
        model.predict(Noise(50).of(model, reader.latents), 50, model.embed([""]))
    finally:
        hook.remove()
    assert found.shape[1:] == sites[-1].grid(reader.grid)
    torch.testing.assert_close(module.to_out[0](found.flatten(1).T), given[-1][0], atol=1e-5, rtol=1e-4)


def test_pixels_are_given_to_segments_by_their_cosine_with_the_means_to_the_power(models):
    reader = Reader(models("sd"), torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)), 64)
    out = NormalisedCut(power=3.0, clusters=2, side=16)(reader)
    site = [s for s in choose(reader.model, "image->image", reader.grid) if s.stage == "down"][-1]
    f = reader.extract([site], heads, Noise(50))[site]
    f = f / f.norm(dim=0)
    labels = spectral(affinity(f.flatten(1).T, 3.0), 2, 0)
    fine = torch.nn.functional.interpolate(f[None], (16, 24), mode="bilinear")[0]
    wanted = []
    for n in labels.unique():
        mean = f.flatten(1)[:, labels == n].mean(1)
        wanted.append(torch.cosine_similarity(mean[:, None, None], fine, dim=0).clamp_min(0) ** 3)
    torch.testing.assert_close(out.scores, torch.stack(wanted), atol=1e-5, rtol=1e-4)


def test_an_image_of_one_colour_is_sane(models):
    out = NormalisedCut(side=16)(Reader(models("sd"), torch.full((3, 64, 64), 0.5), 64))
    assert out.scores.isfinite().all()


def test_what_it_cannot_do_is_said(models):
    options: tuple[dict[str, Any], ...] = ({"tau": 0}, {"tau": 3}, {"power": 0}, {"values": 1}, {"clusters": 0})
    for one in options:
        with pytest.raises(SfumatoError):
            NormalisedCut(**one)
    with pytest.raises(SfumatoError, match="no number 9"):
        NormalisedCut(which=9)(Reader(models("sd"), torch.rand(3, 64, 64), 64))
