"""Collects what was trained into the weights that ship: ``python -m sfumato.stilllife.train.ship [--cache cache]``.

Each trainer leaves its averaged weights in CACHE/NAME/final. The base networks go in whole, in half precision; the
InstructPix2Pix goes in as its difference from the base UNet, which low-rank training makes low-rank.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import tyro
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel

from sfumato.errors import SfumatoError
from sfumato.stilllife import weights
from sfumato.stilllife.oracle import Oracle
from sfumato.stilllife.tokenizer import write_tokenizer
from sfumato.terminal import quiet

CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "clip": CLIPModel, "depth": ControlNetModel}
BUDGET = 52 * 2**20  # bytes of all weights together
LOSS = 0.02  # part of a weight's change that cutting it to a low rank may lose


def ship(
    *,
    cache: Annotated[Path, tyro.conf.arg(help="Folder of the training runs.")] = Path("cache"),
    out: Annotated[Path | None, tyro.conf.arg(help="Folder to ship from [default: the package's own].")] = None,
    rank: Annotated[int, tyro.conf.arg(help="Most rank of a change of the InstructPix2Pix.")] = 8,
) -> None:
    """Collect the finished networks into the weights that ship, and list them with their SHA-256.

    Networks that were not trained are left out, with what an earlier call shipped of them.
    """
    place = out or weights.folder()
    for name, kind in CLASSES.items():
        final = cache / name / "final"
        if final.is_dir():
            network = kind.from_pretrained(final)
            config = network.config.to_diff_dict() if name == "clip" else plain(network.config)
            weights.save(network.state_dict(), config, place / f"{name}.safetensors")
    oracle = cache / "oracle" / "final" / "oracle.safetensors"
    if oracle.is_file():
        Oracle.load(oracle).save(place / "oracle.safetensors")
    final = cache / "instruct" / "final"
    if final.is_dir():
        base = UNet2DConditionModel.from_pretrained(cache / "unet" / "final")
        tuned = UNet2DConditionModel.from_pretrained(final)
        changes = difference(base.state_dict(), tuned.state_dict(), rank)
        weights.save(changes, {"in_channels": tuned.config["in_channels"]}, place / "instruct.safetensors")
    write_tokenizer(place / weights.TOKENIZER)
    listed = weights.write_manifest(place)
    total = sum(f["bytes"] for f in listed.values())
    for file, row in listed.items():
        print(f"{row['bytes'] / 2**20:7.2f} MiB {row['parameters'] / 1e6:7.2f} M  {file}")
    print(f"{total / 2**20:7.2f} MiB in {place}")
    if total > BUDGET:
        raise SfumatoError(f"{total / 2**20:.1f} MiB are more than the {BUDGET / 2**20:.0f} MiB that may ship")


def plain(config: Mapping[str, object]) -> dict[str, object]:
    """A diffusers configuration without the notes of the library that wrote it."""
    return {k: v for k, v in config.items() if not k.startswith("_")}


def difference(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What turns ``base`` into ``tuned``, as ``weights.merged`` applies it.

    Matrices (and convolutions, flattened) as the product of two of at most ``rank``, whole tensors where shapes differ
    or there is no matrix. Raises ``SfumatoError`` when a change is not of so low a rank.
    """
    out: dict[str, Tensor] = {}
    for key, new in tuned.items():
        old = base.get(key)
        if old is not None and old.shape == new.shape:
            change = (new - old).float()
            if change.abs().max() <= 1e-7:
                continue
            if new.ndim > 1:
                name = key.removesuffix(".weight")
                u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
                lost = float(s[rank:].norm() / s.norm())
                if lost > LOSS:
                    raise SfumatoError(f"the change of {key} is not of rank {rank}: {lost:.1%} would be lost")
                keep = int((s[:rank] > 1e-5 * s[0]).sum())
                out[f"{name}.lora_up"] = u[:, :keep] * s[:keep].sqrt()
                out[f"{name}.lora_down"] = s[:keep, None].sqrt() * v[:keep]
                continue
        out[key] = new
    return out


def main() -> int:
    quiet()
    try:
        tyro.cli(ship, prog="python -m sfumato.stilllife.train.ship")
    except SfumatoError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
