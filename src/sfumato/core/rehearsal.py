"""What the taps of a prediction take of memory, found by running them on tensors that have shapes and no numbers."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, _refs
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sfumato.core.attention import FUSED, Call
from sfumato.core.features import Activation
from sfumato.core.method import Run
from sfumato.core.rows import Rows
from sfumato.core.sites import Grid, Layer, Site
from sfumato.core.taps import Handler
from sfumato.io.sparing import when_compiling


@cache
def _uncompiled() -> None:
    """Let sums and products of tensors without numbers, which torch keeps from its compiler, not import that."""
    if "torch._dynamo" in sys.modules:
        return
    for function in vars(_refs).values():
        while isinstance(function, FunctionType):
            free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
            inner = free["fn"].cell_contents if "fn" in free else None
            if function.__globals__["__name__"] == "torch._compile" and isinstance(inner, FunctionType):
                setattr(inner, _DISABLED, inner)  # what torch looks up, or else makes and keeps
                when_compiling(vars(inner).pop, _DISABLED, None)
            function = inner


_DISABLED = "__dynamo_disable"


class _Live(TorchDispatchMode):
    """Bytes of the tensors that were made while it is on and still exist.

    What meets a tensor without numbers is taken for one as well: masks and weights of the methods' own.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip torch's compiler it would have to be imported first: two seconds

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, kwargs = _tensors((args, kwargs)), kwargs or {}
        if any(x.is_meta for x in given) and not all(x.is_meta for x in given):
            args, kwargs = tree_map_only(Tensor, _shape, (args, kwargs))
        out = func(*args, **kwargs)
        old = {_storage(x) for x in given}
        for made in _tensors(out):
            if _storage(made) not in self._seen | old:
                self._add(made)
        return out

    def _add(self, made: Tensor) -> None:
        storage, key = made.untyped_storage(), _storage(made)
        self._seen.add(key)
        weakref.finalize(storage, self._freed, key, storage.nbytes()).atexit = False
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _shape(x: Tensor) -> Tensor:
    return x if x.is_meta else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


class _Kernel(torch.autograd.Function):
    """What the fused kernel allocates, and what it keeps for the way back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, out, _sums(q))
        return out


def _sums(q: Tensor) -> Tensor:
    return torch.empty(q.shape[:-1], device=q.device)


class _Sampled(torch.autograd.Function):
    """What sampling at places allocates, and what it keeps for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, places)
        return x.new_empty(*x.shape[:2], *places.shape[1:-1], device="meta")


class _Fused(TorchFunctionMode):
    """Kernels that are one operation as one: on tensors without numbers torch would take them apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is FUSED:
            return _Kernel.apply(*args[:3])
        if func is F.grid_sample and any(x.is_meta for x in args[:2]):
            return _Sampled.apply(*args[:2])
        return func(*args, **kwargs or {})


def peak(
    taps: Sequence[tuple[Site | Layer, Handler]], run: Run, rows: Rows, step: int, grad: bool, stop: bool = False
) -> int:
    """Bytes that the taps of one prediction of these rows take at most, within any of them: see ``Plan.bytes``.

    ``taps`` are what is tapped with its handler, in the order in which they run. With ``grad`` what the way back needs
    is kept. With ``stop`` the prediction ends at the last. Of several with the same handler and shapes two are
    rehearsed: the later ones do as the second does. Raises what a handler does that needs numbers.
    """
    _uncompiled()
    most = left = 0
    passed: list[Tensor] = []
    seen: dict[Any, list[tuple[int, int]]] = {}
    with torch.set_grad_enabled(grad), _Fused(), _Live() as live:
        for n, (what, handler) in enumerate(taps):
            last = stop and n == len(taps) - 1
            alike = seen.setdefault((handler, replace(what, path="", index=0, stage=""), last), [])
            if len(alike) < 2:
                before = live.now
                tensors = _given(what, run, rows)
                start = live.most = live.now
                out = _tapped(what, handler, rows, run.grid, step, tensors, last)
                made = live.most - start
                if grad:  # the network goes on with the output, and keeps what it was made of
                    kernel = 0 if isinstance(what, Layer) or out is None else out.nbytes + _sums(tensors["q"]).nbytes
                    before += sum(x.nbytes for x in tensors.values()) + kernel
                    passed += [] if out is None else [out]
                del tensors, out
                alike.append((made, live.now - before))
            made, kept = alike[-1]
            most, left = max(most, left + made), left + kept
    return most


def _given(what: Site | Layer, run: Run, rows: Rows) -> dict[str, Tensor]:
    """What the network has at a site or layer."""
    dtype, (height, width) = run.model.dtype, what.grid(run.grid)
    tokens = {"image": height * width, "text": run.model.text_tokens}
    if what.axis == "time":
        tokens["image"], rows = rows.frames, rows.over_time(height * width)

    def empty(*shape: int, of: Sequence[str]) -> Tensor:
        needs = torch.is_grad_enabled() and tuple(of) != ("text",)  # gradients are taken by the latents
        return torch.empty(len(rows), *shape, device="meta", dtype=dtype, requires_grad=needs)

    if isinstance(what, Layer):
        of = ("text" if what.kind == "text" else "image",)
        if what.kind in ("tokens", "text"):
            return {"whole": empty(tokens[of[0]], what.width, of=of)}
        return {"whole": empty(what.width, height, width, of=of)}
    out = {}
    for which, of in zip("qkv", (what.query, what.key, what.key), strict=True):
        n = sum(tokens[segment] for segment in of)
        if len(of) > 1:  # segments are put one behind the other, which puts the heads first in memory
            out[which] = empty(what.heads, n, what.dim, of=of)
        else:
            out[which] = empty(n, what.heads, what.dim, of=of).transpose(1, 2)
    return out


def _tapped(
    what: Site | Layer,
    handler: Handler,
    rows: Rows,
    grid: Grid,
    step: int,
    tensors: dict[str, Tensor],
    last: bool,
) -> Tensor | None:
    """What the network goes on with."""
    if isinstance(what, Layer):
        activation = Activation(what, rows, what.grid(grid), step, tensors["whole"])
        handler(activation)
        return activation.value
    mask = None
    if what.masked:
        mask = torch.empty(len(rows), what.heads, 1, tensors["k"].shape[2], device="meta", dtype=tensors["k"].dtype)
    if what.axis == "time":
        height, width = what.grid(grid)
        rows = rows.over_time(height * width)
    call = Call(what, rows, what.grid(grid), step, tensors, attn_mask=mask)
    handler(call)
    return None if last else call.output()
