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
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.attention import FUSED, Call
from sfumato.core.conditions import Texts
from sfumato.core.features import Activation
from sfumato.core.rows import Rows
from sfumato.core.sites import Grid, Layer, Site
from sfumato.errors import SfumatoError

Handler = Callable[[Any], None]  # of a site's Call or a layer's Activation


class _Local(threading.local):
    waiting: Callable[..., Tensor] | None = None
    biased: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
    """Makes of queries, keys and mask the mask with the text's weights."""


_local = _Local()
_lock = threading.Lock()
_users = 0


def _seam(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    attend, biased = _local.waiting or FUSED, _local.biased
    # the site's attention is the first call; what follows (IP-Adapter's images) is not
    _local.waiting = _local.biased = None
    mask = attn_mask if biased is None else biased(query, key, attn_mask)
    return attend(query, key, value, mask, *args, **kwargs)


@contextmanager
def _open_seam(network: nn.Module, instead: str) -> Iterator[list[Any]]:
    """The seam in the kernel's place while the block runs; gives a list of hooks that are removed with it.

    No layer is checkpointed meanwhile: what gradients compute a second time would be neither tapped nor weighed.
    """
    global _users
    if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
        raise SfumatoError(f"attention of a compiled network cannot be {instead}; load the model with compile=False")
    hooks: list[Any] = []
    checkpointed: list[Any] = [m for m in network.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    with _lock:
        _users += 1
        F.scaled_dot_product_attention = _seam
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for module in checkpointed:
            module.gradient_checkpointing = True
        with _lock:
            _users -= 1
            if not _users:
                F.scaled_dot_product_attention = FUSED


def here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that acts in this thread alone: others may run the network meanwhile."""
    thread = threading.get_ident()

    @wraps(hook)
    def acting(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == thread else None

    return acting


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
                f"once (first: {missed[0].path}); a block cache skips them: call disable_cache() of the network"
            )


@contextmanager
def tapped(network: nn.Module, tap: Tap) -> Iterator[Tap]:
    """Set ``tap`` while the block runs; nothing is left behind, also after an exception.

    Raises ``SfumatoError`` for a compiled network and for a site whose attention never reaches the seam.
    """
    with _open_seam(network, "tapped") as hooks:
        try:
            for site, handler in tap.handlers.items():
                module = network.get_submodule(site.path)
                tapping: Any = _at_site if isinstance(site, Site) else _at_layer
                hooks += tapping(module, site, handler, tap)
            yield tap
        finally:
            _local.waiting = None


@contextmanager
def weighed(network: nn.Module, sites: Sequence[Site], weights: Float[Tensor, "rows n"] | None) -> Iterator[None]:
    """While the block runs, tokens of the text count ``weights`` times as much wherever the network attends to them.

    log w is added to the logits of a token's key, so that its probability is proportional to w exp(logit); 0 takes it
    away. The kernel stays fused, and taps see it as they see a mask. None does nothing. Raises ``SfumatoError`` for a
    compiled network and for an attention that never reaches the seam.
    """
    if weights is None:
        yield
        return
    with _open_seam(network, "weighed") as hooks:
        try:
            for site in sites:
                if "text" in site.key:
                    hooks += _weighed_at(network.get_submodule(site.path), site, weights.log()[:, None, None])
            yield
        finally:
            _local.biased = None


@contextmanager
def read_apart(network: nn.Module, layers: Sequence[Layer], texts: Texts | None) -> Iterator[None]:
    """While the block runs, each layer that reads the text reads its own of ``texts``; None does nothing.

    What is tapped there sees and changes that. Raises ``SfumatoError`` where there are not as many layers as texts.
    """
    if texts is None:
        yield
        return
    readers = [layer for layer in layers if layer.kind == "text"]
    if len(readers) != texts.keys.shape[1]:
        raise SfumatoError(
            f"{type(network).__name__} reads the text in {len(readers)} layers, and these texts are of "
            f"{texts.keys.shape[1]}; take a word that was learned with a model of this kind"
        )
    hooks: list[Any] = []
    try:
        for i, layer in enumerate(readers):
            module: Any = network.get_submodule(layer.path)
            hooks.append(_given(module, "encoder_hidden_states", texts.keys[:, i]))
            if texts.values is not None:
                hooks.append(_given(module.to_v, None, texts.values[:, i]))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _given(module: nn.Module, name: str | None, own: Float[Tensor, "b n d"]) -> Any:
    """A module is given this as its input of a name, or as its first; before all that is tapped there."""

    def placed(given: Any) -> Any:
        if isinstance(given, tuple):  # the text, and the images of IP-Adapters
            return (placed(given[0]), *given[1:])
        return own.to(given).repeat_interleave(len(given) // len(own), 0)  # a clip's text once a frame

    def before(m: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if name is None:
            return (placed(args[0]), *args[1:]), named
        return args, {**named, name: placed(named[name])}

    return module.register_forward_pre_hook(here(before), with_kwargs=True, prepend=True)


def _weighed_at(module: nn.Module, site: Site, bias: Float[Tensor, "rows 1 1 n"]) -> Sequence[Any]:
    def biased(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        image = key.shape[-2] - bias.shape[-1]
        if len(bias) != len(query) or image < 0 or (image and len(site.key) == 1):
            raise SfumatoError(
                f"{site.path} attends from {len(query)} rows to {key.shape[-2]} tokens, and the weights are of "
                f"{len(bias)} rows of {bias.shape[-1]}; leave the weights out of these prompts"
            )
        around = (0, image) if site.key[0] == "text" else (image, 0)
        added = F.pad(bias, around).to(query)
        if mask is None:
            return added
        return torch.where(mask, added, -torch.inf) if mask.dtype == torch.bool else added + mask

    def before(*_: Any) -> None:
        _local.biased = biased

    def after(*_: Any) -> None:
        if _local.biased is biased:
            _local.biased = None
            raise _unreached(module, site, "weighed")

    return module.register_forward_pre_hook(here(before)), module.register_forward_hook(here(after))


def _unreached(module: nn.Module, site: Site, what: str) -> SfumatoError:
    processor = type(getattr(module, "processor", module)).__name__
    return SfumatoError(
        f"the attention at {site.path} never reached scaled_dot_product_attention (processor {processor}), so "
        f"it cannot be {what}; call set_attn_processor({_fused(module, site)}()) of its network, or "
        "pipe.disable_attention_slicing()"
    )


def _fused(module: Any, site: Site) -> str:
    """diffusers' processor that reaches the seam at a site."""
    if own := getattr(module, "_default_processor_cls", None):
        return own.__name__
    if module.added_kv_proj_dim is None:
        return "AttnProcessor2_0"
    return "JointAttnProcessor2_0" if "text" in site.query else "AttnAddedKVProcessor2_0"


def _at_site(module: nn.Module, site: Site, handler: Callable[[Call], None], tap: Tap) -> Sequence[Any]:
    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **kernel: Any) -> Tensor:
        assert tap.rows is not None
        if args:
            kernel |= dict(zip(("dropout_p", "is_causal", "scale"), args, strict=False))
        rows = tap.rows
        if site.axis == "time":  # places of a clip, or several windows of frames at each
            rows = rows.over_time(q.shape[0] * rows.frames // len(rows))
        if q.shape[0] != len(rows):
            raise SfumatoError(f"{site.path} ran {q.shape[0]} rows, the batch has {len(rows)}")
        tensors = {"q": q, "k": k, "v": v}
        call = Call(site, rows, site.grid(tap.grid), tap.step, tensors, attn_mask=attn_mask, **kernel)
        handler(call)
        tap.count(site)
        return call.output()

    def before(*_: Any) -> None:
        if tap.active(site):
            _local.waiting = attend

    def after(*_: Any) -> None:
        if _local.waiting is attend:
            _local.waiting = None
            raise _unreached(module, site, "tapped")

    return module.register_forward_pre_hook(here(before)), module.register_forward_hook(here(after))


def _at_layer(module: nn.Module, layer: Layer, handler: Callable[[Any], None], tap: Tap) -> Sequence[Any]:
    """Let ``handler`` see and change the feature of a ``Layer`` while ``tap`` is active there."""

    def seen(whole: Tensor) -> Tensor:
        assert tap.rows is not None
        activation = Activation(layer, tap.rows, layer.grid(tap.grid), tap.step, whole)
        handler(activation)
        tap.count(layer)
        return activation.value

    if layer.kind in ("residual", "hidden"):

        def after(m: nn.Module, args: Any, out: Any) -> Any:
            if not tap.active(layer):
                return None
            return (seen(out[0]), *out[1:]) if isinstance(out, tuple) else seen(out)  # a transformer gives a tuple

        return [module.register_forward_hook(here(after))]

    def before(m: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if not tap.active(layer):
            return None
        if layer.kind == "text":
            return args, {**named, "encoder_hidden_states": seen(named["encoder_hidden_states"])}
        changed = _of_image(args[0] if args else named["hidden_states"], layer.grid(tap.grid), seen)
        return ((changed, *args[1:]), named) if args else (args, {**named, "hidden_states": changed})

    return [module.register_forward_pre_hook(here(before), with_kwargs=True)]


def _of_image(
    given: Tensor, grid: Grid, change: Callable[[Float[Tensor, "rows n d"]], Float[Tensor, "rows n d"]]
) -> Tensor:
    """``change`` of the image's tokens, in whichever form an attention gets them."""
    if given.ndim == 4:  # DeepFloyd IF: a feature map
        return change(given.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(given)
    text = given.shape[1] - grid[0] * grid[1]
    if not text:
        return change(given)
    inside = given[:, text:]  # Flux's single blocks: the text's tokens lie before the image's
    changed = change(inside)
    if changed is inside:
        return given
    out = given.clone()
    out[:, text:] = changed
    return out
