"""Models whose configs vary every key, drawn by a seed, against diffusers' own pipelines on the same noise.

What differs by intent is left out. DDIM's and PNDM's own steps with ``linspace``, or with steps that do not divide the
training's, go to another level than the network is told next, where ours go to that one. DDPM's own adds noise in a
last step from above zero as well, as far as its variance is not the posterior's. Every solver's options are compared
step by step in tests/core/test_solvers.py.
"""

from __future__ import annotations

import inspect
import random
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import diffusers
import families
import pytest
import torch
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.backbones.transformers import packed, unpacked
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG, Guide, guided, reads_scale
from sfumato.core.noise import drawing
from sfumato.core.results import Sample
from sfumato.core.rows import single
from sfumato.core.schedule import Schedule
from sfumato.errors import SfumatoError

DRAWS = 20
FAST = 2
"""Of the draws, those that are not slow."""
PROMPT, OTHER = "a red cube on grass", "a blue duck"
SEED = 3
FAMILIES = ("sd", "sdxl", "deepfloyd", "pixart", "sd3", "flux")


@dataclass
class Drawn:
    """A model by its options, and how it is painted with."""

    parts: dict[str, Any] = field(default_factory=dict)
    put: str = "folder"
    """Where the scheduler comes in: with the folder, given to ``load``, or put into the loaded pipeline."""
    steps: int = 4
    negative: str = ""
    cells: tuple[int, int] = (8, 8)


class Dice(random.Random):
    def some(self, **options: tuple[Any, ...]) -> dict[str, Any]:
        """Each option with one of its values, or left out."""
        return {k: self.choice(v) for k, v in options.items() if self.random() < 0.6}

    def sigmas(self) -> dict[str, Any]:
        return self.choice(
            ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
        )


def betas(dice: Dice, kind: str) -> dict[str, Any]:
    """Some end as near to no image as checkpoints do: cosine betas, or a large ``beta_end``. From there the midpoint's
    first step multiplies float32's rounding by sigma twice, so that there is nothing left to compare.
    """
    if dice.random() < 0.15:
        return {"trained_betas": torch.linspace(0.001, 0.02, 500).tolist(), "num_train_timesteps": 500}
    if kind.startswith("KDPM2"):
        return {"beta_end": 0.012, **dice.some(beta_schedule=("linear", "scaled_linear"), beta_start=(0.0001, 0.00085))}
    own = {"DDPMScheduler": ("laplace", "sigmoid"), "HeunDiscreteScheduler": ("exp",)}.get(kind, ())
    return dice.some(
        beta_schedule=("linear", "scaled_linear", "squaredcos_cap_v2", *own), beta_start=(0.0001, 0.00085),
        beta_end=(0.009, 0.012, 0.02, 0.03), num_train_timesteps=(1000, 500),
    )  # fmt: skip


SOLVERS = tuple(
    f"{kind}Scheduler"
    for kind in ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver")
)
VP = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler", *SOLVERS, "DPMSolverMultistepScheduler"),
)
NEVER_DATA = ("EulerDiscrete", "EulerAncestral", "KDPM2Discrete", "KDPM2Ancestral", "PNDM")
"""Whose networks do not predict the data in diffusers."""


def noising(dice: Dice, drawn: Drawn, kinds: tuple[str, ...] = VP, variances: tuple[str, ...] = ()) -> Any:
    """A scheduler of a model that is noised by betas."""
    kind = dice.choice(kinds)
    options = betas(dice, kind) | dice.sigmas() | {"timestep_spacing": dice.choice(("leading", "trailing", "linspace"))}
    options |= dice.some(
        prediction_type=("epsilon", "v_prediction"), steps_offset=(0, 1, 3), set_alpha_to_one=(True, False),
        clip_sample_range=(0.5, 2.0), thresholding=(True, False),
        dynamic_thresholding_ratio=(0.8, 0.995), sample_max_value=(1.0, 1.5), final_sigmas_type=("zero", "sigma_min"),
        interpolation_type=("linear", "log_linear"),
        original_inference_steps=(10, 25, 50), timestep_scaling=(0.1, 10.0), solver_order=(1, 2, 3),
        predictor_order=(1, 2, 3), corrector_order=(1, 2, 3), lower_order_final=(True, False), euler_at_final=(True,),
        predict_x0=(True, False), disable_corrector=([], [0, 1]), lambda_min_clipped=(-5.1,), use_lu_lambdas=(False,),
    )  # fmt: skip
    options["clip_sample"] = dice.random() < 0.3
    if dice.random() < 0.25:
        options |= {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    elif dice.random() < 0.1 and not kind.startswith(NEVER_DATA):
        options["prediction_type"] = "sample"
    if kind == "EulerDiscreteScheduler" and dice.random() < 0.2:
        options |= {"timestep_type": "continuous", "prediction_type": "v_prediction"}
        options |= {"sigma_min": 0.02, "sigma_max": 50.0, "use_karras_sigmas": True}
        options |= {"use_exponential_sigmas": False, "use_beta_sigmas": False, "rescale_betas_zero_snr": False}
    if kind in ("DDIMScheduler", "PNDMScheduler") and options["timestep_spacing"] == "linspace":
        options["timestep_spacing"] = "trailing"
    if kind == "DDPMScheduler":
        options["variance_type"] = dice.choice(("fixed_small", "fixed_small_log", *variances))
        if "small" not in options["variance_type"]:
            options |= {"timestep_spacing": "leading", "steps_offset": 0}
    drawn.steps = dice.choice((1, 2, 4) if kind == "LCMScheduler" else (1, 2, 4, 5))
    return solving(dice, kind, options)


def solving(dice: Dice, kind: str, options: dict[str, Any]) -> Any:
    """A scheduler with those of the options that its class has, of a solver that diffusers has."""
    rules = {"UniPCMultistepScheduler": ("bh1", "bh2"), "DEISMultistepScheduler": ("logrho",)}
    options |= {"skip_prk_steps": True, "solver_type": dice.choice(rules.get(kind, ("midpoint", "heun")))}
    flow = options.get("prediction_type") == "flow_prediction"
    if kind == "SASolverScheduler":
        options["algorithm_type"] = "data_prediction" if flow else dice.choice(("data_prediction", "noise_prediction"))
        options["thresholding"] = False  # which diffusers cannot by the noise
    elif kind.startswith("DPMSolver"):
        noise = ["sde-dpmsolver++"] * (options.get("solver_order") != 3)
        options["algorithm_type"] = dice.choice(("dpmsolver++", *noise, *["dpmsolver"] * (not flow)))
        if options["algorithm_type"] == "dpmsolver":
            options["final_sigmas_type"] = "sigma_min"
            options["thresholding"] = False
    elif kind == "UniPCMultistepScheduler" and (flow or options.get("final_sigmas_type") != "sigma_min"):
        options |= {"lower_order_final": True, "solver_type": "bh2"}  # all else is not a number in diffusers
    made = getattr(diffusers, kind)
    known = inspect.signature(made).parameters
    return made(**{k: v for k, v in options.items() if k in known})


def flowing(dice: Dice, drawn: Drawn, always: bool = False) -> Any:
    """A flow's scheduler; ``always`` for a pipeline that shifts it by the image's size, whatever it says."""
    if not always and dice.random() < 0.4:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        more = dice.some(flow_shift=(1.0, 3.0), solver_order=(1, 2, 3), lower_order_final=(True, False))
        return solving(dice, dice.choice(SOLVERS), flow | more)
    if not always and dice.random() < 0.2:
        return diffusers.FlowMatchHeunDiscreteScheduler(**dice.some(shift=(1.0, 3.0), num_train_timesteps=(1000, 500)))
    return diffusers.FlowMatchEulerDiscreteScheduler(
        **dice.some(
            shift=(1.0, 3.0), use_dynamic_shifting=(True, False), base_shift=(0.3,), max_shift=(1.0, 2.0),
            base_image_seq_len=(16,), max_image_seq_len=(64, 4096), time_shift_type=("linear", "exponential"),
            shift_terminal=(0.1, None), stochastic_sampling=(True, False), num_train_timesteps=(1000, 500),
        ),
        **dice.sigmas(),
    )  # fmt: skip


def autoencoder(dice: Dice, **more: tuple[Any, ...]) -> dict[str, Any]:
    return dice.some(
        scaling_factor=(0.13025, 0.18215, 1.5), levels=(2, 3, 4), force_upcast=(True, False),
        use_quant_conv=(True, False), use_post_quant_conv=(True, False), layers_per_block=(1, 2),
        mid_block_add_attention=(True, False), act_fn=("silu", "relu"), **more,
    )  # fmt: skip


def text(dice: Dice) -> dict[str, Any]:
    return dice.some(
        hidden_act=("quick_gelu", "gelu"), eos_token_id=(2,), num_hidden_layers=(2, 3), layer_norm_eps=(1e-3,)
    )


def t5(dice: Dice) -> dict[str, Any]:
    return dice.some(
        num_layers=(1, 2), feed_forward_proj=("relu", "gated-gelu"), relative_attention_num_buckets=(8, 32)
    )


BLOCKS = (
    (("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D"), (8, 16)),
    (("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D"), (8, 16)),
    (("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2, (8, 8, 16)),
    (("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",), (8,)),
)


def network(dice: Dice) -> dict[str, Any]:
    down, up, widths = dice.choice(BLOCKS)
    depth = len(down)
    found = {"down_block_types": down, "up_block_types": up, "block_out_channels": widths}
    found["attention_head_dim"] = dice.choice((2, tuple(2**i for i in range(1, depth + 1))))
    found["transformer_layers_per_block"] = dice.choice((1, tuple(range(1, depth + 1))))
    return found | dice.some(
        layers_per_block=(1, 2), use_linear_projection=(True, False), only_cross_attention=(True, False),
        mid_block_type=("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None), center_input_sample=(True, False),
        resnet_time_scale_shift=("default", "scale_shift"), sample_size=(8, (8, 12)), act_fn=("silu", "gelu"),
        upcast_attention=(True, False), time_cond_proj_dim=(9, 16), flip_sin_to_cos=(True, False), freq_shift=(0, 1),
        norm_eps=(1e-5, 1e-3), mid_block_scale_factor=(1, 2), downsample_padding=(0, 1), conv_in_kernel=(1, 3),
        cross_attention_norm=(None, "layer_norm"), time_embedding_type=("positional", "fourier"),
        timestep_post_act=(None, "silu"), conv_out_kernel=(1, 3), resnet_skip_time_act=(False,),
    )  # fmt: skip


def drawn(family: str, number: int) -> Drawn:
    dice, out = Dice(f"{family} {number}"), Drawn()
    out.cells = dice.choice(((8, 8), (8, 12), (12, 8)))
    out.negative, out.put = dice.choice(("", OTHER)), dice.choice(("folder", "load", "pipe"))
    parts = out.parts
    if family in ("sd", "sdxl"):
        parts["network"], parts["text"] = network(dice), text(dice)
        parts["scheduler"] = noising(dice, out)
        channels = dice.choice((4, 4, 6))
        parts["network"] |= {"in_channels": channels, "out_channels": channels}
        more = {"shift_factor": (0.1,)} if dice.random() < 0.1 else {}
        parts["autoencoder"] = {**autoencoder(dice, **more), "channels": channels}
        if family == "sdxl":
            parts["zeros"] = dice.random() < 0.5
            if channels == 4 and dice.random() < 0.4:  # theirs reads them as four
                parts["autoencoder"] |= {"latents_mean": [0.1] * channels, "latents_std": [1.5] * channels}
        elif dice.random() < 0.2:
            width = dice.choice((16, 24))
            parts["network"] |= {
                "encoder_hid_dim": 16,
                "encoder_hid_dim_type": "text_proj",
                "cross_attention_dim": width,
            }
    elif family == "deepfloyd":
        parts["network"] = dice.some(
            layers_per_block=(1, 2), resnet_time_scale_shift=("default", "scale_shift"), act_fn=("silu", "gelu"),
            addition_embed_type_num_heads=(2, 4), sample_size=(16,), attention_head_dim=(2, (2, 4)),
            only_cross_attention=(True, False), class_embed_type=(None,), cross_attention_norm=(None, "layer_norm"),
        )  # fmt: skip
        parts["t5"] = t5(dice)
        kinds = ("DDPMScheduler", "DDPMScheduler", *SOLVERS[:2])
        parts["scheduler"] = noising(dice, out, kinds, ("fixed_large", "learned_range", "learned_range"))
    elif family == "pixart":
        parts["network"] = dice.some(
            num_layers=(1, 3), patch_size=(1, 2), interpolation_scale=(1, 2), attention_bias=(True, False),
            norm_eps=(1e-6, 1e-3), out_channels=(4, 8),
            activation_fn=("gelu-approximate", "geglu"), upcast_attention=(True, False),
        )  # fmt: skip
        alpha, sigma = diffusers.PixArtAlphaPipeline, diffusers.PixArtSigmaPipeline
        parts["kind"], parts["size"] = dice.choice(((alpha, 8), (alpha, 128), (sigma, 8)))
        parts["scheduler"] = noising(dice, out)
        out.steps = max(2, out.steps)  # of one step their pipeline takes the data before it
        parts["t5"], parts["autoencoder"] = t5(dice), autoencoder(dice)
    elif family == "sd3":
        parts["network"] = dice.some(
            num_layers=(1, 3), patch_size=(1, 2, 4), dual_attention_layers=((), (0,)), qk_norm=(None, "rms_norm"),
            pos_embed_max_size=(16, 96), sample_size=(16, 32),
        )  # fmt: skip
        parts["autoencoder"] = autoencoder(dice, shift_factor=(0.0, 0.1))
        parts |= {"text": text(dice), "t5": t5(dice), "scheduler": flowing(dice, out)}
    else:
        parts["network"] = dice.some(
            num_layers=(1, 2), num_single_layers=(1, 2), guidance_embeds=(True, False), axes_dims_rope=((4, 6, 6),)
        )
        parts["autoencoder"] = autoencoder(dice, shift_factor=(0.0, 0.1))
        parts |= {"text": text(dice), "t5": t5(dice), "scheduler": flowing(dice, out, always=True)}
    return out


def made(family: str, how: Drawn) -> Any:
    torch.manual_seed(0)
    build = {"sd": families.stable_diffusion, **families.FAMILIES}[family]
    pipe = build(**how.parts)
    families.randomised(*pipe.components.values())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, model: Any, how: Drawn, size: tuple[int, int], monkeypatch: Any) -> tuple[Tensor, Tensor]:
    """Latents and images of diffusers' own pipeline, from our noise and with our draws on the way."""
    x = model.latents([SEED], *size)
    draw = drawing([SEED + 0x5F0], x.shape[1:])
    stepping = sys.modules[type(pipe.scheduler).__module__]
    if hasattr(stepping, "randn_tensor"):
        shaped = packed if type(model).__name__ == "Flux" else torch.clone
        monkeypatch.setattr(stepping, "randn_tensor", lambda *_, **__: shaped(draw()))
    found: list[Tensor] = []
    step = pipe.scheduler.step

    @wraps(step)  # pipelines ask for its signature
    def noted(*args: Any, **options: Any) -> Any:
        out = step(*args, **options)
        found[:] = [out[0]]
        return out

    monkeypatch.setattr(pipe.scheduler, "step", noted)
    options: dict[str, Any] = {"num_inference_steps": how.steps, "height": size[0], "width": size[1]}
    options |= {"output_type": "pt", "guidance_scale": 5.0, "negative_prompt": how.negative or None}
    name = type(pipe).__name__
    if name == "IFPipeline":
        monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", lambda *_, **__: x)
        images = pipe(PROMPT, **options).images / 2 + 0.5
    elif name == "FluxPipeline":
        options |= {"true_cfg_scale": 5.0 if how.negative else 1.0, "guidance_scale": 3.5 if how.negative else 5.0}
        images = pipe(PROMPT, latents=packed(x), **options).images
        found[0] = unpacked(found[0], *x.shape[-2:])
    else:
        if name.startswith("PixArt"):
            options |= {"use_resolution_binning": False, "clean_caption": False}
            options["negative_prompt"] = how.negative
        images = pipe(PROMPT, latents=x, **options).images
    return found[0], images.clamp(0, 1)


def guide(model: Any, how: Drawn) -> Guide:
    """What their pipelines make of a guidance of 5 and a negative prompt."""
    if how.negative and model.network.config.get("time_cond_proj_dim") is None:
        return CFG(5.0, how.negative)  # Flux reads its own beside it
    if type(model).__name__ == "Flux" and not reads_scale(model):
        return CFG(1.0)
    return guided(model, 5.0)


def rounded_less(ours: Sample, latents: Tensor, images: Tensor, exact: Sample) -> bool:
    """Is the whole difference from theirs the rounding of float32, and ours the smaller part of it?

    ``exact``: ours with steps in float64. Where betas end at almost no image (cosine ones, a large ``beta_end``), what
    is left of it there is divided by an alpha of 1/200 to 1/20000.
    """
    pairs = (ours.latents, latents, exact.latents), (ours.images, images, exact.images)
    return all((mine - true).abs().max() < (other - true).abs().max() for mine, other, true in pairs)


def cases() -> list[Any]:
    return [
        pytest.param(family, n, marks=() if n < FAST else pytest.mark.slow, id=f"{family}-{n}")
        for family in FAMILIES
        for n in range(DRAWS)
    ]


@torch.no_grad()
def test_a_learned_variance_is_that_of_the_prompt(monkeypatch):
    how = Drawn()
    pipe = made("deepfloyd", how)
    assert pipe.scheduler.config.variance_type == "learned_range"
    model = load(pipe)
    options = {"guide": guide(model, how), "steps": how.steps, "seed": SEED, "size": (16, 16)}
    ours = denoise(model, PROMPT, **options).latents
    latents, _ = theirs(pipe, model, how, (16, 16), monkeypatch)
    assert (ours - latents).abs().max() <= 1e-4 * max(1.0, float(latents.abs().max()))


@pytest.mark.parametrize(("family", "number"), cases())
@torch.no_grad()
def test_it_paints_what_diffusers_paints_or_names_the_option(family, number, tmp_path, monkeypatch):
    how = drawn(family, number)
    pipe = made(family, how)
    scheduler = pipe.scheduler
    if how.put != "folder":
        flow = "flow" in Schedule.read(scheduler).prediction
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else families.ddim()
    pipe.save_pretrained(tmp_path)
    pipe.scheduler = scheduler
    try:
        model: Any = load(str(tmp_path), device="cpu", scheduler=deepcopy(scheduler) if how.put == "load" else None)
        if how.put == "pipe":
            model.pipe.scheduler = deepcopy(scheduler)
    except SfumatoError as error:
        keys = {k for part in how.parts.values() if isinstance(part, dict) for k in part}
        assert any(key in str(error) for key in keys | set(pipe.scheduler.config)), error
        return
    height, width = (n * model.factor for n in how.cells)
    if family == "deepfloyd":
        height, width = 16, 16
    x, cond, seen = model.latents([SEED], height, width), model.embed([PROMPT]), []
    looks = dict.fromkeys((*model.sites, *model.layers), lambda call: seen.append(call.site))
    with model.tap(looks, single(1), (x.shape[-2], x.shape[-1])) as tap:
        looked = model.predict(x, 401.0, cond)
        tap.check(model.network)
    assert len(seen) == len(looks) and torch.equal(looked, model.predict(x, 401.0, cond))
    assert isinstance(model.size, int)
    options: dict[str, Any] = {"guide": guide(model, how), "steps": how.steps, "seed": SEED}
    ours = denoise(model, PROMPT, size=(height, width), **options)
    latents, images = theirs(pipe, model, how, (height, width), monkeypatch)
    far = float((ours.latents - latents).abs().max()) / max(1.0, float(latents.abs().max()))
    if far > 1e-4 or (ours.images - images).abs().max() > 1e-4:
        levels = model.levels(how.steps, x.shape[-2:])
        assert far < 1e-2 and model.schedule.prediction != "flow" and levels[0].alpha < 1e-2, how
        exact = denoise(model, PROMPT, start=levels.spread * x.double(), **options)
        assert rounded_less(ours, latents, images, exact), how
