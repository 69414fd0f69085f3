"""The networks of the built-in model, with random weights: ordinary diffusers and transformers classes, small.

Channel counts are chosen by measured training speed on CPUs with AMX; topology is Stable Diffusion 1.5's.
"""

from __future__ import annotations

import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from sfumato.stilllife.tokenizer import LENGTH, special_ids, vocab_size, write_tokenizer

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SIZE = 128  # pixels of an image's side
FACTOR = 8  # pixels of a latent's side
SCALING = 0.18215  # latents times this have unit variance
TEXT_WIDTH = 192
TOKENS = LENGTH
BETAS = (0.00085, 0.012)


def vae() -> AutoencoderKL:
    """4 latents at 1/8, 1.6 M parameters. No attention, so crops and other sizes are seen alike."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        block_out_channels=(32, 48, 80, 80),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=SCALING,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def whiten(model: AutoencoderKL, mean: Float[Tensor, "4"], std: Float[Tensor, "4"]) -> None:
    """Give latents of this mean and deviation per channel zero mean and deviation 1 / 0.18215, in place.

    The affine map is folded into the 1 x 1 convolutions on both sides of the latents, so reconstructions stay the same.
    """
    before: Any = model.quant_conv
    after: Any = model.post_quant_conv
    n = len(mean)
    gain = 1 / (SCALING * std)
    before.weight[:n] *= gain.view(-1, 1, 1, 1)
    before.bias[:n] = (before.bias[:n] - mean) * gain
    before.bias[n:] += 2 * gain.log()  # the log variances
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight /= gain.view(1, -1, 1, 1)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] through the VAE by the means of their latents, where the images are, in batches of 32."""
    out = []
    for part in images.split(32):
        z = vae.encode(part.to(vae.device) * 2 - 1).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
        out.append(vae.decode(z).sample.to(images))  # pyright: ignore[reportAttributeAccessIssue]
    return (torch.cat(out) / 2 + 0.5).clamp(0, 1)


def unet(in_channels: int = 4) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's topology, 8 heads (which diffusers calls ``attention_head_dim``), for 16 x 16 latents."""
    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        block_out_channels=(64, 96, 128, 144),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


@torch.no_grad()
def widen(base: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of ``base`` for InstructPix2Pix: four more input channels for the image's latents, which start at zero."""
    config = {k: v for k, v in base.config.items() if not k.startswith("_")}
    model: Any = UNet2DConditionModel.from_config({**config, "in_channels": 2 * base.config["in_channels"]})
    state = dict(base.state_dict())
    weight = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([weight, torch.zeros_like(weight)], 1)
    model.load_state_dict(state)
    return model.to(base.device)


def controlnet(base: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet on depth that starts as the downward half of ``base``; see ``depth_image`` for what it reads."""
    return ControlNetModel.from_unet(base, conditioning_embedding_out_channels=(16, 32, 64, 96))


def depth_image(depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 128 128"]:
    """What the depth ControlNet reads, from z-depth in any unit: disparity, 1 at the nearest pixel of an image.

    Depth that is infinite or not positive is sky, disparity 0. The three channels are the same.
    """
    inverse = torch.where((depth > 0) & depth.isfinite(), 1 / depth.float().clamp_min(1e-6), 0.0)
    near = inverse.amax((1, 2), keepdim=True).clamp_min(1e-6)
    image = F.interpolate((inverse / near)[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)
    return image.repeat(1, 3, 1, 1)


def clip() -> CLIPModel:
    """A CLIP of 4.4 M parameters; its text half conditions the UNet."""
    start, end = special_ids()
    layer = {"hidden_size": TEXT_WIDTH, "intermediate_size": 768, "num_attention_heads": 6, "hidden_act": "gelu"}
    text = layer | {
        "num_hidden_layers": 4,
        "vocab_size": vocab_size(),
        "max_position_embeddings": TOKENS,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": 128,
    }
    vision = layer | {"num_hidden_layers": 5, "image_size": SIZE, "patch_size": 16, "projection_dim": 128}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


@cache
def tokenizer() -> CLIPTokenizer:
    """The tokenizer of the captions' words."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return CLIPTokenizer.from_pretrained(folder)


def scheduler() -> DDIMScheduler:
    """DDIM as Stable Diffusion 1.5 configures it; predicts epsilon."""
    return DDIMScheduler(
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def pipeline(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The networks as diffusers' text-to-image pipeline, silent."""
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
