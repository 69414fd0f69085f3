"""LoRAs in every layout: a layer's weight changes by what the file says, by a formula written out here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from families import NONE, own, painted, write
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.errors import SfumatoError

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
State = dict[str, Tensor]
Wanted = dict[tuple[str, str], Tensor]
"""Part and layer -> what is added to its weight."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write("sd", tmp_path_factory.mktemp("models"))


def layers(pipe: Any, part: str, ends: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    found = [(path, m) for path, m in getattr(pipe, part).named_modules() if path.endswith(ends)]
    assert found
    yield from found


def seeded(seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def factors(layer: Any, rank: int, draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Down, up, and their product, of a linear layer or a convolution."""
    out, *rest = layer.weight.shape
    down, up = draw(rank, *rest), draw(out, rank)
    return down, up.reshape(out, rank, *[1] * (len(rest) - 1)), (up @ down.flatten(1)).reshape(layer.weight.shape)


def change(file: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: values.contiguous() for key, values in state.items()}, file, metadata)
    return file


def _deltas(module: Any) -> Tensor:
    return torch.stack([module.get_delta_weight(name) for name in module.active_adapters]).sum(0)


def check(name: str, file: Path, wanted: Wanted, weight: float = 1.0) -> Any:
    """The model with the file; the changes of its layers are those, and no other layer is changed."""
    model: Any = load(own(name), lora=(file, weight))
    seen = {}
    for part, network in model.pipe.components.items():
        if isinstance(network, torch.nn.Module):
            for path, module in network.named_modules():
                if isinstance(module, BaseTunerLayer):
                    seen[part, path] = _deltas(module)
    assert seen.keys() == wanted.keys()
    for where, delta in wanted.items():
        torch.testing.assert_close(seen[where].reshape(delta.shape), weight * delta, msg=str(where), **CLOSE)
    return model


KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
MLP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
UNET = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "net.0.proj", "net.2", "conv1", "conv2", "conv_shortcut",
        "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out", "linear_1")  # fmt: skip


@pytest.mark.parametrize(("name", "first"), [("sd", False), ("sdxl", False), ("sdxl", True)])
def test_all_that_trainers_change_is_changed_each_by_its_own_alpha_and_rank(tmp_path, name, first):
    """kohya's names, the UNet's also as ``input_blocks``; attention, perceptrons and convolutions have other ranks."""
    pipe, draw, state, wanted = own(name), seeded(), {}, {}
    attended = {i for i, block in enumerate(pipe.unet.up_blocks) if getattr(block, "attentions", None)}
    for part in filter(lambda part: hasattr(pipe, part), KOHYA):
        for at, (path, layer) in enumerate(layers(pipe, part, UNET if part == "unet" else MLP)):
            rank, alpha = (2, 1.0) if path.endswith(("to_q", "q_proj")) else (1 + at % 3, 1.5 + at % 4)
            down, up, product = factors(layer, rank, draw)
            there = path.removeprefix("text_model.")
            if first and part == "unet":
                there = layouts._of_unet(f"{path}.weight", 1, attended).removesuffix(".weight")
            prefix = "lora_te_text_model_" if (name, part) == ("sd", "text_encoder") else KOHYA[part]
            key = prefix + there.replace(".", "_")
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
            wanted[part, path] = product * alpha / rank
    model = check(name, change(tmp_path / "it.safetensors", state), wanted, weight=0.1)
    assert painted(model).isfinite().all()
    model.pipe.unload_lora_weights()
    assert torch.equal(painted(model), painted(load(own(name))))


PREFIXES = {
    "diffusers": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
    "diffusers of before": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
    "processors": ("unet.{}.processor.{}_lora.down.weight", "unet.{}.processor.{}_lora.up.weight"),
    "processors alone": ("{}.processor.{}_lora.down.weight", "{}.processor.{}_lora.up.weight"),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "peft by name": ("base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight"),
    "comfy": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight"),
    "bare": ("{}.lora_A.weight", "{}.lora_B.weight"),
}


@pytest.mark.parametrize("layout", PREFIXES)
def test_names_of_other_layouts_are_the_same_layers(tmp_path, layout):
    draw, state, wanted = seeded(), {}, {}
    for path, layer in layers(own("sd"), "unet", ("to_k", "to_out.0")):
        down, up, product = factors(layer, 2, draw)
        words = (path,)
        if "processor" in PREFIXES[layout][0]:
            attention, _, projection = path.removesuffix(".0").rpartition(".")
            words = (attention, projection)
        state |= dict(zip((key.format(*words) for key in PREFIXES[layout]), (down, up), strict=True))
        wanted["unet", path] = product
    check("sd", change(tmp_path / "it.safetensors", state), wanted)


def test_text_encoders_of_diffusers_before_are_read(tmp_path):
    draw, state, wanted = seeded(), {}, {}
    for path, layer in layers(own("sd"), "text_encoder", ("q_proj", "out_proj", "fc1")):
        down, up, product = factors(layer, 2, draw)
        key = "text_encoder.text_model." + path.removeprefix("text_model.")
        key = (
            key.replace("q_proj", "to_q_lora")
            .replace("out_proj", "to_out_lora")
            .replace("fc1", "fc1.lora_linear_layer")
        )
        state |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        wanted["text_encoder", path] = product
    check("sd", change(tmp_path / "it.safetensors", state), wanted)


def test_kinds_of_changes_other_than_two_matrices(tmp_path):
    """LoHa, LoKr and LoCon by the formulas of LyCORIS; a difference and its bias; a convolution as a matrix."""
    draw, state, wanted = seeded(), {}, {}
    for at, (path, layer) in enumerate(layers(own("sd"), "unet", ("to_k", "to_out.0", "conv1", "proj_in"))):
        out, *rest = layer.weight.shape
        pieces, product = KINDS[at % len(KINDS)](out, rest, draw)
        key = f"lora_unet_{path.replace('.', '_')}"
        state |= {f"{key}.{name}": values for name, values in pieces.items()}
        if "diff" not in pieces:
            state[f"{key}.alpha"] = torch.tensor(3.0)
        wanted["unet", path] = product.reshape(layer.weight.shape)
    model = check("sd", change(tmp_path / "it.safetensors", state), wanted, weight=0.5)
    assert painted(model).isfinite().all()


def loha(out: int, rest: list[int], draw: Callable[..., Tensor]) -> tuple[State, Tensor]:
    n = torch.Size(rest).numel()
    a, b, c, d = draw(out, 2), draw(2, n), draw(out, 2), draw(2, n)
    return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, (a @ b) * (c @ d) * 3 / 2


def lokr(out: int, rest: list[int], draw: Callable[..., Tensor]) -> tuple[State, Tensor]:
    one, a, b = draw(2, 2), draw(out // 2, 1), draw(1, rest[0] // 2, *rest[1:])
    two = torch.einsum("or,r...->o...", a, b)
    whole = torch.einsum("ij,ab...->iajb...", one, two)  # Kronecker's product of matrices, of each place of a kernel
    return {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}, whole.reshape(out, *rest) * 3 / 1


def lokr_whole(out: int, rest: list[int], draw: Callable[..., Tensor]) -> tuple[State, Tensor]:
    one, two = draw(2, 2), draw(out // 2, rest[0] // 2, *rest[1:])
    whole = torch.einsum("ij,ab...->iajb...", one, two)
    return {"lokr_w1": one, "lokr_w2": two}, whole.reshape(out, *rest)


def locon(out: int, rest: list[int], draw: Callable[..., Tensor]) -> tuple[State, Tensor]:
    kernel = rest[1:] or [1, 1]
    down, mid, up = draw(2, rest[0], 1, 1), draw(2, 2, *kernel), draw(out, 2, 1, 1)
    product = torch.zeros(out, rest[0], *kernel)
    for i in range(2):
        for j in range(2):
            product += up[:, i, 0, 0, None, None, None] * mid[None, i, j] * down[None, j, :, 0, 0][..., None, None]
    return {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}, product * 3 / 2


def difference(out: int, rest: list[int], draw: Callable[..., Tensor]) -> tuple[State, Tensor]:
    whole = draw(out, *rest)
    return {"diff": whole}, whole


KINDS = (loha, lokr, lokr_whole, locon, difference)


def test_biases_are_added(tmp_path):
    draw, path = seeded(), "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    pipe = own("sd")
    layer = pipe.unet.get_submodule(path)
    down, up, product = factors(layer, 2, draw)
    bias, x = draw(len(layer.weight)), draw(3, layer.weight.shape[1])
    before = layer(x)
    key = "lora_unet_" + path.replace(".", "_")
    for pieces, added in (
        ({"diff": product, "diff_b": bias}, bias),
        ({"lora_down.weight": down, "lora_up.weight": up, "lora_up.bias": bias, "alpha": torch.tensor(1.0)}, bias / 2),
    ):
        scale = 1 if "diff" in pieces else 0.5
        file = change(tmp_path / "it.safetensors", {f"{key}.{name}": values for name, values in pieces.items()})
        model: Any = load(own("sd"), lora=file)
        got = model.pipe.unet.get_submodule(path)(x)
        torch.testing.assert_close(got, before + scale * x @ product.T + added, **CLOSE)


@pytest.mark.parametrize("per", ["outputs", "inputs", "peft"])
def test_a_doras_magnitudes_count(tmp_path, per):
    draw, state, wanted = seeded(), {}, {}
    for path, layer in layers(own("sd"), "unet", ("attn2.to_k", "conv2")):
        down, up, product = factors(layer, 2, draw)
        base, (out, into) = layer.weight.detach(), layer.weight.shape[:2]
        n, axis = (into, 1) if per == "inputs" else (out, 0)
        if per == "inputs" and into == out:
            continue  # LyCORIS cannot tell them, and takes outputs
        shape = [n if d == axis else 1 for d in range(base.ndim)]
        magnitude = draw(n).abs() + 0.5
        norm = (base + product).movedim(axis, 0).flatten(1).norm(dim=1).reshape(shape)
        wanted["unet", path] = (base + product) / norm * magnitude.reshape(shape) - base
        if per == "peft":
            state |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
            state[f"unet.{path}.lora_magnitude_vector"] = magnitude
        else:
            key = "lora_unet_" + path.replace(".", "_")
            state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            state[f"{key}.dora_scale"] = magnitude.reshape(shape)
    file = change(tmp_path / "it.safetensors", state)
    model = check("sd", file, wanted)
    if per == "peft":
        theirs = own("sd")
        theirs.load_lora_weights({key: values for key, values in state.items() if "conv2" not in key})
        path = next(path for _, path in wanted if path.endswith("to_k"))
        ours, other = (p.unet.get_submodule(path) for p in (model.pipe, theirs))
        x = draw(3, other.base_layer.weight.shape[1])
        torch.testing.assert_close(ours(x), other(x), **CLOSE)


def by_config(alpha: float, r: int, **more: Any) -> dict[str, Any]:
    return {"lora_alpha": alpha, "r": r, "peft_type": "LORA", **more}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (by_config(8, 2), 4.0),
        (by_config(8, 2, use_rslora=True), 8 / 2**0.5),
        (by_config(8, 2, alpha_pattern={"to_k": 3}), 1.5),
        (NONE, 1.0),
    ],
)
def test_alphas_of_configs_are_obeyed(tmp_path, config, scale):
    """PEFT's lie in a file beside the weights, diffusers' in the header."""
    draw, state, wanted = seeded(), {}, {}
    for path, layer in layers(own("sd"), "unet", ("attn1.to_k",)):
        down, up, product = factors(layer, 2, draw)
        state |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        wanted["unet", path] = product * scale
    about = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    check("sd", change(tmp_path / "it.safetensors", {f"unet.{k}": v for k, v in state.items()}, about), wanted)
    place = tmp_path / "peft"
    place.mkdir()
    change(place / "adapter_model.safetensors", {f"base_model.model.{k}": v for k, v in state.items()})
    (place / "adapter_config.json").write_text(json.dumps(dict(config)))
    check("sd", place, wanted)  # a folder is the LoRA in it
    (place / "adapter_config.json").write_text("{")
    with pytest.raises(SfumatoError, match=r"adapter_config.json cannot be read as JSON"):
        load(own("sd"), lora=place)


def test_flux_layers_with_several_matrices_in_one_are_taken_apart(tmp_path):
    pipe, draw, state, wanted = own("flux"), seeded(), {}, {}
    attention = "transformer_blocks.0.attn"
    layer = pipe.transformer.get_submodule(f"{attention}.to_q")
    out, into = layer.weight.shape
    down, up = draw(2, into), draw(3 * out, 2)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        wanted["transformer", f"{attention}.{name}"] = up[i * out : (i + 1) * out] @ down / 2
    for path, clip in layers(pipe, "text_encoder", ("q_proj", "fc1")):
        down, up, product = factors(clip, 2, draw)
        key = "lora_te1_text_model_" + path.removeprefix("text_model.").replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        wanted["text_encoder", path] = product / 2
    check("flux", change(tmp_path / "it.safetensors", state), wanted)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_words_that_lie_in_the_file_are_learned(tmp_path, name):
    pipe, draw = own(name), seeded()
    path, layer = next(layers(pipe, "unet", ("to_k",)))
    down, up, _ = factors(layer, 2, draw)
    words = {"clip_l": draw(2, 16), "clip_g": draw(2, 16)} if name == "sdxl" else {"emb_params": draw(2, 16)}
    state = {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    state |= {f"bundle_emb.my-cat.{key}": values for key, values in words.items()}
    file = change(tmp_path / "it.safetensors", state)
    given = words if name == "sdxl" else words["emb_params"]
    other: Any = load(own(name), embeddings={"my-cat": given})
    model: Any = load(own(name), lora=(file, 0.0))
    assert torch.equal(model.embed(["a my-cat"]).text, other.embed(["a my-cat"]).text)
    assert len(model.words("a my-cat")) == len(other.words("a my-cat"))


def test_what_is_damaged_or_beside_every_layer_is_named(folder, tmp_path):
    sd, draw, file = str(folder), seeded(), tmp_path / "it.safetensors"
    path, layer = next(layers(own("sd"), "unet", ("to_k",)))
    down, up, _ = factors(layer, 2, draw)
    key = f"unet.{path}"
    whole = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    for state, words in (
        ({f"{key}.lora_A.weight": down}, f"is damaged: its change of {key} lacks 'up'"),
        (
            whole | {f"{key}.lora_B.weight": up * float("nan")},
            rf"{key}.lora_B.weight of .*it.safetensors became not fin",
        ),
        (whole | {f"{key}.lora_B.weight": up[:-1]}, rf"another family than StableDiffusionPipeline: {key}: its up is"),
        (whole | {"unet.conv_norm_out.diff": draw(8)}, r"1 of its 2 changes find no layer \(first: unet.conv_norm_out"),
        (
            whole | {"unet.conv_in.weight": draw(8, 4, 3, 3)},
            r"1 of its 2 changes find no layer \(first: unet.conv_in.w",
        ),
        (
            whole | {"text_encoder_2.a.lora_A.weight": draw(2, 2)},
            r"1 of its 2 changes find no layer \(first: text_encoder_2",
        ),
    ):
        with pytest.raises(SfumatoError, match=words) as e:
            load(sd, device="cpu", lora=change(file, state))
        assert "\n" not in str(e.value)
    for weight in ("nan", "inf", "-inf"):
        with pytest.raises(SfumatoError, match=f"the weight of a LoRA is a number such as 0.8, got {weight}"):
            load(sd, device="cpu", lora=f"{file}:{weight}")
    with pytest.raises(SfumatoError, match=r"is a folder with 0 \.safetensors files"):
        load(sd, device="cpu", lora=folder)
    change(tmp_path / "two.safetensors", whole)
    with pytest.raises(SfumatoError, match=r"a folder with 2 \.safetensors files; .*: it.safetensors, two.safetensors"):
        load(sd, device="cpu", lora=tmp_path)
