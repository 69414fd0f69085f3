"""Which kind of model a diffusers pipeline is, by what its networks read; what reads more is refused by name.

Networks that look alike differ in their configs: a UNet2DConditionModel may read words, class labels, the embedding of
an image or boxes beside its latents. Whatever an adapter here does not give its network would be missing in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from sfumato.backbones import autoencoders
from sfumato.errors import SfumatoError

MAPS = "map_channels"
"""In a network's config, how many of its channels are of a map behind all else, as SpaText's learn to read."""
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_POOLED = ("CLIPTextModelWithProjection",)
_T5 = ("T5EncoderModel",)
_TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    "UNet": {"text_encoder": _CLIP},
    "Depth": {"text_encoder": _CLIP},
    "SDXL": {"text_encoder": _CLIP, "text_encoder_2": _POOLED},
    "Motion": {"text_encoder": _CLIP},
    "DeepFloyd": {"text_encoder": _T5},
    "PixArt": {"text_encoder": _T5},
    "SD3": {"text_encoder": _POOLED, "text_encoder_2": _POOLED, "text_encoder_3": _T5},
    "Flux": {"text_encoder": _CLIP, "text_encoder_2": _T5},
    "Video": {},
    "Pixels": {},
}
"""Which texts a kind reads, by what."""
_MAY_LACK = {"SDXL": "text_encoder", "SD3": "text_encoder_3"}  # refiners have one; T5 is large
_TRANSFORMERS = {"PixArtTransformer2DModel": "PixArt", "SD3Transformer2DModel": "SD3", "FluxTransformer2DModel": "Flux"}
KNOWN = (
    "the UNets of Stable Diffusion 1, 2, XL, AnimateDiff, Stable Video Diffusion and DeepFloyd IF, UNet2DModel without "
    "classes, and "
    f"{', '.join(_TRANSFORMERS)}"
)


def kind(name: str, pipe: Any) -> str:
    """UNet, Depth, SDXL, Motion, Video, DeepFloyd, PixArt, SD3, Flux or Pixels. ``SfumatoError`` for what is none."""
    found = (getattr(pipe, part, None) for part in ("unet", "transformer"))
    network = next((each for each in found if each is not None), None)
    if network is None:
        refuse(name, pipe, "without a unet or a transformer")
    if next(network.parameters()).is_inference():
        raise SfumatoError(
            f"{name} was made in torch.inference_mode, so there are no gradients of it; use torch.no_grad"
        )
    if is_a(network, ("UNet2DModel",)):
        kind = _wordless(name, pipe, network.config)
    elif transformer := is_a(network, _TRANSFORMERS):
        each = 4 if transformer == "FluxTransformer2DModel" else 1  # packed two by two
        _check_channels(name, pipe, network.config.in_channels, {each * _latents(name, pipe): ""})
        kind = _TRANSFORMERS[transformer]
    elif is_a(network, ("UNet2DConditionModel",)):
        kind = _of_unet(name, pipe, network.config)
    elif is_a(network, ("UNetMotionModel",)):
        kind = _moving(name, pipe, network.config)
    elif is_a(network, ("UNetSpatioTemporalConditionModel",)):
        kind = _video(name, pipe, network.config)
    else:
        refuse(name, pipe, f"with a {type(network).__name__}")
    _check_texts(name, pipe, kind)
    if kind not in ("Pixels", "Video"):
        _check_widths(name, pipe, kind, network.config)
    return kind


def _wordless(name: str, pipe: Any, config: Any) -> str:
    if config.class_embed_type or config.num_class_embeds:
        refuse(name, pipe, "that paints one of several classes")
    if getattr(pipe, "vae", None) is not None:
        refuse(name, pipe, "whose network paints without words on a vae; such have a vqvae")
    vqvae = getattr(pipe, "vqvae", None)
    images = 3 if vqvae is None else vqvae.config.latent_channels
    if config.in_channels != images or config.out_channels not in (images, 2 * images):  # or a variance beside
        refuse(
            name,
            pipe,
            f"whose network makes {config.out_channels} channels of {config.in_channels}, and images have {images}",
        )
    return "Pixels"


def _of_unet(name: str, pipe: Any, config: Any) -> str:
    if more := next(reads_more(config), None):
        refuse(name, pipe, f"whose UNet2DConditionModel reads {more}")
    if config.addition_embed_type == "text":
        if getattr(pipe, "vae", None) is not None:
            refuse(name, pipe, "whose UNet2DConditionModel reads text (addition_embed_type) on a vae")
        if config.in_channels not in (3, 6) or config.out_channels not in (3, 6):
            refuse(
                name, pipe, f"whose network makes {config.out_channels} channels of {config.in_channels}, not pictures"
            )
        return "DeepFloyd"
    latents = _latents(name, pipe)
    if type(pipe).__name__.startswith("Marigold"):
        refuse(name, pipe, "whose UNet2DConditionModel does not paint pictures")
    kinds = {latents: "UNet", latents + 1: "Depth", 2 * latents: "UNet", 2 * latents + 1: "UNet"}
    own = config.in_channels - config.get(MAPS, 0)
    found = _check_channels(name, pipe, own, kinds)
    if config.out_channels != latents:
        refuse(name, pipe, f"whose network gives {config.out_channels} channels for {latents} of the latents")
    return "SDXL" if config.addition_embed_type == "text_time" else found


def _moving(name: str, pipe: Any, config: Any) -> str:
    if more := next(reads_more(config), None) or config.addition_embed_type:
        refuse(name, pipe, f"whose UNetMotionModel reads {more}")
    latents = _latents(name, pipe)
    if config.out_channels != latents:
        refuse(name, pipe, f"whose network gives {config.out_channels} channels for {latents} of the latents")
    return _check_channels(name, pipe, config.in_channels, {latents: "Motion"})


def _video(name: str, pipe: Any, config: Any) -> str:
    encoder: Any = getattr(pipe, "image_encoder", None)
    if not is_a(encoder, ("CLIPVisionModelWithProjection",)):
        refuse(name, pipe, f"whose image encoder is a {type(encoder).__name__}, not a CLIPVisionModelWithProjection")
    if encoder.config.projection_dim != config.cross_attention_dim:
        read = f"and its network reads {config.cross_attention_dim}"
        refuse(name, pipe, f"whose picture is {encoder.config.projection_dim} numbers wide, {read}")
    if config.projection_class_embeddings_input_dim != 3 * config.addition_time_embed_dim:
        refuse(name, pipe, "whose network reads other numbers than frames a second, motion and noise")
    latents = _latents(name, pipe, (autoencoders.OF_CLIPS,))
    return _check_channels(name, pipe, config.in_channels, {2 * latents: "Video"})


def _check_texts(name: str, pipe: Any, kind: str) -> None:
    """Refuse encoders that a kind does not read, or lacks, and those without their tokenizer."""
    there = {part: encoder for part in ENCODERS if (encoder := getattr(pipe, part, None)) is not None}
    if _TEXTS[kind] and not there:
        refuse(name, pipe, "without a text encoder")
    for part, encoder in there.items():
        known = _TEXTS[kind].get(part, ())
        if not is_a(encoder, known):
            read = f"{kind} reads {' or '.join(known) or 'none there'}"
            refuse(name, pipe, f"whose {part} is a {type(encoder).__name__}, where {read}")
    needs = [part for part in _TEXTS[kind] if part in there or _MAY_LACK.get(kind) != part]
    needs += [TOKENIZERS[ENCODERS.index(part)] for part in needs]
    if lacking := next((part for part in needs if getattr(pipe, part, None) is None), None):
        raise SfumatoError(f"{name} has no {lacking}, which its prompts need; load(..., {lacking}=...) gives it one")


def _check_widths(name: str, pipe: Any, kind: str, config: Any) -> None:
    """Refuse texts that are not as wide as the network reads them."""
    encoders = [e for part in ENCODERS if (e := getattr(pipe, part, None)) is not None]
    clips, t5s = [e.config for e in encoders if is_a(e, _CLIP)], [e.config for e in encoders if is_a(e, _T5)]
    if kind in ("SD3", "Flux"):
        key = "joint_attention_dim"
    elif kind == "PixArt":
        key = "caption_channels"
    else:
        key = "encoder_hid_dim" if config.get("encoder_hid_dim_type") == "text_proj" else "cross_attention_dim"
    given = [t5.d_model for t5 in t5s] or [sum(clip.hidden_size for clip in clips)]
    read = config[key] if isinstance(config[key], list | tuple) else [config[key]]
    if {*read} != {*given} and not (kind == "SD3" and not t5s):
        refuse(name, pipe, f"whose text is {given[0]} numbers wide, and its network reads {read[0]} ({key})")
    pooled = sum(clip.hidden_size if kind == "Flux" else clip.projection_dim for clip in clips)
    if kind in ("SD3", "Flux") and config.pooled_projection_dim != pooled:
        refuse(
            name,
            pipe,
            f"whose pooled text is {pooled} numbers wide, and its network reads {config.pooled_projection_dim}",
        )
    if kind == "SDXL":
        times, dim = (
            config.projection_class_embeddings_input_dim - clips[-1].projection_dim,
            config.addition_time_embed_dim,
        )
        if times not in (5 * dim, 6 * dim):
            refuse(name, pipe, f"whose network reads {times} numbers beside the pooled text, not 5 or 6 times {dim}")


def check(model: Any) -> None:
    """Raise ``SfumatoError`` unless a model's pipeline is, with the parts that it now has, of the model's kind."""
    found = kind(model.name, model.pipe)
    if found != model.kind:
        raise SfumatoError(
            f"{model.name} was loaded as {model.kind}, and what its pipeline now has is {found}; load(model.pipe) "
            "gives a model of that"
        )


def side(name: str, sample_size: Any) -> int:
    """The shorter side of what a network says that it was trained on. ``SfumatoError`` where that is no size."""
    sides = tuple(sample_size) if isinstance(sample_size, list | tuple) else (sample_size,)
    if not all(isinstance(each, int) and each > 0 for each in sides):
        raise SfumatoError(f"the network of {name} has the sample_size {sample_size!r}, which is no size")
    return min(sides)


def refuse(name: str, pipe: Any, what: str) -> NoReturn:
    raise SfumatoError(f"{name} is a {type(pipe).__name__} {what}; known are {KNOWN}")


def unsteered(name: str) -> SfumatoError:
    """The error for controls of a model that takes none."""
    return SfumatoError(
        f"{name} takes no controls; ControlNets steer Stable Diffusion 1, 2, XL and 3, and Flux; leave them out"
    )


def is_a(module: Any, names: Any) -> str | None:
    """Which of these classes it is, compiled or not."""
    bases = type(getattr(module, "_orig_mod", module)).__mro__
    return next((base.__name__ for base in bases if base.__name__ in names), None)


def reads_more(config: Any) -> Iterator[str]:
    """What a network reads that no adapter gives."""
    added = config.get("addition_embed_type")
    if added not in (None, "text_time", "text"):
        yield f"{added} (addition_embed_type)"
    projected = config.get("encoder_hid_dim_type")
    if projected not in (None, "ip_image_proj", "text_proj"):
        yield f"{projected} (encoder_hid_dim_type)"
    labels = config.get("class_embed_type")
    if config.get("num_class_embeds") or (labels and (labels, added) != ("timestep", "text")):
        yield f"class labels (class_embed_type {labels!r})"
    if config.get("attention_type", "default") != "default":
        yield f"boxes ({config['attention_type']} attention)"


_OF_IMAGES = tuple(kind for kind in autoencoders.KINDS if kind != autoencoders.OF_CLIPS)


def _latents(name: str, pipe: Any, known: tuple[str, ...] = _OF_IMAGES) -> int:
    """Channels of the latents."""
    vae: Any = getattr(pipe, "vae", None)
    if vae is None:
        refuse(name, pipe, "without a vae")
    if not is_a(vae, known):
        refuse(name, pipe, f"whose vae is a {type(vae).__name__}, not one of {', '.join(known)}")
    if vae.config.out_channels != 3:
        refuse(name, pipe, f"whose autoencoder gives {vae.config.out_channels} channels, not pictures")
    return vae.config.latent_channels


def _check_channels(name: str, pipe: Any, reads: int, known: dict[int, str]) -> str:
    if reads not in known:
        vae = pipe.vae
        refuse(
            name,
            pipe,
            f"whose network reads {reads} channels, and the latents of its {type(vae).__name__} have "
            f"{vae.config.latent_channels}, which a known network reads as {' or '.join(map(str, sorted(known)))}",
        )
    return known[reads]
