"""Several images in one run: each follows its own path as if it were alone."""

from __future__ import annotations

import pytest
import torch

from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import (
    DDIMInversion,
    Direct,
    EditFriendly,
    NegativePrompt,
    NullText,
    Residual,
    RFInversion,
    invert,
)
from sfumato.inversion.together import together

ONE, OTHER = "a red cube on grass", "a blue duck on grass"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def images(n, seed, size=64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def paths(model, how, n=1):
    return invert(model, images(n, 1), [ONE] * n, how), invert(model, images(n, 2), [OTHER] * n, how)


@pytest.mark.parametrize(
    ("family", "how", "scale"),
    [
        ("sd", DDIMInversion(steps=3), 1.0),
        ("sd3", DDIMInversion(steps=3), 1.0),
        ("sd", Direct(steps=3), 4.0),
        ("sd3", EditFriendly(scale=1.0, steps=3), 1.0),
        ("sd", EditFriendly(scale=1.0, steps=3), 1.0),
        ("sd", NegativePrompt(steps=3), 4.0),
        ("sd", NullText(4.0, inner=1, steps=3), 4.0),
        ("sd3", RFInversion(steps=3), 2.0),
        ("sd3", Residual(steps=3), 2.0),
    ],
    ids=lambda v: None if isinstance(v, str | float) else type(v).__name__,
)
def test_each_stream_follows_its_path_as_if_it_were_alone(models, family, how, scale):
    model = models(family)
    one, other = paths(model, how, 2)
    prompts = {"source": [ONE] * 2, "target": [OTHER] * 2}
    alone = denoise(model, prompts, start=one, guide=scale)
    apart = denoise(model, {"appearance": [OTHER] * 2}, start=other, guide=scale)
    start = together({("source", "target"): one, "appearance": other})
    out = denoise(model, {**prompts, "appearance": [OTHER] * 2}, start=start, guide=scale)
    for name in ("source", "target"):
        torch.testing.assert_close(out[name].latents, alone[name].latents, **CLOSE)
    torch.testing.assert_close(out["appearance"].latents, apart["appearance"].latents, **CLOSE)
    if isinstance(how, Direct | EditFriendly):
        exact = {"atol": 0.0 if isinstance(how, Direct) else 1e-5, "rtol": 0.0}
        torch.testing.assert_close(out["source"].latents, one.image, **exact)
        torch.testing.assert_close(out["appearance"].latents, other.image, **exact)
    assert (out["target"].latents - out["source"].latents).abs().max() > 1e-4
    assert torch.equal(start.image[:2], one.image) and torch.equal(start.image[4:], other.image)


def test_what_does_not_go_together_is_said(models):
    model = models("sd")
    one, other = paths(model, DDIMInversion(steps=2))

    def refused(match, call):
        with pytest.raises(SfumatoError, match=match):
            call()

    refused("got none", lambda: together({}))
    wide = invert(model, images(1, 3, 128), OTHER, DDIMInversion(steps=2))
    refused("one shape", lambda: together({"a": one, "b": wide}))
    longer = invert(model, images(1, 3), OTHER, DDIMInversion(steps=3))
    refused("levels differ", lambda: together({"a": one, "b": longer}))
    noisy = invert(model, images(1, 3), OTHER, EditFriendly(skip=0.0, steps=2))
    refused("levels differ", lambda: together({"a": one, "b": noisy}))
    prompts = {"a": ONE, "b": OTHER}
    refused(
        "streams b, a, in this order",
        lambda: denoise(model, prompts, start=together({"b": one, "a": other}), guide=1.0),
    )
