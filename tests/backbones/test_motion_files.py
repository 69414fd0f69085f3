"""Motion adapters in one file, in the layout of AnimateDiff's authors, and what is none is named."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import families
import pytest
import torch
from safetensors.torch import save_file

from sfumato.backbones import motion_files
from sfumato.backbones.load import load
from sfumato.errors import SfumatoError

SIZES: dict[str, Any] = {"block_out_channels": (32, 64), "motion_num_attention_heads": 8, "motion_norm_num_groups": 32}
VARIED: dict[str, Any] = {"motion_layers_per_block": 2, "motion_max_seq_length": 24, "use_motion_mid_block": False,
                          "motion_transformer_layers_per_block": 2}  # fmt: skip


def adapter(**options: Any) -> diffusers.MotionAdapter:
    torch.manual_seed(3)
    made = families.motion_adapter(**SIZES | options)
    families.randomised(made)
    return made


def published(made: diffusers.MotionAdapter, prefix: str = "") -> dict[str, torch.Tensor]:
    """Its weights under the authors' names, with the codes of frames in each attention."""
    out = {}
    for key, value in made.state_dict().items():
        key = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", key)
        key = re.sub(r"\.attn(\d)\.", lambda m: f".attention_blocks.{int(m[1]) - 1}.", key)
        key = re.sub(r"\.norm([12])\.", lambda m: f".norms.{int(m[1]) - 1}.", key).replace(".norm3.", ".ff_norm.")
        each = [f"attention_blocks.{i}.pos_encoder" for i in (0, 1)] if "pos_embed" in key else [None]
        out |= {prefix + (key if e is None else key.replace("pos_embed", e)): value.clone() for e in each}
    return out


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("options", [{}, VARIED], ids=["plain", "varied"])
def test_a_published_file_is_the_adapter(tmp_path, prefix, options):
    made = adapter(**options)
    named = published(made, prefix)
    assert prefix + "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.ff_norm.weight" in named
    save_file(named, tmp_path / "mm.safetensors")
    found = motion_files.read(tmp_path / "mm.safetensors", torch.float32)
    wanted = made.state_dict()
    assert set(found.state_dict()) == set(wanted) and not found.training
    assert all(torch.equal(value, wanted[key]) for key, value in found.state_dict().items())
    keys = ("block_out_channels", "use_motion_mid_block", "motion_max_seq_length", "motion_num_attention_heads")
    assert all(found.config[key] == made.config[key] for key in keys)
    assert motion_files.read(tmp_path / "mm.safetensors", torch.bfloat16).dtype == torch.bfloat16


def test_its_names_are_those_that_diffusers_reads():
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    made = adapter()
    theirs: Any = convert_animatediff_checkpoint_to_diffusers(published(made))
    wanted = {k: v for k, v in made.state_dict().items() if "pos_embed" not in k}
    assert set(theirs) == set(wanted) and all(torch.equal(theirs[k], v) for k, v in wanted.items())


def test_it_gives_a_model_time_as_its_folder_does(tmp_path):
    made = adapter()
    made.save_pretrained(tmp_path / "folder")
    save_file(published(made), tmp_path / "mm.safetensors")
    pipe = families.stable_diffusion(network={"block_out_channels": (32, 64), "norm_num_groups": 8})
    nets = [load(pipe, motion=str(tmp_path / name)).network for name in ("folder", "mm.safetensors")]
    first, second = (net.state_dict() for net in nets)
    assert set(first) == set(second) and all(torch.equal(first[k], v) for k, v in second.items())
    assert nets[0].config.motion_num_attention_heads == nets[1].config.motion_num_attention_heads == 8
    wide = families.stable_diffusion(network={"block_out_channels": (32, 32), "norm_num_groups": 8})
    with pytest.raises(SfumatoError, match=r"this motion adapter is none for StableDiffusionPipeline: .*size mismatch"):
        load(wide, motion=tmp_path / "mm.safetensors")


def test_what_is_no_adapter_is_named(tmp_path):
    made, file = adapter(), tmp_path / "it.safetensors"
    whole, own = published(made), made.state_dict()
    first = next(k for k in whole if k.endswith("to_q.weight"))
    lora = {"down_blocks.0.motion_modules.0.temporal_transformer.to_q_lora.down.weight": torch.zeros(2)}
    codes = {k: v + (0.5 if "pos_encoder" in k else 0) for k, v in whole.items()}
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({k: v.clone() for k, v in own.items()}, f"of a diffusers MotionAdapter, .* the folder of both, {tmp_path}"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(2)}, "holds no motion adapter: it is a LoRA; give it to a model"),
        (lora, r"is a LoRA of motion; give it beside an adapter, as lora \(--lora FILE\)"),
        (whole | {"controlnet_cond_embedding.conv_in.weight": torch.zeros(2)}, "no motion adapter: it is a ControlNet"),
        (whole | {"conv_in.weight": torch.zeros(2)}, "is PIA, which goes on from a picture"),
        ({k: v for k, v in whole.items() if k != first}, "no motion adapter that is known: it lacks .*to_q.weight"),
        (whole | {first.replace("to_q", "to_z"): torch.zeros(2)}, "it has .*to_z.weight, which no such"),
        (codes, "tells frames apart by other codes than sines"),
        ({"something": torch.zeros(2)}, "holds no motion adapter: it has 1 tensors of no layout"),
    ]  # fmt: skip
    for tensors, match in cases:
        save_file(tensors, file)
        with pytest.raises(SfumatoError, match=match) as e:
            motion_files.read(file, torch.float32)
        assert "\n" not in str(e.value)
    torch.save({"x": torch.zeros(2)}, tmp_path / "mm_sd_v15_v2.ckpt")
    pipe = families.stable_diffusion()
    with pytest.raises(SfumatoError, match="is a pickle, which is not read"):
        load(pipe, motion=tmp_path / "mm_sd_v15_v2.ckpt")
    with pytest.raises(SfumatoError, match=r"there is no file .*none\.safetensors"):
        load(pipe, motion=tmp_path / "none.safetensors")
