"""What is in a model's folder: checked before it is loaded, with errors that say what else it is. Only safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import SfumatoError, first_line

UNUSED = ("safety_checker", "feature_extractor", "watermarker", "depth_estimator")
"""Parts of pipelines that are neither downloaded nor loaded: nothing here calls them."""
WEIGHTS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}


def read(place: Path, variant: str | None, dtype: torch.dtype) -> Any:
    """The diffusers pipeline that a folder holds.

    Raises ``SfumatoError`` for a folder that holds none, for weights that are not safetensors or not of this variant,
    and for what does not load.
    """
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    listed = _parts(place)
    _check(place, [part for part in listed if part not in UNUSED], variant)
    options: dict[str, Any] = {part: None for part in listed if part in UNUSED}
    if "safety_checker" in options:
        options["requires_safety_checker"] = False
    try:
        pipe: Any = DiffusionPipeline.from_pretrained(
            place, local_files_only=True, use_safetensors=True, variant=variant, torch_dtype=dtype, **options
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, SafetensorError) as e:
        raise SfumatoError(f"{place} does not load as a diffusers pipeline: {first_line(e)}") from e
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _parts(place: Path) -> list[str]:
    """What a diffusers folder lists."""
    try:
        index = json.loads((place / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SfumatoError(f"unknown model {str(place)!r}: {_instead(place)}") from None
    except (OSError, ValueError) as e:
        raise SfumatoError(f"{place / 'model_index.json'} cannot be read: {first_line(e)}") from e
    return [k for k, v in index.items() if isinstance(v, list) and not k.startswith("_")]


def _instead(place: Path) -> str:
    """What a folder without a model_index.json is."""
    try:
        kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind == "ControlNetModel":
        return (
            "the folder holds a ControlNet, which steers a model; load the model, and give denoise "
            "controls=[ControlNet(diffusers.ControlNetModel.from_pretrained(FOLDER), picture)]"
        )
    if kind:
        return f"the folder holds a {kind}, one part of a model; give the folder above it, with a model_index.json"
    return "the folder has no model_index.json, so it holds no diffusers pipeline"


def _check(place: Path, parts: Sequence[str], variant: str | None) -> None:
    """Are the weights of these parts safetensors, of this variant?"""
    for part in parts:
        files = {p.name for p in (place / part).glob("*")} if (place / part).is_dir() else set()
        tensors = {f.removesuffix(".safetensors") for f in files if f.endswith(".safetensors")}
        if not tensors and any(Path(f).suffix in WEIGHTS for f in files):
            raise SfumatoError(
                f"{place / part} has only pickled weights, which are not read; write them as safetensors once: "
                "diffusers.DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW)"
            )
        stems = {f.partition("-0")[0] for f in tensors}  # of shards, their common name
        have = {s.partition(".")[2] for s in stems}
        if tensors and not have & {variant or "", ""}:
            raise SfumatoError(f"{place / part} has only the variants {', '.join(sorted(have))}; give one as variant")
