"""Changes of a pipeline's weights, added to copies of the networks that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoError

LOW, HIGH = "lora_A", "lora_B"


@torch.no_grad()
def changed(pipe: Any, name: str, changes: Mapping[str, Tensor]) -> Any:
    """A pipeline with the same parts, but for copies of those that are changed; see ``Latent.with_changes``."""
    other = copy(pipe)
    copies: dict[str, nn.Module] = {}
    for key, value in changes.items():
        if key.endswith(HIGH):
            continue
        if key.endswith(LOW):
            high = changes.get(f"{key.removesuffix(LOW)}{HIGH}")
            if high is None:
                raise SfumatoError(f"of the low-rank change {key!r} one half is missing; the file is damaged")
            key, value = f"{key.removesuffix(LOW)}weight", high.float() @ value.float()
        part, _, path = key.partition(".")
        if part not in copies:
            network = getattr(pipe, part, None)
            if not isinstance(network, nn.Module):
                raise SfumatoError(f"the change of {key!r} is of a network that {name} does not have")
            copies[part] = deepcopy(network)
        weight = dict(copies[part].named_parameters()).get(path)
        if weight is None or weight.shape != value.shape:
            has = "does not have" if weight is None else f"has as {tuple(weight.shape)}"
            raise SfumatoError(
                f"a change {tuple(value.shape)} is of {key!r}, which {name} {has}; take one that was learned with a "
                "model of this kind"
            )
        weight.copy_(weight.float() + value.to(weight.device).float())
    for part, network in copies.items():
        setattr(other, part, network)
    return other
