"""``load``: a model by name, from a folder, a file or the hub, or in hand, as the family that it is of."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sfumato.backbones import components, folder, hub, kinds, loras, single_file
from sfumato.backbones import embeddings as learned
from sfumato.backbones.embeddings import Embeddings
from sfumato.backbones.loras import LoRAs
from sfumato.core.backbone import Backbone
from sfumato.core.hints import LOADING, hint
from sfumato.core.modes import unmoded
from sfumato.core.settings import check
from sfumato.errors import SfumatoError, nowhere, unknown, whole
from sfumato.io.device import choose
from sfumato.io.sparing import sparing
from sfumato.io.terminal import without

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Offload = Literal["model", "sequential"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@sparing()
@unmoded()
def load(
    name: str | Path | DiffusionPipeline = "stilllife",
    *,
    vae: Any = None,
    scheduler: Any = None,
    motion: Any = None,
    lora: LoRAs = (),
    config: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    variant: str | None = None,
    offline: bool = False,
    offload: Offload | None = None,
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    clip_skip: int | None = None,
    embeddings: Embeddings = (),
    compile: bool = False,
    **parts: Any,
) -> Backbone:
    """A model of a known family: built in, from a folder, a file or the hub, or a diffusers pipeline in hand.

    - ``name``: a built-in name, a diffusers folder, a single file (.safetensors), an id or an alias of the hub, or a
      pipeline, whose parts are used as they are and where they are.
    - ``vae``, ``scheduler``, and any other part of the pipeline by its name (``text_encoder``, ``tokenizer_2``): in
      place of the model's own. In hand, or a folder or id of the hub that holds it or a model with it; a VAE's file; a
      scheduler's class or its name, made by the config of the model's own.
    - ``motion``: an AnimateDiff adapter, which gives Stable Diffusion 1 time: a folder or id of the hub, a file, or in
      hand; ``stilllife`` is the built-in model's.
    - ``lora``: files, or files and weights, also as ``FILE:WEIGHT``, of kohya's and diffusers' layouts.
    - ``config``: for a single file, the diffusers folder with what is not in it, or a word of ``single_file.configs``.
    - ``dtype``: of the networks (float32 unless said), also as a word: ``float32``, ``float16``, ``bfloat16``. Latents
      stay float32. It alone says what they compute in: ``torch.autocast`` around a call does not reach inside.
    - ``variant``: which of several sets of weights, such as ``fp16``.
    - ``offline``: look only at the local cache of the hub.
    - ``offload``: keep weights in main memory and bring to the GPU a whole network at a time (``model``) or a layer at
      a time (``sequential``, slow and smallest).
    - ``vae_tiling``, ``vae_slicing``: encode and decode large images in tiles, and a batch an image at a time.
    - ``clip_skip``: how many of the last layers of its CLIPs are not run for prompts, counted as diffusers counts.
    - ``embeddings``: learned words (textual inversion): their files, or word -> file or vectors.
    - ``compile``: compile the network with torch; its attention cannot be tapped then.

    Only safetensors are read. Raises ``SfumatoError`` for a name that is not found, for what holds no model of a known
    family, a device that is not there, an option that the model or the machine has no use for.
    """
    from sfumato.backbones.motion import moving
    from sfumato.stilllife import weights
    from sfumato.stilllife.similarity import features, similarity

    hint("load", parts, LOADING)
    in_hand = not isinstance(name, str | Path)
    check("device", device, str | torch.device)
    place = device if isinstance(device, torch.device) else choose(device)
    dtype = _dtype(dtype) if dtype is not None or in_hand else torch.float32
    if offload is not None:
        _check_offload(offload, place)
    given = {k: v for k, v in (("vae", vae), ("scheduler", scheduler)) if v is not None} | parts
    given = {k: _place(v) for k, v in given.items()}
    ready = components.read(given, variant, dtype or torch.float32, offline)
    if in_hand:
        pipe, name = _in_hand(name, variant, config, bool(given)), type(name).__name__
    else:
        name, config = str(name if str(name) in weights.MODELS else _place(name)), _place(config)
        pipe = _read(name, variant, config, dtype, ready, offline)
    components.put(pipe, given, ready, dtype)
    if motion is not None:
        pipe = moving(name, pipe, _place(motion), variant, dtype, offline)
    if in_hand and dtype is not None:
        pipe.to(dtype)
    if not in_hand or device != "auto":
        _move(pipe, torch.device("cpu") if offload else place)
    model = family(name, pipe)
    loras.add(pipe, loras.listed(lora))
    if name in weights.MODELS:
        model.similarity, model.seen_features = similarity, features
    _vae(model, vae_tiling, vae_slicing)
    _texts(model, clip_skip, embeddings)
    if compile:
        model.network.compile()
    if offload is not None:
        start = pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload
        start(device=place)
    return model


def _place(given: Any) -> Any:
    """What is given, of a text or a path where it lies; ``SfumatoError`` for a path at which nothing is."""
    if isinstance(given, Path) and not given.expanduser().exists():
        raise nowhere(given)
    return expanduser(str(given)) if isinstance(given, str | Path) else given


@without("transformers.utils.import_utils", "requires torchvision")  # of image processors, which nothing here uses
def _read(
    name: str, variant: str | None, config: str | None, dtype: Any, parts: Mapping[str, Any], offline: bool
) -> DiffusionPipeline:
    from sfumato.stilllife import weights

    file = Path(name)
    if file.is_file() or (file.suffix in folder.WEIGHTS and not file.is_dir()):
        return single_file.read(file, config, dtype, parts)
    if config is not None:
        raise SfumatoError(f"config is of a single file (.safetensors), and {name} is none; leave it out")
    if name in weights.MODELS:
        return _built_in(name, variant, dtype)
    return folder.read(hub.find(name, variant, offline, tuple(weights.MODELS)), variant, dtype, parts)


def _move(pipe: Any, place: torch.device) -> None:
    """Bring a pipeline to a device, unless it is there: of float16 on a CPU diffusers says that it cannot run."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    if any(p.device.type != place.type for part in parts for p in part.parameters()) or place.type != "cpu":
        pipe.to(place)


def _in_hand(pipe: Any, variant: str | None, config: str | None, changed: bool) -> DiffusionPipeline:
    """A pipeline as it is, or where parts of it are replaced another with the same parts."""
    if not hasattr(pipe, "components"):
        raise SfumatoError(f"load takes a name, a folder, a file or a diffusers pipeline, not a {type(pipe).__name__}")
    if variant is not None or config is not None:
        raise SfumatoError(
            f"{'variant' if variant else 'config'} says how a model is read, and this one is in hand; leave it out"
        )
    return copy(pipe) if changed else pipe


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    found = DTYPES[dtype] if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype | None):
        raise unknown("dtype", dtype, DTYPES)
    if found is not None and found not in (*DTYPES.values(), torch.float64):
        raise SfumatoError(
            f"nothing computes in {found}; load in bfloat16, and store weights in float8 by the network's "
            "enable_layerwise_casting"
        )
    return found


def _built_in(name: str, variant: str | None, dtype: torch.dtype) -> Any:
    from sfumato.stilllife import weights

    if variant is not None:
        raise SfumatoError(f"{name} has no variant {variant!r}; its weights ship with the package, once")
    return weights.pipeline(name, dtype=dtype)


def family(name: str, pipe: Any) -> Backbone:
    """The adapter for a diffusers pipeline."""
    from sfumato.backbones.deepfloyd import DeepFloyd
    from sfumato.backbones.motion import Motion
    from sfumato.backbones.pixels import Pixels
    from sfumato.backbones.transformers import SD3, Flux, PixArt
    from sfumato.backbones.unet import SDXL, Depth, UNet
    from sfumato.backbones.video import Video

    families = {each.kind: each for each in (UNet, Depth, SDXL, Motion, Video, DeepFloyd, PixArt, SD3, Flux, Pixels)}
    return families[kinds.kind(name, pipe)](name, pipe)


def _check_offload(offload: str, place: torch.device) -> None:
    if offload not in ("model", "sequential"):
        raise unknown("offload", offload, ("model", "sequential"))
    if place.type != "cuda":
        raise SfumatoError(
            f"offload={offload!r} keeps weights in main memory until a GPU needs them, and this model runs on the "
            f"{place.type}; leave offload out"
        )


def _vae(model: Any, tiling: bool, slicing: bool) -> None:
    if not (tiling or slicing):
        return
    if getattr(model, "vae", None) is None:
        raise SfumatoError(f"{model.name} paints pixels without a VAE, so there is nothing to tile or to slice")
    try:
        if tiling:
            model.vae.enable_tiling()
        if slicing:
            model.vae.enable_slicing()
    except NotImplementedError:
        raise SfumatoError(
            f"diffusers neither tiles nor slices a {type(model.vae).__name__}; leave vae_tiling and vae_slicing out"
        ) from None


def _texts(model: Any, clip_skip: int | None, embeddings: Embeddings) -> None:
    """How prompts are read beyond what the folder says."""
    if clip_skip is not None:
        if not getattr(model, "skips", False):
            raise SfumatoError(f"{model.name} has no layers of a CLIP that could be skipped; leave clip_skip out")
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
