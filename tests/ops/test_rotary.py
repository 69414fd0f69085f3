"""Rotary positions, against diffusers' own."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from rounding import assert_same_but_for_rounding

from sfumato.ops.rotary import turned


def test_tokens_are_turned_as_flux_turns_them_and_places_add_up():
    generator = torch.Generator().manual_seed(0)
    x, widths = torch.randn(2, 3, 7, 16, generator=generator), (4, 4, 8)
    at, more = (torch.randint(0, 90, (7, 3), generator=generator).float() for _ in range(2))
    wanted = apply_rotary_emb(x, FluxPosEmbed(10000, [*widths])(at))
    torch.testing.assert_close(turned(x, at, widths), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned(wanted, more, widths), turned(x, at + more, widths), atol=1e-4, rtol=1e-4)
    assert_same_but_for_rounding(turned(x, torch.zeros(7, 3), widths), x)
    assert turned(x.half(), at, widths).dtype == torch.float16
