"""``load``: a model by name, from a folder or from the hub, as the family that it is of."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch

from sfumato.backbones import embeddings as learned
from sfumato.backbones import folder, hub
from sfumato.backbones.embeddings import Embeddings
from sfumato.core.backbone import Backbone
from sfumato.errors import SfumatoError, unknown, whole
from sfumato.io.device import choose

Offload = Literal["model", "sequential"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    name: str = "stilllife",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = torch.float32,
    variant: str | None = None,
    offline: bool = False,
    offload: Offload | None = None,
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    clip_skip: int | None = None,
    embeddings: Embeddings = (),
    compile: bool = False,
) -> Backbone:
    """A built-in model by its name, a diffusers folder, or a repository of the hub by its alias or id.

    - ``dtype``: of the networks, also as a word: ``float32``, ``float16``, ``bfloat16``. Latents stay float32.
    - ``variant``: which of several sets of weights, such as ``fp16``.
    - ``offline``: look only at the local cache of the hub.
    - ``offload``: keep weights in main memory and bring to the GPU a whole network at a time (``model``) or a layer at
      a time (``sequential``, slow and smallest); needs accelerate.
    - ``vae_tiling``, ``vae_slicing``: encode and decode large images in tiles, and a batch an image at a time.
    - ``clip_skip``: how many of the last layers of its CLIPs are not run for prompts, counted as diffusers counts.
    - ``embeddings``: learned words (textual inversion): their files, or word -> file or vectors.
    - ``compile``: compile the network with torch; its attention cannot be tapped then.

    Only safetensors are read. Raises ``SfumatoError`` for a name that is not found, a folder that holds no model of a
    known family, a device that is not there, an option that the model or the machine has no use for.
    """
    from sfumato.stilllife import weights
    from sfumato.stilllife.similarity import similarity

    dtype, place = _dtype(dtype), choose(device) if isinstance(device, str) else device
    if offload is not None:
        _check_offload(offload, place)
    if name in weights.MODELS:
        pipe: Any = _built_in(name, variant, dtype)
    else:
        pipe = folder.read(hub.find(name, variant, offline, tuple(weights.MODELS)), variant, dtype)
    model = family(name, pipe.to("cpu" if offload else place))
    if name in weights.MODELS:
        model.similarity = similarity
    _vae(model, vae_tiling, vae_slicing)
    _texts(model, clip_skip, embeddings)
    if compile:
        model.network.compile()
    if offload is not None:
        start = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
        start(device=place)
    return model


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def _built_in(name: str, variant: str | None, dtype: torch.dtype) -> Any:
    from sfumato.stilllife import weights

    if variant is not None:
        raise SfumatoError(f"{name} has no variant {variant!r}; its weights ship with the package, once")
    return weights.pipeline(name, dtype=dtype)


def family(name: str, pipe: Any) -> Backbone:
    """The adapter for a diffusers pipeline."""
    from sfumato.backbones.deepfloyd import DeepFloyd
    from sfumato.backbones.pixels import Pixels
    from sfumato.backbones.transformers import SD3, Flux, PixArt
    from sfumato.backbones.unet import SDXL, Depth, UNet

    network: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    kind = type(network).__name__
    if kind == "UNet2DConditionModel":
        if getattr(pipe, "vae", None) is None:
            return DeepFloyd(name, pipe)
        if network.config.addition_embed_type == "text_time":
            return SDXL(name, pipe)
        one_more = network.config.in_channels == pipe.vae.config.latent_channels + 1
        return Depth(name, pipe) if one_more else UNet(name, pipe)
    families = {
        "UNet2DModel": Pixels,
        "PixArtTransformer2DModel": PixArt,
        "SD3Transformer2DModel": SD3,
        "FluxTransformer2DModel": Flux,
    }
    if kind not in families:
        raise SfumatoError(
            f"{name} is a {type(pipe).__name__} with a {kind}; known are the UNets of Stable Diffusion 1, 2, XL and "
            f"DeepFloyd IF, and {', '.join(families)}"
        )
    return families[kind](name, pipe)


def _check_offload(offload: str, place: torch.device) -> None:
    if offload not in ("model", "sequential"):
        raise unknown("offload", offload, ("model", "sequential"))
    if place.type != "cuda":
        raise SfumatoError(
            f"offload={offload!r} keeps weights in main memory until a GPU needs them, and this model runs on the "
            f"{place.type}; leave offload out"
        )
    if find_spec("accelerate") is None:
        raise SfumatoError("offload is done by accelerate, which is not installed; pip install accelerate")


def _vae(model: Any, tiling: bool, slicing: bool) -> None:
    if not (tiling or slicing):
        return
    if getattr(model, "vae", None) is None:
        raise SfumatoError(f"{model.name} paints pixels without a VAE, so there is nothing to tile or to slice")
    if tiling:
        model.vae.enable_tiling()
    if slicing:
        model.vae.enable_slicing()


def _texts(model: Any, clip_skip: int | None, embeddings: Embeddings) -> None:
    """How prompts are read beyond what the folder says."""
    if clip_skip is not None:
        if not getattr(model, "skips", False):
            raise SfumatoError(f"{model.name} reads no layers of a CLIP that could be skipped; leave clip_skip out")
        clips = [getattr(model.pipe, part, None) for part in ("text_encoder", "text_encoder_2")]
        layers = min(clip.config.num_hidden_layers for clip in clips if clip is not None)
        whole("clip_skip", clip_skip, 0, layers - 1)
        model.clip_skip = clip_skip
    if embeddings:
        if not getattr(model, "learns", False):
            raise SfumatoError(
                f"{model.name} learns no words; embeddings are for Stable Diffusion 1, 2, XL; leave embeddings out"
            )
        learned.add(model.pipe, model.name, embeddings)
