"""What is in a model's folder: checked before it is loaded, with errors that say what else it is. Only safetensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sfumato.core.settings import numbers
from sfumato.errors import SfumatoError, first_line
from sfumato.io.files import read_json
from sfumato.io.terminal import without

if TYPE_CHECKING:
    import torch

UNUSED = ("safety_checker", "feature_extractor", "watermarker", "depth_estimator")
"""Parts of pipelines that are neither downloaded nor loaded: nothing here calls them."""
WEIGHTS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}


def read(place: Path, variant: str | None, dtype: torch.dtype, parts: Mapping[str, Any]) -> Any:
    """The diffusers pipeline that a folder holds, with these parts in place of its own.

    Raises ``SfumatoError`` for a folder that holds none, for weights that are not safetensors or not of this variant,
    and for what does not load, or not whole.
    """
    import torch
    import transformers
    from diffusers import DiffusionPipeline

    listed = index(place)
    own = [part for part in named(listed) if part not in {*UNUSED, *parts}]
    _check_index(place, listed, own)
    check(place, own, variant)
    # a part that the folder lists as absent, such as T5, is absent
    absent = [k for k, v in listed.items() if v == [None, None] or k in UNUSED]
    options: dict[str, Any] = {**dict.fromkeys(absent), **{k: v for k, v in parts.items() if k in listed}}
    if "safety_checker" in options:
        options["requires_safety_checker"] = False
    for name in named(listed):
        kind = getattr(transformers, str(listed[name][-1]), None)
        if name not in options and isinstance(kind, type):
            options[name] = _made(kind, place / name, variant, dtype)  # diffusers does not ask whether they are whole
    with loading(place, "diffusers pipeline"):
        pipe: Any = DiffusionPipeline.from_pretrained(
            place, local_files_only=True, use_safetensors=True, variant=variant, dtype=dtype, **options
        )
    for name, network in pipe.components.items():
        if isinstance(network, torch.nn.Module) and name not in options:
            _check_whole(place / name, [key for key, p in network.named_parameters() if p.is_meta])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _made(kind: Any, place: Path, variant: str | None, dtype: torch.dtype) -> Any:
    """A part of its class from its folder. ``SfumatoError`` for one that is not whole."""
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    options: dict[str, Any] = {"local_files_only": True}
    if issubclass(kind, PreTrainedTokenizerBase):
        check_words(kind, place)
    if not issubclass(kind, torch.nn.Module):
        with loading(place, kind.__name__):
            return cast("Any", kind).from_pretrained(place, **options)
    check(place.parent, [place.name], variant)
    there = any(place.glob(f"*.{variant}*.safetensors"))
    options |= {"use_safetensors": True, "variant": variant if there else None, "dtype": dtype}
    with loading(place, kind.__name__):
        if issubclass(kind, PreTrainedModel):  # what is missing would be drawn at random
            with without("transformers.modeling_utils", "LOAD REPORT"):
                made, info = cast("Any", kind).from_pretrained(
                    place, output_loading_info=True, ignore_mismatched_sizes=True, **options
                )
            for key, found, shape in sorted(info["mismatched_keys"]):
                raise ValueError(f"{key} is {tuple(found)}, and by its config {tuple(shape)}")
            missing = sorted(info["missing_keys"])
        else:
            made = cast("Any", kind).from_pretrained(place, **options)
            missing = [key for key, p in made.named_parameters() if p.is_meta]
    _check_whole(place, missing)
    return made


def _check_whole(place: Path, missing: Sequence[str]) -> None:
    if missing:
        raise SfumatoError(
            f"{place} lacks {len(missing)} of its weights (first: {missing[0]}): it is cut off, or of another layout"
        )


def check_words(kind: Any, place: Path) -> None:
    """Refuse a tokenizer without its words: it would be another one."""
    files = dict(kind.vocab_files_names)
    whole, pieces = files.pop("tokenizer_file", None), [file for file in files.values() if file]
    if not (whole and (place / whole).is_file()) and not all((place / file).is_file() for file in pieces):
        raise SfumatoError(f"{place} lacks the words of its {kind.__name__}: {whole}, or {' and '.join(pieces)}")


@contextmanager
def loading(place: Path, what: str) -> Iterator[None]:
    """Whatever does not load is a ``SfumatoError`` of one line."""
    try:
        yield
    except SfumatoError:
        raise
    except Exception as e:  # of libraries, which do not expect what such files may hold
        raise SfumatoError(f"{place} does not load as a {what}: {first_line(e)}") from e


def index(place: Path) -> dict[str, Any]:
    """What a diffusers folder lists: its pipeline's class, its parts' classes and its settings."""
    if not (place / "model_index.json").exists():
        raise SfumatoError(f"unknown model {str(place)!r}: {_instead(place)}")
    return _config(place / "model_index.json")


def _config(file: Path) -> dict[str, Any]:
    """Of a library. ``SfumatoError`` for what is no object of sound numbers; endless ones are in some schedulers'."""
    found = read_json(file, dict, strict=False)
    if any(value != value for value in numbers(found)):
        raise SfumatoError(f"{file} has numbers that are none (NaN)")
    return found


def _check_index(place: Path, listed: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Refuse an index that names what is not there: an unknown pipeline, no class of a part, a missing folder."""
    import diffusers

    file, pipeline = place / "model_index.json", listed.get("_class_name")
    if not isinstance(pipeline, str) or not isinstance(getattr(diffusers, pipeline, None), type):
        raise SfumatoError(f"{file} names the pipeline {pipeline!r}, which diffusers {diffusers.__version__} has not")
    for part in parts:
        found = listed[part]
        if len(found) != 2 or not all(isinstance(word, str | None) for word in found):
            raise SfumatoError(f"{file} names the {part} {found!r}; a part is a library and a class")
        if found[1] is not None and not (place / part).is_dir():
            raise SfumatoError(f"{place} lacks the folder of its {part}, which its model_index.json names")


def named(listed: Mapping[str, Any]) -> list[str]:
    """The parts that an index names."""
    return [k for k, v in listed.items() if isinstance(v, list) and not k.startswith("_")]


def part(place: Path, name: str, variant: str | None, dtype: torch.dtype) -> Any:
    """A part of a folder of its own, or the part of this name of a folder that holds a whole model.

    Raises ``SfumatoError`` for a folder without it, and as ``read`` does.
    """
    place = place / name if (place / "model_index.json").is_file() else place
    return _made(_class(name, place), place, variant, dtype)


def _class(name: str, place: Path) -> Any:
    """Of what a folder holds, as its config says."""
    import diffusers
    import transformers

    for file in ("scheduler_config.json", "tokenizer_config.json", "config.json"):
        if not (place / file).is_file():
            continue
        config = _config(place / file)
        words = [config.get("_class_name"), config.get("tokenizer_class"), *(config.get("architectures") or ())]
        for word in filter(None, words):
            for library in (diffusers, transformers):
                if isinstance(found := getattr(library, word, None), type):
                    return found
    raise SfumatoError(f"{place} holds no {name}: it has no config that says of which class it is")


def _instead(place: Path) -> str:
    """What a folder without a model_index.json is."""
    kind = _config(place / "config.json").get("_class_name") if (place / "config.json").is_file() else None
    if "ControlNet" in str(kind):
        return (
            "the folder holds a ControlNet, which steers a model; give it beside the model (--controlnet FOLDER "
            "--control PICTURE, or denoise(controls=[ControlNet(controlnets.read(FOLDER, model), picture)]))"
        )
    if kind:
        return f"the folder holds a {kind}, one part of a model; give the folder above it, with a model_index.json"
    if files := sorted(place.glob("*.safetensors")):
        named = ", ".join(file.name for file in files[:5])
        return f"the folder has no model_index.json, but .safetensors files ({named}); give one of them"
    return "the folder has no model_index.json, so it holds no diffusers pipeline"


def check(place: Path, parts: Sequence[str], variant: str | None) -> None:
    """Are the weights of these parts whole safetensors, of this variant, and their configs such?"""
    for part in parts:
        for file in sorted((place / part).glob("*config.json")) + sorted((place / part).glob("*.index.json")):
            _config(file)
        files = {p.name for p in (place / part).glob("*")} if (place / part).is_dir() else set()
        tensors = {f.removesuffix(".safetensors") for f in files if f.endswith(".safetensors")}
        if not tensors and any(Path(f).suffix in WEIGHTS for f in files):
            raise SfumatoError(
                f"{place / part} has only pickled weights, which are not read; write them as safetensors once: "
                "diffusers.DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW)"
            )
        stems = {f.partition("-0")[0] for f in tensors}  # of shards, their common name
        have = {s.partition(".")[2] for s in stems}
        if tensors and not have & {variant or "", ""}:
            raise SfumatoError(f"{place / part} has only the variants {', '.join(sorted(have))}; give one as variant")
        for name in sorted(tensors):
            _check_tensors(place / part / f"{name}.safetensors")


def check_numbers(file: Path, opened: Any) -> None:
    """Refuse weights that were made whole numbers, of which nothing says by which scale."""
    keys = (key for key in opened.keys() if key.endswith("weight"))  # noqa: SIM118
    if whole := next((key for key in keys if opened.get_slice(key).get_dtype() in ("I8", "U8")), None):
        raise SfumatoError(f"{file} is quantised: {whole} holds whole numbers; take the file in float16 or bfloat16")


def _check_tensors(file: Path) -> None:
    from safetensors import safe_open

    config = file.parent / "config.json"
    try:
        with safe_open(file, framework="pt") as opened:
            if not config.is_file() or "quantization_config" not in _config(config):
                check_numbers(file, opened)
    except SfumatoError:
        raise
    except Exception as e:  # safetensors has several kinds
        raise SfumatoError(f"{file} is no safetensors file, or cut off: {first_line(e)}") from e
