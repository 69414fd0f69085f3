"""The Gaussian blur against its formula, at every border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rounding import assert_same_but_for_rounding
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sfumato.ops.blur import blur


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("border", ["replicate", "reflect", "symmetric"])
@pytest.mark.parametrize("radius", [None, 1, 4])
def test_of_an_impulse_it_is_the_kernel(border, radius):
    dot = torch.zeros(2, 21, 17)
    dot[:, 10, 8] = 1.0
    reach = radius or 5
    line = (-0.5 * (torch.arange(-reach, reach + 1) / 1.6).square()).exp()
    kernel = line[:, None] * line / line.sum() ** 2
    wanted = torch.zeros(2, 21, 17)
    wanted[:, 10 - reach : 11 + reach, 8 - reach : 9 + reach] = kernel
    assert_same_but_for_rounding(blur(dot, 1.6, radius, border), wanted)


@pytest.mark.parametrize(
    ("border", "theirs"), [("replicate", "nearest"), ("reflect", "mirror"), ("symmetric", "reflect")]
)
@pytest.mark.parametrize("shape", [(9, 12), (8, 8), (1, 5)])
def test_beyond_the_borders_it_is_scipys(border, theirs, shape):
    x = noise(*shape).double()
    reach = [min(3, side // 2) for side in shape]
    wanted = gaussian_filter(x.numpy(), 1.1, mode=theirs, radius=reach)
    np.testing.assert_allclose(blur(x, 1.1, 3, border).numpy(), wanted, atol=1e-12)


def test_blur_keeps_constants_and_the_mean_of_what_is_far_from_the_border():
    torch.testing.assert_close(blur(torch.full((1, 2, 9, 9), 0.3), 2.0), torch.full((1, 2, 9, 9), 0.3))
    dot = torch.zeros(1, 1, 41, 41)
    dot[..., 20, 20] = 1.0
    out = blur(dot, 3.0)
    assert out.sum() == pytest.approx(1, abs=1e-4)
    at = torch.arange(41) - 20.0
    assert float((out[0, 0].sum(0) * at**2).sum()) == pytest.approx(9, rel=0.05)


def test_without_a_deviation_nothing_is_blurred_and_gradients_pass():
    x = noise(1, 4, 5).requires_grad_()
    assert blur(x, 0.0) is x
    (gradient,) = torch.autograd.grad(blur(x, 1.0)[0, 2, 2], x)
    dot = torch.zeros(1, 4, 5)
    dot[0, 2, 2] = 1.0
    assert float(gradient.sum()) == pytest.approx(1.0) and gradient[0, 2, 2] == gradient.max()


def reflected(x: Tensor, sigma: float = 1.0) -> Tensor:
    return blur(x, sigma, int(3 * sigma), "reflect")


def test_sides_have_kernels_of_their_own():
    """A picture that is the same in each column stays so, and a strip is blurred as a line."""
    line = noise(1, 6)
    wide = reflected(line[..., None, :].expand(1, 4, 6))
    torch.testing.assert_close(wide, reflected(line[..., None, :]).expand(1, 4, 6), atol=1e-5, rtol=1e-5)
    tall = reflected(line[..., None].expand(1, 6, 4))
    torch.testing.assert_close(tall, wide.transpose(-1, -2), atol=1e-5, rtol=1e-5)
    assert torch.equal(reflected(torch.ones(1, 1, 1), 2.0), torch.ones(1, 1, 1))
