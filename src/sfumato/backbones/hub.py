"""Where a model's files are: a folder, or a repository of the Hugging Face hub, by its id or by an alias.

``aliases.json`` lists for each alias the ids that hold the model, the first one preferred, and those that once did.
Only safetensors are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from sfumato.backbones.folder import UNUSED
from sfumato.errors import SfumatoError, first_line, nowhere
from sfumato.io.files import is_place, read_json

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.json", "*.txt", "*.model", "diffusion_pytorch_model*.safetensors", "model*.safetensors")
_SECONDS = 10.0  # to wait for the hub's first answer


@cache
def aliases() -> dict[str, dict[str, list[str]]]:
    """Alias -> ``ids`` that hold the model, and ``gone`` ones, which may still be in a local cache."""
    return read_json(Path(__file__).parent / "aliases.json")


def is_id(name: str) -> bool:
    """Is it written as ids of the hub are?"""
    return _ID.fullmatch(name) is not None


def check(name: str, built_in: Sequence[str] = (), part: str | None = None) -> None:
    """Raise ``SfumatoError`` for what is neither a folder nor an id or an alias of the hub."""
    if is_place(name) and not Path(name).is_dir():
        raise nowhere(name)
    moved = {old for known in aliases().values() for old in known.get("gone", ())}
    if not (Path(name).is_dir() or name in aliases() or name in moved or is_id(name)):
        raise SfumatoError(
            f"unknown {part or 'model'} {name!r}; known: {', '.join([*built_in, *aliases()])}, an id of the hub "
            "(owner/name), or a diffusers folder (with a model_index.json)"
        )


def find(
    name: str,
    variant: str | None = None,
    offline: bool = False,
    built_in: Sequence[str] = (),
    part: str | None = None,
) -> Path:
    """The folder of a model: ``name`` itself, or what the hub or the local cache has under this alias or id.

    Of a ``part`` of a model, such as ``vae``, its own folder or a model's, of which no more is downloaded.

    ``offline`` (or ``HF_HUB_OFFLINE``) looks only at the local cache. Raises ``SfumatoError`` when there is no such
    model, saying where it was looked for, where else it is known to be, and what is ``built_in``.
    """
    place = Path(name)
    if place.is_dir():
        return place
    check(name, built_in, part)
    moved = {old: known["ids"] for known in aliases().values() for old in known.get("gone", ())}
    if name in aliases():
        ids, gone = aliases()[name]["ids"], aliases()[name].get("gone", [])
    elif name in moved:
        ids, gone = [], [name]
    else:
        ids, gone = [name], []
    return _repository(name, ids, gone, moved.get(name, []), variant, offline, part)


def _repository(
    name: str, ids: list[str], gone: list[str], mirrors: list[str], variant: str | None, offline: bool, part: str | None
) -> Path:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    offline = offline or constants.HF_HUB_OFFLINE
    reasons = ["nothing is downloaded offline"] if offline and ids else []
    for repo in () if offline else ids:
        try:
            HfApi().model_info(repo, timeout=_SECONDS)  # diffusers only warns of a hub that does not answer
            return _downloaded(repo, variant, part)
        except GatedRepoError:
            reasons.append(f"{repo} wants its licence accepted at https://huggingface.co/{repo}, and `hf auth login`")
        except RepositoryNotFoundError:
            reasons.append(f"the hub has no {repo}, or it is private (`hf auth login`)")
        except Exception as e:  # what the hub's client raises where there is no network differs with its version
            reasons.append(f"{repo} cannot be downloaded ({first_line(e)})")
    with _silent():
        for repo in (*ids, *gone):
            with suppress(OSError, ValueError):
                return _downloaded(repo, variant, part, cached=True)
    others = mirrors or [i for known in aliases().values() if name in known["ids"] for i in known["ids"] if i != name]
    if others:
        reasons.append(f"the same weights are at: {', '.join(others)}")
    what = f"unknown {part or 'model'} {name!r}: there is no such folder"
    if name in aliases():
        what = f"{name} cannot be loaded"
    elif mirrors:
        what = f"{name} is no longer on the hub"
    raise SfumatoError("; ".join([what, *reasons, f"the local cache ({constants.HF_HUB_CACHE}) does not have it"]))


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, nobody is asked: the hub's client looks up for its greeting what program calls, if it may."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _downloaded(repo: str, variant: str | None, part: str | None, cached: bool = False) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    if part is not None:
        wanted = [f"{where}{file}" for where in ("", f"{part}/") for file in _FILES]
        return Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=cached))
    unused = dict.fromkeys(UNUSED)
    return Path(
        DiffusionPipeline.download(repo, variant=variant, use_safetensors=True, local_files_only=cached, **unused)
    )
