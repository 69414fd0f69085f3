"""What a caller has switched on for all of torch changes nothing of what is painted, and is on again afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from families import painted, side

from sfumato.core.modes import unmoded
from sfumato.inversion import EditFriendly, NullText, invert
from sfumato.methods.control import AttendAndExcite


@contextmanager
def default_type(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "halves": lambda: default_type(torch.float16),
    "doubles": lambda: default_type(torch.float64),
}


def state():
    casts = torch.is_autocast_enabled("cpu")
    return torch.is_inference_mode_enabled(), casts, torch.get_default_device(), torch.get_default_dtype()


@pytest.mark.parametrize("mode", MODES)
def test_inside_torch_is_as_it_starts_and_outside_as_it_was(mode):
    plain = state()
    with MODES[mode]():
        before, gradients = state(), torch.is_grad_enabled()
        assert before != plain
        with unmoded():
            assert state() == plain and torch.is_grad_enabled() == gradients
        assert state() == before
        with pytest.raises(ZeroDivisionError), unmoded():
            _ = 1 / 0
        assert state() == before
    assert state() == plain


@cache
def picture(model):
    """Made once, before there is a mode."""
    return torch.rand(1, 3, side(model), side(model), generator=torch.Generator().manual_seed(1))


def done(model):
    """What is painted and inverted: with gradients, and with weights of words."""
    words = bool(model.text_tokens)
    prompt = "a (red:1.2) cube on grass" if words else ""
    methods = [AttendAndExcite(words=("cube", "grass"), refinements=2)] if words else []
    how = NullText(steps=2, inner=2) if words else EditFriendly(steps=2, skip=0.0)
    path = invert(model, picture(model), prompt, how)
    text = model.embed([prompt]).text
    return painted(model, prompt, methods=methods), path.latents, *path.uncond, *path.noises, text


@pytest.fixture(scope="module")
def plain(models):
    """What is done in no mode, by family."""
    return cache(lambda family: done(models(family)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["sdxl", "pixart", "flux", "ddpm"])
def test_it_changes_no_bit_of_what_is_painted_or_inverted(models, plain, family, mode):
    wanted = plain(family)
    with MODES[mode]():
        seen = done(models(family))
    assert all(torch.equal(a, b) for a, b in zip(wanted, seen, strict=True))
