"""Prompts by region: attention merged by masks, laws on every family, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import SOME

from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg
from sfumato.core.method import Edit, Method, Phases, Run, Where
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.methods.control.region_prompts import RegionPrompts
from sfumato.prompts.layout import Layout, Region

PROMPT = "a red cube on grass"
LAYOUT = Layout((Region("a blue duck", box=(0.0, 0.0, 0.5, 0.5)), Region("the sphere", box=(0.25, 0.25, 1.0, 1.0))))
METHOD = RegionPrompts(LAYOUT, until=1.0)
WHOLE = (Region(PROMPT, box=(0.0, 0.0, 1.0, 1.0)),)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


@pytest.fixture
def small(stilllife):
    return stilllife


def painted(model, *methods, prompts: object = PROMPT, **options):
    guide = cfg(3.0)
    for method in methods:
        guide = method.around(guide) if isinstance(method, RegionPrompts) else guide
    standard = {"steps": 2, "guide": guide, "size": 8 * model.factor if model.factor > 1 else 16}
    return denoise(model, prompts, methods=methods, **{**standard, **options})


def test_the_pictures_own_prompt_in_every_region_is_plain_sampling(model):
    plain = painted(model).latents
    torch.testing.assert_close(painted(model, RegionPrompts(Layout(WHOLE), until=1.0)).latents, plain, **CLOSE)
    halves = [Region(PROMPT, box=(0.0, 0.0, 0.6, 1.0)), Region(PROMPT, box=(0.3, 0.0, 1.0, 0.7))]
    same = RegionPrompts(Layout(tuple(halves)), until=1.0, background=PROMPT)
    torch.testing.assert_close(painted(model, same).latents, plain, **CLOSE)


def test_a_region_that_is_everything_replaces_the_prompt_of_cross_attention(model):
    """Where the text is read by cross attention and by nothing else, the picture is its region's prompt's."""
    if any("image" in s.key and "text" in s.key for s in model.sites) or "pooled" in model.embed([""]).extra:
        pytest.skip("the text acts in other ways as well")
    other = "a blue duck"
    alone = painted(model, prompts=other).latents
    whole = RegionPrompts(Layout((Region(other, box=(0.0, 0.0, 1.0, 1.0)),)), whole=0.0, until=1.0)
    torch.testing.assert_close(painted(model, whole).latents, alone, **CLOSE)


def test_outputs_are_mixed_by_masks(small):
    """out = (1 - sum of shares) own + sum of share * attention(q, k_r, v_r), overlaps averaged."""
    found = {}

    class Reading(Method):
        def start(self, run: Run) -> Phases:
            def keep(call):
                if call.site.scale == 1 and not found:
                    for name in call.rows.names:
                        found[name] = [call.get(w, name).clone() for w in "qkv"] + [call.get("out", name).clone()]

            return Phases((Edit(Where("image->text", rows="uncond"), "out", keep),))

    method = replace(METHOD, whole=0.2)
    painted(small, method, Reading(), steps=1, size=128)
    q = found["main", "cond"][0]
    a, b = LAYOUT.masks((16, 16)).flatten(1)[..., None]
    both = (a + b).clamp_min(1)
    answers = [(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v for k, v in (
        found["main", c][1:3] for c in ("cond", "region 0", "region 1"))]  # fmt: skip
    shares = 0.8 * a / both, 0.8 * b / both
    wanted = answers[0] * (1 - shares[0] - shares[1]) + shares[0] * answers[1] + shares[1] * answers[2]
    torch.testing.assert_close(found["main", "cond"][3], wanted, atol=1e-5, rtol=1e-4)
    assert (wanted - answers[0]).abs().max() > 1e-3


def test_what_it_cannot_do_is_said(small):
    def refused(match, method, **options):
        with pytest.raises(SfumatoError, match=match):
            painted(small, method, **options)

    with pytest.raises(SfumatoError, match="prompts by region needs a layout"):
        RegionPrompts().around(cfg(2.0))
    refused("seen in windows; leave the views out", METHOD, views=Tiles(), size=(128, 192))
