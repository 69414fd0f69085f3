"""Images as latents and back, as diffusers' own pipelines have them, for VAEs whose configs say all that one can."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from families import FAMILIES, own, randomised, vae

from sfumato.backbones import autoencoders
from sfumato.backbones.load import family
from sfumato.backbones.transformers import packed, unpacked
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.core.views import Tiles
from sfumato.distill.generators import Pixels
from sfumato.distill.loop import distil
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, EditFriendly, NullText, invert
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.edit import PromptToPrompt

IMG2IMG: dict[str, Any] = {
    "sd": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "sd3": diffusers.StableDiffusion3Img2ImgPipeline,
    "flux": diffusers.FluxImg2ImgPipeline,
}
READS = {"sdxl": ("latents_mean", "latents_std"), "sd3": ("shift_factor",), "flux": ("shift_factor",)}
OVERFLOWING = 3e5  # of float16's 65504
FAST = 4
"""Of the draws, those that are not slow."""
SLOW = pytest.mark.slow


def drawn(name: str, seed: int) -> diffusers.AutoencoderKL:
    """A VAE whose config varies in every key that its family's pipeline reads."""
    rng = torch.Generator().manual_seed(seed)

    def one_of(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=rng))]

    blocks, quant, attends = one_of(2, 3, 4), one_of(True, False), one_of(True, False)
    channels = 4
    settings: dict[str, Any] = {"scaling_factor": one_of(0.18215, 0.3611, 1.5305), "shift_factor": None}
    if "shift_factor" in READS.get(name, ()):
        settings["shift_factor"] = one_of(0.0, 0.1159, -0.6)
    if "latents_mean" in READS.get(name, ()) and one_of(True, False):
        settings["latents_mean"] = torch.randn(channels, generator=rng).tolist()
        settings["latents_std"] = (1 + torch.rand(channels, generator=rng)).tolist()
    torch.manual_seed(seed)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(4, 8, 4, 8)[:blocks], norm_num_groups=one_of(1, 2), latent_channels=channels,
        layers_per_block=one_of(1, 2), mid_block_add_attention=attends, use_quant_conv=quant,
        use_post_quant_conv=quant, force_upcast=one_of(True, False), **settings,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("seed", [seed if seed < FAST else pytest.param(seed, marks=SLOW) for seed in range(8)])
@pytest.mark.parametrize("name", IMG2IMG)
def test_images_go_to_latents_and_back_as_in_the_pipeline(name, seed, monkeypatch):
    pipe = own(name)
    pipe.register_modules(vae=drawn(name, seed))
    pipe = type(pipe)(**pipe.components)  # reads its factors anew
    pipe.set_progress_bar_config(disable=True)
    model = family(name, pipe)
    assert model.factor == pipe.vae_scale_factor
    side = 16 * model.factor
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    theirs = IMG2IMG[name](**pipe.components)
    for call in ("add_noise", "scale_noise"):
        if hasattr(theirs.scheduler, call):
            monkeypatch.setattr(theirs.scheduler, call, lambda x, *noise: x)
    shown, flux = theirs.image_processor.preprocess(images), name == "flux"
    asked = (4, side, side, torch.float32, "cpu", None) if flux else (1, torch.float32, "cpu", None)
    first = theirs.prepare_latents(shown, torch.tensor([1]), 1, *asked)
    wanted = unpacked(first[0], 16, 16) if flux else first
    torch.testing.assert_close(model.encode(images), wanted, rtol=1e-4, atol=1e-4)

    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    given = packed(z) if flux else z
    options: dict[str, Any] = {"guidance_scale": 1.0, "num_inference_steps": 1, "height": side, "width": side}
    latents, pictures = (
        pipe("a cube", latents=given.clone(), output_type=kind, generator=torch.Generator().manual_seed(0), **options)
        .images
        for kind in ("latent", "pt")
    )  # fmt: skip
    latents = unpacked(latents, 16, 16) if flux else latents
    torch.testing.assert_close(model.decode(latents), pictures, rtol=1e-4, atol=1e-4)


def loaded(autoencoder: Any, dtype: torch.dtype = torch.float32, name: str = "sd") -> Any:
    pipe = own(name)
    pipe.register_modules(vae=autoencoder)
    return family(name, pipe.to(dtype))


def overflowing(forced: bool) -> diffusers.AutoencoderKL:
    """A VAE whose decoder is beyond float16 on the way, and whose pictures are not."""
    torch.manual_seed(0)
    out = vae()
    out.register_to_config(force_upcast=forced)
    with torch.no_grad():
        out.decoder.conv_in.weight.mul_(OVERFLOWING)
        out.encoder.conv_in.weight.mul_(OVERFLOWING)
    return out


def test_where_the_config_forces_it_a_vae_in_halves_computes_in_float32():
    z, images = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64)
    half, whole = loaded(overflowing(True), torch.float16), loaded(overflowing(True).half().float())
    before = {k: v.clone() for k, v in half.vae.state_dict().items()}
    torch.testing.assert_close(half.decode(z), whole.decode(z))
    torch.testing.assert_close(half.encode(images), whole.encode(images))
    after = half.vae.state_dict()
    assert half.vae.dtype == torch.float16 and all(torch.equal(v, after[k]) for k, v in before.items())


def test_gradients_come_through_a_vae_in_halves():
    torch.manual_seed(0)
    half = loaded(vae().half().float(), torch.float16)
    half.vae.register_to_config(force_upcast=False)
    whole = loaded(torch.nn.Module.float(loaded(vae()).vae))
    whole.vae.load_state_dict(half.vae.state_dict())
    found = []
    for model in (half, whole):
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        latents = model.encode(images)
        (
            1e-9 * latents.square().sum() + 1e-9 * model.decode(latents).square().sum()
        ).backward()  # below float16's least
        found.append(images.grad)
    assert found[1].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=0)


def test_a_vae_that_overflows_is_an_error_that_says_what_to_do():
    model = loaded(overflowing(False), torch.float16)
    for do in (lambda: model.decode(torch.randn(1, 4, 8, 8)), lambda: model.encode(torch.rand(1, 3, 64, 64))):
        with pytest.raises(
            SfumatoError, match=r"AutoencoderKL .*not finite; .*float16.*float32 or bfloat16.*load\(vae=\.\.\.\)"
        ):
            do()
    with pytest.raises(SfumatoError, match=r"latents .* not finite"):
        loaded(vae()).decode(torch.full((1, 4, 8, 8), torch.nan))


TINY = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}


@pytest.mark.parametrize(
    "made",
    [
        lambda: diffusers.AutoencoderTiny(**TINY, scaling_factor=0.7),
        lambda: diffusers.AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
            down_block_out_channels=(8, 8), up_block_out_channels=(16, 16), layers_per_down_block=1,
        ),
        lambda: diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, vq_embed_dim=4),
    ],
    ids=["tiny", "asymmetric", "vq"],
)  # fmt: skip
def test_other_kinds_of_vae_are_read_by_their_own_outputs(made):
    torch.manual_seed(0)
    autoencoder = made().eval()
    model = loaded(autoencoder)
    images, scale = torch.rand(2, 3, 64, 64), autoencoder.config.scaling_factor
    with torch.no_grad():
        found = autoencoder.encode(images * 2 - 1)
        raw = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        wanted = (autoencoder.decode(raw).sample / 2 + 0.5).clamp(0, 1)
        latents = model.encode(images)
        torch.testing.assert_close(latents, raw * scale)
        torch.testing.assert_close(model.decode(latents), wanted, atol=1e-5, rtol=1e-4)
    assert (
        model.factor == images.shape[-1] // latents.shape[-1]
        and autoencoders.plain(autoencoder, latents).shape == raw.shape
    )


def test_what_is_not_known_of_a_vae_is_refused_by_name():
    with pytest.raises(SfumatoError, match="whose vae is a AutoencoderDC, not one of AutoencoderKL, "):
        loaded(diffusers.AutoencoderDC(encoder_block_out_channels=(8,), decoder_block_out_channels=(8,),
            encoder_layers_per_block=(1,), decoder_layers_per_block=(1,), latent_channels=4,
            encoder_block_types="ResBlock", decoder_block_types="ResBlock",
            encoder_qkv_multiscales=((),), decoder_qkv_multiscales=((),)))  # fmt: skip
    with pytest.raises(SfumatoError, match="has shift_factor, which only SD3 and Flux read"):
        loaded(vae(shift=0.1))
    some = vae()
    some.register_to_config(latents_mean=[0.0, 1.0, 0.0, 0.0])
    with pytest.raises(SfumatoError, match="latents_mean, which only SDXL"):
        loaded(some)
    with pytest.raises(SfumatoError, match="one of latents_mean and latents_std"):
        loaded(some, name="sdxl")


@pytest.mark.parametrize(
    ("name", "channels"),
    [  # every day one number of channels of each, in turn
        pytest.param(name, channels, marks=[] if (at + channels // 16) % 2 else SLOW)
        for at, name in enumerate(name for name in FAMILIES if name != "deepfloyd")
        for channels in (16, 32)
    ],
)
def test_latents_of_more_channels_and_another_scale_go_wherever_latents_do(name, channels):
    torch.manual_seed(0)
    pipe = own(name)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    network = getattr(pipe, part)
    sizes = {"in_channels": channels, "out_channels": channels}
    if name == "flux":
        sizes = {"in_channels": 4 * channels}
    if name == "pixart":
        sizes["out_channels"] = 2 * channels
    wider = type(network).from_config({**network.config, "_use_default_values": [], **sizes}).eval()
    randomised(wider)
    some = vae(channels, shift=0.06 if name in ("sd3", "flux") else None)
    some.register_to_config(scaling_factor=3.7)
    pipe.register_modules(**{part: wider, "vae": some})
    model = family(name, pipe)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert model.encode(images).shape == (1, channels, 8, 8) == (1, model.channels, 8, 8)

    cube, sphere = "a red cube", "a red sphere"
    for how in (Direct(steps=2), EditFriendly(steps=2, skip=0.0, scale=3.0), NullText(steps=2, inner=1)):
        path = invert(model, images, cube, how)
        out = denoise(model, {"source": cube, "target": sphere}, start=path, methods=[PromptToPrompt()], guide=CFG(3.0))
        assert out["target"].images.isfinite().all() and out["target"].images.shape == (1, 3, 64, 64)
    views = denoise(model, cube, steps=2, size=(64, 96), views=Tiles(), guide=3.0, seed=1)
    assert views.images.shape == (1, 3, 64, 96)
    moved = Pixels(images)
    assert distil(model, moved, cube, ScoreDistillation(3.0), 2)[-1].strength > 0


def test_encoding_for_a_gradient_gives_the_same_numbers_and_the_same_gradient():
    """Which is done in another order of memory."""
    own = drawn("sd", 3).requires_grad_(False)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    learned = images.clone().requires_grad_()
    found = autoencoders.encode(own, learned)
    torch.testing.assert_close(found.detach(), autoencoders.encode(own, images), atol=1e-5, rtol=1e-5)
    ways = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    plain = images.clone().requires_grad_()
    wanted = own.encode(plain * 2 - 1).latent_dist.mean * own.config.scaling_factor
    torch.testing.assert_close(
        torch.autograd.grad(found, learned, ways)[0], torch.autograd.grad(wanted, plain, ways)[0], atol=1e-5, rtol=1e-4
    )
