"""Images as latents and back, by what a VAE's class and config say, in a precision that holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import dtype_of
from sfumato.errors import SfumatoError, finite, unknown, unsound

OF_CLIPS = "AutoencoderKLTemporalDecoder"
"""Whose decoder takes all that it is given for one clip."""
KINDS = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "VQModel", OF_CLIPS)
SHIFTS = {"shift_factor": "SD3 and Flux", "latents_mean": "SDXL", "latents_std": "SDXL"}
"""What a config may say of latents beside their scale, and whose pipelines read it."""
OVERFLOWS = (
    "its numbers are too large for float16: load the model with dtype float32 or bfloat16, or by load(vae=...) with "
    "another VAE, such as sdxl-vae-fp16-fix"
)


def factor(vae: Any, name: str, reads: tuple[str, ...] = ()) -> int:
    """Pixels a side of a latent's cell, of the VAE of a model of this name.

    ``reads`` are those of ``SHIFTS`` that the family's pipeline reads. Raises ``SfumatoError`` for a VAE of another
    kind, and where its config says more of latents than the pipeline reads.
    """
    if not any(c.__name__ in KINDS for c in type(vae).__mro__):
        raise unknown(f"kind of VAE in {name}", type(vae).__name__, KINDS)
    scale = vae.config.scaling_factor
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise SfumatoError(f"the VAE of {name} has the scaling_factor {scale!r}; latents are multiplied by a number")
    given = {key for key in SHIFTS if _says(vae, key)}
    if others := sorted(given.difference(reads)):
        raise SfumatoError(f"the VAE of {name} has {others[0]}, which only {SHIFTS[others[0]]} read")
    if ("latents_mean" in given) != ("latents_std" in given):
        raise SfumatoError(f"the VAE of {name} has one of latents_mean and latents_std, and they are read together")
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: Any, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """Images in [0, 1] as latents, the mean of the encoder's distribution. ``SfumatoError`` where it is not finite."""
    x = images * 2 - 1
    if x.device.type == "cpu" and x.requires_grad:  # a sixth less, there and back
        x = x.contiguous(memory_format=torch.channels_last)
    found = _computed(vae, lambda vae, x: vae.encode(x), x)
    raw = (found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents).float()
    finite(raw, f"what the {type(vae).__name__} makes of a picture", lambda: _remedy(vae))
    mean, scale = _normal(vae, raw)
    return (raw - mean) * scale


def decode(vae: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
    """Latents as images in [0, 1]. ``SfumatoError`` where they are not finite."""
    finite(latents, "latents that are to be seen")
    images = _computed(vae, _decoded, plain(vae, latents)).sample.float()
    finite(images, f"the picture that the {type(vae).__name__} makes of finite latents", lambda: _remedy(vae))
    return (images / 2 + 0.5).clamp(0, 1)


def plain(vae: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Latents as the VAE itself has them, of which ``encode`` makes those of unit variance."""
    mean, scale = _normal(vae, latents)
    return latents / scale + mean


def _normal(vae: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """What is taken from the VAE's own latents, and what they are multiplied by then."""
    scale, mean = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    if _says(vae, "latents_mean") and _says(vae, "latents_std"):
        mean, std = (
            torch.tensor(vae.config[key], device=like.device).view(-1, 1, 1) for key in ("latents_mean", "latents_std")
        )
        return mean, scale / std
    return mean, scale


def _says(vae: Any, key: str) -> bool:
    value = vae.config.get(key)
    return value is not None and value != 0


Way = Callable[[Any, Tensor], Any]


def _decoded(vae: Any, x: Tensor) -> Any:
    clip = {"num_frames": len(x)} if type(vae).__name__ == OF_CLIPS else {}
    return vae.decode(x, **clip)


class _Part(nn.Module):
    """A way through a VAE as a module."""

    def __init__(self, vae: Any, way: Way):
        super().__init__()
        self.vae, self.way = vae, way

    def forward(self, x: Tensor) -> Any:
        return self.way(self.vae, x)


def _computed(vae: Any, way: Way, x: Tensor) -> Any:
    """A way through a VAE in the VAE's own precision, or in float32 where its config forces that, as SDXL's does,
    and where gradients go through float16, which has no numbers as small as theirs.

    Its weights are copied for that and not changed: gradients of what was computed still find them.
    """
    dtype = dtype_of(vae)
    learned = x.requires_grad and torch.is_grad_enabled()
    if dtype != torch.float16 or not (learned or vae.config.get("force_upcast")):
        return way(vae, x.to(dtype))
    weights: Mapping[str, Tensor] = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    finer = {f"vae.{k}": v.float() for k, v in weights.items() if v.dtype == torch.float16}
    return torch.func.functional_call(_Part(vae, way), finer, (x.float(),))


def _remedy(vae: Any) -> str:
    if wrong := unsound(vae):
        return wrong
    return OVERFLOWS if dtype_of(vae) == torch.float16 else "what it was given is not sound"


def features(vae: Any, latents: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b d h w"]] | None:
    """What the decoder makes of latents first: behind its middle block and behind the next one, differentiable.

    A small part of what decoding costs. None of a VAE without such blocks.
    """
    decoder = getattr(vae, "decoder", None)
    if not all(hasattr(decoder, part) for part in ("conv_in", "mid_block", "up_blocks")):
        return None
    return [x.float() for x in _computed(vae, _first, plain(vae, latents))]


def _first(vae: Any, x: Tensor) -> list[Tensor]:
    inner = getattr(vae, "post_quant_conv", None)
    middle = vae.decoder.mid_block(vae.decoder.conv_in(x if inner is None else inner(x)))
    return [middle, vae.decoder.up_blocks[0](middle)]
