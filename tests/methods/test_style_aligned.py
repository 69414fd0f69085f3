"""StyleAligned against the published formulas, written down in float64."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Run
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.sets import SharedAttention, StyleAligned
from sfumato.methods.sets.style_aligned import PHOTOGRAPH

PROMPTS = ["a red cube on grass", "a blue duck", "the sphere and a duck"]
ROWS = Rows(("main",), ("uncond", "cond"), 3)


def attended(model, method, kind: str = "image", rows: Rows = ROWS):
    """What the method makes of a call with random queries, keys and values, and those."""
    site = next(s for s in model.sites if "image->image" in s.pairs)
    g, text = torch.Generator().manual_seed(1), 5 * (len(site.query) - 1)
    q, k, v = (torch.randn(3, len(rows), site.heads, 16 + text, 8, generator=g) * 2 + 1).unbind()
    q[::3] -= 3  # so that statistics differ from image to image
    call = Call(site, rows, (4, 4), 0, {"q": q, "k": k, "v": v}, attn_mask=None)
    run = Run(model, {"main": tuple(PROMPTS)}, rows, 10, (4, 4))
    for edit in sorted(method.start(run).edits, key=lambda e: ["qkv", "sources"].index(e.field)):
        edit.do(call)
    image = slice(None) if not text else call.segment("q", "image")
    return call.output(), q.double(), k.double(), v.double(), image


def normalised(x, like):
    sd = [(((y - y.mean(-2, keepdim=True)) ** 2).sum(-2, keepdim=True) / 15 + 1e-5) ** 0.5 for y in (x, like)]
    return (x - x.mean(-2, keepdim=True)) / sd[0] * sd[1] + like.mean(-2, keepdim=True)


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize(
    "method", [StyleAligned(), StyleAligned("k", 0.7, 1.3), StyleAligned("")], ids=["paper", "strong", "plain"]
)
def test_images_read_themselves_and_the_reference_with_its_statistics(models, family, method):
    out, q, k, v, image = attended(models(family), method)
    for first in (0, 3):  # each condition has a reference of its own
        for i in range(3):
            row = first + i
            mine = {"q": q[row].clone(), "k": k[row].clone(), "v": v[row]}
            for which, x in (("q", q), ("k", k)):
                if i and which in method.adain:
                    mine[which][:, image] = normalised(x[row][:, image], x[first][:, image])
            logits = mine["q"] @ mine["k"].transpose(-1, -2) / 8**0.5
            values = mine["v"]
            if i:
                of_reference = mine["q"] @ k[first][:, image].transpose(-1, -2) / 8**0.5 * method.scale + method.shift
                logits, values = torch.cat([logits, of_reference], -1), torch.cat([values, v[first][:, image]], 1)
            assert_same_but_for_rounding(out[row], (logits.softmax(-1) @ values).float())


def test_the_reference_is_what_it_is_alone_and_one_image_is_plain(models):
    for family in ("sd", "flux"):
        model = models(family)
        options = {"steps": 2, "size": model.multiple * 4, "guide": 3.0}
        out, plain = (
            denoise(model, PROMPTS, methods=some, seed=[3, 4, 5], **options).latents for some in ([StyleAligned()], [])
        )
        assert_same_but_for_rounding(out[:1], plain[:1])
        assert all((out[i] - plain[i]).abs().max() > 1e-3 for i in (1, 2))
        alone = denoise(model, PROMPTS[:1], methods=[StyleAligned()], seed=[3], **options).latents
        assert torch.equal(alone, denoise(model, PROMPTS[:1], seed=[3], **options).latents)
        swapped = denoise(model, [PROMPTS[i] for i in (0, 2, 1)], methods=[StyleAligned()], seed=[3, 5, 4], **options)
        assert_same_but_for_rounding(swapped.latents, out[[0, 2, 1]])  # the others have no order


def test_without_statistics_it_is_shared_attention(sd):
    options = {"steps": 2, "size": 64, "guide": 3.0, "seed": [3, 4, 5]}
    bare, shared = (
        denoise(sd, PROMPTS, methods=[method], **options).latents
        for method in (StyleAligned(adain=""), SharedAttention("self+first"))
    )
    assert torch.equal(bare, shared)
    assert round(PHOTOGRAPH.shift, 4) == 0.6931


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="such as 'qk', got 'queries'"):
        denoise(sd, PROMPTS, methods=[StyleAligned("queries")], steps=2, size=64)
