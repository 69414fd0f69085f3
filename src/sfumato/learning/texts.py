"""Texts that are learned: rows of their own in float32, which a frozen network reads in the place of a prompt's.

Never rows of the vocabulary: what is learned is a parameter beside it, so nothing else moves or decays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.choice import nearest_side
from sfumato.core.conditions import Cond
from sfumato.core.sites import Grid, Site
from sfumato.errors import SfumatoError


def drawn(model: Backbone, rows: int, tokens: int | None = None, seed: int = 0) -> Float[Tensor, "rows n d"]:
    """Unit normal texts of as many tokens as the model's prompts have, unless said otherwise."""
    width = model.embed([""]).text.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens or model.text_tokens, width, generator=generator).to(model.device)


def conditions(model: Backbone, texts: Float[Tensor, "b n d"]) -> Cond:
    """What the network reads of learned texts; all else (such as SDXL's pooled text) is the empty prompt's."""
    return replace(model.embed_negative([""]).repeat(len(texts)), text=texts)


@contextmanager
def frozen(network: Any) -> Iterator[None]:
    """No weight of the network asks for gradients while the block runs; afterwards each is as it was."""
    graded = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in graded:
            p.requires_grad_(False)
        yield
    finally:
        for p in graded:
            p.requires_grad_(True)


def readers(model: Backbone, grid: Grid, parts: Sequence[float], who: str) -> tuple[Site, ...]:
    """Where the upward half of a UNet reads the text, a site for each of ``parts`` in the order in which they run.

    Each is the next one of the resolution nearest to that part of the latents' side; where there are no more of it,
    none. Raises ``SfumatoError`` for a network without a cross-attention of its own in an upward half.
    """
    offered = [site for site in model.sites if site.key == ("text",) and site.stage == "up"]
    if not offered:
        raise SfumatoError(
            f"{who} learns a text that the cross-attention of a UNet's upward half reads; {model.name} has none: "
            "use Stable Diffusion 1, 2, XL or the built-in model"
        )
    chosen: list[Site] = []
    for part in parts:
        side = nearest_side(offered, grid, part)
        chosen += [site for site in offered if min(site.grid(grid)) == side and site not in chosen][:1]
    if not chosen:
        raise SfumatoError(f"{who} needs at least one part of the latents' side to read at, such as 0.25")
    return tuple(sorted(chosen, key=lambda site: site.index))


def token_map(call: Call, token: int, heads: slice = slice(None)) -> Float[Tensor, "rows h w"]:
    """How much each cell reads of one token, averaged over heads.

    Of the token's own logits and the log-sum-exp over all: no other token's probabilities are made.
    """
    (name,) = call.rows.names
    logits = call.logits(name)[:, heads].float()
    if token >= logits.shape[-1]:
        raise SfumatoError(f"there is no token {token} in a text of {logits.shape[-1]} tokens")
    return (logits[..., token] - logits.logsumexp(-1)).exp().mean(1).unflatten(1, call.grid)
