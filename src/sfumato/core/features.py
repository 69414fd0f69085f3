"""What a network holds beside its attention calls, a ResNet's addition, what flows on, tokens, text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from sfumato.core.rows import Name, Rows
from sfumato.core.sites import Grid, Layer


class Activation:
    """One feature as a method sees it, its rows by name: (rows, n, d) of tokens and text, else (rows, c, h, w)."""

    def __init__(self, layer: Layer, rows: Rows, grid: Grid, step: int, whole: Tensor):
        self.site, self.rows, self.grid, self.step = layer, rows, grid, step
        self.value = whole
        self.writes = 0
        """How often anything was written."""

    @property
    def layer(self) -> Layer:
        return self.site

    def get(self, name: Name) -> Tensor:
        """Of a group of rows."""
        return self.value[self.rows[name]]

    def across(self, name: Name, here: Mapping[int, Tensor], wanted: Iterable[int]) -> dict[int, Tensor]:
        """As ``Call.across``."""
        group = self.rows.group
        return {n: here[n] for n in wanted} if group is None else group.across((self.site, name), here, wanted)

    def set(self, name: Name, value: Tensor) -> None:
        """Replace a group's; the others keep theirs."""
        if not self.writes:  # the network's own tensor is not written to
            self.value = self.value.clone()
        self.writes += 1
        self.value[self.rows[name]] = value
