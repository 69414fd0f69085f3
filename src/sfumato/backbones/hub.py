"""Where a model's files are: a folder, or a repository of the Hugging Face hub, by its id or by an alias.

``aliases.json`` lists for each alias the ids that hold the model, the first one preferred, and those that once did.
Only safetensors are downloaded.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from sfumato.errors import SfumatoError

UNUSED = ("safety_checker", "feature_extractor", "watermarker", "depth_estimator")
"""Parts of pipelines that are neither downloaded nor loaded: nothing here calls them."""
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SINGLE = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}
_SECONDS = 10.0  # to wait for the hub's first answer


@cache
def aliases() -> dict[str, dict[str, list[str]]]:
    """Alias -> ``ids`` that hold the model, and ``gone`` ones, which may still be in a local cache."""
    return json.loads((Path(__file__).parent / "aliases.json").read_text(encoding="utf-8"))


def find(name: str, variant: str | None = None, offline: bool = False) -> Path:
    """The folder of a model: ``name`` itself, or what the hub or the local cache has under this alias or id.

    ``offline`` (or ``HF_HUB_OFFLINE``) looks only at the local cache. Raises ``SfumatoError`` when there is no such
    model, saying where it was looked for and where else it is known to be.
    """
    place = Path(name)
    if place.is_dir():
        return place
    if place.suffix in _SINGLE:
        raise SfumatoError(
            f"{name} is a single file, and a model is a diffusers folder; convert it once: "
            "diffusers.StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    moved = {old: known["ids"] for known in aliases().values() for old in known.get("gone", ())}
    if name in aliases():
        ids, gone = aliases()[name]["ids"], aliases()[name].get("gone", [])
    elif name in moved:
        ids, gone = [], [name]
    elif _ID.fullmatch(name):
        ids, gone = [name], []
    else:
        from sfumato.stilllife.weights import MODELS

        raise SfumatoError(
            f"unknown model {name!r}; known: {', '.join([*MODELS, *aliases()])}, an id of the hub (owner/name), or a "
            "diffusers folder (with a model_index.json)"
        )
    return _repository(name, ids, gone, moved.get(name, []), variant, offline)


def _repository(
    name: str, ids: list[str], gone: list[str], mirrors: list[str], variant: str | None, offline: bool
) -> Path:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    offline = offline or constants.HF_HUB_OFFLINE
    reasons = ["nothing is downloaded offline"] if offline and ids else []
    for repo in () if offline else ids:
        try:
            HfApi().model_info(repo, timeout=_SECONDS)  # diffusers only warns of a hub that does not answer
            return _downloaded(repo, variant)
        except GatedRepoError:
            reasons.append(f"{repo} wants its licence accepted at https://huggingface.co/{repo}, and `hf auth login`")
        except RepositoryNotFoundError:
            reasons.append(f"the hub has no {repo}, or it is private (`hf auth login`)")
        except Exception as e:  # what the hub's client raises where there is no network differs with its version
            reasons.append(f"{repo} cannot be downloaded ({line(e)})")
    for repo in (*ids, *gone):
        try:
            return _downloaded(repo, variant, cached=True)
        except (OSError, ValueError):
            continue
    others = mirrors or [i for known in aliases().values() if name in known["ids"] for i in known["ids"] if i != name]
    if others:
        reasons.append(f"the same weights are at: {', '.join(others)}")
    what = f"unknown model {name!r}: there is no such folder"
    if name in aliases():
        what = f"{name} cannot be loaded"
    elif mirrors:
        what = f"{name} is no longer on the hub"
    raise SfumatoError("; ".join([what, *reasons, f"the local cache ({constants.HF_HUB_CACHE}) does not have it"]))


def _downloaded(repo: str, variant: str | None, cached: bool = False) -> Path:
    from diffusers import DiffusionPipeline

    unused = dict.fromkeys(UNUSED)
    return Path(
        DiffusionPipeline.download(repo, variant=variant, use_safetensors=True, local_files_only=cached, **unused)
    )


def line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _index(place: Path) -> dict[str, list[str | None]]:
    """The parts that a diffusers folder lists, with the classes that load them."""
    try:
        index = json.loads((place / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SfumatoError(f"unknown model {str(place)!r}: {_instead(place)}") from None
    except (OSError, ValueError) as e:
        raise SfumatoError(f"{place / 'model_index.json'} cannot be read: {line(e)}") from e
    return {k: v for k, v in index.items() if isinstance(v, list) and not k.startswith("_")}


def unused(place: Path) -> list[str]:
    """Which of ``UNUSED`` a diffusers folder lists."""
    return [part for part in _index(place) if part in UNUSED]


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


def check(place: Path, variant: str | None = None) -> None:
    """Raise ``SfumatoError`` unless the folder holds a pipeline whose weights are safetensors, of this variant."""
    for part in [p for p in _index(place) if p not in UNUSED]:
        files = {p.name for p in (place / part).glob("*")} if (place / part).is_dir() else set()
        tensors = {f.removesuffix(".safetensors") for f in files if f.endswith(".safetensors")}
        if not tensors and any(Path(f).suffix in _SINGLE for f in files):
            raise SfumatoError(
                f"{place / part} has only pickled weights, which are not read; write them as safetensors once: "
                "diffusers.DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW)"
            )
        stems = {f.partition("-0")[0] for f in tensors}  # of shards, their common name
        have = {s.partition(".")[2] for s in stems}
        if tensors and not have & {variant or "", ""}:
            raise SfumatoError(f"{place / part} has only the variants {', '.join(sorted(have))}; give one as variant")
