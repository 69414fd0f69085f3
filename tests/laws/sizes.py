"""Models with the blocks and latents of those that people have, and hardly any channels: their sites are the true."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import families
import torch

from sfumato.backbones.load import family

CROSS = ("CrossAttnDownBlock2D",) * 3
SD = {
    "down_block_types": (*CROSS, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 2,
}


def of(name: str, pipe: Callable[[], Any], **networks: Any) -> Any:
    """A pipeline of the tests with other networks."""
    made = pipe()
    for key, network in networks.items():
        setattr(made, key, network.eval())
    return family(name, made)


def sd_512() -> Any:
    return of("sd-1.5", families.stable_diffusion, unet=families.unet(**SD, sample_size=64))


def sd_768() -> Any:
    network = families.unet(**SD, sample_size=96, use_linear_projection=True, attention_head_dim=(2, 4, 8, 8))
    return of("sd-2.1", lambda: families.stable_diffusion(prediction_type="v_prediction"), unet=network)


def sdxl_1024() -> Any:
    network = families.unet(
        sample_size=128, down_block_types=("DownBlock2D", *CROSS[:2]), block_out_channels=(8, 8, 8),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, cross_attention_dim=32,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 6 * 4,
    )  # fmt: skip
    return of("sdxl", families.sdxl, unet=network)


def pixart_1024() -> Any:
    network = diffusers.PixArtTransformer2DModel(
        sample_size=128, num_layers=28, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=16,
        in_channels=4, out_channels=8, cross_attention_dim=24, norm_type="ada_norm_single",
        norm_elementwise_affine=False, attention_bias=True,
    )  # fmt: skip
    return of("pixart", families.pixart, transformer=network)


def sd3_1024() -> Any:
    network = diffusers.SD3Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=4, num_layers=24, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return of("sd3", families.sd3, transformer=network)


def flux_1024() -> Any:
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=19, num_single_layers=38, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return of("flux", families.flux, transformer=network)


SIZES: dict[str, tuple[Callable[[], Any], int]] = {
    "sd-512": (sd_512, 512),
    "sd-768": (sd_768, 768),
    "sdxl-1024": (sdxl_1024, 1024),
    "pixart-1024": (pixart_1024, 1024),
    "sd3-1024": (sd3_1024, 1024),
    "flux-1024": (flux_1024, 1024),
}
FAMILY = {"sd-512": "sd", "sd-768": "sd2"} | {name: name.partition("-")[0] for name in list(SIZES)[2:]}


@cache
def model(name: str) -> Any:
    """With its weights left as they come: they are never asked."""
    torch.manual_seed(0)
    return SIZES[name][0]()
