"""Metrics against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from transformers import CLIPConfig, CLIPModel

from sfumato.errors import SfumatoError
from sfumato.metrics.clip import clip_features, clip_score, frechet, image_features, text_features
from sfumato.metrics.image import psnr, ssim


def _exactly(mean: np.ndarray, cov: np.ndarray, n: int = 400) -> torch.Tensor:
    """Points whose sample mean and unbiased covariance are just these."""
    x = np.random.default_rng(len(mean)).standard_normal((n, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return torch.from_numpy(white @ np.linalg.cholesky(cov).T + mean)


def test_psnr_of_a_constant_error_is_its_decibels():
    a = torch.rand(3, 3, 8, 8) * 0.5
    error = torch.tensor([0.1, 0.01, 0.25])
    got = psnr(a + error.view(3, 1, 1, 1), a)
    assert torch.allclose(got, -20 * error.log10(), atol=1e-4)
    assert psnr(a, a).tolist() == [math.inf] * 3


def test_psnr_within_a_mask_sees_nothing_else():
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[:, :, 0] = 0.1
    b[:, :, 1:] = 0.9
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0] = True
    got = psnr(a, b, mask)
    assert got[0] == pytest.approx(20.0, abs=1e-4)
    assert torch.isnan(got[1])
    with pytest.raises(SfumatoError, match="one shape"):
        psnr(a, b[:, :, :2])


def test_frechet_of_gaussians_that_commute_is_the_closed_form():
    mean, std_a, std_b = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5])
    a, b = _exactly(np.zeros(3), np.diag(std_a**2)), _exactly(mean, np.diag(std_b**2))
    assert frechet(a, b) == pytest.approx((mean**2).sum() + ((std_a - std_b) ** 2).sum(), rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


def test_frechet_of_any_gaussians_is_that_by_matrix_root():
    rng = np.random.default_rng(0)
    cov_a, cov_b = (m @ m.T + 0.1 * np.eye(6) for m in rng.standard_normal((2, 6, 6)))
    mean = rng.standard_normal(6)
    root = np.real(sqrtm(cov_a @ cov_b))
    expected = mean @ mean + np.trace(cov_a + cov_b - 2 * root)
    assert frechet(_exactly(np.zeros(6), cov_a), _exactly(mean, cov_b)) == pytest.approx(expected, rel=1e-8)


def test_frechet_with_fewer_images_than_features():
    a = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-6)
    assert frechet(a, a + 2) == pytest.approx(32 * 4, rel=1e-5)
    with pytest.raises(SfumatoError, match="two images"):
        frechet(a[:1], a)


class _Letters:
    """A stand-in for a tokenizer: a token a letter, all sentences padded to the longest."""

    def __call__(self, texts, **_):
        longest = max(map(len, texts)) + 1
        ids = torch.tensor([[ord(c) % 40 for c in t] + [49] + [0] * (longest - 1 - len(t)) for t in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = common | {"vocab_size": 50, "max_position_embeddings": 77, "eos_token_id": 49, "bos_token_id": 48}
    vision = common | {"image_size": 32, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


def test_clip_score_is_what_the_model_itself_calls_similar(model):
    images, words = torch.rand(3, 3, 32, 32), ["a red cube", "a blue duck", "b"]
    ids = _Letters()(words)["input_ids"]
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=images * 2 - 1)
    expected = out.logits_per_image.diagonal() / model.logit_scale.exp()
    assert torch.allclose(clip_score(images, words, model, _Letters()), expected, atol=1e-5)
    with pytest.raises(SfumatoError, match="3 images, 2 captions"):
        clip_score(images, words[:2], model, _Letters())


def test_features_do_not_depend_on_the_batch_and_images_are_resized(model):
    images = torch.rand(5, 3, 32, 32)
    assert torch.allclose(clip_features(images, model, batch=2), image_features(images, model), atol=1e-6)
    assert image_features(torch.rand(1, 3, 64, 64), model).shape == (1, 8)
    assert text_features(["abc"], model, _Letters()).requires_grad


def test_structural_similarity_is_the_published_formula():
    rng = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 15, 17, generator=rng)
    b = (a + 0.3 * torch.rand(a.shape, generator=rng)).clamp(0, 1)
    at = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(at[:, None].square() + at.square()) / 4.5)
    window /= window.sum()
    wanted = torch.zeros(2, 3, 5, 7, dtype=torch.float64)
    for y in range(5):
        for x in range(7):
            p, q = (i[..., y : y + 11, x : x + 11].double() for i in (a, b))
            mp, mq = (p * window).sum((2, 3)), (q * window).sum((2, 3))
            dp, dq = p - mp[..., None, None], q - mq[..., None, None]
            vp, vq, both = ((i * j * window).sum((2, 3)) for i, j in ((dp, dp), (dq, dq), (dp, dq)))
            one, two = 1e-4, 9e-4
            wanted[..., y, x] = (2 * mp * mq + one) * (2 * both + two) / ((mp**2 + mq**2 + one) * (vp + vq + two))
    torch.testing.assert_close(ssim(a, b), wanted.mean((1, 2, 3)).float())
    mask = torch.zeros(2, 15, 17, dtype=torch.bool)
    mask[:, 1:13, 2:13] = True
    torch.testing.assert_close(ssim(a, b, mask), wanted.mean(1)[:, 1:3, 2].mean(1).float())
    assert ssim(a, a).tolist() == [1, 1]
    with pytest.raises(SfumatoError, match="11 pixels"):
        ssim(a[..., :9], b[..., :9])
