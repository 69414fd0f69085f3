"""What a network holds between its attention calls: what a ResNet adds, what flows on, the tokens an attention reads.

A ``Layer`` is to a feature what a ``Site`` is to an attention call, and is tapped with them (``sfumato.attention``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from sfumato.rows import Name, Rows

if TYPE_CHECKING:
    from sfumato.attention import Grid, Site, Tap

Kind = Literal["residual", "hidden", "tokens"]


@dataclass(frozen=True)
class Layer:
    """One feature of a network."""

    path: str
    """Of the module that gives it (``residual``, ``hidden``) or reads it (``tokens``)."""
    index: int
    """Its place among the layers of its kind, in the order in which they run; of ``tokens`` its attention's index."""
    stage: str
    """As of a ``Site``."""
    kind: Kind
    """``residual``: what a ResNet adds to its shortcut, the output of its last convolution. ``hidden``: what flows on
    behind each ResNet with its transformer, and behind each change of resolution. ``tokens``: what an attention's
    queries are made of, of the image alone."""
    scale: int
    """Side in cells of the latents."""
    width: int
    """Channels."""

    @property
    def pairs(self) -> tuple[str, ...]:
        """By what name methods ask for it."""
        return (self.kind,)

    def grid(self, latents: Grid) -> Grid:
        """Rows and columns, for latents of this height and width."""
        return -(-latents[0] // self.scale), -(-latents[1] // self.scale)


class Activation:
    """One feature as a method sees it, its rows by name: (rows, n, d) of tokens, else (rows, c, h, w)."""

    def __init__(self, layer: Layer, rows: Rows, grid: Grid, step: int, whole: Tensor):
        self.site, self.rows, self.grid, self.step = layer, rows, grid, step
        self.value = whole
        self._owned = False

    @property
    def layer(self) -> Layer:
        return self.site

    def get(self, name: Name) -> Tensor:
        """Of a group of rows."""
        return self.value[self.rows[name]]

    def set(self, name: Name, value: Tensor) -> None:
        """Replace a group's; the others keep theirs."""
        if not self._owned:  # the network's own tensor is not written to
            self.value, self._owned = self.value.clone(), True
        self.value[self.rows[name]] = value


def token_layers(sites: Sequence[Site], network: nn.Module) -> tuple[Layer, ...]:
    """What self-attention and joint attention read."""
    modules = dict(network.named_modules()) if sites else {}
    return tuple(
        Layer(s.path, s.index, s.stage, "tokens", s.scale, modules[s.path].to_q.in_features)  # pyright: ignore
        for s in sites
        if "image" in s.query and "image" in s.key
    )


def hooks(module: nn.Module, layer: Any, handler: Callable[[Any], None], tap: Tap) -> Sequence[Any]:
    """Let ``handler`` see and change the feature of a ``Layer`` while ``tap`` is active there."""

    def seen(whole: Tensor) -> Tensor:
        assert tap.rows is not None
        activation = Activation(layer, tap.rows, layer.grid(tap.grid), tap.step, whole)
        handler(activation)
        tap.count(layer)
        return activation.value

    if layer.kind != "tokens":

        def after(m: nn.Module, args: Any, out: Any) -> Any:
            if not tap.active(layer):
                return None
            return (seen(out[0]), *out[1:]) if isinstance(out, tuple) else seen(out)  # a transformer gives a tuple

        return [module.register_forward_hook(after)]

    def before(m: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if not tap.active(layer):
            return None
        changed = _of_image(args[0] if args else named["hidden_states"], layer.grid(tap.grid), seen)
        return ((changed, *args[1:]), named) if args else (args, {**named, "hidden_states": changed})

    return [module.register_forward_pre_hook(before, with_kwargs=True)]


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
