"""A tiny random model of every family, as a diffusers folder such as ``load`` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.schedule import Schedule
from sfumato.stilllife import networks
from sfumato.stilllife.tokenizer import special_ids, vocab_size


@dataclass(frozen=True)
class Always:
    """A function of the time that is the same number at any, and has a name that does not change."""

    value: float

    def __call__(self, t: float) -> float:
        return self.value


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAINED = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "clip_sample": False, **BETAS}
SCHEDULES = {
    "epsilon": Schedule.read(TRAINED),
    "v_prediction": Schedule.read({**TRAINED, "prediction_type": "v_prediction"}),
    "sample": Schedule.read({**TRAINED, "prediction_type": "sample"}),
    "flow": Schedule.read(diffusers.FlowMatchEulerDiscreteScheduler()),
}
"""The same levels for networks that predict noise, v and data, and a flow's; for exact denoisers."""
WORDS = ["a", "red", "blue", "cube", "duck", "on", "grass", "sphere", "the", "of", "and"]


NONE: Mapping[str, Any] = {}
"""No options of a part beside those of its builder."""


def clip_text(width: int = 16, projected: bool = False, **options: Any) -> Any:
    start, end = special_ids()
    settings: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": vocab_size(), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end,
        "projection_dim": width,
    }  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**settings | options)).eval()


def t5_text(width: int = 16, **options: Any) -> Any:
    settings: dict[str, Any] = {"vocab_size": len(WORDS) + 3, "d_model": width, "d_kv": 8, "d_ff": 16, "num_heads": 2}
    return T5EncoderModel(T5Config(**{**settings, "num_layers": 1, **options})).eval()


def t5_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def vae(channels: int = 4, shift: float | None = None, levels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (4,) * levels, "norm_num_groups": 2, "latent_channels": channels, "scaling_factor": 0.5,
        "mid_block_add_attention": False, "shift_factor": shift, "use_quant_conv": shift is None,
        "use_post_quant_conv": shift is None,
    }  # fmt: skip
    return diffusers.AutoencoderKL(**settings | options).eval()


def unet(**options: Any) -> diffusers.UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
    }
    return diffusers.UNet2DConditionModel(**settings | options).eval()


def ddim(**options: Any) -> diffusers.DDIMScheduler:
    settings = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return diffusers.DDIMScheduler(**settings | options)


def stable_diffusion(
    network: Mapping[str, Any] = NONE,
    autoencoder: Mapping[str, Any] = NONE,
    text: Mapping[str, Any] = NONE,
    scheduler: Any = None,
    **options: Any,
) -> Any:
    """``options`` are DDIM's, where no scheduler is given."""
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    return diffusers.StableDiffusionPipeline(
        vae=vae(**autoencoder), text_encoder=clip_text(**text), tokenizer=networks.tokenizer(),
        unet=unet(**network), scheduler=scheduler or ddim(**options), requires_safety_checker=False, **parts,
    )  # fmt: skip


def instruct() -> Any:
    """Stable Diffusion's InstructPix2Pix: it reads a picture beside its latents."""
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    return diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=networks.tokenizer(), unet=unet(in_channels=8), scheduler=ddim(),
        requires_safety_checker=False, **parts,
    )  # fmt: skip


def instruct_xl() -> Any:
    network = unet(
        in_channels=8, cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )  # fmt: skip
    return diffusers.StableDiffusionXLInstructPix2PixPipeline(
        vae=vae(), text_encoder=clip_text(), text_encoder_2=clip_text(projected=True),
        tokenizer=networks.tokenizer(), tokenizer_2=networks.tokenizer(), unet=network, scheduler=ddim(),
        force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip


def depth() -> Any:
    parts: dict[str, Any] = {"depth_estimator": None, "feature_extractor": None}
    return diffusers.StableDiffusionDepth2ImgPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=networks.tokenizer(), unet=unet(in_channels=5),
        scheduler=ddim(), **parts,
    )  # fmt: skip


def sdxl(
    network: Mapping[str, Any] = NONE,
    autoencoder: Mapping[str, Any] = NONE,
    text: Mapping[str, Any] = NONE,
    scheduler: Any = None,
    zeros: bool = True,
) -> Any:
    settings: dict[str, Any] = {
        "cross_attention_dim": 32, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 16 + 6 * 4, "transformer_layers_per_block": (2, 1),
    }  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(**autoencoder), text_encoder=clip_text(**text), text_encoder_2=clip_text(projected=True, **text),
        tokenizer=networks.tokenizer(), tokenizer_2=networks.tokenizer(), unet=unet(**settings | dict(network)),
        scheduler=scheduler or ddim(), force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip


def deepfloyd(
    stage: int = 1, network: Mapping[str, Any] = NONE, t5: Mapping[str, Any] = NONE, scheduler: Any = None
) -> Any:
    settings: dict[str, Any] = {
        "in_channels": 3 * stage, "out_channels": 6, "class_embed_type": "timestep" if stage == 2 else None,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "addition_embed_type": "text", "addition_embed_type_num_heads": 2, "encoder_hid_dim": 16,
    }  # fmt: skip
    scheduler = scheduler or diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=True, thresholding=True
    )
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    if stage == 2:
        parts["image_noising_scheduler"] = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return (diffusers.IFSuperResolutionPipeline if stage == 2 else diffusers.IFPipeline)(
        tokenizer=t5_tokenizer(), text_encoder=t5_text(**t5), unet=unet(**settings | dict(network)),
        scheduler=scheduler, requires_safety_checker=False, **parts,
    )  # fmt: skip


def pixart(
    kind: Any = diffusers.PixArtAlphaPipeline,
    size: int = 128,
    network: Mapping[str, Any] = NONE,
    autoencoder: Mapping[str, Any] = NONE,
    t5: Mapping[str, Any] = NONE,
    scheduler: Any = None,
) -> Any:
    settings: dict[str, Any] = {
        "sample_size": size, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
        "caption_channels": 16, "in_channels": 4, "out_channels": 8, "cross_attention_dim": 24,
        "use_additional_conditions": size == 128, "norm_type": "ada_norm_single", "norm_elementwise_affine": False,
        "attention_bias": True,
    }  # fmt: skip
    transformer = diffusers.PixArtTransformer2DModel(**settings | dict(network)).eval()
    return kind(
        tokenizer=t5_tokenizer(), text_encoder=t5_text(**t5), vae=vae(**autoencoder), transformer=transformer,
        scheduler=scheduler or ddim(),
    )  # fmt: skip


def sd3(
    network: Mapping[str, Any] = NONE,
    autoencoder: Mapping[str, Any] = NONE,
    text: Mapping[str, Any] = NONE,
    t5: Mapping[str, Any] = NONE,
    scheduler: Any = None,
) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 32,
        "out_channels": 4, "dual_attention_layers": (0,), "qk_norm": "rms_norm",  # as 3.5; 3 has neither
    }  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(**settings | dict(network)).eval(),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(**{"shift": 0.06, **autoencoder}),
        text_encoder=clip_text(projected=True, **text), tokenizer=networks.tokenizer(),
        text_encoder_2=clip_text(projected=True, **text), tokenizer_2=networks.tokenizer(),
        text_encoder_3=t5_text(32, **t5), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux(
    network: Mapping[str, Any] = NONE,
    autoencoder: Mapping[str, Any] = NONE,
    text: Mapping[str, Any] = NONE,
    t5: Mapping[str, Any] = NONE,
    scheduler: Any = None,
) -> Any:
    settings: dict[str, Any] = {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 4, 8), "guidance_embeds": True,
    }  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(**settings | dict(network)).eval(),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(**{"shift": 0.06, **autoencoder}), text_encoder=clip_text(**text), tokenizer=networks.tokenizer(),
        text_encoder_2=t5_text(**t5), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def wordless(**options: Any) -> diffusers.UNet2DModel:
    settings: dict[str, Any] = {
        "sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "attention_head_dim": 4,
    }  # fmt: skip
    return diffusers.UNet2DModel(**settings | options).eval()


def ddpm() -> Any:
    scheduler = diffusers.DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2")
    return diffusers.DDPMPipeline(unet=wordless(), scheduler=scheduler)


def ldm(latents: int = 3) -> Any:
    """Unconditional latent diffusion: its autoencoder is a VQ-VAE, its attention has one head."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vqvae = diffusers.VQModel(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=latents, num_vq_embeddings=32, scaling_factor=0.5,
        **blocks,
    ).eval()  # fmt: skip
    network = wordless(attention_head_dim=None, downsample_padding=0, freq_shift=1, flip_sin_to_cos=False)
    return diffusers.LDMPipeline(vqvae=vqvae, unet=network, scheduler=ddim(steps_offset=0))


def ncsnpp() -> Any:
    """A score model whose variance explodes."""
    network = wordless(
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"), time_embedding_type="fourier",
        center_input_sample=True, attention_head_dim=None, block_out_channels=(32, 64), norm_num_groups=None,
        mid_block_scale_factor=2**0.5,
    )  # fmt: skip
    return diffusers.ScoreSdeVePipeline(unet=network, scheduler=diffusers.ScoreSdeVeScheduler(sigma_max=50.0))


def motion_adapter(**options: Any) -> diffusers.MotionAdapter:
    """For the tiny Stable Diffusion, with attention over at most eight frames."""
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_num_attention_heads": 2,
        "motion_norm_num_groups": 4, "motion_max_seq_length": 8,
    }  # fmt: skip
    return diffusers.MotionAdapter(**settings | options).eval()


def animatediff(network: Mapping[str, Any] = NONE, adapter: Mapping[str, Any] = NONE, **options: Any) -> Any:
    """Stable Diffusion with motion modules; ``options`` are those of ``stable_diffusion``."""
    pipe = stable_diffusion(network=network, **options)
    parts = {k: v for k, v in pipe.components.items() if k not in ("safety_checker", "image_encoder")}
    return diffusers.AnimateDiffPipeline(motion_adapter=motion_adapter(**adapter), **parts)


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sd2": lambda: stable_diffusion(prediction_type="v_prediction"),
    "sdxl": sdxl,
    "deepfloyd": deepfloyd,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
}
SOME = [pytest.param(f, marks=[] if f in ("sd2", "deepfloyd", "sd3") else [pytest.mark.slow]) for f in FAMILIES]
"""For what methods do on each: every day on a UNet, on pixels and with joint attention, which predict v, noise and a
flow. Laws of all methods have others."""
VARIANTS: dict[str, Callable[[], Any]] = {
    "sd2-zero-snr": lambda: stable_diffusion(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "sd2-depth": depth,
    "if-ii": lambda: deepfloyd(2),
    "pixart-sigma": lambda: pixart(diffusers.PixArtSigmaPipeline, 16),
}
"""Relatives that differ from their family in what they read, or in their levels."""
INSTRUCTED: dict[str, Callable[[], Any]] = {"instruct": instruct, "instruct-xl": instruct_xl}
"""Those that read a picture, without which they paint nothing."""
WORDLESS: dict[str, Callable[[], Any]] = {"ddpm": ddpm, "ldm": ldm, "ncsnpp": ncsnpp}
"""Those that read no words."""


def stable_video(
    network: Mapping[str, Any] = NONE, autoencoder: Mapping[str, Any] = NONE, scheduler: Any = None, frames: int = 5
) -> Any:
    """Stable Video Diffusion, whose image encoder sees its pictures at the real one's size."""
    settings: dict[str, Any] = {
        "sample_size": 16, "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "block_out_channels": (32, 64),
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24, "layers_per_block": 1,
        "cross_attention_dim": 16, "num_attention_heads": (2, 4), "num_frames": frames,
    }  # fmt: skip
    coder: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "block_out_channels": (32,) * 4, "latent_channels": 4,
        "scaling_factor": 0.5,
    }  # fmt: skip
    seen = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
        image_size=224, patch_size=56,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(seen).eval()
    scheduler = scheduler or diffusers.EulerDiscreteScheduler(
        **BETAS, interpolation_type="linear", prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002,
        steps_offset=1, timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(
        vae=diffusers.AutoencoderKLTemporalDecoder(**coder | dict(autoencoder)).eval(), image_encoder=encoder,
        unet=diffusers.UNetSpatioTemporalConditionModel(**settings | dict(network)).eval(), scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(),
    )  # fmt: skip


SHOWN: dict[str, Callable[[], Any]] = {"stable-video": stable_video}
"""Those that go on from a picture."""
MOVING: dict[str, Callable[[], Any]] = {"animatediff": animatediff}
"""Those that attend over time."""


KEPT = TemporaryDirectory(prefix="families-")


@cache
def _written(name: str) -> Path:
    torch.manual_seed(0)
    pipe = (FAMILIES | VARIANTS | INSTRUCTED | WORDLESS | MOVING | SHOWN)[name]()
    randomised(*pipe.components.values())
    pipe.save_pretrained(place := Path(KEPT.name) / name)
    return place


def write(name: str, place: Path) -> Path:
    """The family's tiny model as a folder; made once, and copied."""
    return Path(copytree(_written(name), place / name, dirs_exist_ok=True))


def made(place: Path, device: str = "cpu", dtype: str = "float32") -> Callable[[str], Any]:
    """Name -> the family's tiny model, written once and loaded as a user loads one."""
    return cache(lambda name: load(str(write(name, place)), device=device, dtype=dtype))


def side(model: Any) -> int:
    """Of an image in pixels that the tiny model is quick with."""
    return 16 if model.factor == 1 else 64


def randomised(*networks: Any) -> None:
    """Layers that start at zero get random weights: they would hide all that is before them."""
    for network in networks:
        if isinstance(network, torch.nn.Module):
            for p in network.parameters():
                if p.ndim > 1 and not p.detach().any():
                    torch.nn.init.normal_(p, std=0.1)


def controlnet(name: str, network: Any, seed: int = 1, **options: Any) -> Any:
    """A tiny ControlNet for a family's network; behind a hyphen what is special about it."""
    family, _, special = name.partition("-")
    config = dict(network.config)
    if family == "sd3":
        config |= {"extra_conditioning_channels": 0, "dual_attention_layers": (), "qk_norm": None, "num_layers": 1}
        config |= {"force_zeros_for_pooled_projection": special != "plain"}
        if special == "large":
            config |= {"use_pos_embed": False, "joint_attention_dim": None}
        return seeded(lambda: diffusers.SD3ControlNetModel.from_config(config, **options).eval(), seed)
    if family == "flux":
        config |= {"num_mode": 4 if special == "union" else None, "guidance_embeds": special != "union"}
        config |= {"conditioning_embedding_channels": 4, "patch_size": 2} if special == "hint" else {}
        return _seeing(seeded(lambda: diffusers.FluxControlNetModel.from_config(config, **options).eval(), seed))
    kind = diffusers.ControlNetUnionModel if special == "union" else diffusers.ControlNetModel
    config |= {"conditioning_embedding_out_channels": (4, 4, 8, 8), "global_pool_conditions": special == "pooled"}
    config |= {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8} if special == "union" else {}
    return _seeing(seeded(lambda: kind.from_config(config, **options).eval(), seed))


def _seeing(network: Any) -> Any:
    """With larger weights where its picture is read: behind so many layers it would hardly matter."""
    for name, p in network.named_parameters():
        if "controlnet_cond_embedding" in name or "input_hint_block" in name:
            torch.nn.init.normal_(p, std=0.5)
    return network


def ip_adapter(network, seed: int) -> dict[str, Any]:
    """Weights of a tiny IP-Adapter for images that are 12 numbers."""
    generator = torch.Generator().manual_seed(seed)
    width = network.config.cross_attention_dim

    def some(*shape: int):
        return torch.randn(shape, generator=generator) * 0.3

    image = {"proj.weight": some(4 * width, 12), "proj.bias": some(4 * width)}
    image |= {"norm.weight": torch.ones(width), "norm.bias": some(width)}
    layers = [s for s in network.attn_processors if not s.endswith("attn1.processor")]
    attention = {}
    for i, path in enumerate(layers):
        inner = network.get_submodule(path.removesuffix(".processor")).to_k.out_features
        attention |= {f"{2 * i + 1}.to_{p}_ip.weight": some(inner, width) for p in "kv"}
    return {"image_proj": image, "ip_adapter": attention}


def pipeline(folder: str | Path, **parts: Any) -> Any:
    """A folder as diffusers loads it."""
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def _kept(name: str) -> Any:
    return pipeline(_written(name))


def own(name: str) -> Any:
    """The family's pipeline as diffusers loads it, a copy to change: reading it again takes three times as long."""
    return deepcopy(_kept(name))


def seeded(make: Callable[[], Any], seed: int = 1) -> Any:
    """A network with other random weights."""
    torch.manual_seed(seed)
    made = make()
    randomised(made)
    return made


def painted(model: Any, prompt: str = "a red cube on grass", **options: Any) -> torch.Tensor:
    """Latents of a short run at the size that the tiny model is quick with."""
    settings = {"steps": 3, "size": side(model), "seed": 5, "guide": 3.0}
    return denoise(model, prompt, **settings | options).latents
