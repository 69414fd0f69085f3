"""What a LoRA's file holds: which layers of a pipeline it changes, and by what, in any of the layouts in use.

kohya's and OneTrainer's names (underscores, an alpha a layer), diffusers' of today and with attention processors,
PEFT's (its alpha lies in ``adapter_config.json``), and those of the first UNets (``input_blocks``). LyCORIS' LoCon,
LoHa and LoKr, full differences and DoRA become plain products of two matrices, exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError, finite, first_line
from sfumato.io.files import from_json, read_json, save_tensors
from sfumato.learning import concept_files
from sfumato.learning.adapters import HIGH, LOW

_PIECE = re.compile(
    r"[._](?:(?P<down>lora_down|lora_A|lora\.down|lora_linear_layer\.down)|(?P<up>lora_up|lora_B|lora\.up|lora_linear_layer\.up)"
    r"|(?P<mid>lora_mid)|(?P<magnitude>lora_magnitude_vector))(?:\.default)?(?:\.weight)?$"
    r"|[._](?P<bias>(?:lora_up|lora_B)(?:\.default)?\.bias|diff_b)$"
    r"|[._](?P<other>alpha|dora_scale|(?:hada|lokr)_(?:w[12](?:_[ab])?|t[12])|diff)$"
)
Layout = Literal["diffusers", "kohya"]
_PREFIXES = {
    "unet": ("lora_unet_", "unet_", "diffusion_model_", "base_model_model_", ""),
    "transformer": ("lora_transformer_", "lora_unet_", "transformer_", "diffusion_model_", "base_model_model_", ""),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_"),
    "text_encoder_3": ("lora_te3_", "text_encoder_3_"),
}
_OLD_CLIP = (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out"))
_FIRST = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
}  # fmt: skip
_INNER = {
    "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


@dataclass(frozen=True)
class Changes:
    """Of one file."""

    layers: dict[str, dict[str, dict[str, Tensor]]]
    """Part of the pipeline -> layer -> ``lora_A.weight``, ``lora_B.weight`` and maybe ``lora_B.bias``, at scale 1."""
    words: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Learned words that lie in the file, too, by the names of ``embeddings``."""


def read(file: Path, pipe: Any) -> Changes:
    """The changes that a file makes to a pipeline.

    Raises ``SfumatoError`` for what finds no layer, and for values that are not finite.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        settings = _settings(file, opened.metadata() or {})
    words, state = concept_files.bundled(state)
    names, of_file = _names(pipe), _grouped(state)
    found = {layer: pieces for layer, pieces in of_file.items() if _plain(layer) in names}
    lost = {key: state[key] for layer in of_file.keys() - found.keys() for key in of_file[layer].values()}
    if lost:
        converted = _converted(pipe, lost)
        more = {layer: keys for layer, keys in _grouped(converted).items() if _plain(layer) in names}
        if converted and sum(map(len, more.values())) == len(converted):
            state, found, lost = state | converted, found | more, {}
    if lost:
        n, total = len(_grouped(lost)), len(of_file)
        raise SfumatoError(_other(file, pipe, f"{n} of its {total} changes find no layer (first: {min(lost)})"))
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    for layer, keys in found.items():
        part, path, module = names[_plain(layer)]
        pieces = {name: state[key].float() for name, key in keys.items()}
        for name, values in pieces.items():
            finite(values, f"{keys[name]} of {file}", "the file is damaged; take another")
        try:
            made = _product(pieces, module.weight, settings.get(part, settings.get("", {})), path)
        except KeyError as e:
            raise SfumatoError(f"{file} is damaged: its change of {layer} lacks {e}") from e
        except (RuntimeError, IndexError) as e:
            raise SfumatoError(_other(file, pipe, f"{layer}: {first_line(e)}")) from e
        except (TypeError, ValueError, ArithmeticError) as e:
            raise SfumatoError(f"{file} is damaged: its change of {layer} has no scale ({first_line(e)})") from e
        for values in made.values():
            finite(values, f"the change of {layer} in {file}", "the file is damaged; take another")
        layers.setdefault(part, {})[path] = made
    return Changes(layers, words)


def changes(file: Path, pipe: Any) -> dict[str, Tensor]:
    """What a file adds to the weights of a pipeline, as ``Latent.with_changes`` reads it. Raises as ``read`` does.

    Also ``SfumatoError`` for a file that adds to biases.
    """
    found: dict[str, Tensor] = {}
    for part, layers in read(file, pipe).layers.items():
        for path, pieces in layers.items():
            if "lora_B.bias" in pieces:
                raise SfumatoError(f"{file} changes the bias of {path}, which no concept does; load it by lora")
            found |= {f"{part}.{path}.{key.removesuffix('.weight')}": values for key, values in pieces.items()}
    return found


def write(path: str | Path, changes: Mapping[str, Tensor], pipe: Any, layout: Layout = "diffusers") -> None:
    """Low-rank changes as a file that diffusers' ``load_lora_weights`` reads, or one in kohya's names.

    kohya's are read by most other programs, of Stable Diffusion 1, 2 and XL. Raises ``SfumatoError`` for changes that
    are not low-rank, for none, and for kohya's names of a transformer.
    """
    low = {key.removesuffix(f".{LOW}"): value for key, value in changes.items() if key.endswith(f".{LOW}")}
    if not low or 2 * len(low) != len(changes):
        raise SfumatoError("a LoRA's file holds low-rank changes alone; this concept has others, or none: save it")
    state: dict[str, Tensor] = {}
    for layer, down in low.items():
        up, (part, _, place) = changes[f"{layer}.{HIGH}"], layer.partition(".")
        if layout == "diffusers":
            state |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
            continue
        if part == "transformer":
            raise SfumatoError("kohya's names of a transformer's layers are of matrices in one; take diffusers'")
        name = _of_kohya(part, place, pipe).replace(".", "_")
        alpha = torch.tensor(float(len(down)))
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
    save_tensors(path, state, {"format": "pt"})


def _of_kohya(part: str, place: str, pipe: Any) -> str:
    """A layer as kohya names it: of Stable Diffusion XL's UNet as the first UNets did."""
    xl = hasattr(pipe, "text_encoder_2")
    if part == "unet":
        return f"lora_unet_{_first(place, pipe.unet.config.layers_per_block, pipe.unet) if xl else place}"
    number = "2" if part.endswith("2") else "1" if xl else ""
    return f"lora_te{number}_text_model.{place.removeprefix('text_model.')}"


def _other(file: Path, pipe: Any, why: str) -> str:
    return f"{file} is a LoRA of another family than {type(pipe).__name__}: {why}"


def _converted(pipe: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By diffusers, which knows other names of transformers' layers, such as of three matrices in one."""
    plain = all({"down", "up"} <= keys.keys() <= {"down", "up", "alpha"} for keys in _grouped(state).values())
    if not plain or not hasattr(pipe, "transformer") or any(key.startswith(("lora_te", "text_")) for key in state):
        return {}  # which it would leave out
    try:
        return pipe.lora_state_dict(dict(state))
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError, IndexError):
        return {}


def _grouped(state: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Layer as the file calls it -> piece -> key; a key of no known kind is a layer of its own."""
    out: dict[str, dict[str, str]] = {}
    for key in state:
        found = _PIECE.search(key)
        layer, kind = (key[: found.start()], found["other"] or found.lastgroup) if found else (key, "?")
        out.setdefault(layer, {})[str(kind)] = key
    return out


def _plain(layer: str) -> str:
    """A layer's name without what differs between layouts."""
    return layer.replace(".processor.", ".").replace(".", "_")


def _names(pipe: Any) -> dict[str, tuple[str, str, Any]]:
    """Plain name -> part, layer and module, of all that can be changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    out: dict[str, tuple[str, str, Any]] = {}
    for part in pipe._lora_loadable_modules:
        network = getattr(pipe, part, None)
        changed = [path for path, m in _modules(network) if isinstance(m, BaseTunerLayer)]
        for path, module in _modules(network):
            inside = any(path.startswith(f"{other}.") for other in changed)
            if not inside and isinstance(module, torch.nn.Linear | torch.nn.Conv2d | BaseTunerLayer):
                for name in _aliases(part, path, network):
                    for prefix in _PREFIXES[part]:
                        out.setdefault(prefix + name.replace(".", "_"), (part, path, module))
    return out


def _modules(network: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    yield from () if network is None else getattr(network, "_orig_mod", network).named_modules()


def _aliases(part: str, path: str, network: Any) -> Iterator[str]:
    """How files call a layer."""
    yield path
    if part.startswith("text"):
        bare = path.removeprefix("text_model.")
        old = next((bare.replace(ours, theirs) for ours, theirs in _OLD_CLIP if bare.endswith(ours)), bare)
        yield from (bare, f"text_model.{bare}", old, f"text_model.{old}")
        return
    if path.endswith(".to_out.0"):
        yield path.removesuffix(".0")
    if part == "unet":
        yield _first(path, network.config.layers_per_block, network)


def _first(path: str, layers: int, network: Any) -> str:
    """A layer of a UNet by its name in the first UNets, as kohya names those of Stable Diffusion XL."""
    if path in _FIRST:
        return _FIRST[path]
    part, *rest = path.split(".")
    if part == "mid_block":
        place = _MIDDLE.get(".".join(rest[:2]), "")
        return f"middle_block.{place}.{_inner(rest[2:])}"
    if part not in ("down_blocks", "up_blocks") or not isinstance(layers, int):
        return path
    block, kind, index, inner = int(rest[0]), rest[1], int(rest[2]), rest[3:]
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.op"
    if kind == "upsamplers":
        attended = hasattr(network.up_blocks[block], "attentions")
        return f"output_blocks.{(layers + 1) * block + layers}.{1 + attended}.conv"
    blocks, first = ("input_blocks", 1) if part == "down_blocks" else ("output_blocks", 0)
    return f"{blocks}.{(layers + 1) * block + index + first}.{int(kind == 'attentions')}.{_inner(inner)}"


def _inner(rest: list[str]) -> str:
    return ".".join([_INNER.get(rest[0], rest[0]), *rest[1:]])


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Part -> what PEFT's config says of its changes; of "" for all. ``SfumatoError`` for one that cannot be read."""
    try:
        if file.name.startswith("adapter_model") and (file.parent / "adapter_config.json").is_file():
            return {"": read_json(file.parent / "adapter_config.json", dict, strict=False)}
        out: dict[str, dict[str, Any]] = {}
        for key, value in from_json(metadata.get("lora_adapter_metadata", "{}"), dict, strict=False).items():
            part, _, name = key.partition(".")
            out.setdefault(part, {})[name] = value
        return out
    except ValueError as e:
        raise SfumatoError(f"the settings of the LoRA {file} cannot be read: {first_line(e)}") from e


def _product(pieces: dict[str, Tensor], weight: Tensor, settings: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """A layer's change as PEFT's pieces at scale 1."""
    rank = next((len(pieces[k]) for k in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if k in pieces), None)
    scale = _scale(pieces, settings, path, rank)
    magnitude = pieces.get("magnitude", pieces.get("dora_scale"))
    if "down" in pieces and "mid" not in pieces and magnitude is None:
        down, up = pieces["down"].reshape(-1, *weight.shape[1:]), pieces["up"].flatten(1) * scale
        if up.shape != (len(weight), len(down)):
            raise RuntimeError(f"its up is {tuple(up.shape)}, the layer {tuple(weight.shape)}")
    else:
        change = (_change(pieces) * scale).reshape(weight.shape)
        if magnitude is not None:
            base = weight.float().to(change.device)
            change = _rescaled(base + change, magnitude, "magnitude" in pieces) - base
        thin = change.ndim == 2 and change.shape[1] < change.shape[0]
        one = torch.eye(min(change.shape) if thin else len(change))
        down, up = (one, change) if thin else (change, one)
    made = {"lora_A.weight": down, "lora_B.weight": up.reshape(*up.shape[:2], *(1,) * (weight.ndim - 2))}
    if "bias" in pieces:
        made["lora_B.bias"] = pieces["bias"] * (1 if "diff" in pieces else scale)
    return {key: values.contiguous() for key, values in made.items()}


def _scale(pieces: Mapping[str, Tensor], settings: Mapping[str, Any], path: str, rank: int | None) -> float:
    """alpha / rank; without an alpha, or where nothing has a rank, 1."""
    if rank is None:
        return 1.0
    if "alpha" in pieces:
        return float(pieces["alpha"]) / rank
    patterns = (settings.get("alpha_pattern") or {}).items()
    alpha = next((a for key, a in patterns if re.match(rf"(.*\.)?({key})$", path)), settings.get("lora_alpha"))
    return 1.0 if alpha is None else float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _change(p: Mapping[str, Tensor]) -> Tensor:
    """What is added to a layer's weight, before its scale.

    LoHa: the elementwise product of two products; LoKr: the Kronecker product of two (arXiv:2309.14859, LyCORIS).
    """
    if "diff" in p:
        return p["diff"]
    if "mid" in p:
        return _core(p["mid"], p["up"].flatten(1).T, p["down"].flatten(1))
    if "down" in p:
        return p["up"].flatten(1) @ p["down"].flatten(1)
    if "hada_w1_a" in p:
        if "hada_t1" in p:
            return _core(p["hada_t1"], p["hada_w1_a"], p["hada_w1_b"]) * _core(
                p["hada_t2"], p["hada_w2_a"], p["hada_w2_b"]
            )
        return (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    one = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_t2" in p:
        two = _core(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    elif "lokr_w2" in p:
        two = p["lokr_w2"]
    else:
        two = p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)
        two = two.reshape(*two.shape[:1], *p["lokr_w2_b"].shape[1:])
    return torch.kron(one.reshape(*one.shape, *(1,) * (two.ndim - 2)), two.contiguous())


def _core(
    core: Float[Tensor, "r s h w"], up: Float[Tensor, "r out"], down: Float[Tensor, "s in"]
) -> Float[Tensor, "out in h w"]:
    """Tucker's product, for kernels of convolutions."""
    return torch.einsum("rshw,ro,si->oihw", core, up, down)


def _rescaled(weight: Tensor, magnitude: Tensor, of_outputs: bool) -> Tensor:
    """With the norms that a DoRA learned (arXiv:2402.09353): of each output's weights, or, in LyCORIS, each input's."""
    by_output = of_outputs or magnitude.ndim == 1 or len(magnitude) == len(weight)
    over = [d for d in range(weight.ndim) if d != (0 if by_output else 1)]
    norm = torch.linalg.vector_norm(weight, dim=over, keepdim=True)
    return weight * (magnitude.reshape(norm.shape) / norm.clamp(min=1e-12))
