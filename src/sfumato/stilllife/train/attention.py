"""Attention that trains fast on a CPU.

The fused kernel's backward pass in bf16 is slow on CPUs for heads of 8 to 20 channels: measured with 256 tokens, it
takes twice the time of float32, and with 64 tokens ten times that of the plain form. It made 65 % of a training step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_BELOW = 8_000  # entries of an attention map up to which the plain form in bf16 is the faster one


class SmallHeads:
    """An attention processor for training on CPUs: the same function as diffusers' own, in the faster of two forms."""

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(b, tokens, channels) in and out, as UNet2DConditionModel calls it."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        if q.shape[2] * k.shape[2] < PLAIN_BELOW:
            out = torch.softmax(q @ k.transpose(-1, -2) * attn.scale, -1) @ v
        else:
            with torch.autocast(q.device.type, enabled=False):
                out = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
