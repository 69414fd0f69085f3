"""What goes around is encoded and decoded without a seam, by every kind of VAE, attention in the middle included."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import families
import pytest
import torch
import torch.nn.functional as F

from sfumato.backbones import autoencoders
from sfumato.core.fusing import Canvas
from sfumato.core.results import decoded_around, encoded_around
from sfumato.core.views import Ring
from sfumato.ops.circular import around

BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "block_out_channels": (4, 4, 4),
    "latent_channels": 4,
}
UP: dict[str, Any] = {"up_block_types": ("UpDecoderBlock2D",) * 3, "norm_num_groups": 2}
KINDS = {
    "AutoencoderKL": lambda: families.vae(levels=3, mid_block_add_attention=True),
    "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4), decoder_block_out_channels=(4, 4, 4), num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ),
    "AsymmetricAutoencoderKL": lambda: diffusers.AsymmetricAutoencoderKL(
        down_block_types=BLOCKS["down_block_types"], down_block_out_channels=(4, 4, 4),
        up_block_out_channels=(4, 4, 4), **UP,
    ),
    "VQModel": lambda: diffusers.VQModel(**BLOCKS, **UP),
    "AutoencoderKLTemporalDecoder": lambda: diffusers.AutoencoderKLTemporalDecoder(
        **{**BLOCKS, "block_out_channels": (32, 32, 32)}
    ),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def model(request) -> Any:
    """What an encoder's and a decoder's part of a model is."""
    torch.manual_seed(0)
    vae: Any = KINDS[request.param]().eval()
    families.randomised(vae)
    options = {"encode": lambda x: autoencoders.encode(vae, x), "decode": lambda x: autoencoders.decode(vae, x)}
    return SimpleNamespace(vae=vae, factor=4, size=32, **options)


def picture(width: int = 48) -> torch.Tensor:
    return torch.rand(2, 3, 32, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_ring_rolled_by_cells_is_encoded_to_latents_rolled_by_as_many(model):
    images = picture()
    latents, plain = encoded_around(model, images), model.encode(images)
    assert latents.shape == plain.shape and (latents - plain).abs().max() > 1e-3
    for cells in (1, 5, -4):
        rolled = encoded_around(model, images.roll(4 * cells, -1))
        torch.testing.assert_close(rolled, latents.roll(cells, -1), atol=1e-4, rtol=1e-4)
    assert (model.encode(images.roll(20, -1)) - plain.roll(5, -1)).abs().max() > 1e-3


@torch.no_grad()
def test_a_ring_of_latents_is_decoded_to_a_ring(model):
    latents = encoded_around(model, picture())
    images = decoded_around(model, latents)
    rolled = decoded_around(model, latents.roll(5, -1))
    torch.testing.assert_close(rolled, images.roll(20, -1), atol=1e-4, rtol=1e-4)
    assert (model.decode(latents.roll(5, -1)) - model.decode(latents).roll(20, -1)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("side", ["canvas", "instance"])
def test_a_run_encodes_a_ring_as_one(model, side):
    """What a canvas whose views agree on pixels ends with, or each of its steps; rolled by a stride."""
    canvas = Canvas(model, Ring(4, "pixels", side), (8, 16))
    latents = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    if type(model.vae).__name__ == autoencoders.OF_CLIPS:
        pytest.skip("its decoder takes windows for frames, whose order matters")

    def ended(x: torch.Tensor) -> torch.Tensor:
        parts = canvas.split(x)
        return canvas.left(parts) if canvas.apart else canvas._agreed_x0(parts)

    torch.testing.assert_close(ended(latents.roll(4, -1)), ended(latents).roll(4, -1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_vae_that_encodes_in_tiles_sees_beyond_the_border():
    vae = families.vae(levels=3)
    families.randomised(vae)
    tiling = SimpleNamespace(use_tiling=True, config=vae.config)
    model: Any = SimpleNamespace(vae=tiling, factor=4, encode=lambda x: autoencoders.encode(vae, x))
    images = picture(96)
    seen = encoded_around(model, images)
    assert seen.shape[-1] == 24
    wide = torch.cat([images[..., -32:], images, images[..., :32]], -1)
    assert torch.equal(seen, autoencoders.encode(vae, wide)[..., 8:-8])


def test_what_is_not_padded_with_zeros_is_left_as_it_is():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    with around():
        assert torch.equal(F.pad(x, (0, 1, 0, 1))[0, 0, 0], torch.tensor([0.0, 1, 2, 0]))
        assert torch.equal(F.pad(x, (0, 1, 0, 1))[0, 0, 2], torch.zeros(4))
        assert torch.equal(F.pad(x, (1, 1), value=7.0)[0, 0, 0], torch.tensor([7.0, 0, 1, 2, 7]))
        assert torch.equal(F.pad(x, (1, 1, 0, 0), mode="replicate")[0, 0, 0], torch.tensor([0.0, 0, 1, 2, 2]))
        assert F.pad(x[0], (0, 1)).shape == (1, 2, 4)
        odd = F.conv2d(x, torch.ones(1, 1, 1, 3), stride=(1, 2), padding=(0, 1))
    assert torch.equal(odd, F.conv2d(x, torch.ones(1, 1, 1, 3), stride=(1, 2), padding=(0, 1)))
