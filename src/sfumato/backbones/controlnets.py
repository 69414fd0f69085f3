"""ControlNets: networks that steer another by a picture, of each family for which diffusers has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import folder, hub, kinds, single_file
from sfumato.backbones.transformers import packed
from sfumato.core.backbone import Backbone, dtype_of
from sfumato.core.conditions import Cond
from sfumato.errors import SfumatoError, whole
from sfumato.io.files import write_json
from sfumato.media.images import check_range
from sfumato.stilllife import weights

BUILT_IN = "stilllife-depth"
_ALIKE = {
    "cross_attention_dim": "texts of width",
    "joint_attention_dim": "texts of width",
    "pooled_projection_dim": "pooled texts of width",
    "addition_embed_type": "beside texts",
    "projection_class_embeddings_input_dim": "beside texts numbers of width",
    "block_out_channels": "features of widths",
    "layers_per_block": "layers a block",
}
"""Of a ControlNet's config what the model's own says as well, and what that is."""
_HINT = re.compile(r"(control_model\.)?(controlnet_cond_embedding|input_hint_block)\.")
_NO_FILE = (
    (r"^lora_controlnet$", "a Control-LoRA, which diffusers does not read"),
    (r"^lllite_", "a ControlNet-LLLite, which diffusers does not read"),
    (r"^(adapter|body|conv_in\.bias)\b", "a T2I-Adapter, which is no ControlNet"),
    (r"^controlnet_(single_)?blocks\.", "a ControlNet of a transformer; give the folder with its config.json"),
)


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet on pictures of what it steers by, in [0, 1], one for all images or one each; ``scale`` weighs it.

    A picture of another size is brought to the image's as diffusers brings tensors, to the nearest pixels: edges stay
    hard. Raises ``SfumatoError`` for a picture of other channels, and for a network of another family.
    """

    network: Any
    image: Float[Tensor, "b 3 H W"]
    scale: float = 1.0
    mode: int | None = None
    """Which of its kinds of picture a union ControlNet is given, by its number."""
    blind: tuple[str, ...] = ("",)
    """Prompts that one with ``global_pool_conditions`` does not steer: the empty one, and a negative one."""
    _seen: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_range(self.image, "a picture to steer by")

    def __call__(self, model: Any, x: Tensor, t: Tensor, cond: Cond) -> Mapping[str, Any]:
        self.check(model)
        name = kinds.is_a(self.network, model.steered)
        return {"SD3ControlNetModel": self._sd3, "FluxControlNetModel": self._flux}.get(str(name), self._unet)(
            model, x, t, cond
        )

    def check(self, model: Any) -> None:
        """Raise ``SfumatoError`` unless it was made for such a model, and has such a picture as it reads."""
        check(self.network, model)
        channels = self.network.config.get("conditioning_channels", 3)
        if self.image.ndim != 4 or self.image.shape[1] != channels:
            raise SfumatoError(
                f"this ControlNet reads pictures of {channels} channels, (b, {channels}, H, W), got "
                f"{tuple(self.image.shape)}"
            )
        many = kinds_of(self.network)
        if many is None and self.mode is not None:
            raise SfumatoError("this ControlNet reads one kind of picture; leave the mode (--control-mode) out")
        if many is not None and self.mode is None:
            raise SfumatoError(
                f"this ControlNet reads {many} kinds of picture; say which one it is given by mode (--control-mode), 0 "
                f"to {many - 1}"
            )
        if many is not None and self.mode is not None:
            whole("a ControlNet's mode (--control-mode)", self.mode, 0, many - 1)

    def _unet(self, model: Any, x: Tensor, t: Tensor, cond: Cond) -> Mapping[str, Any]:
        network, dtype, config = self.network, dtype_of(self.network), self.network.config
        image = self._fitted(x, 2 ** (len(config.conditioning_embedding_out_channels) - 1))
        image = cond.spread(image).to(x.device, dtype)
        more: dict[str, Any] = {"controlnet_cond": image, "conditioning_scale": self.scale, "return_dict": False}
        if self.mode is not None:
            kind = torch.zeros(len(x), config.num_control_type).to(x.device, dtype)
            kind[:, self.mode] = 1
            more |= {"controlnet_cond": [image], "control_type": kind, "control_type_idx": [self.mode]}
        if added := {k: v.to(dtype) for k, v in model.added(x, cond).items()}:
            more["added_cond_kwargs"] = added
        down, mid = network(x.to(dtype), t, cond.text.to(dtype), **more)
        if config.global_pool_conditions:
            sees = torch.tensor([p not in self.blind for p in cond.prompts], device=x.device).view(-1, 1, 1, 1)
            down, mid = [each * sees for each in down], mid * sees
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}

    def _sd3(self, model: Any, x: Tensor, t: Tensor, cond: Cond) -> Mapping[str, Any]:
        network, config = self.network, self.network.config
        inputs = model.inputs(network, x, t, cond)
        image = self._encoded(model, x)
        if config.force_zeros_for_pooled_projection:  # InstantX trained them so, and without the VAE's shift
            image = image + (model.vae.config.shift_factor or 0) * model.vae.config.scaling_factor
            inputs["pooled_projections"] = torch.zeros_like(inputs["pooled_projections"])
        if config.joint_attention_dim is None:  # Stable Diffusion 3.5's of 8 b
            inputs["encoder_hidden_states"] = None
        if network.pos_embed is None:
            inputs["hidden_states"] = model.network.pos_embed(inputs["hidden_states"])
        image = cond.spread(image).to(inputs["pooled_projections"])
        return {"block_controlnet_hidden_states": network(**inputs, controlnet_cond=image, **self._options)[0]}

    def _flux(self, model: Any, x: Tensor, t: Tensor, cond: Cond) -> Mapping[str, Any]:
        network, inputs = self.network, model.inputs(self.network, x, t, cond)
        hinted = network.input_hint_block is not None  # XLabs'
        image = self._fitted(x, 8) * 2 - 1 if hinted else packed(self._encoded(model, x))
        image = cond.spread(image).to(inputs["hidden_states"])
        mode = None if self.mode is None else torch.full((len(x), 1), self.mode, device=x.device)
        double, single = network(**inputs, controlnet_cond=image, controlnet_mode=mode, **self._options)
        found = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
        return {k: v for k, v in found.items() if v is not None} | {"controlnet_blocks_repeat": hinted}

    @property
    def _options(self) -> dict[str, Any]:
        return {"conditioning_scale": self.scale, "return_dict": False}

    def _fitted(self, x: Float[Tensor, "n c h w"], factor: int) -> Float[Tensor, "b 3 H W"]:
        """The pictures at the size in pixels that makes the latents'."""
        height, width = (n * factor for n in x.shape[-2:])
        return torch.nn.functional.interpolate(self.image, (height, width))

    def _encoded(self, model: Any, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "b c h w"]:
        """The pictures as the model's latents; once, as long as the VAE and the size are the same."""
        seen = [model.vae, x.shape[-2:]]
        if self._seen[:2] != seen:
            with torch.no_grad():
                self._seen[:] = [*seen, model.encode(self._fitted(x, model.factor))]
        return self._seen[2]


def check(network: Any, model: Any) -> None:
    """Raise ``SfumatoError`` unless a network is a ControlNet that was made for models such as this one."""
    steered = getattr(model, "steered", ())
    if not steered:
        raise kinds.unsteered(model.name)
    if not kinds.is_a(network, steered):
        raise SfumatoError(
            f"{model.name} is steered by a {' or '.join(steered)}, not by a {type(network).__name__}; take one that "
            "was made for this model"
        )
    if what := next(_differences(network, model), None):
        raise SfumatoError(
            f"this ControlNet reads {what}: it is of another family; take one that was made for this model"
        )
    beside = network.config.get("extra_conditioning_channels")
    if more := next(kinds.reads_more(network.config), f"{beside} channels beside a picture's" if beside else None):
        raise SfumatoError(f"this ControlNet reads {more}, which nothing here gives it; take one that reads a picture")


def kinds_of(network: Any) -> int | None:
    """How many kinds of picture a union ControlNet reads; None of any other."""
    return network.config.get("num_control_type") or network.config.get("num_mode")


def _differences(network: Any, model: Any) -> Iterator[str]:
    """What a ControlNet reads, and what the model has in its place."""
    own, others = model.network.config, network.config
    for key, what in _ALIKE.items():
        asked, there = (each.get(key) for each in (others, own))
        if key in others and key in own and not _alike(asked, there) and (asked or key == "addition_embed_type"):
            yield f"{what} {_plain(asked)}, and the model's have {_plain(there)}"
    width, there = getattr(network, "inner_dim", None), getattr(model.network, "inner_dim", None)
    if width != there:
        yield f"features of width {width}, and the model's have {there}"
    packed = 4 if kinds.is_a(network, ("FluxControlNetModel",)) else 1  # two by two
    if others.in_channels != packed * model.channels:
        yield f"latents of {others.in_channels // packed} channels, and the model's have {model.channels}"


def _alike(a: Any, b: Any) -> bool:
    """Do two settings say the same? One number is that of every block."""
    many = len(a) if isinstance(a, list | tuple) else len(b) if isinstance(b, list | tuple) else 1
    a, b = (list(each) if isinstance(each, list | tuple) else [each] * many for each in (a, b))
    return a == b


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def read(place: str, model: Backbone, variant: str | None = None, offline: bool = False) -> Any:
    """The ControlNet of a folder, an id of the hub, a file or ``stilllife-depth``, where the model is and as it is.

    A folder is one of its own, or a whole model's. A file is a ``ControlNetModel`` in diffusers' or the authors'
    layout, built as the model's own UNet is. Raises ``SfumatoError`` for what is not there, holds no ControlNet, or was
    made for models of another family.
    """
    if not getattr(model, "steered", ()):
        raise kinds.unsteered(model.name)
    place = expanduser(place)
    file, dtype = Path(place), dtype_of(model.network)
    if place == BUILT_IN:
        network = torch.nn.Module.to(weights.module("depth"), dtype)
    elif file.is_file() or (file.suffix in folder.WEIGHTS and not file.is_dir()):
        network = _file(file, model, dtype)
    elif file.is_dir() or hub.is_id(place):
        network = folder.part(hub.find(place, variant, offline, part="controlnet"), "controlnet", variant, dtype)
    else:
        raise SfumatoError(
            f"there is no ControlNet {place!r}: no folder or file, and no id of the hub (owner/name); built in is "
            f"{BUILT_IN}"
        )
    check(network, model)
    return torch.nn.Module.to(network, model.device).eval().requires_grad_(False)  # diffusers' own warns


def _file(file: Path, model: Any, dtype: torch.dtype) -> Any:
    """A ``ControlNetModel`` of a file of its own, whose config is what the model's UNet and the shapes say."""
    import diffusers

    shapes = single_file.tensors(file)
    hint = next(filter(None, map(_HINT.match, shapes)), None)
    if hint is None:
        what = next((what for pattern, what in _NO_FILE if any(re.search(pattern, k) for k in shapes)), None)
        raise SfumatoError(f"{file} holds no ControlNet: {f'it is {what}' if what else single_file.instead(shapes)}")
    if "ControlNetModel" not in model.steered:
        raise SfumatoError(f"{file} is a ControlNetModel, and {model.name} is steered by a {model.steered[0]}")
    read = next((v.shape[1] for k, v in shapes.items() if k.endswith("attn2.to_k.weight") and v.ndim > 1), None)
    if read not in (None, width := model.network.config.cross_attention_dim):
        raise SfumatoError(
            f"{file} reads texts of width {read}, and the model's have {width}: it is of another family; take one that "
            "was made for this model"
        )
    kind = {"_class_name": "ControlNetModel", "in_channels": model.channels}  # an inpainting UNet reads more
    with TemporaryDirectory() as place, folder.loading(file, "ControlNetModel of the model's family"):
        with torch.device("meta"):
            widths = _widths(shapes, hint[0])
            like = diffusers.ControlNetModel.from_unet(
                model.network, conditioning_embedding_out_channels=widths, load_weights_from_unet=False
            )
        write_json(Path(place) / "config.json", {**like.config, **kind}, private=True)
        return diffusers.ControlNetModel.from_single_file(str(file), config=place, dtype=dtype)


def _widths(shapes: Mapping[str, Tensor], start: str) -> tuple[int, ...]:
    """Channels of what brings a picture to the latents' size: at first, and after each halving."""
    layers = ["conv_in", "blocks.1", "blocks.3", "blocks.5"] if "embedding" in start else ["0", "4", "8", "12"]
    return tuple(shapes[key].shape[0] for each in layers if (key := f"{start}{each}.weight") in shapes)
