"""LoRAs of kohya's and diffusers' layouts: parity with diffusers' pipelines, and what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import FAMILIES, own, painted, write
from safetensors.torch import save_file

from sfumato.backbones.load import load
from sfumato.errors import SfumatoError

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
TAKING = [name for name in FAMILIES if name != "pixart"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    place = tmp_path_factory.mktemp("models")
    return {name: write(name, place) for name in FAMILIES}


def lora(
    pipe: Any, file: Path, kohya: bool = False, seed: int = 0, alpha: float | None = 1.0, texts: bool = True
) -> Path:
    """Changes of the keys of the network, whose widths are the family's, and of the text encoder's attention."""
    generator = torch.Generator().manual_seed(seed)
    network = "unet" if hasattr(pipe, "unet") else "transformer"
    names = {network: "to_k", **({"text_encoder": ("q_proj", "out_proj")} if texts and texts_of(pipe) else {})}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if hasattr(pipe, "text_encoder_2") else "lora_te"}
    changes: dict[str, torch.Tensor] = {}
    for part, end in names.items():
        for path, layer in getattr(pipe, part).named_modules():
            if not path.endswith(end):
                continue
            down = torch.randn(2, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 2, generator=generator)
            if kohya:
                path = path if part == "unet" else f"text_model.{path.removeprefix('text_model.')}"
                key = f"{prefixes[part]}_{path.replace('.', '_')}"
                changes |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                changes[f"{key}.alpha"] = torch.tensor(alpha)
            else:
                changes |= {f"{part}.{path}.lora_A.weight": down, f"{part}.{path}.lora_B.weight": up}
    save_file(changes, file)
    return file


def texts_of(pipe: Any) -> bool:
    """Does diffusers change the text encoder too? (Not T5.)"""
    return type(pipe).__name__ in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


@pytest.mark.parametrize(
    ("name", "kohya"),
    [
        *((name, False) for name in TAKING),
        ("sd", True),
        pytest.param("sd2", True, marks=pytest.mark.slow),
        ("sdxl", True),
    ],
)
def test_loras_are_painted_as_diffusers_paints_them(folders, tmp_path, name, kohya):
    pipe = own(name)
    one = lora(pipe, tmp_path / "one.safetensors", kohya)
    two = lora(pipe, tmp_path / "two.safetensors", kohya, seed=1)
    plain = painted(load(pipe))
    for file, adapter in ((one, "one"), (two, "two")):
        pipe.load_lora_weights(file, adapter_name=adapter)
    pipe.set_adapters(["one", "two"], [0.6, 0.3])
    wanted = painted(load(pipe))
    model = load(str(folders[name]), device="cpu", lora=[f"{one}:0.6", (two, 0.3)])
    assert torch.equal(painted(model), wanted) and (wanted - plain).abs().max() > 1e-3
    if name == "sd":
        x, options = model.latents([5], 64, 64), {"num_inference_steps": 3, "guidance_scale": 3.0}
        theirs = pipe("a red cube on grass", latents=x, height=64, width=64, output_type="latent", **options).images
        torch.testing.assert_close(wanted, theirs, **CLOSE)
    alone = load(own(name), lora=one)
    assert not torch.equal(painted(alone), wanted)
    assert torch.equal(painted(load(own(name), lora=(one, 0.0))), plain)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_loras_part_of_the_text_encoder_counts_and_is_not_remembered(tmp_path, name):
    held = own(name)
    model = load(held)
    before = model.embed(["a duck"]).text
    file = lora(own(name), tmp_path / "it.safetensors")
    held.load_lora_weights(file, adapter_name="it")
    changed = model.embed(["a duck"]).text
    assert (changed - before).abs().max() > 1e-3
    held.set_adapters(["it"], [0.5])
    half = model.embed(["a duck"]).text
    assert not torch.equal(half, changed) and not torch.equal(half, before)
    held.unload_lora_weights()
    assert torch.equal(model.embed(["a duck"]).text, before)


@pytest.mark.parametrize(
    ("of", "into", "kohya"),
    [
        ("sdxl", "sd", False), ("sd", "sdxl", False), ("sd", "sd3", False), ("sd3", "sd", False),
        ("flux", "sd3", False), ("sdxl", "sd", True), ("sd", "sdxl", True), ("sd", "sd3", True),
    ],
)  # fmt: skip
def test_a_lora_of_another_family_is_refused(tmp_path, of, into, kohya):
    file = lora(own(of), tmp_path / "it.safetensors", kohya)
    held = own(into)
    plain = painted(load(held))
    with pytest.raises(SfumatoError, match=r"it.safetensors is a LoRA of another family than \w+Pipeline: ") as e:
        load(held, lora=file)
    assert "\n" not in str(e.value)
    assert torch.equal(painted(load(held)), plain) and not any(held.get_list_adapters().values())


def test_a_lora_that_finds_only_some_layers_is_refused(folders, tmp_path):
    file = lora(own("sd"), tmp_path / "it.safetensors")
    from safetensors.torch import load_file

    state = load_file(file)
    extra = {"unet.nowhere.to_q.lora_A.weight": torch.ones(2, 8), "unet.nowhere.to_q.lora_B.weight": torch.ones(8, 2)}
    save_file(state | extra, file)
    with pytest.raises(SfumatoError, match=rf"1 of its {len(state) // 2 + 1} changes find no layer"):
        load(str(folders["sd"]), device="cpu", lora=file)


def test_what_is_no_lora_is_named(folders, tmp_path):
    sd, file = str(folders["sd"]), tmp_path / "it.safetensors"
    whole = lora(own("sd"), tmp_path / "lora.safetensors")
    save_file({"emb_params": torch.zeros(2, 2)}, file)
    with pytest.raises(SfumatoError, match="holds no LoRA: it is an embedding"):
        load(sd, device="cpu", lora=file)
    (tmp_path / "it.pt").write_bytes(b"no")
    for given, words in (
        (str(tmp_path / "it.pt"), "is a pickle, which is not read"),
        ("nothing.safetensors", "there is no file nothing.safetensors"),
        (f"{whole}:much", "a LoRA is FILE or FILE:WEIGHT"),
    ):
        with pytest.raises(SfumatoError, match=words):
            load(sd, device="cpu", lora=given)
    with pytest.raises(SfumatoError, match="diffusers loads no LoRA into a PixArtAlphaPipeline"):
        load(str(folders["pixart"]), device="cpu", lora=whole)
    held = own("sd")
    held.load_lora_weights(whole, adapter_name="style")
    with pytest.raises(SfumatoError, match=r"carries LoRAs \(style\); call pipe.unload_lora_weights\(\) and give all"):
        load(held, lora=whole)
    held.unload_lora_weights()  # as it says
    assert torch.equal(painted(load(held, lora=whole)), painted(load(own("sd"), lora=whole)))


def test_a_lora_and_other_parts_go_together(folders, tmp_path):
    sd = str(folders["sd"])
    file, other = lora(own("sd"), tmp_path / "it.safetensors"), families.seeded(families.vae)
    model: Any = load(sd, device="cpu", lora=file, vae=other, dtype="bfloat16")
    assert model.vae is other and model.dtype == torch.bfloat16 and painted(model).isfinite().all()
