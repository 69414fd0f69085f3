"""The seam: every attention of every family is one call of ``F.scaled_dot_product_attention``; taps see it there.

Hooks on an attention module say which site is running. While any tap is set, the torch function is replaced by one that
asks, per thread, whether a tapped site is waiting, and is the fused kernel otherwise. Processors stay as they are, so
LoRA, IP-Adapter and offloading keep working. A tapped site that never arrives is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato import features
from sfumato.errors import SfumatoError, unknown
from sfumato.features import Layer
from sfumato.rows import Name, Rows

Grid = tuple[int, int]


@dataclass(frozen=True)
class Site:
    """One attention call of a network, in the order in which they run."""

    path: str
    """Of the attention module in the network."""
    index: int
    stage: str
    """down, mid, up (UNets), double, single, blocks (transformers)."""
    query: tuple[str, ...]
    """Segments of the queries in order: ``image``, ``text``."""
    key: tuple[str, ...]
    """Segments of the keys in order."""
    scale: int
    """Side of a token in cells of the latents."""
    heads: int

    @property
    def pairs(self) -> tuple[str, ...]:
        """What attends to what: ``image->text`` and the like."""
        return tuple(f"{q}->{k}" for q in self.query for k in self.key)

    def grid(self, latents: Grid) -> Grid:
        """Rows and columns of image tokens, for latents of this height and width."""
        return -(-latents[0] // self.scale), -(-latents[1] // self.scale)


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

    def get(self, which: str, name: Name, segment: str | None = None) -> Float[Tensor, "each heads tokens dim"]:
        """``q``, ``k`` or ``v`` of a group, or ``out`` in the last phase: of all its tokens, or of one segment's."""
        tensor = self._of(which)[self.rows[name]]
        return tensor if segment is None else tensor[..., self._tokens(which, segment), :]

    def set(
        self, which: str, name: Name, value: Float[Tensor, "each heads tokens dim"], segment: str | None = None
    ) -> None:
        """Replace ``q``, ``k``, ``v`` or ``out`` of a group; the others keep theirs."""
        tensor = self._of(which)
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
        """What the softmax is taken of, mask added."""
        if name not in self._logits:
            q, k = self.get("q", name), self.get("k", name)
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

    def probs(self, name: Name) -> Float[Tensor, "each heads queries keys"]:
        """The attention probabilities of a group, over all its keys."""
        if name not in self._probs:
            logits = self.logits(name)
            self._probs[name] = logits.float().softmax(-1).to(logits.dtype)
        return self._probs[name]

    def set_probs(self, name: Name, value: Float[Tensor, "each heads queries keys"]) -> None:
        self._probs[name] = value
        self._written.add(name)

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
        if name in self._probs or name in self._logits or self.rows.each * heads * q.shape[2] * k.shape[2] < _MANY:
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
            return _FUSED(q, k, v, **self._kernel)
        fused = [n for n in self.rows.names if n not in self._written]
        parts: dict[Name, Tensor] = {n: self.probs(n) @ self.get("v", n) for n in self._written}
        if fused:
            at = torch.cat([torch.arange(self.rows[n].start, self.rows[n].stop) for n in fused]).to(q.device)
            mask = self._kernel.get("attn_mask")
            if mask is not None and mask.ndim == 4 and mask.shape[0] == len(self.rows):
                mask = mask[at]
            out = _FUSED(q[at], k[at], v[at], **{**self._kernel, "attn_mask": mask})
            parts |= dict(zip(fused, out.split(self.rows.each), strict=True))
        return torch.cat([parts[n] for n in self.rows.names])


Handler = Callable[[Any], None]  # of a site's Call or a layer's Activation
_FUSED = F.scaled_dot_product_attention
_MANY = 2**24  # probabilities that may exist at once when only their mean is wanted: 64 MiB


class _Local(threading.local):
    waiting: Callable[..., Tensor] | None = None


_local = _Local()
_lock = threading.Lock()
_users = 0


def _seam(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    waiting = _local.waiting
    if waiting is None:
        return _FUSED(query, key, value, *args, **kwargs)
    _local.waiting = None  # the site's attention is the first call; what follows (IP-Adapter's images) is not
    return waiting(query, key, value, *args, **kwargs)


class Enough(Exception):
    """Ends a prediction whose last wanted site has been seen."""


@dataclass
class Tap:
    """What is tapped on one network: handlers by site, and the batch that the next prediction runs."""

    handlers: Mapping[Any, Handler]
    """Called once for each site and prediction with its ``Call``, for each layer with its ``Activation``."""
    active: Callable[[Any], bool] = lambda site: True
    """Is there anything to do at this site in this prediction? If not, it keeps its fused kernel."""
    rows: Rows | None = None
    grid: Grid = (0, 0)
    step: int = 0
    stop: bool = False
    """End the prediction (``Enough``) when all that is tapped has been seen."""
    fired: dict[Site | Layer, int] = field(default_factory=dict)

    def expected(self) -> list[Site | Layer]:
        return [site for site in self.handlers if self.active(site)]

    def count(self, what: Site | Layer) -> None:
        """Note that something tapped has been seen."""
        self.fired[what] = self.fired.get(what, 0) + 1
        if self.stop and all(site in self.fired for site in self.expected()):
            raise Enough

    def check(self, network: nn.Module) -> None:
        """Raise ``SfumatoError`` unless each active site was seen once since the last check."""
        missed = [site for site in self.expected() if self.fired.get(site, 0) != 1]
        self.fired.clear()
        if missed:
            raise SfumatoError(
                f"{len(missed)} of {len(self.handlers)} tapped attention sites of {type(network).__name__} did not run "
                f"once (first: {missed[0].path}); a block cache or torch.compile skips them: switch it off to tap"
            )


@contextmanager
def tapped(network: nn.Module, tap: Tap) -> Iterator[Tap]:
    """Set ``tap`` while the block runs; nothing is left behind, also after an exception.

    Raises ``SfumatoError`` for a compiled network and for a site whose attention never reaches the seam.
    """
    global _users
    if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
        raise SfumatoError("attention of a compiled network cannot be tapped; load the model with compile=False")
    hooks = []
    with _lock:
        _users += 1
        F.scaled_dot_product_attention = _seam
    try:
        for site, handler in tap.handlers.items():
            module = network.get_submodule(site.path)
            tapping = _hooks if isinstance(site, Site) else features.hooks
            hooks += tapping(module, site, handler, tap)
        yield tap
    finally:
        _local.waiting = None
        for hook in hooks:
            hook.remove()
        with _lock:
            _users -= 1
            if not _users:
                F.scaled_dot_product_attention = _FUSED


def _hooks(module: nn.Module, site: Site, handler: Callable[[Call], None], tap: Tap) -> Sequence[Any]:
    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kernel: Any) -> Tensor:
        assert tap.rows is not None
        if args:
            kernel |= dict(zip(("dropout_p", "is_causal", "scale"), args, strict=False))
        if q.shape[0] != len(tap.rows):
            raise SfumatoError(f"{site.path} ran {q.shape[0]} rows, the batch has {len(tap.rows)}")
        tensors = {"q": q, "k": k, "v": v}
        call = Call(site, tap.rows, site.grid(tap.grid), tap.step, tensors, attn_mask=attn_mask, **kernel)
        handler(call)
        tap.count(site)
        return call.output()

    def before(*_: Any) -> None:
        if tap.active(site):
            _local.waiting = attend

    def after(*_: Any) -> None:
        if _local.waiting is attend:
            _local.waiting = None
            processor = type(getattr(module, "processor", module)).__name__
            raise SfumatoError(
                f"the attention at {site.path} never reached scaled_dot_product_attention (processor {processor}), so "
                "it cannot be tapped; call set_default_attn_processor() or disable attention slicing"
            )

    return module.register_forward_pre_hook(before), module.register_forward_hook(after)
