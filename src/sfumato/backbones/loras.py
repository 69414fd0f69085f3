"""LoRAs: low-rank changes of a model's networks in files of kohya's or diffusers' layouts, read by diffusers.

diffusers only warns of changes that find no layer, and paints without them; here each change has its layer or the file
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from sfumato.backbones import single_file
from sfumato.errors import SfumatoError, first_line

LoRA = str | Path | tuple[str | Path, float]
LoRAs = LoRA | Sequence[LoRA]
_CHANGE = re.compile(r"[._](lora_A|lora\.down|lora_down|lokr_w1|hada_w1)\b|[._](lokr|hada)_w1_a$")


def listed(lora: LoRAs) -> list[tuple[Path, float]]:
    """Files and their weights; ``FILE:WEIGHT`` is both. ``SfumatoError`` for a weight that is no number."""
    if isinstance(lora, str | Path) or _is_pair(lora):
        lora = [cast("LoRA", lora)]
    return [_one(each) for each in cast("Sequence[LoRA]", lora)]


def _is_pair(lora: Any) -> bool:
    return isinstance(lora, tuple) and len(lora) == 2 and isinstance(lora[1], int | float)


def _one(lora: LoRA) -> tuple[Path, float]:
    if isinstance(lora, tuple):
        return Path(lora[0]), float(lora[1])
    file, colon, weight = str(lora).rpartition(":")
    if not colon or Path(lora).exists():
        return Path(lora), 1.0
    try:
        return Path(file), float(weight)
    except ValueError:
        raise SfumatoError(f"a LoRA is FILE or FILE:WEIGHT, such as style.safetensors:0.8, got {str(lora)!r}") from None


def add(pipe: Any, given: Sequence[tuple[Path, float]]) -> None:
    """Load them into the networks of a pipeline.

    Raises ``SfumatoError`` for a file that holds none, and for one of another family.
    """
    if not given:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise SfumatoError(f"diffusers loads no LoRA into a {type(pipe).__name__}")
    if there := {name for names in pipe.get_list_adapters().values() for name in names}:
        raise SfumatoError(
            f"the pipeline carries LoRAs ({', '.join(sorted(there))}); call pipe.unload_lora_weights() and give all as "
            "lora, or add this one by pipe.load_lora_weights and pipe.set_adapters"
        )
    names = [f"lora-{i}" for i in range(len(given))]
    try:
        for (file, _), name in zip(given, names, strict=True):
            _load(pipe, file, name)
    except SfumatoError:
        pipe.unload_lora_weights()
        raise
    pipe.set_adapters(names, [weight for _, weight in given])


def _load(pipe: Any, file: Path, name: str) -> None:
    shapes = single_file.tensors(file)
    if not single_file.is_lora(shapes):
        raise SfumatoError(f"{file} holds no LoRA: {single_file.instead(shapes)}")
    if any("dora_scale" in key for key in shapes):
        raise SfumatoError(f"{file} is a DoRA, whose magnitudes diffusers leaves out, so it would be another change")
    other = f"{file} is a LoRA of another family than {type(pipe).__name__}"
    try:
        state: Any = pipe.lora_state_dict(str(file))
        state = state[0] if isinstance(state, tuple) else state
        pipe.load_lora_weights(str(file), adapter_name=name)
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError, IndexError) as e:
        raise SfumatoError(f"{other}: {first_line(e)}") from e
    changes = {key[: found.start()] for key in state if (found := _CHANGE.search(key))}
    missed = len(changes) - _carrying(pipe, name)
    if missed:
        raise SfumatoError(f"{other}: {missed} of its {len(changes)} changes find no layer")


def _carrying(pipe: Any, name: str) -> int:
    """How many layers carry the change of this name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = [m for part in pipe.components.values() if isinstance(part, torch.nn.Module) for m in part.modules()]
    layers = [m for m in modules if isinstance(m, BaseTunerLayer)]
    return sum(any(name in getattr(m, part) for part in m.adapter_layer_names) for m in layers)
