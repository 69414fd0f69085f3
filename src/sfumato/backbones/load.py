"""``load``: the built-in model by its name, or any diffusers folder, as the family that it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.backbones import Backbone
from sfumato.device import choose
from sfumato.errors import SfumatoError


def load(
    name: str = "stilllife", *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> Backbone:
    """A model by name, or a diffusers folder. Nothing is downloaded, and only safetensors are read.

    Raises ``SfumatoError`` for an unknown name, a folder that holds no model of a known family, a device that is not
    there.
    """
    from sfumato.stilllife import weights

    place = choose(device) if isinstance(device, str) else device
    pipe: Any = weights.pipeline(name, place, dtype) if name in weights.MODELS else _folder(Path(name), place, dtype)
    return family(name, pipe)


def family(name: str, pipe: Any) -> Backbone:
    """The adapter for a diffusers pipeline."""
    from sfumato.backbones.deepfloyd import DeepFloyd
    from sfumato.backbones.transformers import SD3, Flux, PixArt
    from sfumato.backbones.unet import SDXL, UNet

    network: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    kind = type(network).__name__
    if kind == "UNet2DConditionModel":
        if getattr(pipe, "vae", None) is None:
            return DeepFloyd(name, pipe)
        return SDXL(name, pipe) if network.config.addition_embed_type == "text_time" else UNet(name, pipe)
    families = {"PixArtTransformer2DModel": PixArt, "SD3Transformer2DModel": SD3, "FluxTransformer2DModel": Flux}
    if kind not in families:
        raise SfumatoError(
            f"{name} is a {type(pipe).__name__} with a {kind}; known are the UNets of Stable Diffusion 1, 2, XL and "
            f"DeepFloyd IF, and {', '.join(families)}"
        )
    return families[kind](name, pipe)


def _folder(place: Path, device: torch.device, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    from sfumato.stilllife.weights import check_folder

    check_folder(place)
    try:
        pipe: Any = DiffusionPipeline.from_pretrained(
            place, local_files_only=True, use_safetensors=True, safety_checker=None
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, SafetensorError) as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise SfumatoError(f"{place} does not load as a diffusers pipeline: {reason}") from e
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)
