"""One attention evaluation as a method sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.rows import Name, Rows
from sfumato.core.sites import Grid, Site
from sfumato.errors import unknown
from sfumato.ops import memory

FUSED = F.scaled_dot_product_attention
"""The kernel as torch has it; while anything is tapped, its place is the seam's (``sfumato.core.taps``)."""


class Call:
    """One attention evaluation as a method sees it, its rows by name.

    Read and write ``q``, ``k``, ``v`` of a group with ``get`` and ``set``; logits and probabilities of a group exist
    once asked for. Groups whose probabilities nobody writes go through the fused kernel, bit for bit as untapped.
    """

    def __init__(self, site: Site, rows: Rows, grid: Grid, step: int, tensors: Mapping[str, Tensor], **kernel: Any):
        self.site, self.rows, self.grid, self.step = site, rows, grid, step
        self._tensors = dict(tensors)
        self._kernel = kernel
        self._owned: set[str] = set()
        self._logits: dict[Name, Tensor] = {}
        self._probs: dict[Name, Tensor] = {}
        self._out: Tensor | None = None
        self._written: set[Name] = set()
        self.writes = 0
        """How often anything was written."""

    def all(self, which: str) -> Float[Tensor, "rows heads tokens dim"]:
        """``q``, ``k`` or ``v`` of all rows."""
        return self._tensors[which]

    @property
    def options(self) -> dict[str, Any]:
        """The kernel's beside its tensors and mask, such as its scale."""
        return {k: v for k, v in self._kernel.items() if k != "attn_mask"}

    def answer(self, out: Float[Tensor, "rows heads queries dim"]) -> None:
        """Replace the output of all rows: the network's own attention is not computed."""
        self._out = out
        self._owned.add("out")
        self.writes += 1

    def get(self, which: str, name: Name, segment: str | None = None) -> Float[Tensor, "each heads tokens dim"]:
        """``q``, ``k`` or ``v`` of a group, or ``out`` in the last phase: of all its tokens, or of one segment's."""
        tensor = self._of(which)[self.rows[name]]
        return tensor if segment is None else tensor[..., self._tokens(which, segment), :]

    def set(
        self, which: str, name: Name, value: Float[Tensor, "each heads tokens dim"], segment: str | None = None
    ) -> None:
        """Replace ``q``, ``k``, ``v`` or ``out`` of a group; the others keep theirs."""
        tensor = self._of(which)
        self.writes += 1
        if which not in self._owned:  # the network's own tensor is not written to
            tensor = tensor.clone()
            self._owned.add(which)
            if which == "out":
                self._out = tensor
            else:
                self._tensors[which] = tensor
        tensor[self.rows[name]][..., self._tokens(which, segment), :] = value

    def _tokens(self, which: str, segment: str | None) -> slice:
        return slice(None) if segment is None else self.segment("q" if which in ("q", "out") else "k", segment)

    def _of(self, which: str) -> Tensor:
        if which == "out":
            if self._out is None:
                self._out = self._attend()
            return self._out
        if which not in self._tensors:
            raise unknown("part of an attention call", which, ("q", "k", "v", "out"))
        return self._tensors[which]

    def logits(self, name: Name) -> Float[Tensor, "each heads queries keys"]:
        """What the softmax is taken of, mask added; in float32 where the network computes in halves."""
        if name not in self._logits:
            q, k = (fine(self.get(which, name)) for which in "qk")
            scale = self._kernel.get("scale")
            logits = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
            mask = self._kernel.get("attn_mask")
            if mask is not None:
                mask = mask[self.rows[name]] if mask.ndim == 4 and mask.shape[0] == len(self.rows) else mask
                logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
            self._logits[name] = logits
        return self._logits[name]

    def set_logits(self, name: Name, value: Float[Tensor, "each heads queries keys"]) -> None:
        self._logits[name] = value
        self._probs.pop(name, None)
        self._written.add(name)
        self.writes += 1

    def probs(self, name: Name) -> Float[Tensor, "each heads queries keys"]:
        """The attention probabilities of a group, over all its keys."""
        if name not in self._probs:
            self._probs[name] = self.logits(name).softmax(-1)
        return self._probs[name]

    def set_probs(self, name: Name, value: Float[Tensor, "each heads queries keys"]) -> None:
        self._probs[name] = value
        self._written.add(name)
        self.writes += 1

    def segment(self, side: str, segment: str) -> slice:
        """Where a segment's tokens lie among the queries (``side="q"``) or keys (``"k"``)."""
        segments = self.site.query if side == "q" else self.site.key
        if segment not in segments:
            raise unknown("segment", segment, segments)
        total, image = self._tensors[side].shape[-2], self.grid[0] * self.grid[1]
        size = {"image": image if len(segments) > 1 else total, "text": total - image * (len(segments) > 1)}
        start = sum(size[s] for s in segments[: segments.index(segment)])
        return slice(start, start + size[segment])

    def block(self, name: Name, pair: str) -> Float[Tensor, "each heads queries keys"]:
        """The probabilities from one segment to another. In joint attention they need not sum to one."""
        probs = self.probs(name)
        q, k = pair.split("->")
        if self.site.query == (q,) and self.site.key == (k,):
            return probs
        return probs[..., self.segment("q", q), self.segment("k", k)]

    def mean(self, name: Name, pair: str) -> Float[Tensor, "each queries keys"]:
        """``block`` averaged over heads, in float32; a head after the other where all would take much memory."""
        q, k = (self._tensors[n] for n in "qk")
        heads, mask = q.shape[1], self._kernel.get("attn_mask")
        if (
            name in self._probs
            or name in self._logits
            or self.rows.each * heads * q.shape[2] * k.shape[2] < memory.BUDGET
        ):
            return self.block(name, pair).float().mean(1)
        total: Tensor | None = None
        for head in range(heads):
            one = slice(head, head + 1)
            kernel = dict(self._kernel)
            if mask is not None and mask.ndim == 4 and mask.shape[1] == heads:
                kernel["attn_mask"] = mask[:, one]
            tensors = {key: value[:, one] for key, value in self._tensors.items()}
            part = Call(self.site, self.rows, self.grid, self.step, tensors, **kernel).block(name, pair)[:, 0].float()
            total = part if total is None else total + part if part.requires_grad else total.add_(part)
        assert total is not None
        return total / heads

    def set_block(self, name: Name, pair: str, value: Float[Tensor, "each heads queries keys"]) -> None:
        """Write the probabilities from one segment to another; the rest of a row stays as it is."""
        q, k = pair.split("->")
        if self.site.query == (q,) and self.site.key == (k,):
            return self.set_probs(name, value)
        probs = self.probs(name).clone()
        probs[..., self.segment("q", q), self.segment("k", k)] = value
        self.set_probs(name, probs)

    def output(self) -> Float[Tensor, "rows heads queries dim"]:
        return self._of("out")

    def _attend(self) -> Tensor:
        q, k, v = (self._tensors[n] for n in "qkv")
        if not self._written:
            return FUSED(q, k, v, **self._kernel)
        fused = [n for n in self.rows.names if n not in self._written]
        parts: dict[Name, Tensor] = {n: self.probs(n).to(v) @ self.get("v", n) for n in self._written}
        if fused:
            at = torch.cat([torch.arange(self.rows[n].start, self.rows[n].stop) for n in fused]).to(q.device)
            mask = self._kernel.get("attn_mask")
            if mask is not None and mask.ndim == 4 and mask.shape[0] == len(self.rows):
                mask = mask[at]
            out = FUSED(q[at], k[at], v[at], **{**self._kernel, "attn_mask": mask})
            parts |= dict(zip(fused, out.split(self.rows.each), strict=True))
        return torch.cat([parts[n] for n in self.rows.names])


def fine(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
