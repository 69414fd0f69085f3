"""A checkpoint in one file, in A1111's and ComfyUI's layouts: what it is, and the pipeline that diffusers makes of it.

Such a file holds weights alone. Configs and CLIP's tokenizer of Stable Diffusion 1, 2 and XL ship with the package
(``layouts``); of other families a diffusers folder has them. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sfumato.backbones import folder
from sfumato.errors import SfumatoError, first_line, unknown
from sfumato.io.files import read_json, write_text

_LAYOUTS = Path(__file__).parent / "layouts"
_CHANNELS = "model.diffusion_model.input_blocks.0.0.weight"
_MODEL = re.compile(r"(model\.diffusion_model\.|double_blocks\.|joint_blocks\.)")
_VAE = re.compile(r"(first_stage_model|vae)\.")
_BUNDLED = {
    "v1": "sd-1",
    "inpainting": "sd-1",
    "instruct-pix2pix": "sd-1",
    "inpainting_v2": "sd-2-base",
    "xl_base": "sdxl",
    "xl_inpaint": "sdxl",
    "xl_refiner": "sdxl-refiner",
}  # diffusers' word for a file -> ours
_FROM_FOLDER = {
    "sd3": "StableDiffusion3Pipeline",
    "sd35_medium": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}
_BESIDE = {
    9: {"UNet": "StableDiffusionInpaintPipeline", "SDXL": "StableDiffusionXLInpaintPipeline"},
    8: {"UNet": "StableDiffusionInstructPix2PixPipeline", "SDXL": "StableDiffusionXLInstructPix2PixPipeline"},
}  # what networks of so many channels are
_LORA = r"lora_(up|down|A|B)\b|[._]lora\.(up|down)\b|lora_linear_layer\.|\.(hada|lokr)_w1|^lora_\w+\.diff$"
_FALSE = (
    (
        b"version https://git-lfs",
        "a pointer of Git LFS and not the file itself; run git lfs pull, or download it again",
    ),
    (b"<", "a web page and not the file itself; download it again, where the site wants it after a log-in"),
    (b"PK\x03\x04", "a pickle under another name, which is not read, as it may run code"),
    (b"\x80", "a pickle under another name, which is not read, as it may run code"),
    (b"GGUF", "quantised (gguf), which is not read; load the model's .safetensors"),
)
"""How files begin that are none, and what they are."""
_SCALED = re.compile(r"\.(scale_weight|weight_scale(_inv)?|absmax|quant_map|comfy_quant)$")
_OTHERS = (
    (_LORA, "a LoRA; give it to a model as lora (--lora FILE)"),
    (
        r"^(control_model\.|controlnet_\w+\.|input_hint_block\.)",
        "a ControlNet, which steers a model; give it beside the model (--controlnet FILE --control PICTURE, or "
        "denoise(controls=[ControlNet(controlnets.read(FILE, model), picture)]))",
    ),
    (r"^(diffusion_model\.)?input_blocks\.", "the network alone, without text encoder and VAE; give the whole model"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter; load a model, and call model.pipe.load_ip_adapter"),
    (
        r"motion_modules\.",
        "a motion module of AnimateDiff; give it beside Stable Diffusion 1, as motion (--motion FILE)",
    ),
    (
        r"^(emb_params$|string_to_param|clip_[lg]$|<.*>$)",
        "an embedding; give it to a model as embedding (--embedding FILE)",
    ),
    (r"^(rows|changes)\.", "a concept of sfumato learn; give it to a model as concept (--concept FILE)"),
    (
        r"^(encoder\.block|text_model|transformer\.text_model)\.|^embeddings\.token_embedding",
        "a text encoder, one part of a model",
    ),
    (r"^((first_stage_model|vae)\.)?decoder\.", "a VAE; give it to a model as vae (--vae FILE)"),
    (r"^down_blocks\.|^transformer_blocks\.", "one part of a diffusers model; give the folder above it"),
)


def pickled(file: Path) -> SfumatoError:
    """The error for a file that could run code when it is read, or that is quantised."""
    if file.suffix == ".gguf":
        return SfumatoError(f"{file} is quantised (gguf), which is not read; load the model's .safetensors")
    return SfumatoError(
        f"{file} is a pickle, which is not read, as it may run code; write it as safetensors once: "
        "weights = torch.load(FILE, weights_only=True, map_location='cpu'); "
        "safetensors.torch.save_file(weights.get('state_dict', weights), NEW)"
    )


def tensors(file: Path) -> dict[str, Tensor]:
    """Names and shapes of what is in a safetensors file, without the numbers. ``SfumatoError`` for another file."""
    from safetensors import SafetensorError, safe_open

    if file.suffix in folder.WEIGHTS - {".safetensors"}:
        raise pickled(file)
    try:
        with safe_open(file, framework="pt") as opened:
            folder.check_numbers(file, opened)
            return {k: torch.empty(opened.get_slice(k).get_shape(), device="meta") for k in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise SfumatoError(f"there is no file {file}") from None
    except (OSError, ValueError, SafetensorError) as e:
        raise SfumatoError(_unread(file, e)) from e


def _unread(file: Path, error: Exception) -> str:
    """Why a file gives no tensors: what it is instead, by its first bytes."""
    if file.is_dir():
        return f"{file} is a folder; a .safetensors file is meant"
    try:
        with file.open("rb") as opened:
            head = opened.read(64).lstrip()
    except OSError as e:
        return f"cannot read {file}: {e.strerror or e}"
    what = next((what for begin, what in _FALSE if head.startswith(begin)), None)
    return f"{file} is {what or f'no safetensors file, or cut off: {first_line(error)}'}"


def read(file: Path, config: str | None, dtype: torch.dtype, parts: Mapping[str, Any]) -> Any:
    """The diffusers pipeline of a checkpoint, with these parts in place of its own.

    ``config``: a diffusers folder for what is not in the file, or a word of ``configs``. Raises ``SfumatoError`` for
    what is no model, of no known family, damaged, or in want of more than the file has.
    """
    shapes = tensors(file)
    if not any(map(_MODEL.match, shapes)):
        raise SfumatoError(f"{file} holds no model: {instead(shapes)}")
    if scale := next(filter(_SCALED.search, shapes), None):
        raise SfumatoError(
            f"{file} is quantised: its weights are to be multiplied by scales ({scale}), which diffusers leaves out; "
            "take the file in float16, bfloat16, or plain float8"
        )
    if config is not None and config not in configs() and not Path(config).is_dir():
        raise unknown("config", config, (*configs(), "a diffusers folder"))
    if config is not None and Path(config).is_dir():
        place = Path(config)
        if "vae" not in parts and not any(map(_VAE.match, shapes)) and any((place / "vae").glob("*.safetensors")):
            parts = {**parts, "vae": folder.part(place, "vae", None, dtype)}  # diffusers does so for texts alone
        return _converted(file, place, dtype, parts)
    with _written(config or _config(file, shapes), shapes) as place:
        return _converted(file, place, dtype, parts)


@cache
def configs() -> dict[str, dict[str, Any]]:
    """Word -> the configs of the parts of that model."""
    return read_json(_LAYOUTS / "configs.json")


def is_lora(shapes: Mapping[str, Tensor]) -> bool:
    """Are these the tensors of a LoRA?"""
    return any(re.search(_LORA, key) for key in shapes)


def instead(shapes: Mapping[str, Tensor]) -> str:
    """What a file without a model is."""
    for pattern, what in _OTHERS:
        if any(re.search(pattern, key) for key in shapes):
            return f"it is {what}"
    return f"it has {len(shapes)} tensors of no layout that is known (first: {min(shapes, default='none')})"


def _config(file: Path, shapes: Mapping[str, Tensor]) -> str:
    """Which of ``configs`` a file is of."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    found = infer_diffusers_model_type(shapes)
    channels = shapes[_CHANNELS].shape[1] if _CHANNELS in shapes else 0
    if found in _FROM_FOLDER:
        raise SfumatoError(
            f"{file} is of a {_FROM_FOLDER[found]}, and holds neither its configs nor all of its text encoders (T5 "
            "and its tokenizer); give a diffusers folder that has them as config (--config FOLDER)"
        )
    if any(key.startswith("edm_") for key in shapes):
        raise SfumatoError(f"{file} is an EDM model (Playground 2.5, CosXL), whose noise levels are not known here")
    if found == "v2":
        if channels == 5:  # the depth model
            return "sd-2-base"
        raise SfumatoError(
            f"{file} is Stable Diffusion 2, and the file does not say which: give config (--config) sd-2 for 2.0 and "
            "2.1 at 768 pixels, which predict v, or sd-2-base for those at 512, which predict the noise"
        )
    if found not in _BUNDLED or not channels:
        raise SfumatoError(f"{file} is a single file of {found}, which is of no known family")
    return _BUNDLED[found]


@contextmanager
def _written(word: str, shapes: Mapping[str, Tensor]) -> Iterator[Path]:
    """The configs of a model as a diffusers folder without weights, for as long as the block runs."""
    parts = dict(configs()[word])
    index = parts.pop("pipeline")
    channels = shapes[_CHANNELS].shape[1] if _CHANNELS in shapes else 4
    family = "SDXL" if parts["unet"].get("addition_embed_type") else "UNet"
    if channels in _BESIDE and word != "sdxl-refiner":
        index = {**index, "_class_name": _BESIDE[channels][family]}
    parts["unet"] = {**parts["unet"], "in_channels": channels}
    if "v_pred" in shapes:  # marks of merged checkpoints
        parts["scheduler"] = {**parts["scheduler"], "prediction_type": "v_prediction"}
    if "ztsnr" in shapes:
        parts["scheduler"] = {**parts["scheduler"], "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with TemporaryDirectory() as made:
        place = Path(made)
        for part, config in parts.items():
            if config is None:
                index[part] = [None, None]
            elif part.startswith("tokenizer"):
                index[part] = ["transformers", "CLIPTokenizer"]
                _write_tokenizer(place / part, config["pad_token"])
            else:
                kind = config.get("_class_name") or config["architectures"][0]
                index[part] = ["transformers" if part.startswith("text") else "diffusers", kind]
                file = "scheduler_config.json" if part == "scheduler" else "config.json"
                write_text(place / part / file, json.dumps(config))
        write_text(place / "model_index.json", json.dumps(index))
        yield place


_START, _END = "<|startoftext|>", "<|endoftext|>"


@cache
def _clips_words() -> tuple[str, str]:
    """CLIP's vocabulary as JSON, and its merges: bytes, bytes that end a word, an entry a merge, start, end."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = gzip.decompress((_LAYOUTS / "merges.txt.gz").read_bytes()).decode()
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in merges.splitlines()), _START, _END]
    return json.dumps({word: i for i, word in enumerate(words)}), merges


def _write_tokenizer(place: Path, pad: str) -> None:
    """CLIP's, of which SDXL has two."""
    vocabulary, merges = _clips_words()
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_text(place / "vocab.json", vocabulary)
    write_text(place / "merges.txt", "#version: 0.2\n" + merges)
    write_text(place / "tokenizer_config.json", json.dumps(config))
    write_text(place / "special_tokens_map.json", json.dumps(special))


def _converted(file: Path, place: Path, dtype: torch.dtype, parts: Mapping[str, Any]) -> Any:
    """By diffusers' converter and the configs of a folder, from which texts are read that are not in the file."""
    import diffusers
    import transformers

    listed = folder.index(place)
    name = str(listed.get("_class_name"))
    pipeline = getattr(diffusers, name, None)
    if not hasattr(pipeline, "from_single_file"):
        raise SfumatoError(f"diffusers reads no single file as a {name}, which {place} is of")
    folder.check(place, [part for part in folder.named(listed) if part not in {*folder.UNUSED, *parts}], None)
    for part in folder.named(listed):
        kind = getattr(transformers, str(listed[part][-1]), None)
        if part.startswith("tokenizer") and part not in parts and kind is not None:
            folder.check_words(kind, place / part)
    absent = dict.fromkeys(part for part in folder.UNUSED if part in listed)
    options = {"config": str(place), "local_files_only": True, **absent}
    options |= {part: given for part, given in parts.items() if part in listed}
    with folder.loading(file, name):
        pipe = _from_file(pipeline, file, options)
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for network in networks:
        if any(network is part for part in parts.values()):
            continue
        if any(p.is_meta for p in network.parameters()):
            raise _incomplete(file, name)
        network.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_file(pipeline: Any, file: Path, options: Mapping[str, Any]) -> Any:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    if file.suffix != ".safetensors":  # by which diffusers knows them
        with TemporaryDirectory() as place:
            named = Path(place) / f"{file.stem}.safetensors"
            named.symlink_to(file.resolve())
            return _from_file(pipeline, named, options)
    try:
        return pipeline.from_single_file(str(file), **options)
    except NotImplementedError as e:  # torch does not move what has no numbers
        raise _incomplete(file, pipeline.__name__) from e
    except SingleFileComponentError as e:
        part = re.search(r"^(\w+) = (\w+)\.from_pretrained", str(e.message), re.MULTILINE)
        missing, kind = part.groups() if part else ("a part", "part")
        raise SfumatoError(
            f"{file} holds no {missing} ({kind}); give it: {missing}=, or a diffusers folder that has it as config "
            "(--config FOLDER)"
        ) from e


def _incomplete(file: Path, name: str) -> SfumatoError:
    return SfumatoError(f"{file} lacks weights of a {name}: it is pruned, or of a model with other configs")
