"""ControlNets of every family steer as in diffusers' own pipelines; those of another one are refused in one line."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from families import controlnet, own, seeded, unet, vae, write
from safetensors.torch import load_file, save_file

from sfumato.backbones import controlnets
from sfumato.backbones.controlnets import ControlNet
from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg
from sfumato.errors import SfumatoError

PROMPT = "a red cube on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
PIPES: dict[str, tuple[Any, str]] = {
    "sd": (diffusers.StableDiffusionControlNetPipeline, "image"),
    "sdxl": (diffusers.StableDiffusionXLControlNetPipeline, "image"),
    "sdxl-union": (diffusers.StableDiffusionXLControlNetUnionPipeline, "control_image"),
    "sd-pooled": (diffusers.StableDiffusionControlNetPipeline, "image"),
    "sd3": (diffusers.StableDiffusion3ControlNetPipeline, "control_image"),
    "sd3-plain": (diffusers.StableDiffusion3ControlNetPipeline, "control_image"),
    "sd3-large": (diffusers.StableDiffusion3ControlNetPipeline, "control_image"),
    "flux": (diffusers.FluxControlNetPipeline, "control_image"),
    "flux-union": (diffusers.FluxControlNetPipeline, "control_image"),
    "flux-hint": (diffusers.FluxControlNetPipeline, "control_image"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("sd", tmp_path_factory.mktemp("models"))


def mode(name: str) -> int | None:
    return 2 if name.endswith("union") else None


@pytest.mark.parametrize("name", PIPES)
def test_they_steer_as_in_diffusers(name, monkeypatch):
    family = name.partition("-")[0]
    model: Any = load(own(family))
    kind, word = PIPES[name]
    network = controlnet(name, model.network)
    pipe: Any = kind.from_pipe(own(family), controlnet=network)
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(
        diffusers.models.autoencoders.vae.DiagonalGaussianDistribution, "sample", lambda self, *_: self.mean
    )
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = model.latents([3], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    options |= {
        word: 2 * picture - 1 if family in ("sd3", "flux") else picture,
        "height": 64,
        "width": 64,
        "controlnet_conditioning_scale": 0.7,
    }
    options |= {} if mode(name) is None else {"control_mode": mode(name)}
    start = controlnets.packed(x) if family == "flux" else x
    if name == "sdxl-union":
        options[word] = [picture]
    wanted = pipe(PROMPT, latents=start, **options)[0]
    guide = 4.0 if family == "flux" else cfg(4.0)
    run = {"steps": 3, "guide": guide, "size": 64, "start": x}
    control = ControlNet(network, picture, 0.7, mode(name))
    found = denoise(model, PROMPT, controls=[control], **run).latents
    torch.testing.assert_close(controlnets.packed(found) if family == "flux" else found, wanted, **CLOSE)
    plain = denoise(model, PROMPT, **run).latents
    other = denoise(model, PROMPT, controls=[ControlNet(network, 1 - picture, 0.7, mode(name))], **run).latents
    assert (other - found).abs().max() > 1e-3
    assert (plain - found).abs().max() > 1e-3


def test_two_of_transformers_add_up():
    model: Any = load(own("flux"))
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = [ControlNet(controlnet("flux", model.network, seed), picture) for seed in (1, 2)]
    x, time = model.latents([3], 64, 64), torch.tensor([500.0])
    cond = model.embed([PROMPT])
    each = [control(model, x, time, cond)["controlnet_block_samples"][0] for control in both]
    added = model.controlled(x, time, cond.__class__(**{**vars(cond), "controls": tuple(both)}))
    assert torch.equal(added["controlnet_block_samples"][0], each[0] + each[1])
    hinted = ControlNet(controlnet("flux-hint", model.network), picture)
    with pytest.raises(SfumatoError, match=r"steer different layers.*take one of them"):
        denoise(model, PROMPT, steps=1, size=64, controls=[both[0], hinted])


def test_their_picture_is_encoded_once_and_again_by_another_vae():
    model: Any = load(own("sd3"))
    control = ControlNet(controlnet("sd3", model.network), torch.rand(1, 3, 64, 64))
    calls: list[Any] = []
    plain = model.vae.encode
    model.vae.encode = lambda x: calls.append(x) or plain(x)
    run = {"steps": 2, "size": 64, "guide": cfg(2.0), "controls": [control]}
    before = denoise(model, PROMPT, **run).latents
    assert len(calls) == 1
    other = load(own("sd3"), vae=seeded(lambda: vae(shift=0.06)))
    assert (denoise(other, PROMPT, **run).latents - before).abs().max() > 1e-4


SAID: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "no model for them": ("pixart", "sd", {}, "takes no controls; ControlNets steer"),
    "another family": ("sd", "sd3", {}, "is steered by a ControlNetModel, not by a SD3ControlNetModel; take one"),
    "a union": ("sd", "sdxl-union", {}, "not by a ControlNetUnionModel"),
    "texts": ("sd", "sd", {"cross_attention_dim": 24}, "texts of width 24, and the model's have 16.*take one that was"),
    "joint texts": ("flux", "flux", {"joint_attention_dim": 24}, "texts of width 24, and the model's have 16"),
    "pooled": ("sd3", "sd3", {"pooled_projection_dim": 24}, "pooled texts of width 24, and the model's have 32"),
    "channels": ("sd", "sd", {"in_channels": 8}, "latents of 8 channels, and the model's have 4"),
    "packed channels": ("flux", "flux", {"in_channels": 32}, "latents of 8 channels, and the model's have 4"),
    "widths": ("sd", "sd", {"block_out_channels": (8, 8)}, "features of widths 8, 8, and the model's have 8, 16"),
    "layers": ("sd", "sd", {"layers_per_block": 2}, "layers a block 2, and the model's have 1"),
    "inner width": ("sd3", "sd3", {"num_attention_heads": 2, "caption_projection_dim": 16}, "features of width 16"),
    "sizes": ("sdxl", "sdxl", {"addition_embed_type": None}, "beside texts None, and the model's have text_time"),
    "a mask beside": ("sd3", "sd3", {"extra_conditioning_channels": 1}, "reads 1 channels beside a picture's"),
    "classes": ("sd", "sd", {"num_class_embeds": 3}, "reads class labels"),
}


@pytest.mark.parametrize("what", SAID)
def test_what_was_made_for_another_model_is_refused(models, what):
    of, name, options, says = SAID[what]
    network = controlnet(name, models(name.partition("-")[0]).network, **options)
    with pytest.raises(SfumatoError, match=says) as e:
        denoise(models(of), PROMPT, steps=1, size=64, controls=[ControlNet(network, torch.rand(1, 3, 64, 64))])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_union_is_told_what_it_is_given_and_no_other_is(models, name):
    model: Any = models(name)
    union, plain = controlnet(f"{name}-union", model.network), controlnet(name, model.network)
    for network, number, says in (
        (union, None, r"say which one it is given by mode \(--control-mode\), 0 to"),
        (union, 9, "lies between 0 and"),
        (plain, 0, r"one kind of picture; leave the mode \(--control-mode\) out"),
    ):
        with pytest.raises(SfumatoError, match=says):
            denoise(
                model, PROMPT, steps=1, size=64, controls=[ControlNet(network, torch.rand(1, 3, 64, 64), 1.0, number)]
            )


def same(a: Any, b: Any) -> bool:
    b = b.state_dict()
    return a.state_dict().keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("name", PIPES)
def test_a_folder_is_read(models, name, tmp_path):
    model = models(name.partition("-")[0])
    network = controlnet(name, model.network)
    network.save_pretrained(tmp_path / "controlnet")
    (tmp_path / "model_index.json").write_text("{}")
    for place in (tmp_path, tmp_path / "controlnet"):
        found = controlnets.read(str(place), model)
        assert same(found, network) and not found.training and not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_file_is_built_as_the_models_unet_is(name, tmp_path):
    model: Any = load(own(name))
    network = controlnet(name, model.network)
    network.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    (tmp_path / "config.json").unlink()
    assert same(controlnets.read(str(file), model), network)
    wider = load(own("sd"), unet=seeded(lambda: unet(in_channels=9)))
    assert name == "sdxl" or same(controlnets.read(str(file), wider), network)
    other = load(own("sdxl" if name == "sd" else "sd"))
    with pytest.raises(SfumatoError, match=r"reads texts of width .*: it is of another family"):
        controlnets.read(str(file), other)
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file)
    with pytest.raises(SfumatoError, match="does not load as a ControlNetModel of the model's family"):
        controlnets.read(str(file), model)


def test_what_is_no_controlnet_says_what_it_is(models, folder, tmp_path):
    model, flux = models("sd"), models("flux")
    file = tmp_path / "x.safetensors"
    for key, of, says in (
        ("lora_controlnet", model, "it is a Control-LoRA"),
        ("lllite_unet_down.weight", model, "it is a ControlNet-LLLite"),
        ("adapter.body.0.weight", model, "it is a T2I-Adapter"),
        ("controlnet_blocks.0.weight", flux, "give the folder with its config.json"),
        ("lora_unet_down.lora_up.weight", model, "it is a LoRA"),
        ("first_stage_model.decoder.conv_in.weight", model, "it is a VAE"),
        ("controlnet_cond_embedding.conv_in.weight", flux, "is a ControlNetModel, and .* is steered by a FluxCon"),
    ):
        save_file({key: torch.zeros(4, 4)}, file)
        with pytest.raises(SfumatoError, match=says) as e:
            controlnets.read(str(file), of)
        assert "\n" not in str(e.value)
    (tmp_path / "old.pth").write_bytes(b"x")
    diffusers.T2IAdapter(channels=(8, 16), num_res_blocks=1).save_pretrained(tmp_path / "adapter")
    for place, of, says in (
        ("nowhere", model, "there is no ControlNet 'nowhere': no folder or file.*built in is stilllife-depth"),
        (tmp_path / "old.pth", model, "is a pickle, which is not read.*write it as safetensors"),
        (tmp_path / "gone.safetensors", model, "there is no file"),
        (folder, model, "holds no controlnet"),
        (folder / "unet", model, "steered by a ControlNetModel, not by a UNet2DConditionModel"),
        (tmp_path / "adapter", model, "steered by a ControlNetModel, not by a T2IAdapter"),
        ("anything", models("deepfloyd"), "takes no controls"),
    ):
        with pytest.raises(SfumatoError, match=says) as e:
            controlnets.read(str(place), of)
        assert "\n" not in str(e.value)


def test_the_one_that_ships_is_there_by_its_name(here):
    assert type(controlnets.read("stilllife-depth", load("stilllife", device="cpu"))).__name__ == "ControlNetModel"
