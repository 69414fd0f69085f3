"""What the commands that paint from words share: what they refuse first, and how their pictures are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.commands.options import bytes_of, guidance_of, is_image, seed_of, slug, whole
from sfumato.io.files import writable, write_json
from sfumato.io.terminal import note, print_json
from sfumato.tasks import kept
from sfumato.tasks.chain import Chain
from sfumato.tasks.kept import settings_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from sfumato.tasks.generate import Generated


def checked(n: int, steps: int | None, seed: int, memory: float, guidance: float | None) -> int:
    """The bytes that attention maps may take. Refuses numbers that are out of range."""
    whole("--n", n, 1, 1000)
    if steps is not None:
        whole("--steps", steps, 1, 1000)
    seed_of(seed)
    limit = bytes_of(memory)
    seed_of(seed + n - 1)
    guidance_of(guidance)
    return limit


@dataclass(frozen=True)
class Place:
    """Where a command's pictures go: a folder, under names of the prompt, or one file."""

    command: str
    folder: Path
    stem: str
    file: Path | None

    @classmethod
    def of(cls, command: str, out: Path, prompt: str, one: bool = True) -> Place:
        """What ``--out`` says, of a command that may write ``one`` file alone. Refuses what cannot be written."""
        single = one and is_image(out)
        folder = out.parent if single else out
        writable(folder)
        return cls(command, folder, out.stem if single else slug(prompt), out if single else None)

    def keep(
        self,
        painted: Generated,
        shown: Sequence[Picture],
        seed: int,
        settings: Mapping[str, Any],
        given: Mapping[str, Any],
        chain: Chain,
        films: Callable[[Sequence[Picture], Path], Path] | None = None,
    ) -> tuple[dict[str, Any], list[str]]:
        """Write the pictures, their grid, where words look and the plan of methods: what they are, and where."""
        from sfumato.media import pictures

        n, rows = len(shown), []
        for i, name in enumerate(self.names(n, seed, given, chain)):
            path = self.file if self.file and n == 1 else self.folder / f"{name}.png"
            row = {"image": str(pictures.write(shown[i], path, {**settings, "seed": seed + i})), "seed": seed + i}
            if painted.films and films is not None:
                row["film"] = str(films(painted.films[i], path))
            if painted.attention:
                file = pictures.write(painted.attention[i], self.folder / f"{name}-attention.png", dict(settings))
                row["attention"] = str(file)
            rows.append(row)
        files = files_of(rows)
        found: dict[str, Any] = {"images": [{**settings, **row} for row in rows], "grid": None}
        stem = self.stem if self.file else self._named(self.stem, {**settings_of(dict(given), [chain]), "n": n})
        if n > 1:
            all_of = {**settings, "seed": f"{seed}-{seed + n - 1}"}
            found["grid"] = str(pictures.write(pictures.grid(shown), self.folder / f"{stem}.png", all_of))
            files.append(found["grid"])
        if chain.items:
            found["plan"] = str(self.folder / f"{stem}-plan.json")
            write_json(Path(found["plan"]), painted.plan.table(), indent=2)
            files.append(found["plan"])
        return found, files

    def names(self, n: int, seed: int, given: Mapping[str, Any], *chains: Chain) -> Iterator[str]:
        """Of so many pictures, an own one each; each is claimed when it is asked for."""
        return (self.name(own, given, *chains) for own in range(seed, seed + n))

    def name(self, seed: int, given: Mapping[str, Any], *chains: Chain) -> str:
        """Of the picture of a seed."""
        stem = f"{self.stem}-{seed}"
        return stem if self.file else self._named(stem, {**settings_of(dict(given), chains), "n": None, "seed": seed})

    def _named(self, stem: str, settings: dict[str, Any]) -> str:
        return kept.named(self.folder, self.command, ".png", stem, settings)


@dataclass(frozen=True)
class Finished:
    """A run's pictures are written as they come; the same command, run again, goes on behind those that are there."""

    place: Place
    settings: Mapping[str, Any]
    given: Mapping[str, Any]
    chain: Chain
    overwrite: bool = False

    def found(self, seed: int) -> Picture | None:
        from sfumato.media import images

        file = self._file(seed)
        if file is None or self.overwrite:
            return None
        if file.exists():
            note(f"{file} was there")
            return images.open_picture(file)
        kept.Kept(file.parent, self.place.command, ".png").drop(file.stem)  # its name is taken when it is there
        return None

    def keep(self, seed: int, picture: Picture) -> None:
        from sfumato.media import pictures

        if file := self._file(seed):
            pictures.write(picture, file, {**self.settings, "seed": seed})

    def _file(self, seed: int) -> Path | None:
        """None where ``--out`` is one file, which holds no record of what it is of."""
        if self.place.file:
            return None
        return self.place.folder / f"{self.place.name(seed, self.given, self.chain)}.png"


def files_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What rows have but their seeds, and of lists what is in them."""
    found = [value for row in rows for key, value in row.items() if key != "seed"]
    return [file for value in found for file in (value if isinstance(value, list) else [value])]


def tell(key: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], json: bool) -> None:
    """Say where the files of rows are, or, as JSON, by what settings they were made."""
    say({key: [{**settings, **row} for row in rows]}, files_of(rows), json)


def say(found: Mapping[str, Any], files: Sequence[str], json: bool) -> None:
    """Say where files are: their names, or all that is known of them as JSON."""
    print_json(found) if json else print("\n".join(files))
