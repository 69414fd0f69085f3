"""One attention evaluation as a method sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.core.rows import Name, Rows
from sfumato.core.sites import Grid, Site
from sfumato.errors import unknown
from sfumato.ops import memory

FUSED = F.scaled_dot_product_attention
"""The kernel as torch has it; while anything is tapped, its place is the seam's (``sfumato.core.taps``)."""


class Call:
    """One attention evaluation as a method sees it, its rows by name.

    Read and write ``q``, ``k``, ``v`` of a group with ``get`` and ``set``; logits and probabilities of a group exist
    once asked for. Groups whose probabilities nobody writes go through the fused kernel, bit for bit as untapped. Of
    large joint attention a block of few keys is made without the rest, and what is written there is added to what the
    fused kernel gives.
    """

    def __init__(self, site: Site, rows: Rows, grid: Grid, step: int, tensors: Mapping[str, Tensor], **kernel: Any):
        self.site, self.rows, self.grid, self.step = site, rows, grid, step
        self._tensors = dict(tensors)
        self._kernel = kernel
        self._owned: set[str] = set()
        self._logits: dict[Name, Tensor] = {}
        self._probs: dict[Name, Tensor] = {}
        self._shared: dict[Name, _Shared] = {}
        self._parts: dict[Name, dict[str, Tensor]] = {}  # blocks as they were, where the whole was not built
        self._blocks: dict[Name, dict[str, Tensor]] = {}  # what they became
        self._given: dict[Name, Tensor] = {}
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

    @property
    def mask(self) -> Tensor | None:
        """The kernel's own: what is added to the logits, or, as booleans, which keys are seen."""
        return self._kernel.get("attn_mask")

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

    def share(
        self,
        name: Name,
        sources: Int[Tensor, "each m"],
        bias: Float[Tensor, "each keys"] | None = None,
        scale: Float[Tensor, "each m"] | None = None,
    ) -> None:
        """Let each row of a group read the image's keys and values of these rows of the group, one behind the other, in
        place of its own; where only some images of the run are here, ``sources`` are of those, and name any. Their
        logits are multiplied by the source's ``scale``, and ``bias`` is added, a number a key. Keys of text stay its
        own. The kernel stays fused; logits and probabilities are of all that is read. Nothing but itself is plain
        attention.
        """
        by = self._sharing(name, sources, bias, scale, "shared")
        if bias is None and scale is None and torch.equal(sources, torch.tensor([*self.rows.numbers])[:, None]):
            return
        self._shared[name] = by
        self.writes += 1

    def attended(
        self,
        name: Name,
        some: Int[Tensor, " n"],
        sources: Int[Tensor, "each m"],
        bias: Float[Tensor, "each keys"] | None = None,
        queries: slice = slice(None),
        key: str | None = "attended",
    ) -> Float[Tensor, "n heads queries dim"]:
        """What these rows of a group, or some of their queries, would get if the group read so; writes nothing.

        ``key`` tells several of one call apart, whose keys and values are kept for images that go later; None: those
        that are read are here, and no others read them.
        """
        return self._across(name, self._sharing(name, sources, bias, None, key), some, queries)

    def across(self, name: Name, key: str, here: Mapping[int, Tensor], wanted: Iterable[int]) -> dict[int, Tensor]:
        """Of the images ``wanted`` what is ``here`` of those that go through the network now, by their numbers, and of
        others what was given under the same ``key`` when they went."""
        group = self.rows.group
        return {n: here[n] for n in wanted} if group is None else group.across((self.site, name, key), here, wanted)

    def _sharing(
        self, name: Name, sources: Tensor, bias: Tensor | None, scale: Tensor | None, key: str | None
    ) -> _Shared:
        """Sources as rows that are here, and behind those the ones that were kept."""
        if self.rows.group is None:
            return _Shared(sources, bias, scale)
        numbers, image, more = self.rows.numbers, self.segment("k", "image"), dict[str, Tensor]()
        gone = [n for n in dict.fromkeys(sources.flatten().tolist()) if n not in numbers]
        place = {n: at for at, n in enumerate((*numbers, *gone))}
        for which, whole in self._keyed(name).items() if key is not None else ():
            rows = dict(zip(numbers, whole[:, :, image], strict=True))
            found = self.across(name, f"{key} {which}", rows, gone)
            if gone:
                more[which] = torch.stack([found[n] for n in gone])
        local = torch.tensor([[place[n] for n in row] for row in sources.tolist()])
        return _Shared(local, bias, scale, more)

    def _keyed(self, name: Name) -> dict[str, Tensor]:
        """What belongs to the keys of a group's rows: (each, heads, keys, ...)."""
        mask, out = self._own_mask(name), {which: self.get(which, name) for which in "kv"}
        return out if mask is None else {**out, "mask": _by_key(mask, out["k"])}

    def _own_mask(self, name: Name) -> Tensor | None:
        mask = self._kernel.get("attn_mask")
        return mask[self.rows[name]] if mask is not None and mask.ndim == 4 and len(mask) == len(self.rows) else mask

    def give(self, name: Name, out: Float[Tensor, "each heads queries dim"]) -> None:
        """Give a group's output, so that its attention is not computed."""
        self._given[name] = out
        self.writes += 1

    def _reads(self, which: str, name: Name, some: Tensor | slice = slice(None), by: _Shared | None = None) -> Tensor:
        """``k`` or ``v`` that a group, or some rows of it, attends to."""
        whole, by = self.get(which, name), by or self._shared.get(name)
        if by is None:
            return whole[some]
        image, scale = self.segment("k", "image"), by.scale if which == "k" else None
        return by.joined(whole, image, some, scale, by.more.get(which))

    def _masked(self, name: Name, some: Tensor | slice = slice(None), by: _Shared | None = None) -> Tensor | None:
        """What is added to the logits of a group, or of some rows of it; or, as booleans, which keys it sees."""
        mask, by = self._own_mask(name), by or self._shared.get(name)
        if by is None:
            return mask if mask is None or mask.ndim < 4 or len(mask) == 1 else mask[some]
        return by.mask(mask, self.get("k", name), self.segment("k", "image"), some)

    def logits(self, name: Name) -> Float[Tensor, "each heads queries keys"]:
        """What the softmax is taken of, mask added; in float32 where the network computes in halves."""
        if name not in self._logits:
            self._logits[name] = self._scaled(self.get("q", name), self._reads("k", name), self._masked(name))
        return self._logits[name]

    def _scaled(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        scale = self._kernel.get("scale")
        logits = (fine(q) @ fine(k).transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if mask is None:
            return logits
        return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask

    def set_logits(self, name: Name, value: Float[Tensor, "each heads queries keys"]) -> None:
        self._logits[name] = value
        self._probs.pop(name, None)
        self._blocks.pop(name, None)
        self._written.add(name)
        self.writes += 1

    def probs(self, name: Name) -> Float[Tensor, "each heads queries keys"]:
        """The attention probabilities of a group, over all its keys."""
        if name not in self._probs:
            self._probs[name] = self.logits(name).softmax(-1)
            for pair, value in self._blocks.pop(name, {}).items():
                self.set_block(name, pair, value)
        return self._probs[name]

    def set_probs(self, name: Name, value: Float[Tensor, "each heads queries keys"]) -> None:
        self._probs[name] = value
        self._blocks.pop(name, None)
        self._written.add(name)
        self.writes += 1

    def segment(self, side: str, segment: str, name: Name | None = None) -> slice:
        """Where a segment's tokens lie among the queries (``side="q"``) or keys (``"k"``): its own, or all that a group
        reads."""
        segments = self.site.query if side == "q" else self.site.key
        if segment not in segments:
            raise unknown("segment", segment, segments)
        total, image = self._tensors[side].shape[-2], self.grid[0] * self.grid[1]
        size = {"image": image if len(segments) > 1 else total, "text": total - image * (len(segments) > 1)}
        if side == "k" and name in self._shared:
            size["image"] *= self._shared[name].sources.shape[1]
        start = sum(size[s] for s in segments[: segments.index(segment)])
        return slice(start, start + size[segment])

    def block(self, name: Name, pair: str) -> Float[Tensor, "each heads queries keys"]:
        """The probabilities from one segment to another. In joint attention they need not sum to one."""
        at = self._at(name, pair)
        if at is None:
            return self.probs(name)
        if not self._apart(name, at[1]):
            return self.probs(name)[..., at[0], at[1]]
        if pair in self._blocks.get(name, {}):
            return self._blocks[name][pair]
        return self._part(name, pair, at)

    def _at(self, name: Name, pair: str) -> tuple[slice, slice] | None:
        """Queries and keys of a pair; None where they are all that there are."""
        q, k = pair.split("->")
        if self.site.query == (q,) and self.site.key == (k,):
            return None
        return self.segment("q", q), self.segment("k", k, name)

    def _large(self, name: Name) -> bool:
        """Is a group's attention more than may be made at once, and not made yet?"""
        if name in self._probs or name in self._logits:
            return False
        q, k = self._tensors["q"], self._tensors["k"]
        return self.rows.each * q.shape[1] * q.shape[2] * k.shape[2] >= memory.BUDGET

    def _apart(self, name: Name, keys: slice) -> bool:
        """Is a block of these keys to be made without the rest?"""
        return self._large(name) and 2 * (keys.stop - keys.start) <= self._tensors["k"].shape[2]

    def _part(self, name: Name, pair: str, at: tuple[slice, slice]) -> Float[Tensor, "each heads queries keys"]:
        """A block as the network has it, made of some queries at a time; the way back makes them again."""
        parts = self._parts.setdefault(name, {})
        if pair not in parts:
            q, k, mask = self.get("q", name)[..., at[0], :], self._reads("k", name), self._masked(name)
            if mask is not None and mask.shape[-2] > 1:
                mask = mask[..., at[0], :]
            each = max(1, memory.BUDGET // (q.shape[0] * q.shape[1] * k.shape[2]))
            again = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)

            def some(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
                return self._scaled(q, k, mask).softmax(-1)[..., at[1]].clone()

            made = []
            for first in range(0, q.shape[2], each):
                here = slice(first, first + each)
                given = q[..., here, :], k, mask if mask is None or mask.shape[-2] == 1 else mask[..., here, :]
                made.append(
                    checkpoint(some, *given, use_reentrant=False, preserve_rng_state=False) if again else some(*given)
                )
            parts[pair] = torch.cat(made, 2)
        return parts[pair]

    def mean(self, name: Name, pair: str) -> Float[Tensor, "each queries keys"]:
        """``block`` averaged over heads, in float32; a head after the other where all would take much memory."""
        heads, mask = self._tensors["q"].shape[1], self._kernel.get("attn_mask")
        if name in self._blocks or not self._large(name):
            return self.block(name, pair).float().mean(1)
        total: Tensor | None = None
        for head in range(heads):
            one = slice(head, head + 1)
            kernel = dict(self._kernel)
            if mask is not None and mask.ndim == 4 and mask.shape[1] == heads:
                kernel["attn_mask"] = mask[:, one]
            tensors = {key: value[:, one] for key, value in self._tensors.items()}
            call = Call(self.site, self.rows, self.grid, self.step, tensors, **kernel)
            call._shared = {n: by.of_heads(one) for n, by in self._shared.items()}
            part = call.block(name, pair)[:, 0].float()
            total = part if total is None else total + part if part.requires_grad else total.add_(part)
        assert total is not None
        return total / heads

    def set_block(self, name: Name, pair: str, value: Float[Tensor, "each heads queries keys"]) -> None:
        """Write the probabilities from one segment to another; the rest of a row stays as it is."""
        at = self._at(name, pair)
        if at is None:
            return self.set_probs(name, value)
        if self._apart(name, at[1]):
            self._part(name, pair, at)
            self._blocks.setdefault(name, {})[pair] = value
            self.writes += 1
            return
        probs = self.probs(name).clone()
        probs[..., at[0], at[1]] = value
        self.set_probs(name, probs)

    def output(self) -> Float[Tensor, "rows heads queries dim"]:
        return self._of("out")

    def _attend(self) -> Tensor:
        q, k, v = (self._tensors[n] for n in "qkv")
        if not (self._written or self._shared or self._blocks or self._given):
            return FUSED(q, k, v, **self._kernel)
        parts: dict[Name, Tensor] = {n: self.probs(n).to(v) @ self._reads("v", n) for n in self._written}
        parts |= self._given
        rows = torch.arange(self.rows.each)
        parts |= {n: self._across(n, by, rows) for n, by in self._shared.items() if n not in parts}
        fused = [n for n in self.rows.names if n not in parts]
        if fused:
            at = torch.cat([torch.arange(self.rows[n].start, self.rows[n].stop) for n in fused]).to(q.device)
            mask = self._kernel.get("attn_mask")
            if mask is not None and mask.ndim == 4 and mask.shape[0] == len(self.rows):
                mask = mask[at]
            out = FUSED(q[at], k[at], v[at], **{**self._kernel, "attn_mask": mask})
            parts |= dict(zip(fused, out.split(self.rows.each), strict=True))
        for n in self._blocks:
            parts[n] = self._rewritten(n, parts[n])
        return torch.cat([parts[n] for n in self.rows.names])

    def _rewritten(self, name: Name, out: Float[Tensor, "each heads queries dim"]) -> Tensor:
        """With what was written to blocks of few keys in place of what they were."""
        v = self._reads("v", name)
        for pair, value in self._blocks[name].items():
            at = self._at(name, pair)
            assert at is not None
            change = (value - self._parts[name][pair]) @ fine(v[:, :, at[1]])
            out = out + F.pad(change, (0, 0, at[0].start, out.shape[2] - at[0].stop)).to(out)
        return out

    def _across(
        self, name: Name, by: _Shared, some: Tensor, queries: slice = slice(None)
    ) -> Float[Tensor, "n heads queries dim"]:
        """Of rows that read others. What all of them read alike exists once; else a few rows are joined at a time."""
        some = some.to(self._tensors["q"].device)
        q = self.get("q", name)[some][..., queries, :]
        if by.alike and self.site.key == ("image",) and self._kernel.get("attn_mask") is None:
            k, v, mask = (f(some[:1]) for f in self._read_by(name, by))
            out = FUSED(q.transpose(0, 1).flatten(1, 2)[None], k, v, **{**self._kernel, "attn_mask": mask})
            return out[0].unflatten(1, (len(q), -1)).transpose(0, 1)
        numbers = 2 * by.sources.shape[1] * self.get("k", name)[0].numel()
        out = []
        for few, at in zip(memory.chunks(q, numbers), memory.chunks(some, numbers), strict=True):
            k, v, mask = (f(at) for f in self._read_by(name, by))
            out.append(FUSED(few, k, v, **{**self._kernel, "attn_mask": mask}))
        return torch.cat(out)

    def _read_by(self, name: Name, by: _Shared) -> tuple[Callable[[Tensor], Any], ...]:
        """Keys, values and mask of rows."""
        return (
            lambda at: self._reads("k", name, at, by),
            lambda at: self._reads("v", name, at, by),
            lambda at: self._masked(name, at, by),
        )


@dataclass(frozen=True, eq=False)
class _Shared:
    """Whose image keys and values each row of a group reads, and what is added to their logits."""

    sources: Int[Tensor, "each m"]
    bias: Float[Tensor, "each keys"] | None = None
    scale: Float[Tensor, "each m"] | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the image's keys, values and mask, rows behind the group's own: of images that went before."""

    def of_heads(self, some: slice) -> _Shared:
        return replace(self, more={k: x[:, some] if x.shape[1] > 1 else x for k, x in self.more.items()})

    @property
    def alike(self) -> bool:
        """Do all rows read the same?"""
        return all(x is None or bool((x == x[:1]).all()) for x in (self.sources, self.bias, self.scale))

    def joined(
        self,
        x: Tensor,
        image: slice,
        some: Tensor | slice,
        scale: Tensor | None = None,
        more: Tensor | None = None,
    ) -> Tensor:
        """What belongs to keys, (each, heads, keys, ...), as these rows read it: the image's of their sources."""
        own, sources = x[some], self.sources.to(x.device)[some]
        rows = x[:, :, image] if more is None else torch.cat([x[:, :, image], more])
        read = rows[sources]
        if scale is not None:
            read = read * scale.to(x)[some][:, :, None, None, None]
        read = read.transpose(1, 2).flatten(2, 3)
        before, behind = own[:, :, : image.start], own[:, :, image.stop :]
        return torch.cat([before, read, behind], 2) if before.numel() or behind.numel() else read

    def mask(self, mask: Tensor | None, keys: Tensor, image: slice, some: Tensor | slice) -> Tensor | None:
        if mask is not None:
            mask = self.joined(_by_key(mask, keys), image, some, more=self.more.get("mask")).movedim(2, -1)
        if self.bias is None:
            return mask
        bias = F.pad(self.bias.to(keys)[some], (image.start, keys.shape[-2] - image.stop))[:, None, None]
        if mask is None:
            return bias
        return torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else mask + bias


def _by_key(mask: Tensor, keys: Tensor) -> Tensor:
    """A mask of keys of each row: (each, heads or 1, keys, queries or 1)."""
    while mask.ndim < 4:
        mask = mask[None]
    return mask.expand(len(keys), *mask.shape[1:-1], keys.shape[-2]).movedim(-1, 2)


def fine(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
