"""Pix2Video against its update written down, and the order of its frames."""

from __future__ import annotations

import pytest
import torch
from rounding import assert_same_but_for_rounding

from sfumato.core.denoising import denoise
from sfumato.core.method import Run, Step
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.sets import Pix2Video, SharedAttention

PROMPT = "a red cube on grass"


def paint(model, *methods, frames=3, **options):
    settings = {"steps": 2, "size": 64, "guide": 3.0, "seed": list(range(frames))}
    return denoise(model, [PROMPT] * frames, methods=list(methods), **settings | options).latents


def test_latents_go_down_the_distance_to_the_frame_before(sd):
    """The gradient of 100 times the mean of squares, by autograd, of two streams; up to step 25 of 50."""
    rows = Rows(("a", "b"), ("uncond", "cond"), 3)
    run = Run(sd, {"a": (PROMPT,) * 3, "b": (PROMPT,) * 3}, rows, 50, (8, 8))
    after = Pix2Video().start(run).after
    g = torch.Generator().manual_seed(0)
    level = sd.schedule.at(500)
    for i in (0, 25, 26):
        x0, x = torch.randn(2, 6, 4, 8, 8, generator=g).unbind()
        step = Step(i, level, level, x, run, None, x0=x0, x_next=x)
        after(step)
        wanted = x.clone()
        for n in (1, 2, 4, 5) if i < 26 else ():
            of = x0[n].clone().requires_grad_()
            (100 * torch.nn.functional.mse_loss(x0[n - 1], of)).backward()
            wanted[n] -= of.grad
        assert_same_but_for_rounding(step.x_next, wanted)


def test_the_first_frame_is_what_it_is_alone_and_no_frame_knows_later_ones(sd):
    whole = paint(sd, Pix2Video(), frames=4)
    assert_same_but_for_rounding(whole[:1], paint(sd, frames=4)[:1])
    assert_same_but_for_rounding(paint(sd, Pix2Video(), frames=2), whole[:2])
    assert torch.equal(paint(sd, Pix2Video(), frames=1), paint(sd, frames=1))


def test_without_a_distance_it_is_shared_attention(sd):
    shared = paint(sd, SharedAttention("first+previous"))
    assert torch.equal(paint(sd, Pix2Video(weight=0.0)), shared)
    assert (paint(sd, Pix2Video()) - shared)[1:].abs().max() > 1e-3


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="unknown source of keys and values 'last'"):
        paint(sd, Pix2Video("last"))
