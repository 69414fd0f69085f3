"""``sfumato experiment``: the sources' own experiments, each figures and numbers, with their finding beside ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sfumato.commands.fields import made, spoken
from sfumato.commands.options import Device, Json, Model, Running
from sfumato.experiments.index import EXPERIMENTS, Entry
from sfumato.io.files import writable, write_json
from sfumato.io.progress import counted
from sfumato.io.terminal import print_json, print_table, quiet
from sfumato.media import opening
from sfumato.methods.outline import outline
from sfumato.tasks import kept
from sfumato.tasks.chain import values


@dataclass(frozen=True)
class Setting:
    """What an experiment is run on, and where its results go."""

    model: Model = "stilllife"
    loading: tyro.conf.OmitArgPrefixes[Running] = field(default_factory=Running)
    device: Device = "auto"
    out: Annotated[Path, tyro.conf.arg(help="Folder for the figures and numbers.")] = Path("out/experiment")
    json: Json = False


def experiment() -> None:
    """Measure a source's figure or table again, or look inside a model. One word more says which.

    Example: sfumato experiment one-noise
    """


def commands(asked: str, whole: bool = False) -> dict[str, Callable[..., None]]:
    """Every experiment as a command: of the one that is asked for its settings, of the others a line.

    Unless it has to be ``whole``, it is imported when it is run, and parsed by what its file says.
    """
    return {e.word: _command(e, whole) if e.word == asked else _line(e) for e in EXPERIMENTS}


def _line(entry: Entry) -> Callable[..., None]:
    def run() -> None: ...

    run.__doc__ = entry.about
    return run


def _command(entry: Entry, whole: bool) -> Callable[..., None]:
    def run(experiment: Any, setting: Setting) -> None:
        writable(setting.out)
        for value in values(experiment).values():
            if isinstance(value, Path):
                opening.checked(value)
        quiet()
        experiment = made(entry.experiment, experiment)
        model = setting.loading.load(setting.model, setting.device)
        with counted(entry.word, experiment.works):
            found = experiment.run(model)
        path = experiment.path(setting.out, entry.word)
        settings = {"model": setting.model, "loading": setting.loading, "experiment": experiment}
        path = path.with_stem(kept.named(writable(path.parent), "experiment", ".json", path.stem, settings))
        found.draw(path, experiment.about(model))
        document = experiment.document(model, found)
        numbers = path.with_suffix(".json")
        write_json(numbers, document, indent=1, ensure_ascii=False)
        figures = found.figures(path)
        if setting.json:
            print_json({**{name: str(file) for name, file in figures.items()}, **document})
            return
        if experiment.source:
            print(f"source: {experiment.source}\n\nours: {document['ours']}\n")
        if rows := found.table():
            print_table(rows)
        print("\n".join(map(str, [*figures.values(), numbers])))

    kind = (None if whole else outline(f"experiments.{entry.home}")) or entry.experiment
    run.__doc__ = kind.__doc__
    run.__annotations__ = {
        "experiment": Annotated[
            tyro.conf.OmitArgPrefixes[tyro.conf.PositionalRequiredArgs[spoken(kind)]],
            tyro.conf.arg(help="What is measured."),
        ],
        "setting": tyro.conf.OmitArgPrefixes[Setting],
    }
    return run
