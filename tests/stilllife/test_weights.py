"""Shipped weights: checked, put together, exported. On tiny random networks, so that it takes seconds."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file

from sfumato.backbones import clips
from sfumato.backbones.load import load
from sfumato.errors import SfumatoError
from sfumato.stilllife import paint, similarity, weights
from sfumato.stilllife.coarse import coarsen, refine
from sfumato.stilllife.train.ship import collect, difference


def copied(place, monkeypatch, tmp_path):
    for file in place.rglob("*"):
        if file.is_file():
            target = tmp_path / "weights" / file.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    monkeypatch.setattr(weights, "folder", lambda: tmp_path / "weights")
    return tmp_path / "weights"


def test_networks_come_back_as_they_were_saved(here, shipped):
    for name, network in shipped[1].items():
        loaded = weights.module(name).state_dict()
        for key, value in network.state_dict().items():
            if name in weights.BITS and value.ndim > 1:  # off by a step of the scale of its 64 numbers at most
                assert (loaded[key] - value).abs().max() <= value.abs().max() / 2**7 * 1.01, key
            else:
                assert torch.equal(loaded[key], value.half().to(value.dtype)), key


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(5, 64), (3, 7), (6, 10, 3, 3), (4, 1)])
def test_few_bits_lose_what_rounding_does(bits, shape):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(shape, generator=generator)
    value *= 10.0 ** torch.arange(-3, shape[0] - 3).view(-1, *(1 for _ in shape[1:]))
    codes, scales = coarsen(value, bits)
    groups = -(-value[0].numel() // 64)
    assert codes.shape == (shape[0], groups * 64 * bits // 8) and scales.shape == (shape[0], groups)
    again = refine(codes, scales, shape)
    assert again.shape == shape
    for row, was in zip(again, value, strict=True):  # rows differ by orders of magnitude and each keeps its digits
        step = 3.7 / 2 ** (bits - 1)  # of 64 normal numbers the largest is seldom above 3.7; rounding: step / sqrt(12)
        assert (row - was).norm() <= step / 12**0.5 * was.norm()


def test_zeros_stay_zeros_in_few_bits_and_other_bits_are_refused():
    value = torch.zeros(3, 70)
    value[1, 65] = -2.0
    faint = value.clone()
    faint[2] = 1e-12  # halves have no scale for it
    for bits in (8, 4):
        for given in (value, faint):
            assert torch.equal(refine(*coarsen(given, bits), (3, 70)), value)
    with pytest.raises(ValueError, match="bits must be 8 or 4, not 3"):
        coarsen(value, 3)


@pytest.mark.parametrize("name", weights.MODELS)
def test_every_model_samples(here, name):
    pipe = weights.pipeline(name)
    size = {"height": 64, "width": 64} if name != "stilllife-instruct" else {}
    image = {} if name == "stilllife" else {"image": torch.rand(1, 3, 64, 64)}
    out = pipe("a red cube", num_inference_steps=2, output_type="pt", **size, **image).images
    assert out.shape == (1, 3, 64, 64) and out.isfinite().all()


def test_the_relative_is_the_base_and_its_changes(here, shipped):
    base, unet = weights.module("unet").state_dict(), weights.instruct_unet()
    assert unet.config["in_channels"] == 8
    differing = {k for k, v in unet.state_dict().items() if v.shape != base[k].shape or not torch.equal(v, base[k])}
    changed = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"
    assert differing == {"conv_in.weight", changed}
    change = weights.read(here / "instruct.safetensors")[1][changed + weights.CHANGE]
    assert change.abs().max() > 0.1 and torch.equal(unet.state_dict()[changed], base[changed] + change)
    kept = load_file(here / "instruct.safetensors")  # a change in 4 bits, a whole tensor in halves
    assert kept[f"{changed}.change.codes"].dtype == torch.uint8 and kept["conv_in.weight"].dtype == torch.float16


def test_a_difference_is_found_and_merges_back():
    torch.manual_seed(0)
    base = {"a": torch.randn(12, 9), "c": torch.randn(6, 4, 3, 3), "b": torch.randn(5), "d": torch.ones(2)}
    tuned = {"a": base["a"] + torch.randn(12, 9), "c": torch.randn(6, 8, 3, 3), "b": base["b"] + 1, "d": base["d"]}
    changes = difference(base, tuned)
    assert set(changes) == {"a.change", "c", "b.change"}
    for key, value in weights.merged(base, changes).items():
        torch.testing.assert_close(value, tuned[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stilllife", StableDiffusionPipeline),
        ("stilllife-instruct", StableDiffusionInstructPix2PixPipeline),
        ("stilllife-depth", StableDiffusionControlNetPipeline),
    ],
)
def test_an_export_is_a_plain_folder_that_diffusers_loads(here, tmp_path, name, kind):
    weights.export(name, tmp_path / "out")
    pipe, ours = kind.from_pretrained(tmp_path / "out"), weights.pipeline(name)
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == kind.__name__
    for part in ("unet", "vae", "text_encoder", "controlnet"):
        if hasattr(ours, part):
            theirs = getattr(pipe, part).state_dict()
            for key, value in getattr(ours, part).state_dict().items():
                assert torch.equal(theirs[key], value), key
    assert not list(tmp_path.rglob("*.bin"))
    words = "two red cubes on sand, zebra"
    assert pipe.tokenizer(words).input_ids == ours.tokenizer(words).input_ids
    assert pipe.scheduler.config["set_alpha_to_one"] is False and pipe.scheduler.config["steps_offset"] == 1


def test_an_exported_folder_is_a_model_that_paints_the_same(here, tmp_path):
    weights.export("stilllife", tmp_path / "out")
    one, two = (
        paint.paint(weights.pipeline(name), ["a red cube"], [3], steps=2, size=64)
        for name in ("stilllife", str(tmp_path / "out"))
    )
    assert torch.equal(one, two)


def test_half_precision_export(here, tmp_path):
    weights.export("stilllife", tmp_path / "out", half=True)
    state = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    for key, value in weights.module("unet").state_dict().items():
        assert state[key].dtype == torch.float16 and torch.equal(state[key].float(), value), key


def test_an_image_does_not_depend_on_its_batch(here):
    pipe = weights.pipeline()
    alone = paint.paint(pipe, ["a red cube"], [5], steps=3, size=64)
    among = paint.paint(pipe, ["a red cube"] * 3, [4, 5, 6], steps=3, size=64, batch=3)
    torch.testing.assert_close(among[1], alone[0], atol=1e-4, rtol=0)
    assert not torch.allclose(among[0], among[1], atol=1e-3)


def test_what_is_not_empty_is_not_written_over(here, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SfumatoError, match="not empty"):
        weights.export("stilllife", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_unknown_names_say_what_there_is(here, tmp_path):
    with pytest.raises(SfumatoError, match="stilllife-depth"):
        weights.load("still-life")
    with pytest.raises(SfumatoError, match="diffusers folder"):
        weights.pipeline(str(tmp_path))
    with pytest.raises(SfumatoError, match="controlnet"):
        weights.module("controlnet")


@pytest.mark.parametrize("damage", ["truncated", "a bit", "missing"])
def test_a_damaged_file_is_refused(shipped, monkeypatch, tmp_path, damage):
    place = copied(shipped[0], monkeypatch, tmp_path)
    file = place / "unet.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[-1] ^= 1
        file.write_bytes(data)
    with pytest.raises(SfumatoError, match=r"unet\.safetensors.*install Sfumato again"):
        weights.pipeline()


def test_a_relative_that_does_not_ship_is_named(shipped, monkeypatch, tmp_path):
    place = copied(shipped[0], monkeypatch, tmp_path)
    (place / "depth.safetensors").unlink()
    weights.write_manifest(place)
    rows = {row["name"]: row for row in weights.table()}
    assert rows["stilllife"]["shipped"] and not rows["stilllife-depth"]["shipped"]
    with pytest.raises(SfumatoError, match=r"ships no depth\.safetensors"):
        weights.load("stilllife-depth")


def test_a_motion_adapter_ships_where_it_was_trained(shipped, monkeypatch, tmp_path):
    """What is zero of it is left out and comes back as zero; that there is none is said."""
    from families import motion_adapter

    place, adapter = copied(shipped[0], monkeypatch, tmp_path), motion_adapter()
    with pytest.raises(SfumatoError, match=r"this version ships no motion\.safetensors; it has"):
        load("stilllife", motion="stilllife", device="cpu")
    for p in adapter.up_blocks[1].parameters():
        torch.nn.init.zeros_(p)
    adapter.save_pretrained(tmp_path / "cache" / "motion" / "final")
    found = collect(tmp_path / "cache")
    assert list(found) == ["motion"] and not any(
        "up_blocks.1" in key or key.endswith(".pe") for key in found["motion"].tensors
    )
    weights.save(found["motion"].tensors, found["motion"].config, place / "motion.safetensors")
    weights.write_manifest(place)
    again, wanted = weights.motion().state_dict(), adapter.state_dict()
    assert set(again) == set(wanted)
    for key, value in wanted.items():
        off = (again[key] - value).abs().max()
        assert off <= (1e-6 if not value.any() or key.endswith(".pe") else value.abs().max() / 2**7 * 1.01), key
    assert load("stilllife", motion="stilllife", device="cpu").frames == adapter.config["motion_max_seq_length"]


def test_the_table_counts(here, shipped):
    rows = {row["name"]: row for row in weights.table()}
    parts = ("unet", "vae", "clip")
    tensors = [v for p in parts for v in shipped[1][p].state_dict().values()]
    assert rows["stilllife"]["parameters"] == sum(v.numel() for v in tensors)
    assert rows["stilllife"]["bytes"] == sum((here / f"{p}.safetensors").stat().st_size for p in parts)


def test_weights_that_are_not_finite_do_not_ship(tmp_path):
    with pytest.raises(SfumatoError, match="not finite"):
        weights.save({"a": torch.tensor([1e6])}, {}, tmp_path / "a.safetensors")


def test_a_clip_that_is_kept_open_is_of_the_folder_that_is_asked(shipped, monkeypatch):
    """What another folder's reads of an image is not what this one's does."""
    images, tiny = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), shipped[0]
    own, network = similarity.features(images), clips.opened(clips.SHIPPED, "cpu").network
    with monkeypatch.context() as patch:
        patch.setattr(weights, "folder", lambda: tiny)
        assert similarity.features(images).shape != own.shape or not torch.equal(similarity.features(images), own)
        assert clips.opened(clips.SHIPPED, "cpu").network is not network
    assert torch.equal(similarity.features(images), own) and clips.opened(clips.SHIPPED, "cpu").network is network
