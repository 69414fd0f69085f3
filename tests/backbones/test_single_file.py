"""Checkpoints in one file: converted without the network, and what is no model named."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import families
import layouts
import pytest
import torch
from families import own, painted, pipeline, randomised, seeded, write
from rounding import assert_same_but_for_rounding
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sfumato.backbones import single_file
from sfumato.backbones.load import load
from sfumato.errors import SfumatoError

COUNTS = {
    "sd-1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd-2-base": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sd-2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sdxl-refiner": {"unet": 2_259_526_660, "vae": 83_653_863, "text_encoder_2": 694_659_840},
}
"""Parameters of the published models."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing asks the network, also where nothing says that it is offline."""
    from huggingface_hub import constants

    def refused(*args: Any, **options: Any) -> None:
        raise AssertionError(f"the network was asked: {args}")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    place = tmp_path_factory.mktemp("models")
    return {name: write(name, place) for name in ("sd", "sdxl")}


def file_of(pipe: Any, place: Path, **more: torch.Tensor) -> Path:
    save_file(layouts.checkpoint(pipe) | more, place / "model.safetensors")
    return place / "model.safetensors"


def built(word: str) -> dict[str, Any]:
    """The networks of a bundled config."""
    found = {}
    for part, config in single_file.configs()[word].items():
        if part == "unet":
            found[part] = diffusers.UNet2DConditionModel.from_config(config)
        elif part == "vae":
            found[part] = diffusers.AutoencoderKL.from_config(config)
        elif part.startswith("text_encoder") and config:
            kind = CLIPTextModelWithProjection if "WithProjection" in config["architectures"][0] else CLIPTextModel
            found[part] = kind(CLIPTextConfig(**config))
    return found


@pytest.mark.parametrize("word", COUNTS)
def test_bundled_configs_are_the_published_models(word):
    with torch.device("meta"):
        found = {part: sum(p.numel() for p in network.parameters()) for part, network in built(word).items()}
    assert COUNTS[word].items() <= found.items()


@pytest.mark.parametrize(
    ("word", "kind", "key"),
    [
        ("sd-1", "v1", "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias"),
        ("sd-2", "v2", "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"),
        ("sdxl", "xl_base", "output_blocks.5.2.conv.weight"),
        ("sdxl-refiner", "xl_refiner", "middle_block.1.transformer_blocks.3.attn2.to_k.weight"),
    ],
)
def test_the_layout_of_these_tests_is_the_real_one(word, kind, key):
    """diffusers tells each by its names and shapes, and so are names that the published files have there."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    with torch.device("meta"):
        networks = built(word)
        pipe = type("Pipe", (), {"components": {"text_encoder": None, **networks}})
        found = layouts.checkpoint(pipe)
    assert infer_diffusers_model_type(found) == kind and f"model.diffusion_model.{key}" in found
    assert "first_stage_model.decoder.up.3.block.0.conv1.weight" in found


def test_clips_tokenizer_has_the_known_ids(tmp_path):
    from transformers import CLIPTokenizer

    single_file._write_tokenizer(tmp_path / "plain", "<|endoftext|>")
    single_file._write_tokenizer(tmp_path / "padded", "!")
    plain: Any = CLIPTokenizer.from_pretrained(tmp_path / "plain")
    known = {
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "Astronaut riding a horse, on mars!": [18376, 6765, 320, 4558, 267, 525, 7496, 256],
        "": [],
    }
    for text, ids in known.items():
        assert plain(text).input_ids == [49406, *ids, 49407]
    assert len(plain) == 49408 and plain.model_max_length == 77
    padded: Any = CLIPTokenizer.from_pretrained(tmp_path / "padded")
    for tokenizer, pad in ((plain, 49407), (padded, 0)):
        row = tokenizer("a cat", padding="max_length").input_ids
        assert len(row) == 77 and row[:4] == [49406, 320, 2368, 49407] and set(row[4:]) == {pad}


# --- a tiny model by the configs of a folder ---------------------------------------------------------


def sdxl() -> Any:
    """With two text encoders of two widths, by which diffusers tells them."""
    network = families.unet(
        cross_attention_dim=40, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 6 * 4, transformer_layers_per_block=(2, 1),
    )  # fmt: skip
    parts = {"unet": network, "text_encoder_2": families.clip_text(24, projected=True)}
    return diffusers.StableDiffusionXLPipeline(**{**families.sdxl().components, **parts}, add_watermarker=False)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_file_is_the_model_of_its_folder(folders, name, tmp_path):
    folder = folders[name]
    if name == "sdxl":
        torch.manual_seed(0)
        pipe = sdxl()
        randomised(*pipe.components.values())
        pipe.save_pretrained(folder := tmp_path / "sdxl")
    file = file_of(pipeline(folder), tmp_path)
    bare = Path(shutil.copytree(folder, tmp_path / "configs"))
    for weights in bare.glob("*/*.safetensors"):
        weights.unlink()
    model: Any = load(file, device="cpu", config=str(bare))
    assert model.name == str(file) and type(model.pipe) is type(pipeline(folder))
    assert_same_but_for_rounding(painted(model), painted(load(str(folder), device="cpu")))


def tiny(monkeypatch, word: str, **unet: Any) -> dict[str, Any]:
    """The bundled configs of a word, with narrow layers; and networks of them with random weights."""
    configs = json.loads(json.dumps(single_file.configs()))
    config, few = configs[word], {"intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    widths = {part: width for part, width in (("text_encoder", 32), ("text_encoder_2", 48)) if config.get(part)}
    for part, width in widths.items():
        config[part] |= few | {"hidden_size": width, "projection_dim": width}
    blocks = len(config["unet"]["block_out_channels"])
    config["unet"] |= {"block_out_channels": [8] * blocks, "norm_num_groups": 4, "attention_head_dim": 2, **unet}
    config["unet"] |= {
        "cross_attention_dim": sum(widths.values()),
        "transformer_layers_per_block": 1,
        "layers_per_block": 1,
    }
    if config["unet"].get("addition_embed_type"):
        ids = 5 if word == "sdxl-refiner" else 6
        width = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 48 + 4 * ids}
        config["unet"] |= width
    config["vae"] |= {"block_out_channels": [4] * 4, "norm_num_groups": 2, "layers_per_block": 1}
    monkeypatch.setattr(single_file, "configs", lambda: configs)
    torch.manual_seed(3)
    networks = built(word)
    randomised(*networks.values())
    return networks


@pytest.fixture
def named(monkeypatch) -> Callable[[str], None]:
    """diffusers tells a tiny file by its shapes no more; it is told which one it is."""
    from diffusers.loaders import single_file_utils

    return lambda kind: monkeypatch.setattr(single_file_utils, "infer_diffusers_model_type", lambda _: kind)


@pytest.mark.parametrize(
    ("kind", "word", "channels", "pipeline_of"),
    [
        ("v1", "sd-1", 4, "StableDiffusionPipeline"),
        ("inpainting", "sd-1", 9, "StableDiffusionInpaintPipeline"),
        ("instruct-pix2pix", "sd-1", 8, "StableDiffusionInstructPix2PixPipeline"),
        pytest.param("inpainting_v2", "sd-2-base", 9, "StableDiffusionInpaintPipeline", marks=pytest.mark.slow),
        ("v2", "sd-2-base", 5, "StableDiffusionPipeline"),
        ("xl_base", "sdxl", 4, "StableDiffusionXLPipeline"),
        pytest.param("xl_inpaint", "sdxl", 9, "StableDiffusionXLInpaintPipeline", marks=pytest.mark.slow),
        ("xl_refiner", "sdxl-refiner", 4, "StableDiffusionXLImg2ImgPipeline"),
    ],
)
def test_files_are_read_with_nothing_beside_them(monkeypatch, named, tmp_path, kind, word, channels, pipeline_of):
    networks = tiny(monkeypatch, word, in_channels=channels)
    named(kind)
    pipe = type("Pipe", (), {"components": {**({"text_encoder": None} if kind == "xl_refiner" else {}), **networks}})
    state = layouts.unet(networks["unet"]) | layouts.vae(networks["vae"])
    if word.startswith("sd-2"):
        state |= layouts.open_clip(networks["text_encoder"], "cond_stage_model.model.")
        monkeypatch.setattr("diffusers.loaders.single_file_utils.LDM_OPEN_CLIP_TEXT_PROJECTION_DIM", 32)
    else:
        state |= layouts.checkpoint(pipe)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    model: Any = load(tmp_path / "model.safetensors", device="cpu")
    assert type(model.pipe).__name__ == pipeline_of and model.reads == channels
    for part, network in networks.items():
        theirs = getattr(model.pipe, part).state_dict()
        assert all(torch.equal(theirs[k], v) for k, v in network.state_dict().items()), part
    if channels == 4:
        assert painted(model).isfinite().all()
    assert model.embed(["a duck"]).text.shape[-1] == networks["unet"].config.cross_attention_dim


def test_marks_of_merged_checkpoints_are_obeyed(monkeypatch, named, tmp_path):
    networks = tiny(monkeypatch, "sdxl")
    named("xl_base")
    pipe = type("Pipe", (), {"components": networks})
    marks = {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    for given, wanted in (({}, "epsilon"), (marks, "v_prediction")):
        model: Any = load(file_of(pipe, tmp_path, **given), device="cpu")
        config = model.pipe.scheduler.config
        assert model.schedule.prediction == wanted and bool(config.get("rescale_betas_zero_snr")) == bool(given)
    with pytest.raises(SfumatoError, match="is an EDM model"):
        load(file_of(pipe, tmp_path, **{"edm_vpred.sigma_max": torch.zeros(1)}), device="cpu")


def test_a_file_of_stable_diffusion_2_is_asked_which(monkeypatch, named, tmp_path):
    networks = tiny(monkeypatch, "sd-2")
    named("v2")
    state = layouts.unet(networks["unet"]) | layouts.vae(networks["vae"])
    state |= layouts.open_clip(networks["text_encoder"], "cond_stage_model.model.")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(SfumatoError, match=r"does not say which: give config \(--config\) sd-2 for .*or sd-2-base"):
        load(tmp_path / "model.safetensors", device="cpu")
    model = load(tmp_path / "model.safetensors", device="cpu", config="sd-2")
    assert model.schedule.prediction == "v_prediction"
    with pytest.raises(SfumatoError, match=r"unknown config 'sd-3'; did you mean .* known: sd-1, sd-2-base"):
        load(tmp_path / "model.safetensors", device="cpu", config="sd-3")


def test_parts_beside_a_file_take_the_place_of_its_own(folders, tmp_path):
    file, other = file_of(own("sd"), tmp_path), seeded(families.vae)
    model: Any = load(file, device="cpu", config=str(folders["sd"]), vae=other, scheduler="EulerDiscreteScheduler")
    assert model.vae is other and type(model.pipe.scheduler).__name__ == "EulerDiscreteScheduler"


def test_a_vaes_file_in_its_own_layout(folders, tmp_path):
    other = seeded(families.vae)
    for prefix in ("", "first_stage_model."):
        save_file(layouts.vae(other, prefix), tmp_path / "vae.safetensors")
        model = load(str(folders["sd"]), device="cpu", vae=str(tmp_path / "vae.safetensors"))
        x = model.latents([1], 64, 64)
        assert torch.equal(model.decode(x), load(own("sd"), vae=other).decode(x))


# --- what is missing or broken -----------------------------------------------------------------------


def test_what_a_file_lacks_is_named(folders, tmp_path):
    bare = Path(shutil.copytree(folders["sd"], tmp_path / "configs"))
    for weights in bare.glob("*/*.safetensors"):
        weights.unlink()
    state = layouts.checkpoint(own("sd"))
    file = tmp_path / "model.safetensors"
    options: dict[str, Any] = {"device": "cpu", "config": str(bare)}
    save_file({k: v for k, v in state.items() if not k.startswith("first_stage_model")}, file)
    with pytest.raises(SfumatoError, match=r"holds no vae \(AutoencoderKL\); give it: vae=") as e:
        load(file, **options)
    assert "\n" not in str(e.value)
    assert torch.equal(  # as it says
        painted(load(file, vae=str(folders["sd"]), **options)), painted(load(own("sd")))
    )
    load(file, device="cpu", config=str(folders["sd"]))  # and so
    save_file({k: v for k, v in state.items() if not k.startswith("cond_stage_model")}, file)
    with pytest.raises(SfumatoError, match=r"holds no text_encoder \(CLIPTextModel\)"):
        load(file, **options)
    one = "model.diffusion_model.out.2.weight"
    save_file({k: v for k, v in state.items() if k != one}, file)
    with pytest.raises(SfumatoError, match="lacks weights of a StableDiffusionPipeline: it is pruned"):
        load(file, **options)
    one = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    save_file({k: v for k, v in state.items() if k != one}, file)
    with pytest.raises(SfumatoError, match="lacks weights of a StableDiffusionPipeline: it is pruned"):
        load(file, **options)
    one = "model.diffusion_model.out.2.weight"
    save_file({**state, one: torch.zeros(4, 3, 3, 3)}, file)
    with pytest.raises(SfumatoError, match=r"does not load as a StableDiffusionPipeline: .*conv_out"):
        load(file, **options)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("flux-dev", r"is of a FluxPipeline, and holds neither .*T5 and its tokenizer.*\(--config FOLDER\)"),
        ("sd35_large", "is of a StableDiffusion3Pipeline"),
        ("flux-fill", "is a single file of flux-fill, which is of no known family"),
        ("sana", "is a single file of sana, which is of no known family"),
        ("upscale", "of upscale, which is of no known family"),
    ],
)
def test_other_families_files_say_what_they_need(named, tmp_path, kind, words):
    file = file_of(own("sd"), tmp_path)
    named(kind)
    with pytest.raises(SfumatoError, match=words):
        load(file, device="cpu")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], r"it is a LoRA; give it to a model as lora \(--lora FILE\)"),
        (["unet.mid_block.to_q.lora_A.weight"], "it is a LoRA"),
        (["lora_unet_mid.hada_w1_a"], "it is a LoRA"),
        (["emb_params"], r"it is an embedding; give it to a model as embedding \(--embedding FILE\)"),
        (["clip_l", "clip_g"], "it is an embedding"),
        (["<cat>"], "it is an embedding"),
        (
            ["control_model.input_blocks.0.0.weight"],
            "it is a ControlNet, which steers a model.*--controlnet F.*controls=",
        ),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], "it is a ControlNet"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "it is an IP-Adapter.*load_ip_adapter"),
        (
            ["encoder.conv_in.weight", "decoder.conv_in.weight"],
            r"it is a VAE; give it to a model as vae \(--vae FILE\)",
        ),
        (["first_stage_model.decoder.conv_in.weight"], "it is a VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "it is a text encoder"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one part of a diffusers model; give the folder above it"),
        (["down_blocks.0.motion_modules.0.x"], "motion module of AnimateDiff"),
        (["input_blocks.0.0.weight"], "the network alone, without text encoder and VAE; give the whole model"),
        (["diffusion_model.input_blocks.0.0.weight", "diffusion_model.decoder.x"], "the network alone"),
        (["something"], r"it has 1 tensors of no layout that is known \(first: something\)"),
    ],
)
def test_files_of_other_things_are_named(tmp_path, keys, words):
    save_file({key: torch.zeros(2, 2) for key in keys}, tmp_path / "it.safetensors")
    with pytest.raises(SfumatoError, match="holds no model: .*" + words) as e:
        load(tmp_path / "it.safetensors", device="cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1000])
def test_truncated_files_are_said_to_be(tmp_path, keep):
    file = file_of(own("sd"), tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SfumatoError, match="is no safetensors file, or cut off") as e:
        load(str(file), device="cpu")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("begins", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a pointer of Git LFS and not the file itself",
        ),
        (b"\n<!DOCTYPE html><html>" + bytes(99), "is a web page and not the file itself; download it again"),
        (b"PK\x03\x04" + bytes(99), "is a pickle under another name"),
        (b"\x80\x02}q" + bytes(99), "is a pickle under another name"),
        (b"GGUF" + bytes(99), r"is quantised \(gguf\), which is not read"),
    ],
)
def test_what_lies_under_a_files_name_is_named(tmp_path, begins, words):
    file = tmp_path / "it.safetensors"
    file.write_bytes(begins)
    for options in ({}, {"lora": file}, {"embeddings": file}, {"vae": file}):
        with pytest.raises(SfumatoError, match=f"it.safetensors {words}") as e:
            load(own("sd") if options else file, device="cpu", **options)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["blob", "MODEL.SAFETENSORS", "my modèle v1.5"])
def test_a_file_is_known_by_what_is_in_it_and_not_by_its_name(folders, tmp_path, name):
    file = file_of(own("sd"), tmp_path)
    (place := tmp_path / "a folder é").mkdir()
    file.rename(place / "there")
    (place / name).symlink_to("there")  # as the hub's cache
    model = load(place / name, device="cpu", config=str(folders["sd"]))
    assert torch.equal(painted(model), painted(load(own("sd"))))


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale", "weight_scale_inv", "weight.absmax", "comfy_quant"])
def test_weights_that_are_to_be_scaled_are_refused(folders, tmp_path, scale):
    """diffusers would leave the scales out, and paint with other weights."""
    key = f"model.diffusion_model.input_blocks.0.0.{scale}"
    file = file_of(own("sd"), tmp_path, **{key: torch.tensor(0.5)})
    with pytest.raises(SfumatoError, match=rf"is quantised: its weights are to be multiplied by scales \({key}\)"):
        load(file, device="cpu", config=str(folders["sd"]))


def test_plain_float8_is_read(folders, tmp_path):
    pipe, state = own("sd"), {}
    for key, values in layouts.checkpoint(pipe).items():
        state[key] = values.to(torch.float8_e4m3fn) if key.startswith("model.") and values.ndim > 1 else values
    save_file(state | {"scaled_fp8": torch.zeros(0)}, tmp_path / "it.safetensors")
    model: Any = load(tmp_path / "it.safetensors", device="cpu", config=str(folders["sd"]))
    weight = pipe.unet.conv_in.weight
    assert torch.equal(model.pipe.unet.conv_in.weight, weight.to(torch.float8_e4m3fn).float())


def test_pickles_and_quantised_files_are_refused_with_what_to_do(folders, tmp_path):
    state = layouts.checkpoint(own("sd"))
    old, new = tmp_path / "model.ckpt", tmp_path / "model.safetensors"
    torch.save({"state_dict": state}, old)
    with pytest.raises(SfumatoError, match="is a pickle, which is not read") as e:
        load(str(old), device="cpu")
    import safetensors  # noqa: F401  # by the advice's own words

    advice = str(e.value).partition("once: ")[2]
    exec(advice, {"torch": torch, "safetensors": __import__("safetensors.torch"), "FILE": old, "NEW": new})
    assert load(new, device="cpu", config=str(folders["sd"])).size == 128
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(SfumatoError, match="is quantised"):
        load(str(tmp_path / "model.gguf"), device="cpu")
    with pytest.raises(SfumatoError, match="there is no file"):
        load(str(tmp_path / "nothing.safetensors"), device="cpu")
