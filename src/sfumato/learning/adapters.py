"""Copies of networks in which something learns: they share all weights that do not, and the networks stay as they are.

What learns is in float32, as steps are too small for halves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoError

LOW, HIGH = "lora_A", "lora_B"
"""Of a low-rank change its two halves, in the place of ``weight``."""
SCALE_LOW, SCALE_HIGH = "scale_A", "scale_B"
"""The two halves of what a weight is multiplied with, less one: W + W * (B A), a product for each of its numbers."""
PAIRS = {half: pair for pair in ((LOW, HIGH, "weight"), (SCALE_LOW, SCALE_HIGH, "scale")) for half in pair[:2]}
"""Of each half both, and what their product stands for."""
NAME = "learned"
"""Of the adapter that learns, beside those that a user has loaded."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Projections of attention as diffusers names them."""
JOINT = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Those of the text as well, where it is attended with the image (SD3, Flux)."""
CLIP = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Of text encoders."""


class Pair(NamedTuple):
    """A low-rank change of a layer: its weight and up x down."""

    down: nn.Parameter
    """(rank, in)"""
    up: nn.Parameter
    """(out, rank); zeros at first."""


class Weights(nn.Module):
    """Parameters by their names in a network, some of which have points: what a run moves and a checkpoint keeps."""

    def __init__(self, named: Mapping[str, nn.Parameter]):
        super().__init__()
        self.named = dict(named)
        for name, parameter in named.items():
            self.register_parameter(name.replace(".", "/"), parameter)


def products(changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What changes add to weights, by the weights' names: low-rank ones multiplied, of convolutions as well.

    What weights are multiplied with, less one, has ``scale`` in the place of ``weight``. Raises ``SfumatoError`` where
    one half of such is missing.
    """
    found: dict[str, Tensor] = {}
    for key, value in changes.items():
        if half := next((half for half in PAIRS if key.endswith(f".{half}")), None):
            layer, (down, up, name) = key.removesuffix(half), PAIRS[half]
            low, high = (changes.get(f"{layer}{each}") for each in (down, up))
            if low is None or high is None:
                raise SfumatoError(f"of the low-rank change {key!r} one half is missing; the file is damaged")
            if half == up:
                continue
            product = high.float().flatten(1) @ low.float().flatten(1)
            key, value = f"{layer}{name}", product.reshape(len(high), *low.shape[1:])
        found[key] = found[key] + value if key in found else value
    return found


def check(model: Any) -> None:
    """Raise ``SfumatoError`` for a model of whose network no copy can learn."""
    if model.waits_for is not None:
        raise SfumatoError(f"{model.name} is offloaded, and no copy of it can learn; load it without offload")


def copied(network: Any, learns: Callable[[str], bool] = lambda name: False) -> tuple[Any, dict[str, nn.Parameter]]:
    """A network that has the same weights, but its own float32 copies of those that learn; and these by their names."""
    network = getattr(network, "_orig_mod", network)  # what torch.compile has made
    own, memo = {}, {id(buffer): buffer for buffer in network.buffers()}
    for name, parameter in network.named_parameters():
        if learns(name):
            value = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            own[name] = value
        else:
            value = nn.Parameter(parameter.detach(), requires_grad=False)
        memo[id(parameter)] = value
    return deepcopy(network, memo), own


def low_rank(
    network: Any, layers: Sequence[str], rank: int, rng: torch.Generator, name: str, alpha: float | None = None
) -> tuple[Any, dict[str, Pair]]:
    """A copy of a network with a low-rank change of each layer of these names, none at first; and they by layer.

    (LoRA, Hu et al. 2021, arXiv 2106.09685.) Downs are normal with deviation 1 / rank; ``alpha``: of which alpha /
    rank is what a change counts, the rank unless said. Adapters that are active in the network are so in the copy.
    ``name``: of the model. Raises ``SfumatoError`` where there is no such layer, and for adapters that are off.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if rank < 1:
        raise SfumatoError(f"a low-rank copy has rank 1 or more, got {rank}")
    other, _ = copied(network)
    tuned: dict[str, Any] = {k: m for k, m in other.named_modules() if isinstance(m, BaseTunerLayer)}
    if any(m.disable_adapters or m.merged for m in tuned.values()):
        raise SfumatoError(
            f"adapters of {name} are disabled or fused, and beside such none learns; enable or delete them"
        )
    paths = [path for path, _ in other.named_modules() if path.endswith(tuple(f".{each}" for each in layers))]
    if not paths:
        raise SfumatoError(f"the network of {name} has no attention, so there is nothing to adapt; it learns nothing")
    before = {path: list(module.active_adapters) for path, module in tuned.items()}
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=paths)  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws weights, which are drawn again
        warnings.simplefilter("ignore", UserWarning)  # that there are other adapters, which is fine
        inject_adapter_in_model(config, other, NAME)
    other.requires_grad_(False)
    made: dict[str, Pair] = {}
    for path in paths:
        layer: Any = other.get_submodule(path)
        layer.set_adapter([*before.pop(path, []), NAME])
        pair = Pair(layer.lora_A[NAME].weight, layer.lora_B[NAME].weight)
        pair.down.data = (torch.randn(pair.down.shape, generator=rng) / rank).to(pair.down.device)
        pair.up.data = torch.zeros_like(pair.up, dtype=torch.float32)
        for each in pair:
            each.requires_grad_(True)
        made[path] = pair
    for path, active in before.items():  # peft has set its own in all layers
        tuned[path].set_adapter(active)
    for module in tuned.values():  # which peft lets learn once they are set
        for key in module.adapter_layer_names:
            for adapter, each in getattr(module, key).items():
                if adapter != NAME:
                    each.requires_grad_(False)
    return other, made
