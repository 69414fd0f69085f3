"""CLIPs beside a model, which read pictures and sentences: the small one that ships, and what transformers saves."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.clip import MEAN, STD
from sfumato.stilllife import weights

SHIPPED = "stilllife"


class Opened(NamedTuple):
    """A CLIP, ready to read."""

    network: Any
    tokenizer: Any
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]


def opened(name: str, device: str) -> Opened:
    """A CLIP by its name or folder, kept open. Raises ``SfumatoError`` where there is none."""
    return _opened(name, device, weights.folder())


@lru_cache(maxsize=2)
def _opened(name: str, device: str, shipped: Path) -> Opened:
    """``shipped``: where the one that ships lies."""
    with torch.random.fork_rng(devices=[]):  # a network that is made draws weights before it has its own
        network, tokenizer, mean, std = _parts(name)
    sides = [torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std)]
    return Opened(network.eval().requires_grad_(False).to(device), tokenizer, *sides)


def _parts(name: str) -> tuple[Any, Any, list[float], list[float]]:
    if name == SHIPPED:
        return weights.module("clip"), weights.tokenizer(), [MEAN] * 3, [STD] * 3
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    place = Path(name).expanduser()
    if not (place / "config.json").is_file():
        raise SfumatoError(f"there is no CLIP in {name}; give a folder as transformers saves one, or {SHIPPED}")
    try:
        network = CLIPModel.from_pretrained(place, local_files_only=True, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
        processor: Any = CLIPImageProcessor.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as e:
        raise SfumatoError(f"{name} does not load as a CLIP: {next(iter(str(e).splitlines()), type(e))}") from e
    return network, tokenizer, processor.image_mean, processor.image_std
