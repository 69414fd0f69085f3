"""Layout guidance: energy and window as published, laws on every family, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Run
from sfumato.core.rows import Rows
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.methods.control.layout_guidance import LayoutGuidance, energy, window
from sfumato.prompts.layout import Layout, Region

PROMPT = "a red cube and a blue duck"
LAYOUT = Layout((Region("a red cube", box=(0.0, 0.0, 0.5, 0.5)), Region("duck", box=(0.5, 0.25, 1.0, 1.0))))
BACKWARD, FORWARD = LayoutGuidance(LAYOUT, until=1.0), LayoutGuidance(LAYOUT, mode="forward", until=1.0)


@pytest.fixture
def small(stilllife):
    return stilllife


def painted(model, *methods, prompts: object = PROMPT, **options):
    standard = {"steps": 2, "guide": 3.0, "size": 8 * model.factor if model.factor > 1 else 16}
    return denoise(model, prompts, methods=methods, **{**standard, **options})


def published(sites: list[torch.Tensor], grids: list[tuple[int, int]], boxes, positions) -> torch.Tensor:
    """The authors' loss of several sites' maps (heads, queries, tokens)."""
    loss = torch.zeros(())
    for maps, (h, w) in zip(sites, grids, strict=True):
        for (x0, y0, x1, y1), some in zip(boxes, positions, strict=True):
            mask = torch.zeros(h, w)
            mask[int(y0 * h) : int(y1 * h), int(x0 * w) : int(x1 * w)] = 1
            one = torch.zeros(())
            for token in some:
                map = maps[:, :, token].reshape(-1, h, w)
                inside = (map * mask).flatten(1).sum(1) / map.flatten(1).sum(1)
                one = one + ((1 - inside) ** 2).mean()
            loss = loss + one / len(some)
    return loss / (len(boxes) * len(sites))


def test_the_energy_is_the_published_one():
    generator = torch.Generator().manual_seed(0)
    grids, boxes, positions = [(8, 4), (16, 8)], [r.box for r in LAYOUT.regions], [[2, 3], [6]]
    sites = [torch.rand(8, h * w, 9, generator=generator) for h, w in grids]
    ours = [energy(m, LAYOUT.masks(g), positions) for m, g in zip(sites, grids, strict=True)]
    torch.testing.assert_close(torch.stack(ours).mean(), published(sites, grids, boxes, positions))
    whole = torch.zeros(1, 32, 9)
    whole[0, :, 6] = LAYOUT.masks((8, 4))[1].flatten()
    assert energy(whole, LAYOUT.masks((8, 4))[1:], [[6]]) == 0


def test_the_window_lies_in_its_box_and_sums_to_one():
    map = window((0.25, 0.5, 0.75, 1.0), (16, 8))
    assert map.shape == (16, 8)
    torch.testing.assert_close(map.sum(), torch.tensor(1.0))
    torch.testing.assert_close(map, map.flip(1))
    assert int(map.sum(1).argmax()) in (11, 12) and map[0].max() < 0.2 * map.max()


def test_forward_guidance_spreads_a_words_attention_over_its_box(small):
    site = next(s for s in small.sites if "image->text" in s.pairs and s.scale == 1)
    rows, grid = Rows(("main",), ("uncond", "cond")), (8, 8)
    run = Run(small, {"main": (PROMPT,)}, rows, 2, grid)
    q, k, v = torch.randn(3, 2, site.heads, 77, 8, generator=torch.Generator().manual_seed(0)).unbind()
    call = Call(site, rows, grid, 0, {"q": q[..., :64, :], "k": k, "v": v}, attn_mask=None)
    before = {name: call.probs(name).clone() for name in rows.names}
    (edit,) = LayoutGuidance(LAYOUT, mode="forward", strength=0.7).start(run).edits
    edit.do(call)
    assert torch.equal(call.probs(("main", "uncond")), before["main", "uncond"])
    wanted = before["main", "cond"].clone()
    for tokens, region in (([2, 3], LAYOUT.regions[0]), ([7], LAYOUT.regions[1])):
        for t in tokens:
            for head in range(site.heads):
                map = before["main", "cond"][0, head, :, t]
                wanted[0, head, :, t] = 0.3 * map + 0.7 * window(region.box, grid).flatten() * map.sum()
    torch.testing.assert_close(call.probs(("main", "cond")), wanted)


def test_a_step_is_that_of_k_diffusion(small):
    """x / alpha less sigma_k^2 times the gradient by it, where the authors' latents and noise levels are."""
    x, level = small.latents([0], 128, 128), small.schedule.levels(1)[0]
    found = []
    method = replace(BACKWARD, iterations=1, scale=7e4)
    painted(small, method, start=x, steps=1, size=128, callback=lambda step: found.append(step.x))
    run = Run(small, {"main": (PROMPT,)}, Rows(("main",), ("cond",)), 1, (16, 16))
    (need,) = method.start(run).looks
    sites = [s for s in small.sites if "image->text" in s.pairs and need.where.sites(s)]
    theirs = (x / level.alpha).requires_grad_()
    maps = small.maps(
        theirs * level.alpha, level.t, small.embed([PROMPT]), sites,
        lambda call: call.block(("main", "cond"), "image->text")[0],
    )  # fmt: skip
    loss = torch.stack([energy(m, LAYOUT.masks(s.grid((16, 16))), [[2, 3], [7]]) for s, m in maps.items()]).mean()
    (slope,) = torch.autograd.grad(7e4 * loss, theirs)
    wanted = (theirs - slope * (level.sigma / level.alpha) ** 2) * level.alpha
    assert (found[0] - x).abs().max() > 0.01
    torch.testing.assert_close(found[0], wanted.detach(), atol=1e-4, rtol=1e-4)


def test_it_goes_on_until_the_energy_is_small(small):
    calls = []
    maps = small.maps
    small.maps = lambda *a: calls.append(1) or maps(*a)
    painted(small, replace(BACKWARD, enough=0.0, iterations=3), steps=2)
    assert len(calls) == 6
    calls.clear()
    painted(small, replace(BACKWARD, enough=1.0), steps=2)
    assert len(calls) == 2


def test_the_sites_are_the_authors(small):
    run = Run(small, {"main": (PROMPT,)}, Rows(("main",), ("cond",)), 4, (16, 16))
    (need,) = BACKWARD.start(run).looks
    sites = [s for s in small.sites if "image->text" in s.pairs]
    chosen = [s for s in sites if need.where.sites(s)]
    coarsest = max(s.scale for s in sites if s.stage == "up")
    assert chosen == [s for s in sites if s.stage == "mid" or (s.stage == "up" and s.scale == coarsest)]
    (need,) = replace(BACKWARD, layers=("mid_block", "up_blocks.1")).start(run).looks
    assert [s for s in sites if need.where.sites(s)] == [
        s for s in sites if s.path.startswith(("mid_block", "up_blocks.1."))
    ]


def test_what_it_cannot_do_is_said(small):
    def refused(match, method, **options):
        with pytest.raises(SfumatoError, match=match):
            painted(small, method, **options)

    refused("layout guidance needs a layout", LayoutGuidance())
    refused("the prompt has no 'cone'", LayoutGuidance(Layout((Region("a cone", box=(0.0, 0.0, 0.5, 0.5)),))))
    refused("its condition on sites is too narrow", replace(BACKWARD, layers=("up_block",)))
    refused("seen in windows; leave the views out", BACKWARD, views=Tiles(), size=(128, 192))
