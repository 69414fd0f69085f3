"""The networks' shapes, and that they fit together in diffusers' pipelines."""

from __future__ import annotations

import pytest
import torch

from sfumato.stilllife import networks, weights


def parameters(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return networks.unet().eval()


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(1)
    return networks.vae().eval()


def test_unet_has_the_topology_of_stable_diffusion(unet):
    assert [type(b).__name__ for b in unet.down_blocks] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert [type(b).__name__ for b in unet.up_blocks] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert type(unet.mid_block).__name__ == "UNetMidBlock2DCrossAttn"
    assert all(len(b.resnets) == 2 for b in unet.down_blocks)
    heads = {m.heads for n, m in unet.named_modules() if n.endswith(("attn1", "attn2"))}
    assert heads == {8}
    assert 11 < parameters(unet) < 14


def test_scheduler_is_stable_diffusions():
    scheduler = networks.scheduler()
    assert scheduler.alphas_cumprod[0] == pytest.approx(1 - 0.00085)
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    assert scheduler.config["prediction_type"] == "epsilon" and not scheduler.config["clip_sample"]


def test_random_weights_make_a_pipeline_that_samples(unet, vae):
    pipe = networks.pipeline(vae, weights.text_encoder(networks.clip().eval()), unet, networks.tokenizer())
    image = pipe("a red cube on zxq", num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    assert image.shape == (1, 128, 128, 3)


def test_whitening_keeps_reconstructions_and_gives_unit_variance(vae):
    torch.manual_seed(2)
    model = networks.vae().eval()
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = model.encode(x).latent_dist
        image, spread = model.decode(before.mean).sample, before.std / before.mean.std((0, 2, 3), keepdim=True)
        networks.whiten(model, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3)))
        after = model.encode(x).latent_dist
        torch.testing.assert_close(model.decode(after.mean).sample, image, atol=1e-4, rtol=1e-4)
        z = after.mean * model.config["scaling_factor"]
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std * model.config["scaling_factor"], spread, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_widened_unet_ignores_the_image_at_first(unet):
    wide = networks.widen(unet).eval()
    z, image, said = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.randn(1, 77, networks.TEXT_WIDTH)
    expected = unet(z, 500, said).sample
    torch.testing.assert_close(wide(torch.cat([z, image], 1), 500, said).sample, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_new_controlnet_changes_nothing(unet):
    control = networks.controlnet(unet).eval()
    depth = networks.depth_image(torch.full((1, 64, 64), 3.0))
    down, mid = control(torch.randn(1, 4, 16, 16), 500, torch.randn(1, 77, 192), depth, return_dict=False)
    assert all(not x.any() for x in (*down, mid))


def test_depth_image_is_bright_where_near_and_black_in_the_sky():
    depth = torch.tensor([[[2.0, 4.0], [float("inf"), 0.0]]]).repeat_interleave(64, 1).repeat_interleave(64, 2)
    image = networks.depth_image(depth)
    assert image.shape == (1, 3, 128, 128)
    assert [float(image[0, 0, y, x]) for y, x in ((0, 0), (0, 127), (127, 0), (127, 127))] == [1.0, 0.5, 0.0, 0.0]
    torch.testing.assert_close(networks.depth_image(depth * 7), image)  # any unit


def test_the_tokenizer_pads_and_cuts_to_77():
    tokens = networks.tokenizer()("cube " * 200, padding="max_length", truncation=True)
    assert len(tokens.input_ids) == networks.TOKENS == 77
