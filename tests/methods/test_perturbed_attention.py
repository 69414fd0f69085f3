"""Perturbed-attention guidance: laws on every family, diffusers' pipelines, and how it wraps other guidance."""

from __future__ import annotations

import diffusers
import pytest
import torch
from families import FAMILIES, SOME, randomised, write

from sfumato.backbones.load import load
from sfumato.core import guidance
from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.rows import Rows, single
from sfumato.core.sites import block
from sfumato.core.steppers import DDIM
from sfumato.errors import SfumatoError
from sfumato.methods.control.perturbations import Perturbed, within
from sfumato.methods.control.perturbed_attention import GUIDER, PerturbedAttention, alone
from sfumato.methods.control.smoothed_energy import SmoothedEnergy
from sfumato.methods.edit.proximal_guidance import ProximalCFG
from sfumato.stilllife import weights

PROMPT = "a red cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def size(model):
    return 16 if model.factor == 1 else 64


def run(model, *methods, guide: guidance.Guide | float = 5.0, prompts=PROMPT, steps=2, **options):
    guide = guidance.CFG(guide) if isinstance(guide, float) else guide
    for method in methods:
        guide = method.around(guide)
    options = {"size": size(model), "seed": 3, **options}
    out = denoise(model, prompts, methods=methods, guide=guide, steps=steps, **options)
    return out if isinstance(prompts, dict) else out.latents


def test_it_is_a_row_beside_the_others_whatever_the_guidance(model):
    """Of each image what it is alone, and in another stream the same, also without an empty prompt."""
    both = run(model, PerturbedAttention(), guide=1.0, prompts=[PROMPT, "a duck"], steps=1)
    alone = run(model, PerturbedAttention(), guide=1.0, prompts="a duck", seed=4, steps=1)
    torch.testing.assert_close(both[1:], alone, **CLOSE)
    streams = run(model, PerturbedAttention(), prompts={"a": "a duck", "b": PROMPT}, guide=1.0, steps=1)
    torch.testing.assert_close(streams["b"].latents, both[:1], **CLOSE)


def test_outside_of_its_steps_it_cancels(model):
    steps, pag = [], PerturbedAttention(until=0.5)
    run(model, pag, callback=lambda step: steps.append({k: v.clone() for k, v in step.parts.items()}))
    away = [(parts["cond"] - parts["perturbed"]).abs().max() for parts in steps]
    assert away[0] > 1e-4 and away[1] < 1e-5


def test_two_of_them_are_one_pass(model, monkeypatch):
    """All rows of a step are one prediction, in either order."""
    calls, real = [], model.predict
    monkeypatch.setitem(vars(model), "predict", lambda x, t, cond: calls.append(len(x)) or real(x, t, cond))
    one = run(model, PerturbedAttention(), SmoothedEnergy(), steps=1, stepper=DDIM())
    assert calls == [4]
    torch.testing.assert_close(
        run(model, SmoothedEnergy(), PerturbedAttention(), steps=1, stepper=DDIM()), one, **CLOSE
    )
    for other in (PerturbedAttention(), SmoothedEnergy()):
        assert (run(model, other, steps=1) - one).abs().max() > 1e-6
    parts = {k: torch.randn(3, 4, 8, 8) for k in ("uncond", "cond", "perturbed", "smoothed")}
    guide = PerturbedAttention(2.0).around(SmoothedEnergy(3.0).around(guidance.CFG(5.0)))
    u, c, p, s = parts.values()
    torch.testing.assert_close(guide.combine(parts, single(3)), u + 5 * (c - u) + 3 * (c - s) + 2 * (c - p))


def test_without_text_it_is_the_identity_and_with_text_a_mask_of_the_image(model):
    """In each site of each family, against the logits with the rest of the image masked out."""
    rows = Rows(("main",), ("uncond", "cond", "perturbed"), 2)
    seen = []

    def compare(call: Call) -> None:
        name = ("main", "perturbed")
        own = alone(call, name)
        logits = call.logits(name)
        block = logits[..., call.segment("q", "image"), call.segment("k", "image")].clone()
        outside = ~torch.eye(block.shape[-1], dtype=torch.bool)
        logits = logits.clone()
        logits[..., call.segment("q", "image"), call.segment("k", "image")] = block.masked_fill(outside, -torch.inf)
        wanted = (logits.softmax(-1) @ call.get("v", name))[..., call.segment("q", "image"), :]
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)
        seen.append(call.site)

    sites = [s for s in model.sites if "image->image" in s.pairs]
    side = size(model) // model.factor
    cond = Perturbed(guidance.CFG(5.0), "perturbed", 3.0).embed(model, [PROMPT, "a duck"])
    x = torch.randn(6, model.channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.tap(dict.fromkeys(sites, compare), rows, (side, side)):
        model.predict(x, 300.0, type(cond["cond"]).cat(list(cond.values())))
    assert seen == sites


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_is_diffusers_on_the_built_in_model(here, scale):
    model = load("stilllife", device="cpu")
    pipe = weights.assemble("StableDiffusionPAGPipeline", weights.load())
    pipe.set_progress_bar_config(disable=True)
    noise = model.latents([3], 128, 128)
    options = {"num_inference_steps": 2, "guidance_scale": scale, "pag_scale": 3.0, "output_type": "latent"}
    wanted = pipe(PROMPT, latents=noise, **options).images
    torch.testing.assert_close(run(model, PerturbedAttention(), guide=scale, steps=2, size=128), wanted, **CLOSE)


def test_it_is_diffusers_on_sdxl(tmp_path):
    """In another block than the middle one."""
    pipe = diffusers.StableDiffusionXLPAGPipeline.from_pretrained(
        write("sdxl", tmp_path), pag_applied_layers="up_blocks.1"
    )
    pipe.set_progress_bar_config(disable=True)
    model = load(str(tmp_path / "sdxl"), device="cpu")
    noise = model.latents([3], 64, 64)
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent", "height": 64, "width": 64}
    wanted = pipe(PROMPT, latents=noise, pag_scale=3.0, **options).images
    torch.testing.assert_close(run(model, PerturbedAttention(layers=("up_blocks.1",)), steps=2), wanted, **CLOSE)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_is_diffusers_on_stable_diffusion_3(tmp_path, scale):
    """Without the norms and the second attention of 3.5, which its processor there does not know."""
    torch.manual_seed(0)
    pipe = FAMILIES["sd3"]()
    config = dict(pipe.transformer.config, num_layers=3, dual_attention_layers=(), qk_norm=None)
    pipe.transformer = diffusers.SD3Transformer2DModel.from_config(config).eval()
    randomised(*pipe.components.values())
    pipe.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusion3PAGPipeline.from_pretrained(tmp_path, pag_applied_layers="blocks.1")
    theirs.set_progress_bar_config(disable=True)
    model = load(str(tmp_path), device="cpu")
    noise = model.latents([3], 64, 64)
    options = {"num_inference_steps": 2, "guidance_scale": scale, "output_type": "latent", "height": 64, "width": 64}
    wanted = theirs(PROMPT, latents=noise, pag_scale=3.0, **options).images
    mine = run(model, PerturbedAttention(), guide=scale, steps=2)  # of three blocks the middle one
    torch.testing.assert_close(mine, wanted, **CLOSE)
    assert (run(model, guide=scale, steps=2) - wanted).abs().max() > 1e-2


def test_the_middle_is_the_stage_of_that_name_or_the_block_in_the_middle(model):
    meant = [s.path for s in model.sites if "image->image" in s.pairs and within(model, ["mid"])(s)]
    blocks = {path.rsplit(".", 1)[0] for path in meant}
    assert len(blocks) == 1
    if any(s.stage == "mid" for s in model.sites):
        assert all(path.startswith("mid_block.") for path in meant)
    else:
        every = list(dict.fromkeys(block(s) for s in model.sites))
        assert blocks == {every[len(every) // 2]}


def test_it_wraps_other_guidance(model):
    more = guidance.Composed((("a duck", 1.0),), 3.0), ProximalCFG(5.0, quantile=0.5), guidance.CFG(5.0, rescale=0.5)
    for other in more:
        wrapped = PerturbedAttention(2.0).around(other)
        conds = wrapped.embed(model, [PROMPT])
        assert list(conds) == [*other.embed(model, [PROMPT]), "perturbed"]
        parts = {k: torch.randn(1, 4, 8, 8) for k in conds}
        own = other.combine(parts, single(1)) + 2 * (parts["cond"] - parts["perturbed"])
        torch.testing.assert_close(wrapped.combine(parts, single(1)), own)
    assert PerturbedAttention(4.0).around(wrapped) is wrapped  # once is enough


def test_what_it_cannot_do_is_said(here):
    model = load("stilllife", device="cpu")
    with pytest.raises(SfumatoError, match="no self-attention in 'attic'; it has it in: down_blocks"):
        run(model, PerturbedAttention(layers=("attic",)), size=128)
    with pytest.raises(SfumatoError, match="that is never"):
        run(model, PerturbedAttention(since=0.5, until=0.5), size=128)
    assert (GUIDER.scale, GUIDER.since, GUIDER.until) == (2.8, 0.01, 0.2)
