"""ConsiStory: who reads what of whom, against attention written down; Otsu's threshold by trying all."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.sets import ConsiStory
from sfumato.methods.sets.consi_story import otsu, subject
from sfumato.prompts.words import spans

PROMPTS = ["a red cube on grass", "a duck and a cube", "the cube"]


def paint(model, *methods, order=(0, 1, 2), **options):
    settings = {"steps": 3, "size": model.multiple * 4, "guide": 3.0, "seed": [3 + i for i in order]}
    prompts = [PROMPTS[i] for i in order]
    return denoise(model, prompts, methods=list(methods), **settings | options).latents


def test_the_threshold_divides_best():
    for seed in range(5):
        x = torch.rand(40, generator=torch.Generator().manual_seed(seed)) ** 2
        found = {}
        for t in x.tolist():
            above, below = x[x > t], x[x <= t]
            if len(above):
                found[t] = len(above) * len(below) * float(above.mean() - below.mean()) ** 2
        assert float(otsu(x)) == pytest.approx(max(found, key=lambda t: found[t]))
    clear = torch.cat([torch.full((10,), 0.1), torch.full((6,), 0.9)])
    assert (clear > otsu(clear)).sum() == 6


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_images_read_themselves_and_of_others_what_is_kept_of_the_subject(models, family, views):
    model, method = models(family), ConsiStory("cube", dropout=0.3, res=0.5)
    rows = Rows(("main",), ("uncond", "cond"), 3, views)
    each = 3 * views
    run = Run(model, {"main": tuple(PROMPTS)}, rows, 10, (8, 8))
    phases = method.start(run)
    (need,), (edit,) = phases.needs, phases.edits
    words = next(s for s in model.sites if "image->text" in s.pairs and min(s.grid((8, 8))) == need.where.res)
    site = [s for s in model.sites if "image->image" in s.pairs and edit.where.sites(s)][-1]
    g, cells, side = torch.Generator().manual_seed(0), words.grid((8, 8))[0], site.grid((8, 8))[0]
    maps = torch.rand(2, each, cells**2, model.text_tokens, generator=g) ** 3
    level = model.schedule.at(500)
    for i in range(2):
        step = Step(i, level, level, torch.zeros(3, 4, 8, 8), run, None)
        step.maps[need] = {words: {("main", "cond"): maps[i]}}
        phases.after(step)
    n, text = side**2, 3 * (len(site.query) - 1)
    q, k, v = torch.randn(3, len(rows), site.heads, n + text, 8, generator=g).unbind()
    call = Call(site, rows, (side, side), 2, {"q": q, "k": k, "v": v}, attn_mask=None)
    edit.do(call)
    out = call.output()

    image = list(range(n)) if site.query[0] == "image" else list(range(text, n + text))
    rest = [j for j in range(n + text) if j not in image]
    kept = method._kept(2, 3, (side, side))
    assert 0.5 < kept.float().mean() < 0.9
    read = []
    for r in range(each):
        heat = (maps[0] + maps[1])[r][:, spans(model.words(PROMPTS[r // views]), "cube")].mean(-1)
        inside = subject(heat.view(1, 1, cells, cells), (side, side))[0]
        read.append([image[c] for c in range(n) if inside[c] and kept[r // views, c]])
    assert all(0 < len(some) < n for some in read)
    for start in (0, each):
        for r in range(each):
            others = [o for o in range(each) if o % views == r % views and o != r]
            keyed, valued = (
                torch.cat([x[start + r][:, image + rest]] + [x[start + o][:, read[o]] for o in others], 1).double()
                for x in (k, v)
            )
            wanted = (q[start + r].double() @ keyed.transpose(-1, -2) / 8**0.5).softmax(-1) @ valued
            assert_same_but_for_rounding(out[start + r], wanted.float())


def test_what_is_dropped_is_drawn_anew_in_each_step_and_by_the_seed():
    one, again, next_one, other = (
        ConsiStory("cube", seed=s)._kept(i, 2, (16, 16)) for s, i in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(one, again) and not torch.equal(one, next_one) and not torch.equal(one, other)
    assert 0.4 < one.float().mean() < 0.6


def test_without_dropout_images_have_no_order_and_one_is_plain(models):
    for family in ("sd", "flux"):
        model, method = models(family), ConsiStory("cube", dropout=0.0)
        whole = paint(model, method)
        assert_same_but_for_rounding(paint(model, method, order=(2, 0, 1)), whole[[2, 0, 1]])
        assert (whole - paint(model)).abs().max() > 1e-4
        assert torch.equal(paint(model, method, order=(1,)), paint(model, order=(1,)))
    nothing = paint(model, ConsiStory("cube", dropout=1.0))
    assert_same_but_for_rounding(nothing, paint(model))


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="has no 'duck'; its words are: a, red, cube"):
        paint(sd, ConsiStory("duck"))
    with pytest.raises(SfumatoError, match=r"between 0 and 1, got 1\.5"):
        paint(sd, ConsiStory("cube", dropout=1.5))
