"""A real denoiser of 64 x 64 pixels, of 63 M weights: github.com/wangjia184/diffusion_model (MIT).

Anime faces, unconditional, 300 training steps on a cosine schedule. Its weights are codes of 8 bits with a scale and a
minimum each. Two things are not a ``UNet2DModel``'s own: the time enters as 256 sinusoids, and an attention adds what
it says to its normalised input.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.io.files import from_json, read_json


def pipeline(folder: Path) -> Any:
    """The network of a folder with ``config.json`` and ``model.safetensors``, as diffusers' ``DDIMPipeline``."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps
    from safetensors import safe_open

    network: Any = UNet2DModel.from_config(read_json(folder / "config.json", dict))
    network.time_proj = Timesteps(256, flip_sin_to_cos=False, downscale_freq_shift=1)
    network.time_embedding = TimestepEmbedding(256, 256)
    with safe_open(folder / "model.safetensors", "pt") as file:
        ranges = from_json(file.metadata()["ranges"], dict)
        weights = {key: file.get_tensor(key).float() * scale + least for key, (scale, least) in ranges.items()}
    network.load_state_dict(weights)
    for module in network.modules():
        if isinstance(module, Attention) and module.group_norm is not None:
            _normalise_before(module)
    scheduler = DDIMScheduler(trained_betas=betas().tolist(), num_train_timesteps=300, clip_sample=False)
    return DDIMPipeline(unet=network.eval().requires_grad_(False), scheduler=scheduler)


def _normalise_before(attention: Any) -> None:
    norm, attention.group_norm = attention.group_norm, None
    attention.normalised_by = norm
    attention.register_forward_pre_hook(
        lambda module, args, named: ((module.normalised_by(args[0]), *args[1:]), named), with_kwargs=True
    )


def betas(steps: int = 300, s: float = 0.008) -> Float[Tensor, " steps"]:
    """Of the cosine schedule (Nichol and Dhariwal 2021, eq. 17), as it was trained with."""
    at = torch.arange(steps + 1, dtype=torch.float64) / steps
    bar = torch.cos((at + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(1e-4, 0.9999)
