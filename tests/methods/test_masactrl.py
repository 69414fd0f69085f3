"""Laws of MasaCtrl on every family, and its masks against the published formulas."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import torch
import torch.nn.functional as F
from rounding import assert_same_but_for_rounding

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.edit.masactrl import MasaCtrl, region

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
WHOLE = MasaCtrl(after=0.0, layer=0.0)
MASKED = MasaCtrl(after=0.0, layer=0.3, source="cube", threshold=0.5)


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


def run(model, method, source=SOURCE, target=TARGET, **options):
    prompts = {"source": source, "target": target}
    options = {"steps": 2, "size": model.multiple * 4, **options}
    out = denoise(model, prompts, methods=[method] if method else [], **options)
    return out["source"].latents, out["target"].latents


def test_with_a_region_of_everything_the_masks_do_nothing(model):
    """At threshold 0 all cells of both are in the region."""
    free, whole = (run(model, replace(MASKED, source=word, threshold=0.0)) for word in (None, "cube"))
    assert_same_but_for_rounding(whole[1], free[1])


def test_each_image_has_its_own_source_and_words(sd):
    first, second = ("a red cube on grass", "a blue cube on grass"), ("a duck and the sphere", "a duck and the sphere")
    method, options = replace(MASKED, source="cube"), {"steps": 3, "size": 64}
    alone = run(sd, method, *first, seed=[4], **options)
    with pytest.raises(SfumatoError, match="has no 'cube'; its words are: a, duck"):
        run(sd, method, list(first[:1] + second[:1]), list(first[1:] + second[1:]), **options)
    second = ("a cube and the red duck", "the cube and a duck")
    both = run(sd, method, [first[0], second[0]], [first[1], second[1]], seed=[4, 9], **options)
    assert_same_but_for_rounding(both[1][:1], alone[1])
    assert_same_but_for_rounding(both[1][1:], run(sd, method, *second, seed=[9], **options)[1])


def test_several_targets_on_a_wide_image(sd):
    prompts = {"source": SOURCE, "a": TARGET, "b": "a duck on the grass"}
    out = denoise(sd, prompts, methods=[WHOLE], steps=2, size=(64, 96))
    alone = run(sd, WHOLE, size=(64, 96))
    assert_same_but_for_rounding(out["a"].latents, alone[1])
    out = denoise(sd, {"source": SOURCE, "a": TARGET}, methods=[MASKED], steps=2, size=(64, 96))
    assert torch.isfinite(out["a"].latents).all()


def test_what_it_cannot_do_is_said(sd):
    def refused(match, method, prompts={"source": SOURCE, "target": TARGET}):  # noqa: B006
        with pytest.raises(SfumatoError, match=match):
            denoise(sd, prompts, methods=[method], steps=2, size=64)

    refused("needs two prompts", MasaCtrl(), SOURCE)
    refused("give the source's word as well", MasaCtrl(target="cube"))
    refused("has no 'blue'; its words are: a, red", MasaCtrl(source="blue"))
    refused("has no 'red'; its words are: a, blue", MasaCtrl(source="red"))
    refused("above 0 and at most 1, got 0", MasaCtrl(source="cube", res=0.0))


ROWS = Rows(("source", "target"), ("uncond", "cond"))


def called(model, index: int, seed: int = 0) -> tuple[Call, list[torch.Tensor]]:
    """A call with random queries, keys and values of a self-attention site, 8 x 8."""
    site = [s for s in model.sites if "image->image" in s.pairs][index]
    q, k, v = torch.randn(3, 4, site.heads, 64, 8, generator=torch.Generator().manual_seed(seed)).unbind()
    return Call(site, ROWS, (8, 8), 1, {"q": q, "k": k, "v": v}, attn_mask=None), [q, k, v]


def running(model) -> Run:
    return Run(model, {"source": (SOURCE,), "target": (TARGET,)}, ROWS, 10, (8, 8))


def done(phases, call: Call) -> torch.Tensor:
    for edit in sorted(phases.edits, key=lambda e: ["qkv", "logits"].index(e.field)):
        if edit.where.sites(call.site):
            edit.do(call)
    return call.output()


def test_targets_attend_to_the_sources_keys_and_values_of_their_own_condition(sd):
    """q of all rows; k and v of row 0 in the unconditional half, of row 2 in the conditional one."""
    call, (q, k, v) = called(sd, 3)
    out = done(MasaCtrl().start(running(sd)), call)
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        sim = torch.einsum("bhid,hjd->bhij", q[half], k[half][0]) * 8**-0.5
        halves.append(torch.einsum("bhij,hjd->bhid", sim.softmax(-1), v[half][0]))
    assert_same_but_for_rounding(out, torch.cat(halves))
    early, tensors = called(sd, 1)  # layer 2 of 4 is the first one: 10 of 16
    plain = F.scaled_dot_product_attention(*tensors)
    assert torch.equal(done(MasaCtrl().start(running(sd)), early), plain)
    assert [round(part * 0.625) for part in (16, 70)] == [10, 44]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_random_maps_confine_as_the_published_formulas_say(sd, threshold):
    """Maps averaged over layers, between minimum and maximum; two attentions, put together by the target's mask."""
    method = MasaCtrl(source="red cube", target="cube", threshold=threshold, res=0.5)
    phases = method.start(running(sd))
    (need,) = phases.needs
    assert need.where.res == 4 and need.tokens == (2, 3)
    site = next(s for s in sd.sites if "image->text" in s.pairs and s.scale == 2)
    maps = torch.rand(3, 2, 16, 2, generator=torch.Generator().manual_seed(3)) ** 3  # layers, prompts, cells, tokens
    level = sd.schedule.at(500)
    step = Step(1, level, level, torch.zeros(2, 4, 8, 8), running(sd), sd.embed(["", "", SOURCE, TARGET]))
    step.maps[need] = {
        replace(site, index=n): {("source", "cond"): maps[n, :1], ("target", "cond"): maps[n, 1:]} for n in range(3)
    }
    phases.before(step)
    call, (q, k, v) = called(sd, 2, 1)
    out = done(phases, call)

    mean = maps.mean(0).view(2, 4, 4, 2)
    chosen = torch.stack([mean[0].sum(-1), mean[1, ..., 1]])
    low = chosen.min(1, keepdim=True)[0].min(2, keepdim=True)[0]
    high = chosen.max(1, keepdim=True)[0].max(2, keepdim=True)[0]
    even = F.interpolate(((chosen - low) / (high - low))[:, None], (8, 8))
    of_source, of_target = (even >= threshold).float().view(2, 64)
    for half in (0, 2):
        sim = torch.einsum("hid,hjd->hij", q[half + 1], k[half]) * 8**-0.5
        lowest = torch.finfo(sim.dtype).min
        inside = (sim + of_source.masked_fill(of_source == 0, lowest)).softmax(-1) @ v[half]
        outside = (sim + of_source.masked_fill(of_source == 1, lowest)).softmax(-1) @ v[half]
        mask = of_target.view(-1, 1)
        assert_same_but_for_rounding(out[half + 1], inside * mask + outside * (1 - mask))
        torch.testing.assert_close(out[half], F.scaled_dot_product_attention(q[half], k[half], v[half]))


def test_a_region_that_is_nowhere_is_looked_for_everywhere():
    assert not region(torch.ones(1, 1, 2, 2), (4, 4), 0.1).any()  # the same everywhere
    assert region(torch.tensor([[[[0.0, 1.0], [0.2, 0.05]]]]), (2, 2), 0.1).tolist() == [[False, True, True, False]]
