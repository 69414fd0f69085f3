"""A low-rank copy of a frozen network (LoRA, Hu et al. 2021) that learns in a run what the run's images look like.

The model's own network stays as it is. What the copy is told beside text, such as a camera, is added to its network's
embedding of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.gradients import gradients
from sfumato.core.schedule import Level, add_noise
from sfumato.core.taps import here
from sfumato.distill.prior import Images, noises
from sfumato.errors import SfumatoError, finite
from sfumato.learning import adapters
from sfumato.learning.adapters import Pair
from sfumato.learning.annealing import between
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import Draws

TIMES = ("time_embedding", "time_text_embed.timestep_embedder", "adaln_single.emb.timestep_embedder")
"""Where UNets, joint transformers and PixArt embed the time: whatever is added there reaches every block."""
NUMBERS = 16
"""That say where an image was seen from: camera to world, 4 x 4."""
EVERY = between(0, 1)
"""Levels that it learns at."""

Told = Float[Tensor, "b 16"]


class LowRank:
    """A copy that says what noise it sees in images, and learns from them. ``low_rank`` makes one."""

    def __init__(self, model: Backbone, layers: Mapping[str, Pair], rate: float, rng: torch.Generator):
        self.model = model
        self._weights: dict[str, nn.Parameter] = {}
        for path, pair in layers.items():
            self._weights |= {f"{path}.down": pair.down, f"{path}.up": pair.up}
        modules = dict(model.network.named_modules())
        self._time: Any = next((modules[path] for path in TIMES if path in modules), None)
        self._embedding: Any = None if self._time is None else _embedding(self._time, rng, model.device)
        if self._embedding is not None:
            self._weights |= {f"embedding.{k}": v for k, v in self._embedding.named_parameters()}
        # threestudio's configs/prolificdreamer.yaml
        adam = torch.optim.AdamW(self._weights.values(), lr=rate, betas=(0.9, 0.99), eps=1e-15)
        self._optimisers = Optimisers(self._weights, adam)
        self.loss = float("nan")
        """Of what was learned last."""

    def noise(self, x: Images, at: Level, cond: Cond, camera: Told | None = None, guidance: float = 1.0) -> Images:
        """The noise that it sees in noisy images: u + s (c - u), where only c is told what there is to tell."""
        if guidance == 1:
            with self._on(camera):
                return noises(self.model, x, at, {"told": cond})["told"]
        if camera is None:
            raise SfumatoError(
                "guidance of the low-rank copy is by what it is told of each image; tell it (conditioned)"
            )
        with self._on(torch.cat([torch.zeros_like(camera), camera])):
            predicted = noises(self.model, x, at, {"blind": cond, "told": cond})
        return predicted["blind"] + guidance * (predicted["told"] - predicted["blind"])

    def learn(self, x: Images, cond: Cond, camera: Told | None, draws: Draws, dropout: float = 0.0) -> None:
        """Prepare a step towards these images, each noised to some level: ``step`` takes it.

        The loss is the mean square of the error in what the network itself predicts. ``dropout``: probability that an
        image is not told where it was seen from.
        """
        at = EVERY.draw(self.model.schedule, 0.0, len(x), draws)
        noise = draws.each(len(x), lambda rng: torch.randn(x.shape[1:], generator=rng)).to(x)
        kept = draws.each(len(x), lambda rng: torch.rand(1, generator=rng)) >= dropout
        target = self.model.schedule.prediction_of(x, noise, at)
        with torch.enable_grad(), self._on(None if camera is None else camera * kept.to(camera)):
            predicted = self.model.predict(add_noise(x, noise, at), at.t, cond)
            loss = (predicted - target).square().mean()
            # of the frozen weights no gradients are asked, so that none are left on them
            found = gradients(self.model, loss, list(self._weights.values()), allow_unused=True)
        finite(loss, "the loss of a low-rank copy", self.model.remedy)
        for weight, gradient in zip(self._weights.values(), found, strict=True):
            weight.grad = gradient
        self.loss = float(loss.detach())

    def step(self) -> None:
        self._optimisers.step()
        self._optimisers.zero_grad()

    def state(self) -> dict[str, Tensor]:
        moments = {":".join(k.rsplit(".", 1)): v for k, v in self._optimisers.moments().items()}
        return {k: v.detach() for k, v in self._weights.items()} | moments

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        for key, weight in self._weights.items():
            weight.copy_(state[key])
        self._optimisers.restore({k.replace(":", "."): v for k, v in state.items() if ":" in k})

    @contextmanager
    def _on(self, camera: Told | None) -> Iterator[None]:
        """The copy is told where its images are from while the block runs."""
        if camera is not None and self._time is None:
            raise SfumatoError(
                f"the network of {self.model.name} embeds its time in no known place, so that its copy cannot be told "
                "where images are from; leave conditioned out"
            )
        if camera is not None and camera.shape[1] != NUMBERS:
            raise SfumatoError(f"a camera is told as {NUMBERS} numbers an image, got {camera.shape[1]}")
        if camera is None:
            yield
            return
        added = self._embedding(camera.float())
        hook = self._time.register_forward_hook(here(lambda module, args, out: out + added.to(out)))
        try:
            yield
        finally:
            hook.remove()


def _embedding(time: Any, rng: torch.Generator, device: torch.device) -> nn.Module:
    """Two layers that bring what is told to the width of the time; the second starts at zero, silent."""
    width = time.linear_2.out_features
    with torch.random.fork_rng(devices=[]):
        first, second = nn.Linear(NUMBERS, width), nn.Linear(width, width)
    for values in first.parameters():  # as torch draws them
        values.data.copy_((2 * torch.rand(values.shape, generator=rng) - 1) * NUMBERS**-0.5)
    for values in second.parameters():
        values.data.zero_()
    return nn.Sequential(first, nn.SiLU(), second).to(device)


def numbered(n: int) -> Told:
    """Images told apart by their index: sines and cosines of it, as networks are told the time."""
    rates = torch.logspace(0, -4 + 8 / NUMBERS, NUMBERS // 2)
    phase = torch.arange(n)[:, None] * rates
    return torch.cat([phase.sin(), phase.cos()], 1)


@contextmanager
def low_rank(model: Backbone, rank: int, rate: float, seed: int) -> Iterator[LowRank]:
    """A low-rank copy of the model, at first equal to it, which shares the weights of its network.

    ``rate``: of its own AdamW. Raises ``SfumatoError`` for models that have no attention, are offloaded, or
    carry adapters that are switched off.
    """
    adapters.check(model)
    other, rng = copy(model), torch.Generator().manual_seed(seed)
    other.network, layers = adapters.low_rank(model.network, adapters.ATTENTION, rank, rng, model.name)
    yield LowRank(other, layers, rate, rng)
