"""FreeInit (Wu et al. 2023, arXiv 2312.07537): begin again with the low frequencies of what a clip became.

A model of clips was trained from noise in which slow changes of the data are still to be seen, and is run from noise
without any, so what it paints flickers. After a run its clip is noised again with the very noise it began with, and
what of that changes slowly, over the picture and over time, takes the place of the same part of new noise: the next run
starts from it.

Needs: clips of several frames; nothing is tapped, and each further iteration is a whole run.

Defaults are the authors': 3 iterations (the first is the plain run), a Butterworth filter of order 4 that stops at a
quarter of the highest frequency in space and in time. Their coarse-to-fine sampling, which runs early iterations with
fewer steps, is not here. Their ``ideal`` filter compares a squared distance with twice the stop; here it passes what
lies within the stop. Of an odd number of frames or cells theirs is beside its middle by a part of a frequency; here it
is in the middle. The filter is one formula over the whole grid, where the authors' code, and diffusers', runs through
its cells.

Families: models of clips, which are AnimateDiff and Stable Video Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, fft

from sfumato.core.method import Method, Phases, Requires, Run
from sfumato.core.schedule import add_noise
from sfumato.core.settings import Between, Count, Part

Filter = Literal["butterworth", "gaussian", "ideal"]
_CLIP = (-3, -2, -1)  # frames, rows, columns


@dataclass(frozen=True)
class FreeInit(Method):
    """FreeInit's parameters."""

    requires: ClassVar = Requires(clip=True)

    iterations: Annotated[int, Between(1, 100)] = 3
    """Runs in all; with 1 it is plain sampling."""
    filter: Filter = "butterworth"
    """How what is slow is told from what is not."""
    order: Count = 4
    """Of the Butterworth filter: the larger, the sharper it ends."""
    space: Part = 0.25
    """d_s: where the filter stops over the picture, 1 the highest frequency; 0 keeps nothing."""
    time: Part = 0.25
    """d_t: where it stops over the frames."""

    def start(self, run: Run) -> Phases:
        spread = 1.0 if run.levels is None else run.levels.spread
        noisiest = run.model.schedule.at(run.model.schedule.train_steps - 1)

        def again(passed: int, first: Tensor, last: Tensor, noise: Callable[[], Tensor]) -> Tensor | None:
            if passed + 1 >= self.iterations:
                return None
            slow = clips(add_noise(last, first / spread, noisiest), run.rows.frames)
            return spread * self.mixed(slow, clips(noise(), run.rows.frames)).transpose(1, 2).flatten(0, 1)

        return Phases(again=again)

    def mixed(self, slow: Float[Tensor, "b c f h w"], fast: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        """Low frequencies of one and high ones of the other (their eq. 6)."""
        low = self.low(slow.shape[2:]).to(slow.device)
        both = low * _spectrum(slow) + (1 - low) * _spectrum(fast)
        return fft.ifftn(fft.ifftshift(both, _CLIP), dim=_CLIP).real

    def low(self, shape: tuple[int, ...] | torch.Size) -> Float[Tensor, "f h w"]:
        """What part of each frequency counts as slow; the zero frequency is in the middle."""
        if not (self.space and self.time):
            return torch.zeros(tuple(shape))
        axes = [2 * fft.fftshift(fft.fftfreq(n, dtype=torch.float64)) for n in shape]
        t, y, x = torch.meshgrid(*axes, indexing="ij")
        square = (self.space / self.time * t) ** 2 + y**2 + x**2
        if self.filter == "butterworth":
            part = 1 / (1 + (square / self.space**2) ** self.order)
        elif self.filter == "gaussian":
            part = (-square / (2 * self.space**2)).exp()
        else:
            part = (square <= self.space**2).double()
        return part.float()


def _spectrum(x: Tensor) -> Tensor:
    return fft.fftshift(fft.fftn(x.float(), dim=_CLIP), _CLIP)


def clips(images: Float[Tensor, "n c h w"], frames: int) -> Float[Tensor, "b c f h w"]:
    """Frames that lie one after the other, as clips."""
    return images.unflatten(0, (-1, frames)).transpose(1, 2)
