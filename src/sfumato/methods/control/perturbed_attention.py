"""Perturbed-attention guidance (Ahn et al. 2024, arXiv 2403.17377): away from images without structure.

A further row of each prediction has the identity for a self-attention map in one block, so that each place sees only
itself: what comes out looks right nearby and has no shape. Guidance adds s (c - c') to whatever guidance there is.

Defaults: the paper's scale 3 in the middle block. In joint attention a place sees itself and the text, and the text
sees all, as in diffusers' pipeline for Stable Diffusion 3, whose processor leaves out the norms of queries and keys
that 3.5 has. ``GUIDER`` is diffusers' newer guider, which for such models drops the text's attention as well. Where
the paper names no block (transformers), the one in the middle is taken; diffusers' own default there is blocks.1.

Needs: the values of image->image self-attention in the chosen block; a row more for each image, so half as much again
beside classifier-free guidance, twice without.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call, fine
from sfumato.core.rows import Name
from sfumato.methods.control.perturbations import Perturbing


@dataclass(frozen=True)
class PerturbedAttention(Perturbing):
    """Guides away from the network without self-attention."""

    rows: ClassVar = "perturbed"
    field: ClassVar = "out"

    def disturb(self, call: Call) -> None:
        for name in call.rows.match(self.rows):
            call.set("out", name, alone(call, name), "image")


GUIDER = PerturbedAttention(2.8, since=0.01, until=0.2)
"""Scale and steps of diffusers' ``PerturbedAttentionGuidance``."""


def alone(call: Call, name: Name) -> Float[Tensor, "each heads n d"]:
    """What the image's tokens read when each of them sees, of the image, only itself (eq. 14: the identity map)."""
    v = call.get("v", name, "image")
    if "text" not in call.site.key:
        return v
    q, k, text = (fine(call.get(*of)) for of in (("q", name, "image"), ("k", name, "image"), ("k", name, "text")))
    text_v = call.get("v", name, "text")
    logits = torch.cat([q @ text.transpose(-1, -2), (q * k).sum(-1, keepdim=True)], -1) * q.shape[-1] ** -0.5
    probs = logits.softmax(-1).to(v)
    return probs[..., :-1] @ text_v + probs[..., -1:] * v
