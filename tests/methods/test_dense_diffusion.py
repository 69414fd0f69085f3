"""DenseDiffusion: logits as the authors' code has them, laws on every family, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from families import SOME

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Run, Step, Where
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.control.dense_diffusion import DenseDiffusion, segments, spoken, tied
from sfumato.prompts.layout import Layout, Mask, Region

PROMPT = "a red cube and a blue duck"
LAYOUT = Layout((Region("a red cube", box=(0.0, 0.0, 0.5, 0.5)), Region("a blue duck", box=(0.5, 0.25, 1.0, 1.0))))
METHOD = DenseDiffusion(LAYOUT, until=1.0)


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


@pytest.fixture
def small(stilllife):
    return stilllife


def painted(model, *methods, prompts: object = PROMPT, **options):
    standard = {"steps": 2, "guide": 3.0, "size": 8 * model.factor if model.factor > 1 else 16}
    return denoise(model, prompts, methods=methods, **{**standard, **options})


@pytest.mark.parametrize("step", [0, 2])
def test_logits_are_the_authors_where_segments_cover_all(small, step):
    """sim +- mask * size * w * (t / 1000)^5 * (max - sim, or sim - min), in the conditional half alone."""
    side, rows = 8, Rows(("main",), ("uncond", "cond"))
    left = torch.zeros(64, 64, dtype=torch.bool)
    left[:, :24] = True
    layout = Layout((Region("red cube", mask=Mask(left)), Region("a blue duck", mask=Mask(~left))))
    run = Run(small, {"main": (PROMPT,)}, rows, 3, (side, side))
    phases = DenseDiffusion(layout, cross=1.2, self=0.4, until=1.0).start(run)
    levels, cond = small.schedule.levels(3), small.embed(["", PROMPT])
    x = small.latents([0], side * 8, side * 8)
    phases.before(Step(step, levels[step], levels[step + 1], x, run, cond))
    treg = (levels[step].t / 1000) ** 5

    layouts = F.interpolate(torch.stack([left, ~left])[:, None].float(), (side, side), mode="nearest")
    same = (layouts.view(2, 1, -1) * layouts.view(2, -1, 1)).sum(0)
    size = 1 - same.sum(-1, keepdim=True) / side**2
    words = torch.zeros(77, side, side)
    words[2:4], words[5:8] = layouts[0], layouts[1]
    words = words.view(77, -1).T
    for edit, mask, weight in zip(phases.edits, (words, same), (1.2, 0.4), strict=True):
        site = next(s for s in small.sites if edit.where.pair in s.pairs and s.scale == 1)
        q = torch.randn(2, site.heads, 64, 8, generator=torch.Generator().manual_seed(step))
        k, v = torch.randn(2, 2, site.heads, mask.shape[1], 8, generator=torch.Generator().manual_seed(1)).unbind()
        call = Call(site, rows, (side, side), step, {"q": q, "k": k, "v": v}, attn_mask=None)
        sim = q @ k.transpose(-1, -2) / 8**0.5
        low, high = sim[1].min(-1)[0].unsqueeze(-1), sim[1].max(-1)[0].unsqueeze(-1)
        wanted = sim.clone()
        wanted[1] += (mask > 0) * size * weight * treg * (high - sim[1])
        wanted[1] -= ~(mask > 0) * size * weight * treg * (sim[1] - low)
        edit.do(call)
        torch.testing.assert_close(call.logits(("main", "cond"))[0], wanted[1])
        torch.testing.assert_close(call.logits(("main", "uncond"))[0], sim[0])


def test_what_no_segment_covers_is_one_and_loses_the_others_words_alone():
    masks = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    area, together = segments(masks)
    assert area.flatten().tolist() == pytest.approx([0.4, 0.4, 0.2, 0.4, 0.4])
    assert together[3].tolist() == [False, False, False, True, True]
    up, down = spoken(masks, [[1, 2], [4]], 6)
    assert up[0].tolist() == [False, True, True, False, False, False] and not up[3].any()
    assert down[0].tolist() == [True, False, False, True, True, True]
    assert down[3].tolist() == [False, True, True, False, True, False]


def test_masked_tokens_stay_out():
    logits = torch.tensor([[[1.0, 3.0, -10000.0, -torch.inf]]])
    up = torch.tensor([[True, False, True, False]])
    out = tied(logits, up, ~up, torch.ones(1, 1))
    assert out.tolist() == [[[3.0, 1.0, -10000.0, -torch.inf]]]


def test_each_phrase_is_encoded_by_itself(small):
    run = Run(small, {"main": ("the red cube, and a duck", PROMPT)}, Rows(("main",), ("uncond", "cond"), 2), 9, (8, 8))
    layout = Layout((Region("red cube", box=(0.0, 0.0, 0.5, 0.5)), Region("a duck", box=(0.5, 0.5, 1.0, 1.0))))
    with pytest.raises(SfumatoError, match="the prompt has no 'a duck'"):
        DenseDiffusion(layout).start(run)
    run = replace(run, prompts={"main": ("the red cube, and a duck", "a duck and a red cube")})
    change = DenseDiffusion(layout).start(run).cond
    before = small.embed(["", "", *run.prompts["main"]])
    text = change(None, before).text  # pyright: ignore
    cube, comma, duck = (small.embed([p]).text[0] for p in ("red cube", "red cube,", "a duck"))
    wanted = before.text.clone()
    n = len(small.tokenizer("red cube,", add_special_tokens=False).input_ids)
    wanted[2, 2 : 2 + n] = comma[1 : 1 + n]
    wanted[2, 3 + n : 5 + n] = duck[1:3]
    wanted[3, 1:3], wanted[3, 5:7] = duck[1:3], cube[1:3]
    assert torch.equal(text, wanted) and not torch.equal(text, before.text)


def test_each_part_acts(model):
    plain = painted(model).latents
    off = {"cross": 0.0, "self": 0.0, "apart": False}
    for on in ({"cross": 1.0}, {"self": 1.0}, {"apart": True}):
        moved = painted(model, replace(METHOD, **{**off, **on})).latents
        assert moved.isfinite().all() and (moved - plain).abs().max() > 1e-5


def test_it_ties_words_to_their_boxes(small):
    """The part of each phrase's attention that lies in its box grows."""
    from sfumato.core.method import Method, Need, Phases

    class Reading(Method):
        def start(self, run):
            need = Need(Where("image->text", "finest", rows="cond"), (2, 3))

            def after(step):
                map = torch.stack([m["main", "cond"].sum(-1) for m in step.maps[need].values()]).mean((0, 1))
                seen.append(float((map * LAYOUT.masks((16, 16))[0].flatten()).sum() / map.sum()))

            return Phases(needs=(need,), after=after)

    shares = []
    for methods in ([Reading()], [replace(METHOD, self=0.0, apart=False), Reading()]):
        seen: list[float] = []
        painted(small, *methods, size=128, steps=4)
        shares += seen[:1]
    assert shares[1] > shares[0] + 0.02


def test_what_it_cannot_do_is_said(small):
    def refused(match, method, **options):
        with pytest.raises(SfumatoError, match=match):
            painted(small, method, **options)

    refused("dense diffusion needs a layout", DenseDiffusion())
    refused("the prompt has no 'cone'", DenseDiffusion(Layout((Region("cone", box=(0.0, 0.0, 0.5, 0.5)),))))
