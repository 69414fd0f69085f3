"""FateZero: its attention written down, and what it is made of."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.edit import PromptToPrompt
from sfumato.methods.sets import FateZero, SharedAttention
from sfumato.prompts.words import spans

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
FRAMES = 4
ROWS = Rows(("source", "target"), ("uncond", "cond"), FRAMES)


def paint(model, *methods, frames=FRAMES, **options):
    prompts = {"source": [SOURCE] * frames, "target": [TARGET] * frames}
    settings = {"steps": 2, "size": 64, "guide": 3.0, "seed": list(range(frames))}
    out = denoise(model, prompts, methods=list(methods), **settings | options)
    return out["source"].latents, out["target"].latents


def test_without_a_word_it_is_prompt_to_prompt_and_shared_attention(sd):
    wanted = paint(sd, PromptToPrompt(0.5, 0.5, self_res=4), SharedAttention("middle", finest=0.5))
    found = paint(sd, FateZero(0.5, 0.5))
    assert_same_but_for_rounding(found[0], wanted[0])
    assert_same_but_for_rounding(found[1], wanted[1])


@pytest.mark.parametrize("sources", ["middle", "self+middle", "previous+self+next"])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_outside_of_the_word_maps_are_the_source_s(models, family, sources):
    """Queries in the word's region have the edit's own queries and keys, others the source's; values are the edit's."""
    model = models(family)
    method = FateZero(0.0, 1.0, sources, finest=1.0, word="cube", threshold=0.5, res=0.5)
    run = Run(model, {"source": (SOURCE,) * FRAMES, "target": (TARGET,) * FRAMES}, ROWS, 10, (8, 8))
    phases = method.start(run)
    (need,) = phases.needs
    g = torch.Generator().manual_seed(0)
    site = next(s for s in model.sites if "image->image" in s.pairs)
    words = next(s for s in model.sites if "image->text" in s.pairs and min(s.grid((8, 8))) == need.where.res)
    cells = words.grid((8, 8))[0]
    maps = torch.rand(FRAMES, cells**2, model.text_tokens, generator=g) ** 4
    level = model.schedule.at(500)
    step = Step(0, level, level, torch.zeros(2 * FRAMES, 4, 8, 8), run, None)
    step.maps[need] = {words: {("source", "cond"): maps}}
    phases.after(step)

    side = site.grid((8, 8))[0]
    n, text = side**2, 3 * (len(site.query) - 1)
    q, k, v = torch.randn(3, len(ROWS), site.heads, n + text, 8, generator=g).unbind()
    call = Call(site, ROWS, (side, side), 1, {"q": q, "k": k, "v": v}, attn_mask=None)
    for edit in sorted((e for e in phases.edits if e.where.pair == "image->image"), key=lambda e: e.field != "qkv"):
        edit.do(call)
    out = call.output()

    reads = {
        "middle": [[1]] * 4,
        "self+middle": [[0, 1], [1], [2, 1], [3, 1]],
        "previous+self+next": [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]],
    }[sources]
    at = spans(model.words(SOURCE), "cube")
    image = list(range(n)) if site.query[0] == "image" else list(range(text, n + text))
    rest = [j for j in range(n + text) if j not in image]
    for f in range(FRAMES):
        heat = maps[f][:, at].sum(-1).view(1, 1, cells, cells)
        heat = torch.nn.functional.max_pool2d(heat, 3, 1, 1)
        inside = (torch.nn.functional.interpolate(heat, (side, side)) > 0.5 * heat.max()).flatten()
        assert inside.any()
        both = []
        for of in ("target", "source"):
            mine, base = ROWS["target", "cond"].start, ROWS[of, "cond"].start
            queries, keys = q[mine + f].double().clone(), k[mine : mine + FRAMES].double().clone()
            queries[:, image] = q[base + f][:, image].double()
            keys[:, :, image] = k[base : base + FRAMES][:, :, image].double()
            keyed = torch.cat([keys[s][:, image] for s in reads[f]] + [keys[f][:, rest]], 1)
            valued = torch.cat([v[mine + s][:, image] for s in reads[f]] + [v[mine + f][:, rest]], 1).double()
            both.append((queries @ keyed.transpose(-1, -2) / 8**0.5).softmax(-1) @ valued)
        wanted = both[1].clone()
        chosen = [image[c] for c in range(n) if inside[c]]
        wanted[:, chosen] = both[0][:, chosen]
        assert_same_but_for_rounding(out[ROWS["target", "cond"]][f], wanted.float())


def test_a_word_lets_its_region_be_the_edit_s_own(sd):
    def run(**options):
        return paint(sd, FateZero(0.0, 1.0, finest=1.0, **options), steps=4)

    kept, freed = run(), run(word="cube", threshold=0.5)
    assert (kept[1] - freed[1]).abs().max() > 1e-4
    assert_same_but_for_rounding(kept[0], freed[0])
    nowhere = run(word="cube", threshold=1.0)
    assert_same_but_for_rounding(nowhere[1], kept[1])  # nothing is above its own maximum


def test_one_frame_is_prompt_to_prompt(sd):
    assert_same_but_for_rounding(
        paint(sd, FateZero(0.5, 0.5), frames=1)[1], paint(sd, PromptToPrompt(0.5, 0.5, self_res=4), frames=1)[1]
    )


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="has no 'duck'; its words are"):
        paint(sd, FateZero(word="duck"))
    with pytest.raises(SfumatoError, match="needs two prompts"):
        denoise(sd, [SOURCE] * 2, methods=[FateZero()], steps=2, size=64)
