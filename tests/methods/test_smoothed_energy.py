"""Smoothed energy guidance: laws on every family, the authors' kernel, and what diffusers makes of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from families import SOME

from sfumato.core import guidance
from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.rows import Rows
from sfumato.methods.control.smoothed_energy import SmoothedEnergy
from sfumato.ops.blur import blur

PROMPT = "a red cube on grass"
ROWS = Rows(("main",), ("cond", "smoothed"), 2)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def run(model, method, **options):
    guide = method.around(guidance.CFG(5.0))
    options = {"size": 16 if model.factor == 1 else 64, "steps": 2, "seed": 3, **options}
    return denoise(model, PROMPT, methods=[method], guide=guide, **options).latents


def official(query: torch.Tensor, sigma: float) -> torch.Tensor:
    """The authors' blur of queries (rows, heads, tokens, channels) of a square image, written out."""
    b, heads, n, d = query.shape
    side = math.isqrt(n)
    image = query.permute(0, 1, 3, 2).reshape(b, heads * d, side, side)
    size = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    size = min(size, side - (side % 2 - 1))
    x = torch.linspace(-(size - 1) / 2, (size - 1) / 2, size)
    line = torch.exp(-0.5 * (x / sigma) ** 2)
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(heads * d, 1, size, size)
    image = F.conv2d(F.pad(image, [size // 2] * 4, mode="reflect"), kernel, groups=heads * d)
    return image.view(b, heads, d, n).permute(0, 1, 3, 2)


def queries(side: int = 8) -> torch.Tensor:
    return torch.randn(2, 3, side * side, 4, generator=torch.Generator().manual_seed(side))


def test_only_the_images_queries_of_its_own_rows_are_blurred(model):
    (edit,) = SmoothedEnergy(sigma=0.7).start(_run(model)).edits
    (whole,) = SmoothedEnergy().start(_run(model)).edits
    seen = []

    def compare(call: Call) -> None:
        before = {(w, n): call.get(w, n).clone() for w in "qkv" for n in call.rows.names}
        edit.do(call)
        for key, was in before.items():
            if key != ("q", ("main", "smoothed")):
                assert torch.equal(call.get(*key), was)
        q, own = before["q", ("main", "smoothed")], call.get("q", ("main", "smoothed"))
        at = call.segment("q", "image")
        torch.testing.assert_close(own[..., at, :], official(q[..., at, :], 0.7), **CLOSE)
        if "text" in call.site.query:
            text = call.segment("q", "text")
            assert torch.equal(own[..., text, :], q[..., text, :])
        whole.do(call)
        flat = call.get("q", ("main", "smoothed"), "image")
        torch.testing.assert_close(flat, own[..., at, :].mean(-2, keepdim=True).expand_as(flat), **CLOSE)
        seen.append(call.site)

    sites = [s for s in model.sites if "image->image" in s.pairs and edit.where.sites(s)]
    side = 16
    cond = model.embed([PROMPT, "a duck"] * 2)
    x = torch.randn(4, model.channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.tap(dict.fromkeys(sites, compare), ROWS, (side, side)):
        model.predict(x, 300.0, cond)
    assert seen == sites and seen


def _run(model):
    from sfumato.core.method import Run

    return Run(model, {"main": (PROMPT, "a duck")}, ROWS, 2, (16, 16))


@pytest.mark.parametrize("side", [2, 5, 8])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0, 100.0])
def test_the_blur_is_the_authors(side, sigma):
    q = queries(side)
    image = q.transpose(-1, -2).unflatten(-1, (side, side))
    torch.testing.assert_close(
        blur(image, sigma, math.ceil(6 * sigma) // 2, "reflect").flatten(-2).transpose(-1, -2),
        official(q, sigma),
        **CLOSE,
    )


def test_diffusers_takes_the_mean_for_a_finite_sigma_and_blurs_for_an_infinite_one():
    """Which is the wrong way round; but its default is a flat kernel as wide as the image, and so not far from it."""
    q = queries(8)[:, 0]
    mean = q.mean(1, keepdim=True).expand_as(q)
    size = math.ceil(6 * 1.0) + 1 - math.ceil(6 * 1.0) % 2
    torch.testing.assert_close(_gaussian_blur_2d(q.clone(), size, 1.0, 9999.0), mean)
    wide = _gaussian_blur_2d(q.clone(), 6 * 9999999 + 1, 9999999.0, 9999.0)
    torch.testing.assert_close(wide, official(q[:, None], 9999999.0)[:, 0])
    assert 0.05 < (wide - mean).abs().max() < (q - mean).abs().max() / 3
