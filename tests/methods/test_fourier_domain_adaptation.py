"""Laws of Fourier domain adaptation, and the published numpy version written again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.methods.perceive.fourier_domain_adaptation import (
    BETAS,
    CODE,
    FourierAugmentation,
    entropy_loss,
    fourier_domain_adaptation,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def two(h=24, w=24):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, h, w, generator=generator), torch.rand(2, 3, h, w, generator=generator)


def published(source, target, beta):
    """On shifted spectra: the square of frequencies from -b to b, and what is left of the imaginary part."""
    h, w = source.shape[-2:]
    ours, other = (np.fft.fftshift(np.fft.fft2(x.double().numpy()), (-2, -1)) for x in (source, target))
    up, left = math.floor(beta * h), math.floor(beta * w)
    rows = slice(max(0, h // 2 - up), h // 2 + up + 1)
    columns = slice(max(0, w // 2 - left), w // 2 + left + 1)
    amplitude = np.abs(ours)
    amplitude[..., rows, columns] = np.abs(other)[..., rows, columns]
    both = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(ours)), (-2, -1)))
    return torch.from_numpy(both.real).float(), float(np.abs(both.imag).max())


@pytest.mark.parametrize("size", [(24, 24), (25, 25), (24, 37), (33, 20)])
@pytest.mark.parametrize("beta", [0.0, *BETAS, CODE, 0.3])
def test_it_is_the_published_formula_and_real_before_anything_is_cut_off(size, beta):
    source, target = two(*size)
    wanted, imaginary = published(source, target, beta)
    assert imaginary < 1e-12
    torch.testing.assert_close(fourier_domain_adaptation(source, target, beta), wanted, **CLOSE)


def test_an_image_that_is_its_own_target_stays():
    source, _ = two(20, 31)
    for beta in (0.0, 0.1, 0.5):
        torch.testing.assert_close(fourier_domain_adaptation(source, source, beta), source, **CLOSE)


def test_low_amplitudes_are_the_targets_all_phases_the_sources():
    source, target = two()
    ours, other, out = (torch.fft.fft2(x.double()) for x in (source, target, fourier_domain_adaptation(*two(), 0.1)))
    near = torch.fft.fftfreq(24, 1 / 24).abs() <= 2
    low = near[:, None] & near
    torch.testing.assert_close(out.abs()[..., low], other.abs()[..., low], **CLOSE)
    torch.testing.assert_close(out.abs()[..., ~low], ours.abs()[..., ~low], **CLOSE)
    turned = (out * ours.conj()).imag / ours.abs()  # of the product's angle, without its jump at pi
    torch.testing.assert_close(turned, torch.zeros_like(turned), atol=1e-4, rtol=0)


def test_with_beta_zero_only_the_mean_colour_changes():
    source, target = two()
    moved = fourier_domain_adaptation(source, target, 0.0) - source
    wanted = (target.mean((2, 3)) - source.mean((2, 3)))[..., None, None]
    torch.testing.assert_close(moved, wanted.expand_as(moved), **CLOSE)


def test_a_target_of_another_size_is_resized_and_single_images_are_taken():
    source, target = two()
    large = torch.nn.functional.interpolate(target, (48, 60), mode="nearest")
    out = fourier_domain_adaptation(source, large, 0.05)
    assert out.shape == source.shape
    torch.testing.assert_close(fourier_domain_adaptation(source[0], large[0], 0.05), out[0], **CLOSE)


def test_the_generator_alone_decides_what_an_augmentation_draws():
    images, targets = two()
    augment = FourierAugmentation((0.01, 0.3))

    def drawn(seed, change=augment):
        return change(images, targets, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert drawn(1).amin() >= 0 and drawn(1).amax() <= 1
    assert torch.equal(drawn(1, FourierAugmentation(chance=0.0)), images)
    fixed = FourierAugmentation((0.1, 0.1))(images, targets[:1], torch.Generator())
    wanted = torch.stack([fourier_domain_adaptation(image, targets[0], 0.1) for image in images])
    torch.testing.assert_close(fixed, wanted.clamp(0, 1))


def test_the_entropy_loss_is_its_formula():
    logits = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(1)
    wanted = ((-(p * p.log()).sum(1)) ** 2 + 0.001**2) ** 2
    torch.testing.assert_close(entropy_loss(logits).double(), wanted.mean(), atol=1e-6, rtol=1e-5)
    sure = torch.tensor([[100.0, 0.0]])
    torch.testing.assert_close(entropy_loss(sure, eta=0.5), torch.tensor(0.001))
    torch.testing.assert_close(entropy_loss(torch.zeros(1, 2), eta=0.5), torch.tensor(math.hypot(math.log(2), 0.001)))


def test_what_it_cannot_do_is_said():
    source, target = two()
    with pytest.raises(SfumatoError, match="a part of the sides"):
        fourier_domain_adaptation(source, target, 0.6)
    with pytest.raises(SfumatoError, match="as many channels"):
        fourier_domain_adaptation(source, target[:, :1])
