"""What commands that read images share: files and folders, one after the other, and a page of what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.io.files import write_text
from sfumato.io.terminal import note, progress
from sfumato.methods import index

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def files_of(given: Sequence[Path]) -> list[Path]:
    """The pictures that are meant: files as they are, of folders all pictures in it, by name.

    What else lies in a folder is named on stderr. Raises ``SfumatoError`` for what is missing and for a folder without
    a picture.
    """
    out: list[Path] = []
    for place in given:
        if not place.exists():
            raise SfumatoError(
                f"there is no file or folder {place}, nor a method of that name: "
                f"{', '.join(index.words(index.READING))}"
            )
        if place.is_dir():
            inside = sorted(p for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
            found = [p for p in inside if p.suffix.lower() in PICTURES]
            others = [p.name for p in inside if p not in found]
            if others:
                note(f"left out of {place}, as no pictures: {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}")
            if not found:
                raise SfumatoError(f"there is no picture in {place} ({', '.join(PICTURES)})")
            out += found
        else:
            out.append(place)
    return list(dict.fromkeys(out))


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


@dataclass
class Batch:
    """Images that are worked through one by one. What was done under the same settings before is not done again."""

    files: Sequence[Path]
    out: Path
    settings: dict[str, Any]
    """All that changes a result."""
    failed: dict[str, str] = field(default_factory=dict)

    def stem(self, file: Path) -> str:
        """What an image's results are called: its name; of several of that name also its folder, or its number."""
        same = [f for f in self.files if f.stem == file.stem]
        return file.stem if len(same) == 1 else f"{file.stem}-{same.index(file) + 1}"

    def key(self, file: Path) -> str:
        """Of an image as it is now, under these settings."""
        settings = json.dumps(self.settings, sort_keys=True, default=str)
        return hashlib.sha256(f"{content(file)} {settings}".encode()).hexdigest()[:16]

    def run(self, what: str, work: Callable[[Path], dict[str, Any]]) -> list[dict[str, Any]]:
        """A record of each image, what ``work`` gives; an image that fails is noted and does not stop the others."""
        rows = []
        with progress(what, len(self.files)) as advance:
            for file in self.files:
                try:
                    place = self.out / f".{self.stem(file)}.{self.key(file)}.json"
                    row = _kept(place)
                    if row is None:
                        row = {"image": str(file), **work(file)}
                        write_text(place, json.dumps(row, allow_nan=False))
                    rows.append(row)
                except SfumatoError as e:
                    self.failed[str(file)] = str(e)
                advance()
        return rows

    def finish(self) -> None:
        """Raise ``SfumatoError`` where images failed, once all results are written."""
        if not self.failed:
            return
        if len(self.files) == 1:
            raise SfumatoError(next(iter(self.failed.values())))
        for reason in self.failed.values():
            note(reason)
        raise SfumatoError(f"{len(self.failed)} of {len(self.files)} images failed (named above); the others are done")


def _kept(place: Path) -> dict[str, Any] | None:
    """The record of a result whose files are still there."""
    if not place.exists():
        return None
    row = json.loads(place.read_text(encoding="utf-8"))
    return row if all(Path(file).exists() for file in row["files"]) else None


def page(title: str, about: str, rows: Sequence[tuple[str, Sequence[tuple[str, Path]]]], path: Path) -> Path:
    """An HTML page that needs nothing else: a row of pictures, each with its words, for each image."""
    from html import escape

    from PIL import Image

    from sfumato.media.page import figure, page_of, row

    body = [f"<h1>{escape(title)}</h1>\n<p class='lead'>{escape(about)}</p>\n"]
    for name, pictures in rows:
        figures = []
        for label, file in pictures:
            with Image.open(file) as found:
                shown = found.convert("RGB")
            shown.thumbnail((640, 384))
            figures.append(figure(shown, escape(label)))
        body.append(f"<h2>{escape(name)}</h2>\n{row(*figures)}")
    write_text(path, page_of("".join(body), title))
    return path
