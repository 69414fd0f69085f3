"""Other networks in the places of a pipeline's own, and changes of weights added to copies of what they are of."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from inspect import ismethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.learning.adapters import products

if TYPE_CHECKING:
    from typing_extensions import Self


class OfPipe:
    """A model that is made of a pipeline's parts, some of which can be others in a copy of it."""

    name: str
    pipe: Any

    def another(self) -> Self:
        """A copy whose methods are its own, also one that was assigned to this model or to one that it is a copy of."""
        other = copy(self)
        for name, value in vars(self).items():
            if ismethod(value) and isinstance(value.__self__, type(self)):
                setattr(other, name, value.__func__.__get__(other))
        return other

    def with_parts(self, parts: Mapping[str, nn.Module]) -> Self:
        """This model with other networks, by the names of the pipeline's parts, such as ``unet``."""
        other = self.another()
        other.pipe = copy(self.pipe)
        for part, network in parts.items():
            setattr(other.pipe, part, network)
        return other

    def with_changes(self, changes: Mapping[str, Tensor]) -> Self:
        """This model with weights changed: networks that are changed are copied, the others the same.

        ``changes``: by the pipeline's part and the weight, such as ``unet.mid_block.attentions.0.proj_in.weight``, what
        is added to it; or of a low-rank change ``lora_A`` and ``lora_B`` in the place of ``weight``, whose product is;
        or ``scale_A`` and ``scale_B``, whose product times the weight is, number by number.
        Raises ``SfumatoError`` for a weight that the model does not have, or has in another shape.
        """
        return self.with_parts(_changed(self.pipe, self.name, changes))


@torch.no_grad()
def _changed(pipe: Any, name: str, changes: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    copies: dict[str, nn.Module] = {}
    weights: dict[str, dict[str, nn.Parameter]] = {}
    found = products(changes)
    for key in sorted(found, key=lambda key: not key.endswith(".scale")):  # what is multiplied is the model's own
        value, (part, _, path) = found[key], key.partition(".")
        if scales := path.endswith(".scale"):
            path = f"{path.removesuffix('scale')}weight"
        if part not in copies:
            network = getattr(pipe, part, None)
            if not isinstance(network, nn.Module):
                raise SfumatoError(f"the change of {key!r} is of a network that {name} does not have")
            copies[part] = deepcopy(network)
            weights[part] = {of.replace(".base_layer.", "."): p for of, p in copies[part].named_parameters()}
        weight = weights[part].get(path)
        if weight is None or weight.shape != value.shape:
            has = "does not have" if weight is None else f"has as {tuple(weight.shape)}"
            raise SfumatoError(
                f"a change {tuple(value.shape)} is of {key!r}, which {name} {has}; take one that was learned with a "
                "model of this kind"
            )
        added = value.to(weight.device).float()
        weight.copy_(weight.float() + (weight.float() * added if scales else added))
    return copies
