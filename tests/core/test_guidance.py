"""How a model is guided is decided once: a number is told to a network that reads it, and is CFG for any other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import diffusers
import families
import pytest
import torch
from families import FAMILIES, write
from torch import Tensor

from sfumato.backbones.load import family, load
from sfumato.core.denoising import denoise, plan
from sfumato.core.guidance import CFG, Composed, Distilled, ImageTextCFG, PerpNeg, cfg, guided, reads_scale, remark
from sfumato.core.schedule import Schedule
from sfumato.core.steppers import DDIM, LCM, Euler
from sfumato.core.suited import suited
from sfumato.distill import Latents, distil
from sfumato.errors import SfumatoError
from sfumato.inversion import EDICT, DDIMInversion, Direct, EditFriendly, NullText, RFInversion, invert, reconstruct
from sfumato.methods.control.perturbations import Perturbed
from sfumato.methods.distill.interval_score_matching import IntervalScoreMatching
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_via_inversion import ScoreDistillationViaInversion
from sfumato.methods.edit.proximal_guidance import ProximalCFG

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
    with pytest.raises(SfumatoError, match="or cfg\\(scale\\) \\(--negative\\) to a network that reads its guidance"):
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


@pytest.mark.parametrize(
    "made",
    [
        lambda x: CFG(x),
        lambda x: CFG({"source": 1.0, "target": x}),
        lambda x: CFG(5.0, rescale=x),
        lambda x: Distilled((3.5, x)),
        lambda x: Composed((("a duck", x),)),
        lambda x: PerpNeg((), x),
        lambda x: ImageTextCFG(torch.zeros(1, 4, 8, 8), image_scale=x),
        lambda x: ProximalCFG(x),
        lambda x: Perturbed(CFG(5.0), "perturbed", x),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_guidance_is_other_than_a_number(made, bad):
    with pytest.raises(SfumatoError, match=f"is a finite number, got {bad}"):
        made(bad)
    made(1.0)


def test_a_scale_that_is_no_number_is_refused_before_the_network_is_asked(sd):
    with pytest.raises(SfumatoError, match="scale of CFG is a finite number, got nan"):
        denoise(sd, PROMPT, guide=float("nan"), steps=2, size=64)


TURBO = {"timestep_spacing": "trailing", **families.BETAS}


@pytest.mark.parametrize(
    ("scheduler", "network", "stepper", "scale"),
    [
        (diffusers.LCMScheduler(), {}, LCM(), 1.0),
        (diffusers.LCMScheduler(timestep_scaling=5.0), {"time_cond_proj_dim": 8}, LCM(5.0), 7.5),
        (diffusers.EulerAncestralDiscreteScheduler(**TURBO), {}, Euler(ancestral=True), 1.0),
        (diffusers.EulerDiscreteScheduler(**TURBO), {}, DDIM(), 1.0),
        (diffusers.TCDScheduler(), {}, DDIM(), 1.0),
        (diffusers.EulerDiscreteScheduler(**TURBO, prediction_type="v_prediction"), {}, DDIM(), None),
        (diffusers.EulerAncestralDiscreteScheduler(**families.BETAS), {}, Euler(ancestral=True), None),
        (families.ddim(), {}, DDIM(), None),
    ],
)
def test_a_distilled_model_runs_by_what_it_was_distilled_for(scheduler, network, stepper, scale):
    model = family("tiny", families.stable_diffusion(network=network, scheduler=scheduler))
    assert suited(model.schedule) == stepper and model.distilled == scale
    told = Distilled((7.5,)) if network else CFG(scale or 7.5)
    assert guided(model, None) == told
    own, said = (
        denoise(model, PROMPT, steps=2, size=64, **options).latents
        for options in ({}, {"guide": told, "stepper": stepper})
    )
    assert torch.equal(own, said)
    assert Direct().guide(model) == (1.0 if scale == 1 else 7.5)
    assert suited(Schedule.read(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))) == LCM(None)


@pytest.mark.parametrize(
    ("name", "scale"), [("stable-diffusion-3.5-large-turbo", 1.0), ("SD3-Turbo", 1.0), ("sd3", None)]
)
def test_stable_diffusion_3_5_turbo_is_known_by_its_name(name, scale):
    model = family(name, families.sd3())
    assert model.distilled == scale and guided(model, None) == CFG(scale or 7.5)


def test_a_guidance_that_leaves_words_out_is_remarked(sd, flux):
    assert "leaves the prompt out; for models distilled to run without guidance say 1" in str(remark(sd, 0.0))
    assert "only in part" in str(remark(sd, 0.5)) and "negative prompt is not read" in str(remark(sd, 1.0, "rain"))
    assert remark(sd, 1.0) is remark(sd, 5.0, "rain") is remark(flux, 0.5) is None
