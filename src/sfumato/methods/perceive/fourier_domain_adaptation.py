"""Fourier domain adaptation (Yang and Soatto 2020, arXiv 2004.05498): an image takes another's colours and light.

What differs between two kinds of pictures of the same things, such as renders and photographs, is mostly in the
amplitudes of their lowest frequencies. These are taken from the target; the source keeps its phases and all other
amplitudes. So its shapes stay, and a network trained on such images works better on pictures of the target's kind.

The lowest are those up to ``beta`` times each side, in both directions, so that the result is real. The authors' code
takes them up to ``beta`` times the shorter side, 0.1 unless said otherwise; its version in torch leaves out the last
row and column, which is not symmetric. On square images its version in numpy is the same as this.

Needs: nothing; it is a function of images, and an augmentation for training.

Families: it does not use a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.settings import Between, Part, Settings
from sfumato.errors import SfumatoError
from sfumato.reading.reader import resized

BETAS = (0.01, 0.05, 0.09)
"""The paper's, whose three networks vote in the end (multi-band transfer)."""
CODE = 0.1
"""What the authors' code takes unless told otherwise."""


def fourier_domain_adaptation(
    source: Float[Tensor, "*b c h w"], target: Float[Tensor, "*b c H W"], beta: float = 0.01
) -> Float[Tensor, "*b c h w"]:
    """The source with the target's low frequencies. A target of another size is resized.

    Values may leave the range of the images (by little); a picture needs a ``clamp(0, 1)``.
    """
    if not 0 <= beta <= 0.5:
        raise SfumatoError(f"beta is a part of the sides from 0 to 0.5, got {beta}")
    if source.shape[:-2] != target.shape[:-2]:
        raise SfumatoError(f"each source has a target with as many channels; got {source.shape} and {target.shape}")
    h, w = source.shape[-2:]
    if target.shape[-2:] != source.shape[-2:]:
        target = resized(target.reshape(-1, *target.shape[-3:]), (h, w)).reshape(source.shape)
    spectrum, other = torch.fft.rfft2(source.float()), torch.fft.rfft2(target.float())
    rows, columns = (torch.fft.fftfreq(n, 1 / n).to(source.device).abs() for n in (h, w))
    low = (rows <= int(beta * h))[:, None] & (columns <= int(beta * w))[: w // 2 + 1]
    amplitude = torch.where(low, other.abs(), spectrum.abs())
    return torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), (h, w)).to(source)


@dataclass(frozen=True)
class FourierAugmentation(Settings):
    """Gives each image of a batch the low frequencies of one of the targets, for training."""

    betas: tuple[Annotated[float, Between(0, 0.5)], Annotated[float, Between(0, 0.5)]] = (0.01, 0.09)
    """How much of the spectrum, from and to; drawn for each image."""
    chance: Part = 1.0
    """Of an image to be changed at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.betas[0] > self.betas[1]:
            raise SfumatoError(f"betas go upwards, got {self.betas}")

    def __call__(
        self, images: Float[Tensor, "b c h w"], targets: Float[Tensor, "n c H W"], generator: torch.Generator
    ) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1], as they were. The generator alone decides which target each gets, and how much of it."""
        low, high = self.betas
        out = []
        for image in images:
            luck, beta, which = torch.rand(3, generator=generator).tolist()
            target = targets[int(which * len(targets))]
            changed = fourier_domain_adaptation(image, target, low + beta * (high - low)).clamp(0, 1)
            out.append(changed if luck < self.chance else image)
        return torch.stack(out)


def entropy_loss(logits: Float[Tensor, "b k *shape"], eta: float = 2.0, eps: float = 1e-3) -> Float[Tensor, ""]:
    """How unsure a network is on images without labels: the entropy of each place under a Charbonnier penalty.

    (x^2 + eps^2)^eta, a mean over places. Above eta = 0.5 what is quite unsure weighs more, and what is nearly sure
    less, than by the entropy itself. The authors' code first divides the entropy by the logarithm of how many classes.
    """
    logs = logits.float().log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1)
    return (entropy.square() + eps**2).pow(eta).mean()
