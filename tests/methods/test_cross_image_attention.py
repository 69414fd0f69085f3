"""Laws of cross-image attention on every family, and its parts against the published formulas."""

from __future__ import annotations

from dataclasses import replace

import families
import numpy as np
import pytest
import torch

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Run, Step
from sfumato.core.results import Trajectory
from sfumato.core.rows import Rows
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import EditFriendly, invert
from sfumato.inversion.together import together
from sfumato.methods.edit.appearance import Things, adain, transfer
from sfumato.methods.edit.cross_image_attention import CrossImageAttention
from sfumato.prompts.layout import Mask

SOURCE, OTHER = "a red cube on grass", "a blue duck on grass"
ALL = CrossImageAttention(fine=(0.0, 1.0), coarse=(0.0, 1.0), adain=(0.5, 1.0), early=0.4, word="cube")
PLAIN = CrossImageAttention(contrast=1.0, guidance=1.0, fine=(0.0, 1.0), coarse=(0.0, 1.0), adain=(1.0, 1.0), every=0)
OFF = CrossImageAttention(fine=(1.0, 1.0), coarse=(1.0, 1.0), adain=(1.0, 1.0), word="cube", appearance_word="duck")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


def picture(model, n, seed):
    side = model.multiple * 4
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run(model, method, n=1, other=2, said=OTHER, steps=3, **options):
    """The images painted of pictures 1 and ``other``, and the path they started from."""
    how = EditFriendly(scale=1.0, skip=0.0, steps=steps)
    start, prompts = transfer(model, picture(model, n, 1), picture(model, n, other), ([SOURCE] * n, [said] * n), how)
    out = denoise(model, prompts, start=start, guide=1.0, methods=[method] if method else [], **options)
    return {name: painted.latents for name, painted in out.items()}, start


def test_a_step_that_goes_back_to_the_structure_is_no_edit(model):
    out, path = run(model, replace(PLAIN, every=1, early=1.0, guidance=3.0))
    torch.testing.assert_close(out["target"], path.image[:1], **CLOSE)
    later, _ = run(model, replace(PLAIN, every=2, early=1.0))  # every second step
    always, _ = run(model, PLAIN)
    assert (later["target"] - always["target"]).abs().max() > 1e-5


def test_guidance_goes_from_the_plain_prediction_past_that_across_images(model):
    """noise = plain + s (across - plain), s from 3.5 to 1.75 in equal steps."""
    told = {}
    for name, method in {"plain": None, "across": PLAIN, "guided": replace(PLAIN, guidance=3.5)}.items():
        kept = Trajectory(("eps", "x"))
        run(model, method, trajectory=kept, steps=2)
        told[name] = kept
    eps = {name: kept["eps"][0] for name, kept in told.items()}
    wanted = eps["plain"] + np.linspace(3.5, 3.5 / 2, 2)[0] * (eps["across"] - eps["plain"])
    torch.testing.assert_close(eps["guided"][1], wanted[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(eps["guided"][[0, 2]], eps["plain"][[0, 2]], **CLOSE)


def test_contrast_is_the_published_formula(sd):
    """(A - mean) * 1.67 + mean, clipped; keys and values are the appearance's first."""
    rows = Rows(("source", "target", "appearance"), ("uncond", "cond"))
    prompts = dict.fromkeys(rows.streams, (SOURCE,))
    phases = replace(PLAIN, contrast=1.67).start(Run(sd, prompts, rows, 10, (8, 8)))
    site = next(s for s in sd.sites if s.stage == "up" and "image->image" in s.pairs)
    q, k, v = torch.randn(3, 6, site.heads, 64, 8, generator=torch.Generator().manual_seed(0)).unbind()
    call = Call(site, rows, (8, 8), 3, {"q": q * 3, "k": k, "v": v}, attn_mask=None)
    for edit in phases.edits:
        edit.do(call)
    maps = (q[4] * 3 @ k[5].transpose(-1, -2) / 8**0.5).softmax(-1)
    mean = maps.mean(-1, keepdim=True)
    wanted = torch.clip((maps - mean) * 1.67 + mean, min=0.0, max=1.0)
    out = call.output()
    torch.testing.assert_close(out[4], wanted @ v[5])
    assert wanted.sum(-1).max() > 1.01  # not normalised again
    for at in (0, 1, 2, 3, 5):
        torch.testing.assert_close(out[at], (q[at] * 3 @ k[at].transpose(-1, -2) / 8**0.5).softmax(-1) @ v[at])


def test_statistics_are_the_published_formula():
    generator = torch.Generator().manual_seed(0)
    content, style = torch.randn(2, 2, 4, 6, 5, generator=generator).unbind()
    inside, of = torch.rand(2, 2, 1, 6, 5, generator=generator).unbind()
    inside, of = inside > 0.5, of > 0.6
    for masked in (True, False):
        found = adain(content, style * 3 + 1, *((inside, of) if masked else ()))
        for i in range(2):
            a, b = content[i].view(4, -1), (style[i] * 3 + 1).view(4, -1)
            at, to = (m[i].flatten() if masked else torch.ones(30, dtype=torch.bool) for m in (inside, of))
            mean, std = a[:, at].mean(1, keepdim=True), (a[:, at].var(1, keepdim=True) + 1e-5).sqrt()
            new = (a - mean) / std * (b[:, to].var(1, keepdim=True) + 1e-5).sqrt() + b[:, to].mean(1, keepdim=True)
            torch.testing.assert_close(found[i].view(4, -1), torch.where(at, new, a), atol=1e-5, rtol=1e-5)
    one = torch.zeros(2, 1, 6, 5, dtype=torch.bool)
    one[..., 2, 2] = True
    assert adain(content, style, one, one).isfinite().all()  # a single cell has no deviation


def test_statistics_stay_within_the_mask_that_is_given(sd):
    pixels = torch.zeros(8, 8, dtype=torch.bool)
    pixels[:, :4] = True
    last = replace(PLAIN, fine=(1.0, 1.0), coarse=(1.0, 1.0), adain=(0.67, 1.0))
    out, path = run(sd, replace(last, mask=Mask(pixels), appearance_mask=Mask(~pixels)))
    target, looks = out["target"], out["appearance"]
    torch.testing.assert_close(target[..., 2:], path.image[:1, ..., 2:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(target[..., :2].mean((2, 3)), looks[..., 2:].mean((2, 3)), **CLOSE)


def test_a_word_finds_where_its_map_and_what_is_alike_are_strong(sd):
    """Self-attention carries the word's map over the rest of its thing."""
    rows = Rows(("source", "target", "appearance"), ("cond",))
    run_ = Run(sd, dict.fromkeys(rows.streams, (SOURCE,)), rows, 4, (8, 8))
    things = Things(run_, {"source": "red cube", "appearance": None}, {"source": None, "appearance": None}, 1)
    cross, own = things.needs
    thing = torch.zeros(8, 8, dtype=torch.bool)
    thing[2:6, 3:7] = True
    words, alike = torch.zeros(64, 77), thing.view(-1, 1) == thing.view(1, -1)
    words[3 * 8 + 4, 2:4] = 0.5  # one cell of the thing, tokens of red and cube
    words[:, 1] = 1.0
    site = next(s for s in sd.sites if s.stage == "up")
    name = ("source", "cond")

    alike = alike / alike.sum(-1, keepdim=True)
    level, x = sd.schedule.at(500), torch.zeros(3, 4, 8, 8)
    maps = {cross: {site: {name: words[None]}}, own: {site: {name: alike[None]}}}
    things.note(Step(0, level, level, x, run_, sd.embed([SOURCE] * 3), maps=maps))
    assert torch.equal(things.at("source", (8, 8))[0, 0], thing)
    assert things.at("appearance", (8, 8)) is None
    assert things.at("source", (16, 16)).shape == (1, 1, 16, 16)


def test_several_targets_at_once(sd):
    how = EditFriendly(scale=1.0, skip=0.0, steps=2)
    one, other = (invert(sd, picture(sd, 1, seed), words, how) for seed, words in ((1, SOURCE), (2, OTHER)))
    start = together({("source", "a", "b"): one, "appearance": other})
    prompts = {"source": SOURCE, "a": SOURCE, "b": OTHER, "appearance": OTHER}
    method = replace(ALL, appearance_word="duck")
    out = denoise(sd, prompts, start=start, guide=1.0, methods=[method])
    alone, _ = run(sd, method, steps=2)
    torch.testing.assert_close(out["a"].latents, alone["target"], **CLOSE)
    assert (out["b"].latents - out["a"].latents).abs().max() > 1e-4


def test_what_it_cannot_do_is_said(sd):
    def refused(match, method, prompts, **options):
        with pytest.raises(SfumatoError, match=match):
            denoise(sd, prompts, methods=[method], steps=2, **{"size": 64, **options})

    three = {"source": SOURCE, "target": SOURCE, "appearance": OTHER}
    refused("needs three prompts.*this run has source, target", ALL, {"source": SOURCE, "target": SOURCE})
    refused("needs three prompts", ALL, {"source": SOURCE, "appearance": OTHER})
    refused("has no 'cube'; its words are: a, blue, duck", ALL, three)
    masked = replace(PLAIN, mask=Mask(torch.ones(4, 4, dtype=torch.bool)))
    refused("a mask is of one image", masked, {name: [said] * 2 for name, said in three.items()})
    refused("whole images", PLAIN, three, views=Tiles(), size=256)
