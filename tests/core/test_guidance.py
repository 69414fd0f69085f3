"""How a model is guided is decided once: a number is told to a network that reads it, and is CFG for any other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import FAMILIES, write
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise, plan
from sfumato.core.guidance import CFG, Distilled, cfg, guided, reads_scale
from sfumato.distill import Latents, distil
from sfumato.errors import SfumatoError
from sfumato.inversion import EDICT, DDIMInversion, EditFriendly, NullText, RFInversion, invert, reconstruct
from sfumato.methods.distill.interval_score_matching import IntervalScoreMatching
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion

PROMPT = "a red cube on grass"


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return load(str(write("flux", tmp_path_factory.mktemp("flux"))), device="cpu")


@pytest.fixture(scope="module", params=[family for family in FAMILIES if family != "flux"])
def other(request, tmp_path_factory):
    return load(str(write(request.param, tmp_path_factory.mktemp("others"))), device="cpu")


@contextmanager
def told(model):
    """What the network is told of guidance in each prediction: a number a row, or none."""
    found: list[list[float] | None] = []
    predict = model.predict

    def watched(x: Tensor, t: Any, cond: Any) -> Tensor:
        known = cond.extra.get("guidance")
        found.append(None if known is None else known.tolist())
        return predict(x, t, cond)

    model.predict = watched
    try:
        yield found
    finally:
        del model.predict


def test_a_number_is_told_to_a_network_that_reads_it_and_cfg_for_any_other(flux, other):
    assert reads_scale(flux) and guided(flux, 7.5) == Distilled((7.5,))
    assert not reads_scale(other) and guided(other, 7.5) == CFG(7.5) and guided(other, 3, "ugly") == CFG(3.0, "ugly")
    own = {"b": 2.0, "a": 3.0}
    assert guided(flux, own, streams=("a", "b")) == Distilled((3.0, 2.0)) and guided(other, own) == CFG(own)
    for guide in (cfg(7.5), Distilled((3.5,))):  # what is a guidance stays one
        assert guided(flux, guide) is guide and guided(other, guide) is guide
    with pytest.raises(SfumatoError, match="no guidance scale is given for c; given: b, a"):
        guided(flux, own, streams=("a", "c"))


def test_what_cannot_be_told_is_cfg(flux):
    assert guided(flux, 5.0, "ugly") == CFG(5.0, "ugly") and guided(flux, -7.5) == CFG(-7.5)


def test_sampling_tells_each_stream_its_own(flux):
    options: dict[str, Any] = {"steps": 2, "size": 64}
    with told(flux) as found:
        one = denoise(flux, PROMPT, guide=2.0, **options).latents
        both = denoise(flux, {"a": [PROMPT] * 2, "b": ["a duck"] * 2}, guide={"b": 5.0, "a": 2.0}, **options)
    assert found == [[2.0]] * 2 + [[2.0, 2.0, 5.0, 5.0]] * 2
    torch.testing.assert_close(both["a"].latents[:1], one, atol=1e-5, rtol=1e-5)
    assert (denoise(flux, PROMPT, guide=5.0, **options).latents - one).abs().max() > 1e-4
    assert plan(flux, PROMPT, guide=2.0, steps=2, size=64).run.rows.conditions == ("cond",)
    with told(flux) as found:
        denoise(flux, PROMPT, guide=cfg(2.0), **options)
    assert found == [None] * 2  # asked twice, on top of what it was distilled with


@pytest.mark.parametrize(
    "how", [DDIMInversion(3.0, steps=3), DDIMInversion(1.0, steps=3), EditFriendly(3.0, steps=3), EDICT(steps=3)]
)
def test_an_inversion_is_told_its_scale_and_the_way_back_finds_the_image(flux, how):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with told(flux) as found:
        path = invert(flux, image, PROMPT, how)
        back = reconstruct(flux, path, how.scale)
    assert found and all(known == [how.scale] for known in found)
    if not isinstance(how, DDIMInversion):  # which in few steps comes nowhere near
        torch.testing.assert_close(back, path.image, atol=1e-4, rtol=1e-3)


def test_what_an_edit_is_told(flux):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    how = EditFriendly(3.0, steps=3)
    path = invert(flux, image, PROMPT, how)
    with told(flux) as found:
        denoise(flux, {"source": PROMPT, "target": "a duck"}, start=path, guide=how.guide(flux, 6.0))
    assert found == [[3.0, 6.0]] * len(path.levels)
    assert RFInversion().guide(flux) == {"source": 1.0, "target": 3.5}
    with pytest.raises(SfumatoError, match="or cfg\\(scale\\) to a network that reads its guidance"):
        denoise(flux, PROMPT, start=invert(flux, image, PROMPT, NullText(steps=2, inner=1)), guide=7.5)
    assert NullText(scale=5.0).guide(flux, 7.5) == CFG({"source": 5.0, "target": 7.5})  # which has an empty prompt


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (ScoreDistillation(guidance=20.0), lambda found: found == [[20.0] * 2]),
        (IntervalScoreMatching(guidance=4.0), lambda found: found[-1] in ([4.0] * 2, None) and [4.0] * 2 in found),
        (
            ScoreDistillationViaInversion(guidance=6.0),  # the inversion's scale is below 0, and not to be told
            lambda found: found[-1] == [6.0] * 2 and set(map(str, found[:-1])) == {"None"},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_distillation_is_told_its_scale(flux, method, wanted: Callable[[Any], bool]):
    latents = Latents(torch.randn(2, flux.channels, 8, 8, generator=torch.Generator().manual_seed(0)))
    with told(flux) as found:
        distil(flux, latents, PROMPT, method, 1)
    assert wanted(found)
