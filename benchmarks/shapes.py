"""Pipelines of the published models' own shapes with random weights: what they cost is what the real ones cost.

Weights are one small random block again and again, so that they are made as fast as memory is written. Words are the
built-in tokenizer's. ``tiny`` ones have a tenth of the width and the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sfumato.stilllife import networks
from sfumato.stilllife.tokenizer import special_ids, vocab_size

BLOCK = 65521
"""Numbers that are repeated: a prime, so that no two rows of a matrix are the same."""
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
FOUR = (320, 640, 1280, 1280)
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
TINY = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def text(shape: dict[str, int], tiny: bool, projected: bool = False) -> Any:
    start, end = special_ids()
    shape = TINY if tiny else shape
    config = CLIPTextConfig(
        **shape, vocab_size=vocab_size(), projection_dim=shape["hidden_size"], bos_token_id=start, eos_token_id=end,
        pad_token_id=end,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def vae(tiny: bool, side: int, channels: int = 4, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4 if tiny else (128, 256, 512, 512), layers_per_block=2, sample_size=side,
        latent_channels=channels, **options,
    )  # fmt: skip


def unet(tiny: bool, widths: tuple[int, ...] = FOUR, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(block_out_channels=[n // (10 if tiny else 1) for n in widths], **options)


def sd15(tiny: bool = False) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(tiny, 512), text_encoder=text(CLIP_L, tiny), tokenizer=networks.tokenizer(),
        unet=unet(tiny, sample_size=64, cross_attention_dim=64 if tiny else 768, attention_head_dim=8),
        scheduler=diffusers.DDIMScheduler(**BETAS), **_UNCHECKED,
    )  # fmt: skip


def sd21(tiny: bool = False) -> Any:
    network = unet(
        tiny, sample_size=96, cross_attention_dim=64 if tiny else 1024, use_linear_projection=True,
        attention_head_dim=(4, 4, 4, 4) if tiny else (5, 10, 20, 20),
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae(tiny, 768), text_encoder=text(CLIP_H, tiny), tokenizer=networks.tokenizer(), unet=network,
        scheduler=diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction"), **_UNCHECKED,
    )  # fmt: skip


def sdxl(tiny: bool = False) -> Any:
    network = unet(
        tiny, (320, 640, 1280), sample_size=128, cross_attention_dim=128 if tiny else 2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(4, 4, 4) if tiny else (5, 10, 20),
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=(64 if tiny else 1280) + 6 * 256,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(tiny, 1024, scaling_factor=0.13025), text_encoder=text(CLIP_L, tiny),
        text_encoder_2=text(CLIP_G, tiny, True), tokenizer=networks.tokenizer(), tokenizer_2=networks.tokenizer(),
        unet=network, scheduler=diffusers.DDIMScheduler(**BETAS), add_watermarker=False,
    )  # fmt: skip


def sd3(tiny: bool = False) -> Any:
    """Without T5, whose tokens are zeros."""
    network = diffusers.SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=4 if tiny else 24,
        attention_head_dim=16 if tiny else 64, num_attention_heads=4 if tiny else 24,
        joint_attention_dim=128 if tiny else 4096, caption_projection_dim=64 if tiny else 1536,
        pooled_projection_dim=128 if tiny else 2048, pos_embed_max_size=192,
    )  # fmt: skip
    scale = {"shift_factor": 0.0609, "scaling_factor": 1.5305, "use_quant_conv": False, "use_post_quant_conv": False}
    none: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    return diffusers.StableDiffusion3Pipeline(
        transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(tiny, 1024, 16, **scale), text_encoder=text(CLIP_L, tiny, True), tokenizer=networks.tokenizer(),
        text_encoder_2=text(CLIP_G, tiny, True), tokenizer_2=networks.tokenizer(), **none,
    )  # fmt: skip


_UNCHECKED: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def empty(make: Callable[[bool], Any], tiny: bool = False) -> Any:
    """A pipeline whose networks have shapes and no numbers yet."""
    with init_empty_weights(include_buffers=False):
        pipe = make(tiny)
    for network in parts(pipe):
        network.eval()
    return pipe


def parts(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def numbers(pipe: Any) -> int:
    """Of all weights."""
    return sum(p.numel() for network in parts(pipe) for p in network.parameters())


def fill(pipe: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Give the networks their weights: norms one, biases zero, the rest random, sums about as large as their terms."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(dtype)
    for network in parts(pipe):
        for module in network.modules():
            for name, empty in module._parameters.items():
                if empty is not None:
                    module._parameters[name] = nn.Parameter(_filled(name, empty, block), requires_grad=False)
    return pipe


def _filled(name: str, empty: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    if empty.ndim < 2:
        return torch.full(empty.shape, float(name != "bias"), dtype=block.dtype)
    scaled = block * empty[0].numel() ** -0.5
    return scaled.repeat(-(-empty.numel() // BLOCK))[: empty.numel()].view(empty.shape)
