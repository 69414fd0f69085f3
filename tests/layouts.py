"""Networks of diffusers in the layouts of single files, A1111's and ComfyUI's: the names there, written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def unet(network: Any) -> dict[str, Tensor]:
    """A UNet2DConditionModel as ``model.diffusion_model``."""
    layers = network.config.layers_per_block
    attended = {i for i, block in enumerate(network.up_blocks) if getattr(block, "attentions", None)}
    return {f"model.diffusion_model.{_of_unet(k, layers, attended)}": v for k, v in network.state_dict().items()}


def _of_unet(key: str, layers: int, attended: set[int]) -> str:
    for ours, theirs in _OUTSIDE.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    part, *rest = key.split(".")
    if part == "mid_block":
        place = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}[".".join(rest[:2])]
        return f"middle_block.{place}.{_inner(rest[0], rest[2:])}"
    block, kind, index, inner = int(rest[0]), rest[1], int(rest[2]), rest[3:]
    if part == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{inner[-1]}"
        at = (layers + 1) * block + index + 1
        return f"input_blocks.{at}.{int(kind == 'attentions')}.{_inner(kind, inner)}"
    at = (layers + 1) * block + (layers if kind == "upsamplers" else index)
    if kind == "upsamplers":
        return f"output_blocks.{at}.{1 + (block in attended)}.conv.{inner[-1]}"
    return f"output_blocks.{at}.{int(kind == 'attentions')}.{_inner(kind, inner)}"


def _inner(kind: str, rest: list[str]) -> str:
    return ".".join([_RESNET.get(rest[0], rest[0]), *rest[1:]] if kind == "resnets" else rest)


def vae(network: Any, prefix: str = "first_stage_model.") -> dict[str, Tensor]:
    """An AutoencoderKL."""
    levels = len(network.config.block_out_channels)
    out = {}
    for key, value in network.state_dict().items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
        new = new.replace("conv_norm_out", "norm_out")
        if "attn_1" in new:
            new = re.sub(r"to_([qkv])\.", r"\1.", new).replace("to_out.0", "proj_out").replace("group_norm", "norm")
            value = value[:, :, None, None] if value.ndim == 2 else value
        out[prefix + new] = value
    return out


def clip(network: Any, prefix: str = "cond_stage_model.transformer.") -> dict[str, Tensor]:
    """OpenAI's text encoder, as transformers has always named it."""
    plain = {k.removeprefix("text_model."): v for k, v in network.state_dict().items()}
    return {f"{prefix}text_model.{k}": v for k, v in plain.items()}


def open_clip(network: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder in OpenCLIP's layout: queries, keys and values as one matrix, the projection transposed."""
    state = {k.removeprefix("text_model."): v for k, v in network.state_dict().items()}
    out = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        out["text_projection"] = state["text_projection.weight"].T.contiguous()
    for i in range(network.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [state[f"encoder.layers.{i}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, theirs in _CLIP.items():
                out[f"transformer.resblocks.{i}.{theirs}.{kind}"] = state[f"encoder.layers.{i}.{ours}.{kind}"]
    return {prefix + k: v for k, v in out.items()}


def checkpoint(pipe: Any) -> dict[str, Tensor]:
    """A pipeline of Stable Diffusion 1, 2 or XL, or XL's refiner, as one file."""
    parts: Mapping[str, Any] = pipe.components
    out = unet(parts["unet"]) | vae(parts["vae"])
    if "text_encoder_2" not in parts:
        wide = parts["text_encoder"].config.hidden_size == 1024  # Stable Diffusion 2
        encoder = parts["text_encoder"]
        out |= open_clip(encoder, "cond_stage_model.model.") if wide else clip(encoder)
    else:
        first = parts["text_encoder"]
        out |= {} if first is None else clip(first, "conditioner.embedders.0.transformer.")
        out |= open_clip(parts["text_encoder_2"], f"conditioner.embedders.{int(first is not None)}.model.")
    return {k: v.contiguous() for k, v in out.items()}
