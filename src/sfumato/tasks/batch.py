"""Pictures one after the other: which are meant, and what is made of each, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener, heard, progress
from sfumato.io.terminal import note
from sfumato.tasks import kept
from sfumato.tasks.kept import Kept, content, digest, short

LABELS = "-labels"
"""Behind the name of a picture: that of its labels, which are none themselves."""


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name; without hidden files, labels that lie beside theirs, and sheets and overlays
    that were made there.

    What is left out is noted. ``SfumatoError`` where there is no picture.
    """
    from sfumato.media.opening import suffixes, unread

    drawn = kept.drawn(folder)
    inside = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    found = [p for p in inside if p.suffix.lower() in suffixes() and p.name not in drawn]
    stems = {p.stem for p in found}
    labels = [p for p in found if p.stem.endswith(LABELS) and p.stem.removesuffix(LABELS) in stems]
    found = [p for p in found if p not in labels]
    others = [p.name for p in inside if p not in found]
    left = [f"{name} ({why})" for name in others if (why := unread(name))]
    if not found:
        more = f", and of these none is read here: {_few(left)}" if left else ""
        raise SfumatoError(f"there is no picture in {folder}: none of {len(inside)} files there ends like one{more}")
    beside = [p.name for p in labels]
    plain = [name for name in others if name not in drawn and name not in beside and not unread(name)]
    ours = [name for name in others if name in drawn]
    kinds = {"no pictures": plain, "labels": beside, "sheets and overlays": ours, "not read here": left}
    for what, names in kinds.items():
        if names:
            note(f"left out of {folder}, as {what}: {_few(names)}")
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def contents(place: Path | None) -> list[tuple[str, str]] | None:
    """What the files of a folder hold, or a file and its labels beside it: settings by which results differ."""
    if place is None:
        return None
    inside = sorted(place.iterdir()) if place.is_dir() else [place, place.with_name(f"{place.stem}{LABELS}.png")]
    return [(file.name, content(file)) for file in inside if file.is_file()]


def note_same(results: Sequence[tuple[str, str]]) -> None:
    """Say of results, each with its picture, which are those of another picture that holds the same."""
    first: dict[str, str] = {}
    again = [f"{of} is {first[name]}" for name, of in results if first.setdefault(name, of) != of]
    if again:
        note(f"the same picture, done once: {_few(again)}")


def apart(files: Sequence[Path]) -> list[str]:
    """As much of each file's place as tells it from the others: its name, and of equal ones folders above."""
    places = [file.parts for file in dict.fromkeys(files)]

    def called(own: tuple[str, ...]) -> str:
        alike = (n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in places) == 1)
        return "/".join(own[-next(alike, 1) :])

    return [called(file.parts) for file in files]


@dataclass(frozen=True)
class Worked:
    """What became of a batch."""

    rows: tuple[dict[str, Any], ...]
    """A record of each image that was done."""
    failed: dict[str, str]
    """Why the others were not, by their files."""

    @property
    def files(self) -> list[str]:
        """What was written, each once."""
        return [*dict.fromkeys(file for row in self.rows for file in row["files"])]


@dataclass(frozen=True)
class Batch:
    """Images that are worked through one by one. What was done under the same settings before is not done again.

    In a folder a picture has one result of a kind: under other settings it takes the place of the earlier one, which is
    noted. Results of another picture of that name stay; the newer ones get a number.
    """

    files: Sequence[Path]
    kept: Kept
    settings: dict[str, Any]
    """All that changes a result."""

    def run(
        self, what: str, work: Callable[[Path, Path], dict[str, Any]], *, on_progress: Listener | None = None
    ) -> Worked:
        """A record of each image, what ``work`` gives; an image that fails is noted and does not stop the others.

        ``work`` gets an image and where its results go, without an ending: ``out/photo``.
        """
        rows, failed, replaced = [], {}, 0
        with heard(on_progress), progress(what, len(self.files)) as advance:
            for file in self.files:
                try:
                    row, before = self._done(file, work)
                    rows.append({k: v for k, v in row.items() if k != "at"})
                    replaced += before
                except SfumatoError as e:
                    failed[str(file)] = str(e)
                advance()
        if others := [(row, stem) for row in rows if (stem := row.get("stem")) != short(Path(row["image"]).stem)]:
            named = ", ".join(f"{row['image']} is {stem}" for row, stem in others[:5])
            note(f"of several pictures of one name: {named}{' ...' if len(others) > 5 else ''}")
        note_same([(row["stem"], row["image"]) for row in rows])
        if replaced:
            note(f"{replaced} results of other settings in {self.kept.folder} are replaced")
        return Worked(tuple(rows), failed)

    def lying(self, write: Callable[[list[dict[str, Any]]], None]) -> None:
        """Write a document of all results that lie in the folder (``Kept.listed``), by names that tell images apart."""

        def named(records: list[dict[str, Any]]) -> None:
            called = apart([Path(record["at"]).with_name(Path(record["image"]).name) for record in records])
            write([self._row(record) | {"image": name} for record, name in zip(records, called, strict=True)])

        self.kept.listed(named)

    def _done(self, file: Path, work: Callable[[Path, Path], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
        """An image's row, and whether it has replaced one of other settings."""
        key, at = digest({"image": file, "settings": self.settings}), str(file.resolve())
        name, before = self.kept.claim(
            file.stem, lambda found: key == found.get("key") or at == found.get("at"), key=None, at=at
        )
        whole = before is not None and before in self.kept.records()
        if before is not None and whole and before["key"] == key:
            if not Path(before["at"]).exists():
                self.kept.write(name, before := {**before, "at": at, "image": str(file)})
            return self._row(before) | {"image": str(file)}, False
        try:
            row = {"image": str(file), "stem": name, **work(file, self.kept.folder / name)}
            files = [Path(made).name for made in row["files"]]
            record = {"key": key, "at": at, **row, "files": files, "shown": Path(row["shown"]).name}
            self.kept.write(name, record)
        except BaseException:
            if before is None:
                self.kept.drop(name)
            raise
        return self._row(record), whole

    def _row(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record as a person sees it: with files where they are."""
        at = self.kept.folder
        row = {k: v for k, v in record.items() if k != "key"}
        return row | {"files": [str(at / file) for file in record["files"]], "shown": str(at / record["shown"])}
