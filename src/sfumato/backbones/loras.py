"""LoRAs: low-rank changes of a model's networks, each of which has its layer, or the file is refused.

Files are read here (``lora_files``), as diffusers leaves out what it does not know and scales some otherwise; what is
read is attached by PEFT, so that ``pipe.set_adapters`` and ``pipe.unload_lora_weights`` work as ever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import Any, cast

from sfumato.backbones import embeddings, lora_files, single_file
from sfumato.backbones.lora_files import Changes
from sfumato.core.settings import check
from sfumato.errors import SfumatoError

LoRA = str | Path | tuple[str | Path, float]
LoRAs = LoRA | Sequence[LoRA]


def listed(lora: LoRAs) -> list[tuple[Path, float]]:
    """Files and their weights; ``FILE:WEIGHT`` is both, a folder is the one LoRA in it.

    Raises ``SfumatoError`` for a weight that is no number, and a folder with none or several.
    """
    check("lora", lora, Path | Sequence[Any])
    if isinstance(lora, str | Path) or _is_pair(lora):
        lora = [cast("LoRA", lora)]
    found = [_one(each) for each in cast("Sequence[LoRA]", lora)]
    if wrong := next((weight for _, weight in found if not math.isfinite(weight)), None):
        raise SfumatoError(f"the weight of a LoRA is a number such as 0.8, got {wrong}")
    return [(_inside(file) if file.is_dir() else file, weight) for file, weight in found]


def _inside(folder: Path) -> Path:
    """The LoRA that a folder holds."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise SfumatoError(
            f"{folder} is a folder with {len(files)} .safetensors files; give one of them as the LoRA"
            + (f": {', '.join(file.name for file in files[:5])}" if files else "")
        )
    return files[0]


def _is_pair(lora: Any) -> bool:
    return isinstance(lora, tuple) and len(lora) == 2 and isinstance(lora[1], int | float)


def _one(lora: LoRA) -> tuple[Path, float]:
    if isinstance(lora, tuple):
        return Path(lora[0]).expanduser(), float(lora[1])
    lora = expanduser(str(lora))
    file, colon, weight = lora.rpartition(":")
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
    changes = [_read(pipe, file) for file, _ in given]
    for (file, _), name, change in zip(given, names, changes, strict=True):
        _attach(pipe, name, change)
        if change.words:
            embeddings.add(pipe, f"the model of {file}", change.words)
    pipe.set_adapters(names, [weight for _, weight in given])


def _read(pipe: Any, file: Path) -> Changes:
    shapes = single_file.tensors(file)
    if not single_file.is_lora(shapes):
        raise SfumatoError(f"{file} holds no LoRA: {single_file.instead(shapes)}")
    return lora_files.read(file, pipe)


def _attach(pipe: Any, name: str, changes: Changes) -> None:
    from diffusers.loaders import PeftAdapterMixin
    from peft import LoraConfig

    for part, layers in changes.layers.items():
        state = {f"{layer}.{key}": values for layer, made in layers.items() for key, values in made.items()}
        network: Any = getattr(pipe, part)
        if isinstance(network, PeftAdapterMixin):
            whole: Any = None  # no prefix
            network.load_lora_adapter(state, prefix=whole, adapter_name=name, _pipeline=pipe)
            continue
        ranks = {f"^{re.escape(layer)}": len(made["lora_A.weight"]) for layer, made in layers.items()}
        biased = any(key.endswith(".bias") for key in state)
        config = LoraConfig(
            r=1, lora_alpha=1, rank_pattern=ranks, alpha_pattern=ranks, target_modules=list(layers), lora_bias=biased
        )
        network.load_adapter(peft_config=config, adapter_state_dict=state, adapter_name=name)
