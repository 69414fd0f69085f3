"""What the measures of a bench share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.bench.report import Comparison
from sfumato.core.backbone import Backbone
from sfumato.media import pictures
from sfumato.stilllife import weights
from sfumato.stilllife.oracle import Oracle

SEEDS = 2**40  # training draws from small seeds, a bench from this one on
ROUNDS = 5  # in which one time is compared with another


@dataclass
class Session:
    """Models, each loaded when it is first needed, and a place for what is to be looked at."""

    n: int
    seed: int
    device: torch.device
    out: Path | None = None
    methods: dict[str, dict[str, float]] = field(default_factory=dict)
    compared: dict[str, Comparison] = field(default_factory=dict)
    models: dict[str, Backbone] = field(default_factory=dict)

    def stream(self, *what: int) -> np.random.Generator:
        """A generator for one measure, the same whatever else is measured."""
        return np.random.default_rng((SEEDS + self.seed, *what))

    @cached_property
    def model(self) -> Backbone:
        return self.named("stilllife")

    def named(self, name: str) -> Backbone:
        """A model that ``load`` knows, loaded once."""
        if name not in self.models:
            self.models[name] = load(name, device=self.device)
        return self.models[name]

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle.load(device=self.device)

    @cached_property
    def clip(self) -> Any:
        return weights.module("clip").to(self.device)

    @cached_property
    def tokenizer(self) -> Any:
        return weights.tokenizer()

    def keep(self, what: str, images: Float[Tensor, "n 3 h w"], columns: int = 8) -> None:
        if self.out is not None:
            pictures.write(pictures.sheet(images, columns), self.out / f"{what}.png")

    def seconds(self, work: Callable[[], object]) -> float:
        """How long it takes, until the device has done it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def quickest(self, work: Callable[[], object]) -> float:
        """Seconds of the best of n, after one to warm up."""
        work()
        return min(self.seconds(work) for _ in range(self.n))

    def ratio(self, one: Callable[[], object], other: Callable[[], object]) -> float:
        """Median over interleaved runs of the time of one over that of the other, after one of each to warm up."""
        one()
        other()
        pairs = [(self.seconds(one), self.seconds(other)) for _ in range(ROUNDS)]
        return float(np.median([a for a, _ in pairs]) / np.median([b for _, b in pairs]))
