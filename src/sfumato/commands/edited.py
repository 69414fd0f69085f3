"""Where ``sfumato edit`` keeps what it makes: a name for each edit, what is there, sheets, and a page of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.commands import grids
from sfumato.commands.reading import page
from sfumato.commands.wanted import Wanted
from sfumato.errors import SfumatoError
from sfumato.io.files import write_json
from sfumato.io.terminal import note, print_json
from sfumato.tasks import kept
from sfumato.tasks.batch import note_same
from sfumato.tasks.kept import Kept

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from sfumato.tasks.edit import EditRun


@dataclass(frozen=True)
class Unit:
    """A picture with its edits, by what tells them apart (of one alone: nothing), and where they go."""

    folder: Path
    edits: Mapping[str, Wanted]
    names: Mapping[str, str]
    keys: Mapping[str, str]
    sheet: Path | None
    """The picture beside its edits; of a set the first one's shows all."""
    overwrite: bool
    again: bool = False
    """Is it of a picture that holds what an earlier one does, so that its edits are that one's?"""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Of each edit that was made now, how long it took."""

    @property
    def plain(self) -> Wanted:
        """The first of its edits."""
        return next(iter(self.edits.values()))

    @property
    def picture(self) -> Path:
        return self.plain.picture

    def file(self, label: str, what: str = "edited") -> Path:
        return self.folder / f"{self.names[label]}-{what}.png"

    def has(self, label: str) -> bool:
        """Was this edit made before?"""
        return not self.overwrite and self.file(label).exists()

    @property
    def done(self) -> bool:
        there = self.sheet is None or self.sheet.exists()
        return self.again or (there and all(map(self.has, self.edits)))

    def write(self, label: str, run: EditRun, i: int, about: Mapping[str, Any], plan: bool) -> None:
        """The picture at this place of a run; last the result itself, by which all is known to be there."""
        from sfumato.media import pictures

        if run.attention:
            pictures.write(run.attention[i], self.file(label, "attention"), about)
        if plan:
            write_json(self.file(label, "plan").with_suffix(".json"), run.plan.table(), indent=2)
        pictures.write(run.edited.pictures[i], self.file(label), about)
        self.runs.append({"method": label, "seconds": round(run.seconds, 2), "steps": run.steps})

    def record(self) -> None:
        """Keep what the results are of, for a page of all that lie there."""
        for label, one in self.edits.items():
            shown = self.sheet if self.sheet is not None and len(self.edits) == 1 else self.file(label)
            words = ", ".join(filter(None, (one.picture.name, one.target, label, f"seed {one.seed}")))
            about = {"by": " + ".join(one.chain.names), "words": words, "files": [self.file(label).name, shown.name]}
            _kept(self.folder).write(self.names[label], {"key": self.keys[label], **about})

    def release(self) -> None:
        """Let go of the names of what did not come."""
        for label in self.edits:
            if not self.file(label).exists():
                _kept(self.folder).drop(self.names[label])
        if self.sheet is not None and not self.sheet.exists():
            name, _, kind = self.sheet.stem.rpartition("-")
            Kept(self.folder, kind, f"-{kind}.png").drop(name)

    def rows(self) -> list[dict[str, Any]]:
        """Of each edit what it is of and where."""
        return [
            {"picture": str(one.picture), "image": str(self.file(label)), "from": one.source, "to": one.target}
            | {"method": " + ".join(one.chain.names), "setting": label, "seed": one.seed}
            for label, one in self.edits.items()
        ]


def units(
    folder: Path,
    edits: Sequence[Mapping[str, Wanted]],
    shared: Mapping[str, Any],
    sheets: str,
    one: bool,
    overwrite: bool,
) -> list[Unit]:
    """Of each picture, under names that no edit of other settings has. ``sheets``: what they are of (beside, compare,
    grid); only the first has ``one``, of all."""
    out, stems = [], Counter(next(iter(each.values())).picture.stem for each in edits)
    taken: list[str] = []
    for each in edits:
        names, keys, known = {}, {}, {*taken}
        for label, wanted in each.items():
            stem = grids.stem(wanted.picture.stem, label)
            keys[label] = key = kept.digest({**shared, **wanted.settings(), "at": len(out) if one else 0})
            names[label], before = _kept(folder).claim(stem, partial(_is_of, key), taken, key=key)
            taken.append(names[label])
            if before is None and stems[wanted.picture.stem] > 1 and names[label] != kept.short(stem):
                note(f"the edit of {wanted.picture} is called {names[label]}")
        sheet = None
        if not out or not one:
            name = next(iter(names.values()))
            if sheets != "beside":
                stem = next(iter(each.values())).picture.stem
                name = kept.named(folder, sheets, f"-{sheets}.png", stem, {"of": list(keys.values())})
            sheet = folder / f"{name}-{sheets}.png"
        out.append(Unit(folder, each, names, keys, sheet, overwrite, known.issuperset(names.values())))
    note_same([(name, str(unit.picture)) for unit in out for name in [*unit.names.values()][:1]])
    return out


def sheet(some: Sequence[Unit], originals: Sequence[Picture], columns: int, about: Mapping[str, Any]) -> None:
    """Pictures beside their edits: a row each, or of many edits rows of so many."""
    path = some[0].sheet
    if path is None:
        return
    from sfumato.media import images, pictures

    labels = list(some[0].edits)
    columns = min(columns, len(labels))
    rows = [
        [x, *(images.open_picture(unit.file(label)) for label in labels)]
        for unit, x in zip(some, originals, strict=True)
    ]
    first = rows[0][0].size
    if labels == [""]:
        shown = [x if x.size == first else x.resize(first) for row in rows for x in row]
        pictures.write(pictures.grid(shown, 2), path, about)
        return
    cells, texts = [], []
    for row in rows:
        for at in range(0, len(labels), columns):
            cells += [row[0], *row[1 + at : 1 + at + columns]]
            here = [label.rpartition(", ") for label in labels[at : at + columns]]
            texts += [here[0][0] or "the picture", *(last for *_, last in here)]  # a row is of the first settings
    shown = [x if x.size == first else x.resize(first) for x in cells]
    pictures.write(pictures.labelled(shown, texts, 1 + columns), path, about)


def tell(folder: Path, some: Sequence[Unit], failed: Sequence[str], several: bool, json: bool) -> None:
    """Say where results are; of several pictures also on a page of all that lie there."""
    whole = [unit for unit in some if all(unit.file(label).exists() for label in unit.edits)]
    for unit in whole:
        unit.record()
    failed = [*failed, *(str(unit.picture) for unit in some if unit.again and unit not in whole)]
    if not several:
        files = _files(some)
        runs = [run for unit in some for run in unit.runs][: len(some[0].edits)]
        print_json({**files, "runs": runs}) if json else print("\n".join(files.values()))
        return
    rows = [row for unit in whole for row in unit.rows()]
    sheets = [str(unit.sheet) for unit in whole if unit.sheet is not None]
    report = folder / "index.html"

    def write(lying: Sequence[Mapping[str, Any]]) -> None:
        methods: dict[str, list[tuple[str, Path]]] = {}
        edits = [one for one in lying if "by" in one]
        for record in edits:
            methods.setdefault(record["by"], []).append((record["words"], folder / record["files"][1]))
        beside = ", each beside its picture" if all(len({*one["files"]}) > 1 for one in edits) else ""
        page("Edits", f"{len(edits)} edits{beside}.", [*methods.items()], report, "100%")

    _kept(folder).listed(write)
    if json:
        print_json({"edits": rows, "sheets": sheets, "page": str(report), "failed": list(failed)})
    else:
        print("\n".join([*dict.fromkeys([*(row["image"] for row in rows), *sheets]), str(report)]))
    if failed:
        raise SfumatoError(f"{len(failed)} of {len(some)} pictures failed (named above); the others are done")


def _files(some: Sequence[Unit]) -> dict[str, str]:
    """Of one picture or set."""
    out, first = {}, some[0]
    for label in first.edits:
        end = f" {label}" if label else ""
        out |= {f"image{f' {i}' if i else ''}{end}": str(unit.file(label)) for i, unit in enumerate(some)}
        more = {"plan": first.file(label, "plan").with_suffix(".json"), "attention": first.file(label, "attention")}
        out |= {f"{what}{end}": str(file) for what, file in more.items() if file.exists()}
    return out if first.sheet is None else {**out, first.sheet.stem.rpartition("-")[2]: str(first.sheet)}


def _is_of(key: str, record: Mapping[str, Any]) -> bool:
    return record.get("key") == key


def _kept(folder: Path) -> Kept:
    return Kept(folder, "edit", "-edited.png")
