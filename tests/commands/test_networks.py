"""What commands of tests share: a network that one changed is not the next one's."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from sfumato.stilllife import weights


def attention(network):
    return next(layer for layer in network.modules() if hasattr(layer, "to_q"))


def first(network):
    return next(network.parameters())


def trained(network):
    with torch.no_grad():
        first(network).add_(1e-6)


CHANGES = {
    "a weight": trained,
    "a weight's values": lambda n: setattr(first(n), "data", first(n).data.clone()),
    "a gradient": lambda n: first(n).requires_grad_(),
    "a precision": lambda n: n.half(),
    "a layer": lambda n: setattr(attention(n), "to_q", torch.nn.Identity()),
    "a processor": lambda n: attention(n).set_processor(AttnProcessor()),
    "a hook": lambda n: n.register_forward_hook(lambda *args: None),
    "a mode": lambda n: n.train(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_network_that_was_changed_is_not_given_again(here, networks, what):
    def given(n: int = 1) -> list:
        networks.given = set()
        try:
            return [networks("unet") for _ in range(n)]
        finally:
            networks.given = None

    one, two = given(2)
    assert one is not two and given() == [one] and networks("unet") is not one
    CHANGES[what](one)
    (other,) = given()
    assert other is not one and given() == [other]
    for a, b in zip(other.parameters(), weights.module("unet").parameters(), strict=True):
        assert torch.equal(a, b) and not a.requires_grad
