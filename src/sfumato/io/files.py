"""Files are written to a temporary name and renamed: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import REMEDY, SfumatoError, finite

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` (same suffix); rename it on success, remove it on failure.

    Raises ``SfumatoError`` when the place cannot be written or the disk is full.
    """
    path = Path(path).expanduser()
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as e:
        raise SfumatoError(f"cannot write {path}: {e.strerror or e}") from e
    except Exception as e:
        if type(e).__name__ == "SafetensorError":  # known by name: the library is not loaded for every command
            raise SfumatoError(f"cannot write {path}: {str(e).rpartition('error: ')[2]}") from e
        raise
    finally:
        with suppress(OSError):  # it has said why, if anything is wrong
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8; of names that are none, such as files have on some disks, the bytes as escapes, as JSON has them."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def writable(folder: str | Path) -> Path:
    """Make a folder and see that files can be written there: fail at once, not after minutes of work."""
    folder = Path(folder).expanduser()
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise SfumatoError(f"cannot write to {folder}: {e.strerror or e}") from e
    return folder


def as_json(value: Any, **style: Any) -> str:
    """A strict JSON document. Raises ``SfumatoError`` that names the numbers in it that are not finite."""
    try:
        return json.dumps(value, allow_nan=False, **style)
    except ValueError:
        wrong = ", ".join(islice(_not_finite(value), 3))
        raise SfumatoError(f"not finite, so that it cannot be written: {wrong}; {REMEDY}") from None


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Where in a document numbers are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place or 'it'} ({value})"
    inside = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, each in inside:
        yield from _not_finite(each, f"{place}.{key}" if place else str(key))


def from_json(text: str | bytes, kind: type = object, *, strict: bool = True) -> Any:
    """What a JSON document says. ``ValueError``, in one line, for what is none, or not of this kind.

    Where it is ``strict``, numbers are finite and fit in 64 bits; otherwise they are as other people's files have them.
    """
    hooks = {"parse_constant": _number, "parse_float": _number, "parse_int": _whole} if strict else {}
    try:
        found = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, kind):
        raise ValueError(f"it is {_KINDS[type(found)]}, where {_KINDS[kind]} is meant")
    return found


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
_KINDS[type(None)] = "null"


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def unread(path: str | Path, error: Exception) -> str:
    """Why a file is not read: there is none, it is a folder, or what an error says."""
    if not Path(path).exists():
        return f"there is no file {path}"
    if Path(path).is_dir():
        return f"{path} is a folder, and a file is meant"
    return f"cannot read {path}: {getattr(error, 'strerror', None) or error}"


def is_place(text: str) -> bool:
    """Is it written as a place on this machine, not as a name or as an id of the hub (owner/name)?"""
    return bool(re.match(r"[.~]{0,2}[/\\]|[A-Za-z]:[/\\]|.*[/\\](.*[/\\]|$)", text))


def read_text(path: str | Path) -> str:
    """UTF-8, with or without a mark in front. ``SfumatoError`` for what is missing, or no text."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as e:
        raise SfumatoError(unread(path, e)) from e
    except ValueError:
        raise SfumatoError(f"{path} is no text in UTF-8") from None


def read_json(path: str | Path, kind: type = object, *, strict: bool = True) -> Any:
    """What a JSON file says; see ``from_json``. ``SfumatoError`` where it is missing, or not that."""
    try:
        return from_json(read_text(path), kind, strict=strict)
    except ValueError as e:
        raise SfumatoError(f"{path} cannot be read as JSON: {e}") from None


def named(text: str) -> str:
    """What is given to others of a text: of a place on this machine its name alone."""
    try:
        place = Path(text)
        return (place.is_absolute() and place.parent.exists() and place.name) or text
    except (OSError, ValueError):  # no place, as it is too long or has a zero
        return text


def shared(value: Any) -> Any:
    """What is given to others of texts, also those in mappings and lists: places on this machine by their names."""
    if isinstance(value, str):
        return named(re.sub(r"\b\w+Path\('([^']*)'\)", lambda found: repr(named(found[1])), value))
    if isinstance(value, Mapping):
        return {key: shared(each) for key, each in value.items()}
    return [shared(each) for each in value] if isinstance(value, list | tuple) else value


def write_json(path: str | Path, value: Any, *, private: bool = False, **style: Any) -> None:
    """Write a strict JSON document (``as_json``), its places as ``shared`` unless it is of this machine alone."""
    write_text(path, as_json(value if private else shared(value), **style) + "\n")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write safetensors with a header. Raises ``SfumatoError`` for values that are not finite, by their name."""
    from safetensors.torch import save_file

    for name, values in tensors.items():
        finite(values, f"{name}, which is to be written to {path},")
    with atomic(path) as part:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, dict(about or {}))
