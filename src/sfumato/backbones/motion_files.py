"""AnimateDiff's motion adapters in one file, as its authors publish them: ``mm_sd_v15_v2.safetensors`` and its like.

Such a file names no sizes: they are those of its weights. It has eight heads and groups of 32, which no weight tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.backbones import folder, single_file
from sfumato.errors import SfumatoError

HEADS, GROUPS = 8, 32
_MODULES, _OWN = ".motion_modules.", ".temporal_transformer."
_PREFIX = re.compile(r"^(module\.|model\.diffusion_model\.|unet\.)+")
_WORDS = {
    _OWN: ".",
    ".attention_blocks.0.": ".attn1.",
    ".attention_blocks.1.": ".attn2.",
    ".norms.0.": ".norm1.",
    ".norms.1.": ".norm2.",
    ".ff_norm.": ".norm3.",
}
"""The authors' words and diffusers'."""
_CODES = re.compile(r"\.(attn\d\.pos_encoder|pos_embed)\.pe$")


def is_file(name: str) -> bool:
    """Does a name mean a file, rather than a folder or an id of the hub?"""
    return Path(name).is_file() or Path(name).suffix in folder.WEIGHTS


def read(file: Path, dtype: torch.dtype) -> Any:
    """The adapter of a file. ``SfumatoError`` for what holds none, and for one whose sizes are not in its weights."""
    from diffusers import MotionAdapter
    from safetensors.torch import load_file

    shapes = single_file.tensors(file)
    _check(file, shapes)
    state = {_renamed(k): v for k, v in load_file(file).items() if _MODULES in k}
    codes = {k: v for k, v in state.items() if _CODES.search(k)}
    with folder.loading(file, "motion adapter"):
        made: Any = MotionAdapter(**_config(state, codes))
        kept = {k: v for k, v in state.items() if k not in codes}
        missing, unknown = made.load_state_dict(kept, strict=False)
    missing = [key for key in missing if not _CODES.search(key)]  # diffusers makes them itself
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which no such adapter has"
        raise SfumatoError(f"{file} is no motion adapter that is known: it {what}")
    own = next(value for key, value in made.state_dict().items() if _CODES.search(key))
    if any(c.shape[-1] == own.shape[-1] and not torch.allclose(c.float(), own, atol=1e-2) for c in codes.values()):
        raise SfumatoError(f"{file} tells frames apart by other codes than sines, which nothing here does")
    return made.to(dtype).eval()


def _check(file: Path, shapes: Mapping[str, Tensor]) -> None:
    """Refuse what is no adapter, by what it is."""
    if single_file.is_lora(shapes) and any("motion_modules" in key for key in shapes):
        raise SfumatoError(f"{file} is a LoRA of motion; give it beside an adapter, as lora (--lora FILE)")
    others = [key for key in shapes if key.startswith(("controlnet_cond_embedding.", "input_hint_block."))]
    if others or not any(_MODULES in key for key in shapes):
        raise SfumatoError(f"{file} holds no motion adapter: {single_file.instead(shapes)}")
    if not any(_OWN in key for key in shapes):
        raise SfumatoError(
            f"{file} is of a diffusers MotionAdapter, whose heads its config.json tells; give the folder of both, "
            f"{file.parent}"
        )
    if any(_PREFIX.sub("", key).startswith("conv_in.") for key in shapes):
        raise SfumatoError(f"{file} is PIA, which goes on from a picture beside the noise; nothing here reads that")


def _renamed(key: str) -> str:
    key = _PREFIX.sub("", key)
    for own, word in _WORDS.items():
        key = key.replace(own, word)
    return key


def _config(state: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes, by names and shapes."""

    def count(pattern: str) -> int:
        found = [int(m[1]) for m in map(re.compile(pattern).match, state) if m]
        return 1 + max(found, default=-1)

    blocks = range(count(r"down_blocks\.(\d+)\."))
    return {
        "block_out_channels": tuple(len(state[f"down_blocks.{i}.motion_modules.0.norm.weight"]) for i in blocks),
        "motion_layers_per_block": count(r"down_blocks\.\d+\.motion_modules\.(\d+)\."),
        "motion_transformer_layers_per_block": count(r".*\.transformer_blocks\.(\d+)\."),
        "motion_num_attention_heads": HEADS,
        "motion_norm_num_groups": GROUPS,
        "motion_max_seq_length": max((v.shape[1] for v in codes.values()), default=32),
        "use_motion_mid_block": any(key.startswith("mid_block.") for key in state),
    }
