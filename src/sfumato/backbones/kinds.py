"""Which kind of model a diffusers pipeline is, by what its networks read; what reads more is refused by name.

Networks that look alike differ in their configs: a UNet2DConditionModel may read words, class labels, the embedding of
an image or boxes beside its latents. Whatever an adapter here does not give its network would be missing in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from sfumato.backbones import autoencoders
from sfumato.errors import SfumatoError

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_TEXTS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
_TRANSFORMERS = {"PixArtTransformer2DModel": "PixArt", "SD3Transformer2DModel": "SD3", "FluxTransformer2DModel": "Flux"}
_NEEDS = {
    "Pixels": (),
    "SDXL": ("text_encoder_2",),  # its refiner has no first one
    "SD3": ("text_encoder", "text_encoder_2"),
    "Flux": ("text_encoder", "text_encoder_2"),
}
"""Encoders without which a kind has nothing to read; of others the first."""
KNOWN = (
    "the UNets of Stable Diffusion 1, 2, XL and DeepFloyd IF, UNet2DModel without classes, and "
    f"{', '.join(_TRANSFORMERS)}"
)


def kind(name: str, pipe: Any) -> str:
    """UNet, Depth, SDXL, DeepFloyd, PixArt, SD3, Flux or Pixels. ``SfumatoError`` for what none of them is."""
    found = (getattr(pipe, part, None) for part in ("unet", "transformer"))
    network = next((each for each in found if each is not None), None)
    if network is None:
        refuse(name, pipe, "without a unet or a transformer")
    if next(network.parameters()).is_inference():
        raise SfumatoError(
            f"{name} was made in torch.inference_mode, so there are no gradients of it; use torch.no_grad"
        )
    if is_a(network, ("UNet2DModel",)):
        if network.config.class_embed_type or network.config.num_class_embeds:
            refuse(name, pipe, "that paints one of several classes")
        return "Pixels"
    transformer = is_a(network, _TRANSFORMERS)
    if not transformer and not is_a(network, ("UNet2DConditionModel",)):
        refuse(name, pipe, f"with a {type(network).__name__}")
    for part in ENCODERS:
        encoder = getattr(pipe, part, None)
        if encoder is not None and not is_a(encoder, _TEXTS):
            refuse(name, pipe, f"whose {part} is a {type(encoder).__name__}")
    if all(getattr(pipe, part, None) is None for part in ENCODERS):
        refuse(name, pipe, "without a text encoder")
    if more := next(reads_more(network.config), None):
        refuse(name, pipe, f"whose {type(network).__name__} reads {more}")
    if not transformer and network.config.addition_embed_type == "text":
        return "DeepFloyd"
    latents = _latents(name, pipe)
    if type(pipe).__name__.startswith("Marigold"):
        refuse(name, pipe, "whose UNet2DConditionModel does not paint pictures")
    if transformer:
        each = 4 if transformer == "FluxTransformer2DModel" else 1  # packed two by two
        _check_channels(name, pipe, network.config.in_channels, {each * latents: ""})
        return _TRANSFORMERS[transformer]
    kinds = {latents: "UNet", latents + 1: "Depth", 2 * latents: "UNet", 2 * latents + 1: "UNet"}
    found = _check_channels(name, pipe, network.config.in_channels, kinds)
    if network.config.out_channels != latents:
        refuse(name, pipe, f"whose network gives {network.config.out_channels} channels for {latents} of the latents")
    return "SDXL" if network.config.addition_embed_type == "text_time" else found


def check(model: Any) -> None:
    """Raise ``SfumatoError`` unless a model's pipeline is, with the parts that it now has, of the model's kind."""
    found = kind(model.name, model.pipe)
    if found != model.kind:
        raise SfumatoError(
            f"{model.name} was loaded as {model.kind}, and what its pipeline now has is {found}; load(model.pipe) "
            "gives a model of that"
        )
    check_texts(model.name, model.pipe, found)


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
    if projected not in (None, "ip_image_proj") and (projected, added) != ("text_proj", "text"):
        yield f"{projected} (encoder_hid_dim_type)"
    labels = config.get("class_embed_type")
    if config.get("num_class_embeds") or (labels and (labels, added) != ("timestep", "text")):
        yield f"class labels (class_embed_type {labels!r})"
    if config.get("attention_type", "default") != "default":
        yield f"boxes ({config['attention_type']} attention)"


def check_texts(name: str, pipe: Any, kind: str) -> None:
    """Raise ``SfumatoError`` for a pipeline that lacks an encoder which its kind reads, or a tokenizer of one."""
    there = {part for part in ENCODERS + TOKENIZERS if getattr(pipe, part, None) is not None}
    for encoder, tokenizer in zip(ENCODERS, TOKENIZERS, strict=True):
        wanted = (encoder, tokenizer) if encoder in there.union(_NEEDS.get(kind, ("text_encoder",))) else ()
        if missing := next((part for part in wanted if part not in there), None):
            raise SfumatoError(
                f"{name} has no {missing}, which its prompts need; load(..., {missing}=...) gives it one"
            )


def _latents(name: str, pipe: Any) -> int:
    """Channels of the latents."""
    vae: Any = getattr(pipe, "vae", None)
    if vae is None:
        refuse(name, pipe, "without a vae")
    if not is_a(vae, autoencoders.KINDS):
        refuse(name, pipe, f"whose vae is a {type(vae).__name__}, not one of {', '.join(autoencoders.KINDS)}")
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
