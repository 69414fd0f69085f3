"""Collects what was trained into the weights that ship: ``python -m sfumato.stilllife.train.ship [--cache cache]``.

Each trainer leaves its averaged weights in CACHE/NAME/final. Networks go in whole, the InstructPix2Pix as its
difference from the base UNet. ``pack`` writes the same, in half precision, into a few files of bounded size, to be
carried elsewhere, and ``--from FOLDER`` ships from those.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from sfumato.errors import SfumatoError
from sfumato.io.files import atomic, writable
from sfumato.io.terminal import quiet
from sfumato.stilllife import weights
from sfumato.stilllife.oracle import Oracle
from sfumato.stilllife.tokenizer import write_tokenizer
from sfumato.stilllife.train.vae import finished

CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "clip": CLIPModel, "depth": ControlNetModel}
SHIPPED = (*CLASSES, "oracle", "instruct")
MOTION = "motion"  # ships where it was trained, and `train all` leaves it out
BUDGET = 52 * 2**20  # bytes of all weights together
SHARD = 15 * 2**20  # bytes of a packed file at most
_HEADER = 2**18  # bytes of a packed file that are kept for what it says of itself


class Network(NamedTuple):
    """What ships of a network; of the InstructPix2Pix, what differs from the base UNet."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def ship(
    *,
    cache: Annotated[Path, tyro.conf.arg(help="Folder of the training runs.")] = Path("cache"),
    packed: Annotated[
        Path | None, tyro.conf.arg(name="from", help="Folder of packed networks, in the place of --cache.")
    ] = None,
    out: Annotated[Path | None, tyro.conf.arg(help="Folder to ship from [default: the package's own].")] = None,
) -> None:
    """Collect the finished networks into the weights that ship, and list them with their SHA-256.

    Networks that were not trained are left out, with what an earlier call shipped of them.
    """
    place = out or weights.folder()
    networks = collect(cache) if packed is None else unpack(packed)
    for name, network in networks.items():
        weights.save(network.tensors, network.config, place / f"{name}.safetensors")
    write_tokenizer(place / weights.TOKENIZER)
    listed = weights.write_manifest(place)
    total = sum(f["bytes"] for f in listed.values())
    for file, row in listed.items():
        print(f"{row['bytes'] / 2**20:7.2f} MiB {row['parameters'] / 1e6:7.2f} M  {file}")
    print(f"{total / 2**20:7.2f} MiB in {place}; new: {', '.join(networks) or 'nothing'}")
    if total > BUDGET:
        raise SfumatoError(f"{total / 2**20:.1f} MiB are more than the {BUDGET / 2**20:.0f} MiB that may ship")


def collect(cache: Path, names: Sequence[str] = (*SHIPPED, MOTION)) -> dict[str, Network]:
    """The finished networks of the runs in ``cache``, by name."""
    found: dict[str, Network] = {}
    for name, kind in CLASSES.items():
        # a run of the decoder goes on from one of the VAE and holds all of it
        runs = ("decoder", "vae") if name == "vae" else (name,)
        final = next((f for run in runs if (f := cache / run / "final").is_dir()), None)
        if name in names and final is not None:
            network: Any = kind.from_pretrained(final)
            config = network.config.to_diff_dict() if name == "clip" else plain(network.config)
            found[name] = Network(config, network.state_dict())
    if "oracle" in names and (file := cache / "oracle" / "final" / "oracle.safetensors").is_file():
        oracle = Oracle.load(file)
        found["oracle"] = Network(oracle.config, oracle.state_dict())
    if "instruct" in names and (final := cache / "instruct" / "final").is_dir():
        base = finished(UNet2DConditionModel, cache / "unet" / "final", "unet")
        tuned = UNet2DConditionModel.from_pretrained(final)
        changes = difference(base.state_dict(), tuned.state_dict())
        found["instruct"] = Network(plain(tuned.config), changes)
    if MOTION in names and (final := cache / MOTION / "final").is_dir():
        adapter: Any = MotionAdapter.from_pretrained(final)
        learnt = {k: v for k, v in adapter.state_dict().items() if v.any() and not k.endswith(".pe")}
        found[MOTION] = Network(plain(adapter.config), learnt)
    return found


def pack(networks: Mapping[str, Network], folder: Path, limit: int = SHARD) -> list[Path]:
    """Write networks, in half precision, to as few files of at most ``limit`` bytes as hold them one after the other.

    A tensor is called NETWORK.NAME. Every file tells the configurations of all networks and the SHA-256 of all files'
    tensors, so that one that is damaged, or of another run, is found out.
    """
    parts: list[dict[str, Tensor]] = []
    room = 0
    for name, network in networks.items():
        for key, value in weights.halves(name, network.tensors).items():
            size = value.numel() * value.element_size()
            if size > limit - _HEADER:
                raise SfumatoError(f"{name}.{key} alone has {size} bytes, more than a file of {limit} bytes holds")
            if size > room:
                parts.append({})
                room = limit - _HEADER
            parts[-1][f"{name}.{key}"] = value
            room -= size
    configs = json.dumps({k: n.config for k, n in networks.items()})
    metadata = {"configs": configs, "sha256": json.dumps([_digest(part) for part in parts])}
    writable(folder)
    for old in folder.glob("networks-*.safetensors"):
        old.unlink()
    files = [folder / f"networks-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        with atomic(file) as written:
            save_file(part, written, metadata)
    return files


def unpack(folder: Path) -> dict[str, Network]:
    """What ``pack`` wrote. Raises ``SfumatoError`` unless every file is there, whole and of one run, and every network
    is one that is known, finite, with the weights that its configuration asks for."""
    files = sorted(folder.glob("networks-*-of-*.safetensors"))
    if not files:
        raise SfumatoError(f"no packed networks in {folder}; `train all` leaves them in OUT/ship")
    tensors: dict[str, Tensor] = {}
    configs, digests = _told(files[0])
    for i, digest in enumerate(digests, 1):
        file = folder / f"networks-{i:05d}-of-{len(digests):05d}.safetensors"
        if not file.is_file():
            raise SfumatoError(f"{file} is missing: {folder} must hold all {len(digests)} files of its run")
        if _told(file) != (configs, digests):
            raise SfumatoError(f"{file} is of another run than {files[0].name}; copy the whole folder again")
        part = _loaded(file)
        if _digest(part) != digest:
            raise SfumatoError(f"{file} is damaged: its SHA-256 is not the listed one; copy it again")
        tensors |= part
    found = {k: Network(config, {}) for k, config in configs.items()}
    for key, value in tensors.items():
        name, _, rest = key.partition(".")
        if name not in found:
            raise SfumatoError(f"{folder} holds {key}, of a network that it does not tell of")
        if value.is_floating_point() and not value.isfinite().all():
            raise SfumatoError(f"{key} in {folder} is not finite")
        found[name].tensors[rest] = value
    for name, network in found.items():
        _check(name, network)
    return found


def _check(name: str, network: Network) -> None:
    """Raise ``SfumatoError`` unless this is a network that ships, with all of its weights."""
    if name not in SHIPPED:
        raise SfumatoError(f"unknown network {name!r}; what ships: {', '.join(SHIPPED)}")
    have = {k: tuple(v.shape) for k, v in network.tensors.items()}
    try:
        with torch.device("meta"):
            wanted = {k: tuple(v.shape) for k, v in _built(name, network.config).state_dict().items()}
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise SfumatoError(f"the configuration of {name} is not one that is known: {reason}") from e
    if name == "instruct":  # what is as in the base is left out; its input convolution never is
        have = wanted | {k.removesuffix(weights.CHANGE): v for k, v in have.items()}
        fits = have == wanted and "conv_in.weight" in network.tensors
    else:
        fits = have == wanted
    if not fits:
        raise SfumatoError(f"the weights of {name} are not those that its configuration asks for; pack it again")


def _built(name: str, config: Mapping[str, Any]) -> Any:
    if name == "oracle":
        return Oracle(**config)
    if name == "clip":
        return CLIPModel(CLIPConfig(**config))
    kind: Any = CLASSES["unet" if name == "instruct" else name]
    return kind.from_config(dict(config))


def _told(file: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The configurations and the digests that a packed file tells."""
    try:
        with safe_open(file, "pt") as f:
            metadata = f.metadata() or {}
            return json.loads(metadata["configs"]), json.loads(metadata["sha256"])
    except (OSError, SafetensorError, KeyError, ValueError) as e:
        raise SfumatoError(f"{file} is damaged, or no packed network ({e}); copy it again") from e


def _loaded(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        sha.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def plain(config: Mapping[str, object]) -> dict[str, object]:
    """A diffusers configuration without the notes of the library that wrote it."""
    return {k: v for k, v in config.items() if not k.startswith("_")}


def difference(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What turns ``base`` into ``tuned``, as ``weights.merged`` applies it: changes, and whole tensors where shapes
    differ. What is the same is left out."""
    out: dict[str, Tensor] = {}
    for key, new in tuned.items():
        old = base.get(key)
        if old is None or old.shape != new.shape:
            out[key] = new
        elif not torch.equal(old, new):
            out[key + weights.CHANGE] = new - old
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
