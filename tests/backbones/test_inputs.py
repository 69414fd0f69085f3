"""Kinds of input: a pipeline in hand, parts beside a model, parts put into ``model.pipe``, and what is of no family."""

from __future__ import annotations

import json
import shutil
from copy import copy
from pathlib import Path
from typing import Any, cast

import diffusers
import families
import pytest
import torch
from families import BETAS, FAMILIES, own, painted, seeded, write
from PIL import Image

from sfumato.backbones.controlnets import ControlNet
from sfumato.backbones.load import load
from sfumato.backbones.unet import SDXL, UNet
from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg
from sfumato.errors import SfumatoError
from sfumato.media.images import open_picture
from sfumato.media.pictures import write as write_picture

PROMPT = "a red cube on grass"
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    place = tmp_path_factory.mktemp("models")
    return {name: write(name, place) for name in FAMILIES}


@pytest.fixture
def folder(folders) -> Path:
    return folders["sd"]


# --- a pipeline in hand ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_in_hand_is_the_model_of_its_folder(folders, name):
    pipe = own(name)
    model = load(pipe)
    assert model.pipe is pipe and model.name == type(pipe).__name__  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(painted(model), painted(load(str(folders[name]), device="cpu")))


def test_variants_of_a_familys_pipelines_are_taken():
    sd, sdxl, flux = (own(name) for name in ("sd", "sdxl", "flux"))
    control = diffusers.ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    found = {
        load(pipe).kind  # pyright: ignore[reportAttributeAccessIssue]
        for pipe in (
            diffusers.StableDiffusionImg2ImgPipeline.from_pipe(sd),
            diffusers.AutoPipelineForInpainting.from_pipe(sd),
            diffusers.StableDiffusionControlNetPipeline.from_pipe(sd, controlnet=control),
        )
    }
    assert found == {"UNet"}
    assert isinstance(load(diffusers.AutoPipelineForImage2Image.from_pipe(sdxl)), SDXL)
    assert load(diffusers.FluxImg2ImgPipeline.from_pipe(flux)).size == 128 * 8


def test_options_of_reading_are_refused_for_what_is_in_hand(folder):
    pipe = own("sd")
    with pytest.raises(SfumatoError, match="variant says how a model is read, and this one is in hand; leave it out"):
        load(pipe, variant="fp16")
    with pytest.raises(SfumatoError, match="config says how"):
        load(pipe, config="sd-1")
    with pytest.raises(SfumatoError, match="takes a name, a folder, a file or a diffusers pipeline, not a int"):
        load(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SfumatoError, match="config is of a single file"):
        load(str(folder), config="sd-1")
    assert load(pipe).dtype == torch.float32 and load(pipe, dtype="bfloat16").dtype == torch.bfloat16


def test_stable_diffusion_3_without_t5_is_loaded_from_its_folder_and_in_hand(tmp_path):
    whole = own("sd3")
    bare: Any = diffusers.StableDiffusion3Pipeline(**{**whole.components, "text_encoder_3": None, "tokenizer_3": None})
    bare.save_pretrained(tmp_path / "bare")
    read, held = load(str(tmp_path / "bare"), device="cpu"), load(bare)
    assert torch.equal(painted(read), painted(held))
    bare.set_progress_bar_config(disable=True)
    x = held.latents([5], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    wanted = bare(PROMPT, latents=x, height=64, width=64, **options).images
    torch.testing.assert_close(painted(read), wanted, **CLOSE)
    assert (painted(load(whole)) - wanted).abs().max() > 1e-3


# --- what is put into model.pipe --------------------------------------------------------------------


def test_another_vae_counts():
    model: Any = load(own("sd"))
    given = model.given(lambda cond: cond)
    x, before = model.latents([1], 64, 64), model.decode(model.latents([1], 64, 64))
    model.pipe.vae = other = seeded(families.vae)  # pyright: ignore[reportAttributeAccessIssue]
    for each in (model, given):
        assert each.vae is other and (each.decode(x) - before).abs().max() > 1e-3
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    half = diffusers.AutoencoderKL(**blocks, block_out_channels=(4, 4, 4), norm_num_groups=2, latent_channels=4)  # pyright: ignore
    model.pipe.vae = half  # pyright: ignore[reportAttributeAccessIssue]
    assert (model.factor, model.multiple, model.size, given.size) == (4, 4, 64, 64)
    model.pipe.vae = families.vae(8)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(SfumatoError, match=r"reads 4 channels, and the latents of its AutoencoderKL have 8"):
        model.decode(x)


def test_another_scheduler_counts():
    model = load(own("sd"))
    plain, given = painted(model), model.given(lambda cond: cond)
    model.pipe.scheduler = families.ddim(prediction_type="v_prediction")  # pyright: ignore
    assert model.schedule.prediction == given.schedule.prediction == "v_prediction"
    assert (painted(model) - plain).abs().max() > 1e-3
    model.pipe.scheduler = families.ddim()  # pyright: ignore[reportAttributeAccessIssue]
    model.pipe.scheduler.register_to_config(beta_end=0.02)  # pyright: ignore[reportAttributeAccessIssue]
    assert model.schedule.at(900).alpha < given.given(lambda c: c).schedule.at(800).alpha
    assert float(model.schedule.at(999).alpha) != pytest.approx(float(load(own("sd")).schedule.at(999).alpha))


def test_other_text_encoders_and_tokenizers_count():
    for name in ("sd", "sdxl"):
        model = load(own(name))
        pipe, before = model.pipe, model.embed([PROMPT]).text  # pyright: ignore[reportAttributeAccessIssue]
        pipe.text_encoder = seeded(families.clip_text)
        changed = model.embed([PROMPT]).text
        assert (changed - before).abs().max() > 1e-3
        words = copy(pipe.tokenizer)
        words.add_tokens(["redcube"])
        pipe.tokenizer = words
        assert model.words("redcube on")[0][1] == slice(1, 2)


def test_another_network_counts_and_one_of_another_family_is_refused():
    model = load(own("sd"))
    given, plain, sites = model.given(lambda cond: cond), painted(model), model.sites
    pipe: Any = model.pipe  # pyright: ignore[reportAttributeAccessIssue]
    down, up = ("CrossAttnDownBlock2D", *["DownBlock2D"] * 2), (*["UpBlock2D"] * 2, "CrossAttnUpBlock2D")
    levels: Any = {"block_out_channels": (8, 8, 16), "down_block_types": down, "up_block_types": up}
    pipe.unet = seeded(lambda: families.unet(**levels))
    assert (painted(model) - plain).abs().max() > 1e-3 and torch.equal(painted(given), painted(model))
    assert given.network is model.network is pipe.unet and len(model.layers) > 0
    assert all(model.network.get_submodule(site.path) is not None for site in model.sites) and model.sites != sites
    for name, why in (("sdxl", "has no text_encoder_2"), ("deepfloyd", r"text \(addition_embed_type\) on a vae")):
        pipe.unet = own(name).unet
        with pytest.raises(SfumatoError, match=why):
            painted(model)
    pipe.unet = families.unet(in_channels=5)
    with pytest.raises(SfumatoError, match="was loaded as UNet, and what its pipeline now has is Depth"):
        painted(model)
    pipe.unet = own("sd").unet
    painted(model)


# --- parts beside a model ---------------------------------------------------------------------------


def test_parts_are_given_in_hand_from_folders_and_by_class(folder, tmp_path):
    other, whole = seeded(families.vae), own("sd")
    other.save_pretrained(tmp_path / "vae")
    whole.vae = other
    whole.save_pretrained(tmp_path / "whole")
    x = load(own("sd")).latents([1], 64, 64)
    wanted = load(whole).decode(x)
    for given in (other, tmp_path / "vae", str(tmp_path / "whole")):
        assert torch.equal(load(str(folder), device="cpu", vae=given).decode(x), wanted)
    kind = diffusers.EulerDiscreteScheduler
    for given in ("EulerDiscreteScheduler", kind, kind.from_config(whole.scheduler.config)):
        pipe: Any = cast("Any", load(own("sd"), scheduler=given)).pipe
        assert type(pipe.scheduler) is kind and pipe.scheduler.config.beta_end == BETAS["beta_end"]
    held = own("sd")
    model: Any = load(held, vae=other, text_encoder=tmp_path / "whole", tokenizer=str(folder))
    assert model.vae is other and held.vae is not other and model.network is held.unet
    borrowed = load(own("sd"), text_encoder=whole.text_encoder)
    assert torch.equal(borrowed.embed([PROMPT]).text, load(whole).embed([PROMPT]).text)


def test_a_part_in_the_hubs_cache_is_found_by_its_id(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "models--somebody--vae", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    (place / "snapshots" / commit).symlink_to(folder / "vae")
    model: Any = load(str(folder), device="cpu", vae="somebody/vae", offline=True)
    assert torch.equal(model.vae.encoder.conv_in.weight, own("sd").vae.encoder.conv_in.weight)
    with pytest.raises(SfumatoError, match=r"no/such.*nothing is downloaded offline"):
        load(str(folder), device="cpu", vae="no/such", offline=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vea": 1}, "vea is no option of load, and a StableDiffusionPipeline has no such part; it has: vae, text_enc"),
        ({"scheduler": "Nope"}, "no scheduler 'Nope'; give a class such as EulerDiscreteScheduler, or a folder"),
        ({"scheduler": "FOLDER/vae"}, "what is given as scheduler is a AutoencoderKL, which is none"),
        ({"unet": "FOLDER/vae"}, "with a AutoencoderKL; known are"),
        ({"text_encoder": "FOLDER/unet"}, "what is given as text_encoder is a UNet2DConditionModel, which is none"),
        ({"vae": "PLACE"}, "holds no vae: it has no config that says of which class it is"),
        ({"vae": "gone"}, "unknown vae 'gone'; known: "),
        ({"vae": "PLACE/nothing.safetensors"}, "there is no file"),
        ({"vae": "PLACE/pickle.ckpt"}, "is a pickle, which is not read"),
        ({"vae": "FOLDER/text_encoder/model.safetensors"}, "holds no VAE: it is a text encoder"),
    ],
)
def test_what_is_no_such_part_is_one_clear_line(folder, tmp_path, given, words, capfd):
    (tmp_path / "pickle.ckpt").write_bytes(b"no")
    given = {
        k: v.replace("FOLDER", str(folder)).replace("PLACE", str(tmp_path)) if isinstance(v, str) else v
        for k, v in given.items()
    }
    with pytest.raises(SfumatoError, match=words) as e:
        load(str(folder), device="cpu", **cast("Any", given))
    assert "\n" not in str(e.value)


def test_a_tilde_is_the_home_folder(folder, tmp_path, monkeypatch):
    """Where no shell sees to it: in Python, and behind ``--out=``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / "sd"
    home.symlink_to(folder)
    assert load("~/sd", device="cpu", vae="~/sd/vae").name == str(home)
    for option, file in ({"lora": "~/no.safetensors:0.5"}, "no"), ({"embeddings": "~/words.safetensors"}, "words"):
        with pytest.raises(SfumatoError, match=f"{home.parent}/{file}"):
            load("~/sd", device="cpu", **cast("Any", option))
    write_picture(Image.new("RGB", (8, 8)), Path("~/made/red.png"))
    assert open_picture("~/made/red.png").size == open_picture(tmp_path / "made" / "red.png").size == (8, 8)


def test_pickled_parts_are_not_read(folder, tmp_path):
    own("sd").vae.save_pretrained(tmp_path / "vae", safe_serialization=False)
    with pytest.raises(SfumatoError, match="only pickled weights"):
        load(str(folder), device="cpu", vae=tmp_path / "vae")


def test_a_vaes_file_is_read_as_the_models_own(folder, tmp_path):
    from safetensors.torch import save_file

    other = seeded(families.vae)
    save_file(other.state_dict(), tmp_path / "vae.safetensors")
    model: Any = load(str(folder), device="cpu", vae=tmp_path / "vae.safetensors")
    x = model.latents([1], 64, 64)
    assert torch.equal(model.decode(x), load(own("sd"), vae=other).decode(x))
    assert model.vae.config.scaling_factor == 0.5


# --- what is of no known family ---------------------------------------------------------------------


def changed(pipe: Any, **parts: Any) -> Any:
    for name, part in parts.items():
        setattr(pipe, name, part)
    return pipe


def sd_with(**options: Any) -> Any:
    return changed(own("sd"), unet=families.unet(**options))


STRANGERS: dict[str, tuple[Any, str]] = {
    "Kandinsky's image_proj": (
        lambda: sd_with(addition_embed_type="image", encoder_hid_dim=16, encoder_hid_dim_type="image_proj"),
        r"reads image \(addition_embed_type\)",
    ),
    "hints": (lambda: sd_with(addition_embed_type="image_hint", encoder_hid_dim=16), "image_hint"),
    "class labels": (lambda: sd_with(num_class_embeds=4), "class labels"),
    "unCLIP": (
        lambda: sd_with(class_embed_type="projection", projection_class_embeddings_input_dim=8),
        "class labels .*'projection'",
    ),
    "GLIGEN": (lambda: sd_with(attention_type="gated"), "boxes"),
    "an upscaler's seven channels": (lambda: sd_with(in_channels=7), "reads 7 channels"),
    "two pictures beside": (lambda: sd_with(in_channels=12), "reads 12 channels"),
    "variances": (lambda: sd_with(out_channels=8), "gives 8 channels for 4 of the latents"),
    "no text encoder": (lambda: changed(own("sd"), text_encoder=None), "without a text encoder"),
    "another text encoder": (
        lambda: changed(own("sd"), text_encoder=torch.nn.Linear(2, 2)),
        "whose text_encoder is a Linear",
    ),
    "another autoencoder": (
        lambda: changed(own("sd"), vae=torch.nn.Linear(2, 2)),
        "whose vae is a Linear, not one of AutoencoderKL, ",
    ),
    "depth and colour": (
        lambda: changed(own("sd"), vae=diffusers.AutoencoderKL(out_channels=6)),
        "gives 6 channels, not pictures",
    ),
    "videos": (
        lambda: changed(
            own("sd"),
            unet=diffusers.UNet3DConditionModel(
                block_out_channels=(8, 8, 8, 8),
                norm_num_groups=4,
                layers_per_block=1,
                cross_attention_dim=16,
                attention_head_dim=4,
            ),
        ),
        "with a UNet3DConditionModel",
    ),
    "Flux Fill": (
        lambda: changed(
            own("flux"), transformer=type(own("flux").transformer).from_config({**FLUX(), "in_channels": 96})
        ),
        "reads 96 channels.*a known network reads as 16",
    ),
    "Stable Diffusion 3 beside a picture": (
        lambda: changed(own("sd3"), vae=families.vae(8, 0.1)),
        "reads 4 channels, and the latents of its AutoencoderKL have 8",
    ),
    "HunyuanDiT": (
        lambda: transformer("HunyuanDiT2DModel", num_layers=2, in_channels=4, patch_size=2),
        "with a HunyuanDiT2DModel",
    ),
    "Sana": (lambda: transformer("SanaTransformer2DModel", num_layers=1), "with a SanaTransformer2DModel"),
    "AuraFlow": (
        lambda: transformer("AuraFlowTransformer2DModel", num_mmdit_layers=1, num_single_dit_layers=1),
        "with a AuraFlowTransformer2DModel",
    ),
    "no network": (lambda: type("UnCLIPPipeline", (), {"components": {}})(), "without a unet or a transformer"),
}


def FLUX() -> dict[str, Any]:
    return dict(own("flux").transformer.config)


def motion_adapter() -> Any:
    return diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4
    )


def transformer(kind: str, **options: Any) -> Any:
    with torch.device("meta"):
        network = getattr(diffusers, kind)(**options)
    return changed(own("pixart"), transformer=network)


@pytest.mark.parametrize("what", STRANGERS)
def test_networks_that_look_alike_are_refused_by_name(what):
    make, words = STRANGERS[what]
    pipe = make()
    with pytest.raises(SfumatoError, match=words) as e:
        load(pipe)
    assert f"is a {type(pipe).__name__}" in str(e.value) and "known are" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sd", "tokenizer"), ("sdxl", "tokenizer_2"), ("sdxl", "text_encoder_2"), ("sd3", "text_encoder"),
        ("sd3", "tokenizer_3"), ("flux", "text_encoder"), ("flux", "text_encoder_2"), ("flux", "tokenizer_2"),
        ("pixart", "tokenizer"), ("deepfloyd", "tokenizer"),
    ],
)  # fmt: skip
def test_a_part_that_prompts_need_is_named_and_may_be_given(name, part):
    pipe = own(name)
    there = getattr(pipe, part)
    with pytest.raises(SfumatoError, match=rf"has no {part}, .* load\(\.\.\., {part}=\.\.\.\) gives it one"):
        load(changed(pipe, **{part: None}))
    assert load(pipe, **{part: there}).embed([PROMPT]).text.isfinite().all()


@pytest.mark.parametrize(("name", "side"), [("sd", 512), ("sdxl", 1024)])
def test_a_network_that_does_not_say_its_size_has_diffusers_usual_one(name, side):
    assert load(families.FAMILIES[name](network={"sample_size": None})).size == side


@pytest.mark.parametrize("sides", [(16, 8), (8, 16), [8, 16]])
def test_a_network_trained_on_no_square_paints_its_shorter_side(sides):
    pipe = diffusers.DDPMPipeline(unet=families.wordless(sample_size=sides), scheduler=diffusers.DDPMScheduler())
    model = load(pipe)
    assert model.size == 8 and denoise(model, "", steps=1, size=(16, 24)).latents.shape == (1, 3, 16, 24)


def test_pixels_of_no_known_size_and_networks_of_inference_mode_are_refused():
    pipe = diffusers.DDPMPipeline(unet=families.wordless(sample_size=None), scheduler=diffusers.DDPMScheduler())
    with pytest.raises(SfumatoError, match="does not say its sample_size"):
        load(pipe)
    with torch.inference_mode():
        pipes = [families.stable_diffusion(), families.ddpm()]
    for pipe in pipes:
        with pytest.raises(SfumatoError, match=r"made in torch.inference_mode, .*; use torch.no_grad"):
            load(pipe)


def test_a_pipeline_that_paints_no_pictures_is_refused():
    class MarigoldDepthPipeline(diffusers.StableDiffusionPipeline):
        pass

    pipe = families.stable_diffusion()
    pipe.__class__ = MarigoldDepthPipeline
    with pytest.raises(SfumatoError, match="MarigoldDepthPipeline whose UNet2DConditionModel does not paint pictures"):
        load(pipe)


def test_a_compiled_network_is_still_of_its_family():
    pipe = own("sd")
    pipe.unet = torch.compile(pipe.unet)
    model = load(pipe)
    assert isinstance(model, UNet)
    with pytest.raises(SfumatoError, match="compiled"), model.tap({}):
        pass


def test_an_index_without_a_part_says_so(folder, tmp_path):
    place = Path(shutil.copytree(folder, tmp_path / "model"))
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    with pytest.raises(SfumatoError, match="without a text encoder"):
        load(str(place), device="cpu")


# --- networks that read a picture, a mask, a score -----------------------------------------------------


def inpainting(kind: Any = None) -> Any:
    if kind is diffusers.StableDiffusionXLInpaintPipeline:
        network = families.unet(
            in_channels=9, cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 6 * 4,
        )  # fmt: skip
        return kind(**{**families.sdxl().components, "unet": network}, force_zeros_for_empty_prompt=False)
    parts = {**families.stable_diffusion().components, "unet": families.unet(in_channels=9)}
    return diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


@pytest.mark.parametrize("kind", [diffusers.StableDiffusionInpaintPipeline, diffusers.StableDiffusionXLInpaintPipeline])
def test_inpainting_checkpoints_paint_as_diffusers_paints(kind, tmp_path):
    pipe = seeded_pipe(lambda: inpainting(kind))
    pipe.save_pretrained(tmp_path / "inpaint")
    generator = torch.Generator().manual_seed(2)
    image, mask = torch.rand(1, 3, 64, 64, generator=generator), torch.zeros(1, 64, 64)
    mask[:, 8:40, 16:50] = 0.7
    bare: Any = load(str(tmp_path / "inpaint"), device="cpu")
    ours = bare.given(lambda cond: bare.with_mask(cond, image, mask))
    seen: list[Any] = []
    pipe.unet.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    options |= {"image": image, "mask_image": mask[:, None], "height": 64, "width": 64, "strength": 1.0}
    x, beside = bare.latents([5], 64, 64), ours.embed([PROMPT]).image
    mean = pipe.vae.encode((image * 2 - 1) * (mask[:, None] < 0.5)).latent_dist.mean * pipe.vae.config.scaling_factor
    torch.testing.assert_close(beside[:, 1:], mean)
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(PROMPT, latents=x, masked_image_latents=mean, **options).images
    torch.testing.assert_close(seen[0][:1, 4:], beside)
    torch.testing.assert_close(painted(ours), wanted, **CLOSE)
    with pytest.raises(SfumatoError, match=r"reads 9 channels, got 4; it needs an image and a mask.*with_mask"):
        painted(bare)
    with pytest.raises(SfumatoError, match="of one size, got 64 x 64 and 32 x 32"):
        bare.with_mask(bare.embed([PROMPT]), image, torch.ones(1, 32, 32))
    with pytest.raises(SfumatoError, match="1 rows of conditions take as many images or one for all, got 2"):
        bare.with_mask(bare.embed([PROMPT]), image.repeat(2, 1, 1, 1), mask)


def test_a_mask_is_refused_by_networks_that_read_none():
    model: Any = load(own("sd"))
    with pytest.raises(SfumatoError, match="reads 4 channels and no mask; an inpainting checkpoint reads 9"):
        model.with_mask(model.embed([PROMPT]), torch.rand(1, 3, 64, 64), torch.ones(1, 64, 64))


def refiner() -> Any:
    network = families.unet(
        cross_attention_dim=24, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 5 * 4,
    )  # fmt: skip
    parts = {"unet": network, "text_encoder": None, "tokenizer": None}
    parts["text_encoder_2"] = families.clip_text(24, projected=True)
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        **{**families.sdxl().components, **parts}, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
    )


def seeded_pipe(make: Any) -> Any:
    torch.manual_seed(4)
    pipe = make()
    families.randomised(*pipe.components.values())
    return pipe


@pytest.mark.parametrize("negative", ["", "a duck"])
def test_a_refiner_paints_as_diffusers_paints(negative, tmp_path):
    pipe = seeded_pipe(refiner)
    pipe.save_pretrained(tmp_path / "refiner")
    pipe.set_progress_bar_config(disable=True)
    model: Any = load(str(tmp_path / "refiner"), device="cpu")
    x = model.latents([5], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    pipe.prepare_latents = lambda *_, **__: x  # as if the picture were noise alone
    wanted = pipe(PROMPT, image=torch.rand(1, 3, 64, 64), strength=1.0, negative_prompt=negative, **options).images
    torch.testing.assert_close(painted(model, guide=cfg(3.0, negative), start=x), wanted, **CLOSE)
    assert model.words("a duck")[1][0] == "duck"
    model.scores = (1.0, 9.0)
    assert (painted(model, guide=cfg(3.0, negative), start=x) - wanted).abs().max() > 1e-4


def test_a_controls_picture_is_brought_to_the_images_size_as_diffusers_does():
    model: Any = load(own("sd"))
    network = families.controlnet("sd", model.network)
    pipe: Any = diffusers.StableDiffusionControlNetPipeline.from_pipe(own("sd"), controlnet=network)
    pipe.set_progress_bar_config(disable=True)
    x = model.latents([3, 4], 64, 64)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    seen: list[torch.Tensor] = []
    network.controlnet_cond_embedding.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    for pictures in (torch.rand(1, 3, 40, 100), torch.rand(2, 3, 128, 128)):
        seen.clear()
        wanted = pipe([PROMPT] * 2, image=pictures, latents=x, height=64, width=64, **options).images
        both, run = [PROMPT] * 2, {"steps": 3, "guide": 3.0, "controls": [ControlNet(network, pictures)]}
        torch.testing.assert_close(denoise(model, both, start=x, **run).latents, wanted, **CLOSE)
        assert all(torch.equal(picture, seen[0]) for picture in seen) and len(seen) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float16])
def test_a_control_may_be_of_another_precision_than_the_network(folder, dtype, own):
    model = load(str(folder), device="cpu", dtype=dtype)
    control = seeded(
        lambda: diffusers.ControlNetModel.from_unet(model.network, conditioning_embedding_out_channels=(4, 4, 8, 8))
    )
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    latents = [painted(model, controls=[ControlNet(control.to(each), picture)] * 2) for each in (own, torch.float32)]
    assert (latents[0] - painted(model)).abs().max() > 0.01
    torch.testing.assert_close(latents[0], latents[1], atol=0.3, rtol=0.1)


@pytest.mark.parametrize("wrong", [lambda x: x * 2 - 1, lambda x: x * 255])
def test_pictures_beside_the_latents_lie_in_0_1(wrong):
    picture, mask = wrong(torch.rand(1, 3, 64, 64)), torch.ones(1, 64, 64)
    with pytest.raises(SfumatoError, match=r"a picture to steer by lies in \[0, 1\]"):
        ControlNet(None, picture)
    pipe = own("sd")
    pipe.unet = families.unet(in_channels=9)
    model: Any = load(pipe)
    with pytest.raises(SfumatoError, match=r"an image lies in \[0, 1\]"):
        model.with_mask(model.embed([PROMPT]), picture, mask)


def test_controls_of_another_kind_say_what_they_are():
    model: Any = load(own("sd"))
    network, sdxl = families.controlnet("sd", model.network), load(own("sdxl"))
    for control, words in (
        (
            ControlNet(network, torch.rand(1, 1, 64, 64)),
            r"pictures of 3 channels, \(b, 3, H, W\), got \(1, 1, 64, 64\)",
        ),
        (ControlNet(network, torch.rand(3, 64, 64)), r"got \(3, 64, 64\)"),
        (ControlNet(network, torch.rand(3, 3, 64, 64)), "2 rows of conditions take as many images or one .*got 3"),
        (
            ControlNet(families.controlnet("sdxl", sdxl.network), torch.rand(1, 3, 64, 64)),
            "texts of width 32",
        ),
        (
            ControlNet(torch.nn.Linear(2, 2), torch.rand(1, 3, 64, 64)),
            "is steered by a ControlNetModel, not by a Linear",
        ),
    ):
        with pytest.raises(SfumatoError, match=words):
            denoise(model, PROMPT, steps=1, size=64, guide=3.0, controls=[control])
