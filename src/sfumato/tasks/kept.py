"""What lies in a folder of results stays there: a run's results get a name that no other run's have.

The same run again gives the same files. Beside them lies a hidden record of what they are of; what has none is a
person's own, and is left as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, unread, write_json

if TYPE_CHECKING:
    from sfumato.tasks.chain import Chain

Record = dict[str, Any]
_LONGEST = 180  # bytes
_CLAIMED: list[tuple[Path, Path]] = []
"""Records that this process has begun, each with the first file of what it is of."""


@contextmanager
def released() -> Iterator[None]:
    """Names that are claimed in the block are let go of where an error ends it before there is a result.

    After Ctrl-C they are kept, for the same run to go on.
    """
    _CLAIMED.clear()
    try:
        yield
    except Exception:
        for place, first in _CLAIMED:
            if not first.exists():
                place.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Kept:
    """Results of a kind in a folder, by their names: a picture's, and with a number behind it that of further runs."""

    folder: Path
    kind: str
    """Whose results they are: a command's."""
    tail: str
    """What the name of the first file of each result ends with, such as ``-edited.png``."""

    def claim(
        self, name: str, same: Callable[[Record], bool], taken: Collection[str] = (), **about: Any
    ) -> tuple[str, Record | None]:
        """A name for new results: ``photo``, or else ``photo.2``, ...; and the record of the ones that lie there.

        Those are replaced only if their record is the ``same``; ``taken`` are names of other results of this run, which
        are still to come. ``SfumatoError`` where nothing can be written.
        """
        name = short(name)
        for n in count(1):
            own = name if n == 1 else f"{name}.{n}"
            place, first = self._place(own), self.folder / f"{own}{self.tail}"
            found = _read(place)
            if found is not None and same(found):
                return own, found
            if own in taken:
                continue
            if found is not None and not first.exists() and not _alive(found.get("process", -1)):
                place.unlink(missing_ok=True)  # its results were deleted, or never came
            if not first.exists() and _new(place, {**about, "process": os.getpid()}):
                _CLAIMED.append((place, first))
                return own, None
        raise AssertionError

    def write(self, name: str, record: Record) -> None:
        """The record of results that are whole."""
        write_json(self._place(name), record, private=True)

    def drop(self, name: str) -> None:
        """Let go of a name whose results did not come."""
        self._place(name).unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """Of all results whose files are there, by their names."""
        end = f".{self.kind}.json"
        places = sorted(self.folder.glob(f".*{end}"), key=lambda place: place.name.removesuffix(end))
        found = map(_read, places)
        return [r for r in found if r and "files" in r and all((self.folder / file).exists() for file in r["files"])]

    def listed(self, write: Callable[[list[Record]], None]) -> None:
        """Write a document of all results; again, where another process has added some meanwhile."""
        done = None
        while (rows := self.records()) != done:
            write(rows)
            done = rows

    def _place(self, name: str) -> Path:
        return self.folder / f".{name}.{self.kind}.json"


DRAWN = {
    "edit": ("-beside.png", "-attention.png"),
    "compare": ("-compare.png",),
    "grid": ("-grid.png",),
    "segment": ("-labels.png", "-overlay.png", "-attribution.png"),
    "keypoints": ("-keypoints.png",),
    "match": (".png", "-mask.png", "-mask-overlay.png"),
    "features": (".png",),
    "invert": ("-inverted.png",),
}
"""What is drawn of pictures, by kinds of results: how its names end."""


def drawn(folder: Path) -> set[str]:
    """Names of sheets, labels and overlays in a folder, which are not pictures for a further run."""
    out = set[str]()
    for place in folder.glob(".*.json"):
        name, _, kind = place.name[1:].removesuffix(".json").rpartition(".")
        out |= {f"{name}{tail}" for tail in DRAWN.get(kind, ())}
    return out


def short(name: str) -> str:
    """As much of a name as file systems take with all the endings that results get."""
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return name


def named(folder: Path, kind: str, tail: str, name: str, settings: Mapping[str, Any]) -> str:
    """A name for the results of a run of these settings."""
    key = digest(settings)
    return Kept(folder, kind, tail).claim(name, lambda found: found.get("key") == key, key=key)[0]


def settings_of(arguments: Mapping[str, Any], chains: Sequence[Chain] = ()) -> dict[str, Any]:
    """Of a command's arguments those that change its results; and what its methods are."""
    others = ("out", "overwrite", "json", "memory", "device", "chain", "show_attention")
    return {k: v for k, v in arguments.items() if k not in others} | {"methods": [chain.items for chain in chains]}


def digest(value: Any) -> str:
    """A word for settings: files by what they hold, tensors by their numbers."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def content(file: Path) -> str:
    """A word for what a file holds now. ``SfumatoError`` where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as e:
        raise SfumatoError(unread(file, e)) from e


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return content(value) if value.is_file() else str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, {f.name: _plain(getattr(value, f.name)) for f in fields(value)}]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "detach"):
        tensor: Any = value
        return hashlib.sha256(tensor.detach().cpu().float().numpy().tobytes()).hexdigest()
    return getattr(value, "__qualname__", None) or repr(value)


def _new(place: Path, record: Record) -> bool:
    """Write a record where there is none; of several processes one does."""
    try:
        with place.open("x", encoding="utf-8") as file:
            json.dump(record, file)
    except FileExistsError:
        return False
    except OSError as e:
        raise SfumatoError(f"cannot write {place}: {e.strerror or e}") from e
    return True


def _read(place: Path) -> Record | None:
    """A record; what another process is about to write is an empty one, of a run that goes on."""
    with suppress(FileNotFoundError):
        try:
            return from_json(place.read_bytes(), dict)
        except ValueError:
            return {"process": os.getpid()}
    return None


def _alive(process: int) -> bool:
    import psutil  # os.kill(process, 0) ends the process on Windows

    return process != os.getpid() and psutil.pid_exists(process)
