"""Pictures one after the other: which are meant, and what is made of each, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.io.files import write_json
from sfumato.io.progress import Listener, heard, progress


def pictures_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder, by name, and what else lies in it. ``SfumatoError`` where there is no picture."""
    from sfumato.media.images import suffixes

    inside = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    found = [p for p in inside if p.suffix.lower() in suffixes()]
    if not found:
        raise SfumatoError(f"there is no picture in {folder}: none of {len(inside)} files there ends like one")
    return found, [p for p in inside if p not in found]


def content(file: Path) -> str:
    """A word for what a file holds now. ``SfumatoError`` where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as e:
        raise SfumatoError(f"cannot read {file}: {e.strerror or e}") from e


def contents(place: Path | None) -> list[tuple[str, str]] | None:
    """What the files of a folder hold, or a file and its labels beside it: settings by which results differ."""
    if place is None:
        return None
    inside = sorted(place.iterdir()) if place.is_dir() else [place, place.with_name(f"{place.stem}-labels.png")]
    return [(file.name, content(file)) for file in inside if file.is_file()]


@dataclass(frozen=True)
class Worked:
    """What became of a batch."""

    rows: tuple[dict[str, Any], ...]
    """A record of each image that was done."""
    failed: dict[str, str]
    """Why the others were not, by their files."""


@dataclass(frozen=True)
class Batch:
    """Images that are worked through one by one. What was done under the same settings before is not done again."""

    files: Sequence[Path]
    out: Path
    settings: dict[str, Any]
    """All that changes a result."""

    def stem(self, file: Path) -> str:
        """What an image's results are called: its name; of several of that name also its folder, or its number."""
        same = [f for f in self.files if f.stem == file.stem]
        return file.stem if len(same) == 1 else f"{file.stem}-{same.index(file) + 1}"

    def key(self, file: Path) -> str:
        """Of an image as it is now, under these settings."""
        settings = json.dumps(self.settings, sort_keys=True, default=str)
        return hashlib.sha256(f"{content(file)} {settings}".encode()).hexdigest()[:16]

    def run(self, what: str, work: Callable[[Path], dict[str, Any]], *, on_progress: Listener | None = None) -> Worked:
        """A record of each image, what ``work`` gives; an image that fails is noted and does not stop the others."""
        rows, failed = [], {}
        with heard(on_progress), progress(what, len(self.files)) as advance:
            for file in self.files:
                try:
                    place = self.out / f".{self.stem(file)}.{self.key(file)}.json"
                    row = _kept(place)
                    if row is None:
                        row = {"image": str(file), **work(file)}
                        write_json(place, row)
                    rows.append(row)
                except SfumatoError as e:
                    failed[str(file)] = str(e)
                advance()
        return Worked(tuple(rows), failed)


def _kept(place: Path) -> dict[str, Any] | None:
    """The record of a result whose files are still there."""
    if not place.exists():
        return None
    row = json.loads(place.read_text(encoding="utf-8"))
    return row if all(Path(file).exists() for file in row["files"]) else None
