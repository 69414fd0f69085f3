"""The weights that ship: checked, loaded, put together into pipelines, exported as plain diffusers folders.

A network is one half-precision safetensors file with its configuration in the metadata. The relatives are kept as what
differs from the base, their matrices in few bits (``coarse``): InstructPix2Pix as the change of each weight and its
input convolution, the depth model as its ControlNet.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfumato.errors import SfumatoError, nowhere, unknown
from sfumato.io.files import atomic, from_json, is_place, write_text
from sfumato.io.sparing import sparing
from sfumato.io.terminal import without
from sfumato.stilllife.coarse import coarsen, refine
from sfumato.stilllife.models import BESIDE as BESIDE
from sfumato.stilllife.models import MODELS as MODELS
from sfumato.stilllife.models import Model as Model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
# Classes by name: diffusers and transformers import them when asked, which takes seconds that reading a path need not.
BITS = {"depth": 8, "instruct": 4, "motion": 8}  # of what is kept of a matrix; all else is kept in half precision
CHANGE = ".change"  # what is added to the base, under the name of its tensor and this
_CODES, _SCALES = ".codes", ".scales"
MODULES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "clip": "CLIPModel", "depth": "ControlNetModel"}


def folder() -> Path:
    """Where the weights lie."""
    return Path(__file__).parent / "weights"


def manifest(place: Path | None = None) -> dict[str, dict[str, Any]]:
    """File -> sha256, bytes and parameters, of every file that ships."""
    try:
        return from_json(((place or folder()) / MANIFEST).read_bytes(), dict)
    except (OSError, ValueError) as e:
        raise SfumatoError(f"the list of weights is missing or damaged ({MANIFEST}); install Sfumato again") from e


def path(file: str) -> Path:
    """A shipped file, its SHA-256 checked once a process. Raises ``SfumatoError`` if it is missing or damaged."""
    return _checked(folder(), file)


@cache
def _checked(place: Path, file: str) -> Path:
    listed = manifest(place)
    if file not in listed:
        raise SfumatoError(f"this version ships no {file}; it has: {', '.join(listed)}")
    found = place / file
    try:
        data = found.read_bytes()
    except OSError as e:
        raise SfumatoError(f"the weight file {found} cannot be read ({e.strerror or e}); install Sfumato again") from e
    if hashlib.sha256(data).hexdigest() != listed[file]["sha256"]:
        raise SfumatoError(
            f"the weight file {found} is damaged: its SHA-256 is not the listed one, and it has {len(data)} bytes "
            f"of {listed[file]['bytes']}; install Sfumato again"
        )
    return found


def module(name: str) -> Any:
    """A network of the base, or ``depth``'s ControlNet, in float32 for inference: see ``MODULES``."""
    if name not in MODULES:
        raise unknown("network", name, MODULES)
    config, tensors = read(path(f"{name}.safetensors"))
    return _filled(_built(name, config), tensors)


def motion() -> Any:
    """The motion adapter of the base, in float32. Its file leaves out what is zero.

    Raises ``SfumatoError`` where this version ships none."""
    config, tensors = read(path("motion.safetensors"))
    made: Any = diffusers.MotionAdapter.from_config(dict(config))
    codes = {k: v for k, v in made.state_dict().items() if k.endswith(".pe")}
    zeros = {k: torch.zeros_like(v) for k, v in made.state_dict().items()}
    return _filled(made, zeros | codes | tensors)


def _built(name: str, config: Mapping[str, Any]) -> Any:
    with _Undrawn():
        if name == "clip":
            return transformers.CLIPModel(transformers.CLIPConfig(**config))
        return getattr(diffusers, MODULES[name]).from_config(dict(config))


class _Undrawn(TorchFunctionMode):
    """Networks are made without random weights, which would be replaced at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _filled(network: Any, tensors: Mapping[str, Tensor]) -> Any:
    tensors = {k: _float32(v) if v.is_floating_point() else v for k, v in tensors.items()}
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _float32(tensor: Tensor) -> Tensor:
    """By numpy, in one thread: torch's wait for each other busily, for seconds where cores have other things to do."""
    return torch.from_numpy(tensor.numpy().astype(np.float32)) if tensor.dtype == torch.float16 else tensor.float()


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors that ``save`` wrote; those kept in few bits in float32.

    Raises ``SfumatoError`` for a file that holds no network."""
    try:
        with safe_open(file, "pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        for key, shape in from_json(metadata.get("coarse", "{}"), dict).items():
            tensors[key] = refine(tensors.pop(key + _CODES), tensors.pop(key + _SCALES), tuple(shape))
        return from_json(metadata["config"], dict), tensors
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as e:
        raise SfumatoError(f"{file} holds no network: {e}") from e


def tokenizer() -> CLIPTokenizer:
    """The tokenizer of the captions' words."""
    for file in manifest():
        if file.startswith(f"{TOKENIZER}/"):
            path(file)
    return transformers.CLIPTokenizer.from_pretrained(folder() / TOKENIZER)


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The text half of the CLIP, as pipelines take it."""
    inner: Any = clip.text_model
    if isinstance(inner, transformers.CLIPTextModel):
        return inner
    config: Any = clip.config.text_config
    text = transformers.CLIPTextModel(config).eval().requires_grad_(False)  # transformers 4 wraps it once more
    text.text_model = inner
    return text


def instruct_unet() -> UNet2DConditionModel:
    """The base UNet with eight input channels and the changes of ``instruct.safetensors``."""
    config, changes = read(path("instruct.safetensors"))
    base_config, state = read(path("unet.safetensors"))
    return _filled(_built("unet", {**base_config, **config}), merged(state, changes))


def merged(state: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with ``changes``: NAME.change is added to NAME, the rest replaces."""
    out = {k: v.float() for k, v in state.items()}
    for key, value in changes.items():
        name = key.removesuffix(CHANGE)
        out[name] = value.float() if name == key else out[name] + value.float()
    return out


def load(name: str = "stilllife") -> dict[str, Any]:
    """The parts of a model in float32 on the CPU, by the names that its pipeline gives them.

    Raises ``SfumatoError`` for an unknown name, a model this version does not ship, a damaged file.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    for file in MODELS[name].files:
        path(file)
    from sfumato.stilllife import networks

    parts: dict[str, Any] = {
        "vae": module("vae"),
        "text_encoder": text_encoder(module("clip")),
        "tokenizer": tokenizer(),
        "unet": instruct_unet() if name == "stilllife-instruct" else module("unet"),
        "scheduler": networks.scheduler(),
    }
    if name == "stilllife-depth":
        parts["controlnet"] = module("depth")
    return parts


def pipeline(
    name: str = "stilllife", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusionPipeline:
    """A shipped model, or a diffusers folder of Stable Diffusion's kind, as a diffusers pipeline.

    Raises ``SfumatoError`` as ``load`` does, and for a folder that holds no such model. Nothing is downloaded and
    nothing is unpickled.
    """
    pipe = assemble(MODELS[name].pipeline, load(name)) if name in MODELS else _foreign(Path(name))
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, device, dtype)  # diffusers' own warns of parts that nobody keeps
    return pipe


@sparing()
@without("transformers.utils.import_utils", "requires torchvision")  # of image processors, which nothing here uses
def assemble(kind: str, parts: Mapping[str, Any]) -> Any:
    """A diffusers pipeline of this class from these parts, without a safety checker."""
    return getattr(diffusers, kind)(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def check_folder(place: Path) -> None:
    """Raise ``SfumatoError`` unless ``place`` is a diffusers folder: a word that names no model is taken for one."""
    if is_place(str(place)) and not place.exists():
        raise nowhere(place)
    if not (place / "model_index.json").is_file():
        raise SfumatoError(
            f"unknown model {str(place)!r}; known: {', '.join(MODELS)}, or a diffusers folder (with a model_index.json)"
        )


def _foreign(place: Path) -> DiffusionPipeline:
    check_folder(place)
    try:
        return diffusers.StableDiffusionPipeline.from_pretrained(
            place, local_files_only=True, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as e:
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise SfumatoError(f"{place} does not load as a Stable Diffusion pipeline: {reason}") from e


def export(name: str, place: str | Path, *, half: bool = False) -> None:
    """Write a model as a plain diffusers folder, in float32 unless ``half``.

    Raises ``SfumatoError`` if ``place`` holds anything already, cannot be written, or the model cannot be loaded.
    """
    place = Path(place)
    try:
        taken = place.exists() and (not place.is_dir() or any(place.iterdir()))
    except OSError as e:
        raise SfumatoError(f"cannot write to {place}: {e.strerror or e}") from e
    if taken:
        raise SfumatoError(f"{place} is not empty; give a new folder to write {name} to")
    parts = load(name)
    if half:
        parts = {k: v.half() if isinstance(v, nn.Module) else v for k, v in parts.items()}
    pipe = assemble(MODELS[name].pipeline, parts)
    part = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        pipe.save_pretrained(part)
        part.chmod(0o755)
        if place.is_dir():
            place.rmdir()
        part.rename(place)
    except (OSError, SafetensorError) as e:
        raise SfumatoError(f"cannot write to {place}: {getattr(e, 'strerror', None) or e}") from e
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def table() -> list[dict[str, Any]]:
    """A row a model: name, what it is for, pipeline, parameters and bytes, files, whether this version ships it."""
    listed = manifest()
    rows = []
    for name, model in MODELS.items():
        have = [listed[f] for f in model.files if f in listed]
        rows.append(
            {
                "name": name,
                "for": model.use,
                "pipeline": model.pipeline,
                "parameters": sum(f["parameters"] for f in have),
                "bytes": sum(f["bytes"] for f in have),
                "files": list(model.files),
                "shipped": len(have) == len(model.files),
            }
        )
    for name, (use, kind) in BESIDE.items():
        file = f"{name}.safetensors"
        if file in listed or name == "oracle":
            have = listed.get(file, {"parameters": 0, "bytes": 0})
            counted = {key: have[key] for key in ("parameters", "bytes")}
            rows.append(
                {"name": name, "for": use, "pipeline": kind, **counted, "files": [file], "shipped": file in listed}
            )
    return rows


def save(tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path) -> None:
    """Write a network as ``module`` reads it: in half precision, the relatives' matrices in ``BITS``, the configuration
    in the metadata."""
    kept = halves(file.stem, tensors)
    bits, shapes = BITS.get(file.stem), {}
    for key, value in tensors.items():
        if value.ndim > 1 and (bits == 8 or (bits and key.endswith(CHANGE))):  # 4 bits hold a change, not a weight
            shapes[key] = list(value.shape)
            del kept[key]
            kept[key + _CODES], kept[key + _SCALES] = (x.cpu() for x in coarsen(value, bits))
    metadata = {"config": json.dumps(dict(config))} | ({"coarse": json.dumps(shapes)} if shapes else {})
    with atomic(file) as part:
        save_file(kept, part, metadata)


def halves(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network ``name`` as they ship. Raises ``SfumatoError`` for what is too large for that."""
    out = {
        k: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous().clone() for k, v in tensors.items()
    }
    if not all(v.isfinite().all() for v in out.values() if v.is_floating_point()):
        raise SfumatoError(f"some weights of {name} are not finite in half precision")
    return out


def write_manifest(place: Path) -> dict[str, dict[str, Any]]:
    """List every file in ``place`` with its SHA-256, size and parameters."""
    listed: dict[str, dict[str, Any]] = {}
    for file in sorted(p for p in place.rglob("*") if p.is_file() and p.name != MANIFEST):
        if file.name.startswith("."):
            continue
        data = file.read_bytes()
        listed[file.relative_to(place).as_posix()] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "parameters": _parameters(file),
        }
    write_text(place / MANIFEST, json.dumps(listed, indent=1) + "\n")
    return listed


def _parameters(file: Path) -> int:
    if file.suffix != ".safetensors":
        return 0
    return sum(value.numel() for value in read(file)[1].values())
