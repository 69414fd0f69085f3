"""Parts of a pipeline that are given beside a model, such as another VAE: in hand, or where they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sfumato.backbones import folder, hub, single_file
from sfumato.errors import SfumatoError


def read(given: Mapping[str, Any], variant: str | None, dtype: torch.dtype, offline: bool) -> dict[str, Any]:
    """Those that can be read by themselves: a part in hand, a folder's or the hub's; None is no such part.

    Raises ``SfumatoError`` for what is not there or holds no such part.
    """
    found = {name: part for name, part in given.items() if not _waits(name, part)}
    made = {
        name: folder.part(hub.find(str(part), variant, offline, part=name), name, variant, dtype)
        if isinstance(part, str | Path)
        else part
        for name, part in found.items()
    }
    for name, part in made.items():
        _check(name, part)
    return made


def put(pipe: Any, given: Mapping[str, Any], read: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    """Put parts into a pipeline: those that were ``read``, and those that are made by its own part's config.

    These are a scheduler of another class, and a VAE in a file of its own.
    """
    if stranger := next((name for name in given if name not in pipe.components), None):
        raise SfumatoError(
            f"{stranger} is no option of load, and a {type(pipe).__name__} has no such part; it has: "
            f"{', '.join(pipe.components)}"
        )
    for name, part in given.items():
        if name in read:
            made = read[name]
        elif name == "scheduler":
            made = _scheduler(part).from_config(pipe.scheduler.config)
        else:
            made = _vae(Path(part), pipe.vae, dtype or pipe.vae.dtype)
        setattr(pipe, name, made)


def _waits(name: str, part: Any) -> bool:
    """Is it made by the config of the model's own?"""
    if name == "scheduler":
        return isinstance(part, type) or (isinstance(part, str) and part.isidentifier() and not Path(part).is_dir())
    return isinstance(part, str | Path) and (Path(part).is_file() or Path(part).suffix in folder.WEIGHTS)


def _scheduler(part: Any) -> Any:
    import diffusers

    found = part if isinstance(part, type) else getattr(diffusers, part, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise SfumatoError(
            f"diffusers has no scheduler {part!r}; give a class such as EulerDiscreteScheduler, or a folder"
        )
    return found


def _vae(file: Path, like: Any, dtype: torch.dtype) -> Any:
    """A VAE of a file of its own, in any of its layouts, built as the model's own is."""
    shapes = single_file.tensors(file)
    if not any(".conv_out.weight" in key or key == "conv_out.weight" for key in shapes):
        raise SfumatoError(f"{file} holds no VAE: {single_file.instead(shapes)}")
    if not hasattr(type(like), "from_single_file"):
        raise SfumatoError(f"{file} is a single file, which diffusers does not read as a {type(like).__name__}")
    with TemporaryDirectory() as place, folder.loading(file, f"{type(like).__name__} such as the model's own"):
        like.save_config(place)
        return type(like).from_single_file(str(file), config=place, dtype=dtype)


def _check(name: str, part: Any) -> None:
    """Refuse what cannot take the place of a part of this name."""
    import diffusers
    import transformers

    kinds = {
        "scheduler": diffusers.SchedulerMixin,
        "tokenizer": transformers.PreTrainedTokenizerBase,
        "text_encoder": transformers.PreTrainedModel,
        **dict.fromkeys(("unet", "transformer", "vae"), diffusers.ModelMixin),
    }
    wanted = kinds.get(name.rstrip("_23"), object)
    if part is not None and not isinstance(getattr(part, "_orig_mod", part), wanted):
        raise SfumatoError(f"what is given as {name} is a {type(part).__name__}, which is none")
