"""``sfumato bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.commands.options import Device, Json, Seed, seed_of, whole
from sfumato.files import writable
from sfumato.terminal import quiet


def bench(
    suite: tyro.conf.Positional[Literal["generate", "core"]] = "generate",
    *,
    n: Annotated[int, tyro.conf.arg(help="Prompts of each class, or images.")] = 100,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None, tyro.conf.arg(help="Folder for the figures and the images that they come from.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure the built-in model (generate) or the core (core) against the truth, with targets and intervals.

    Example: sfumato bench generate --n 20 --json > generate.json

    Example: sfumato bench core --n 8
    """
    whole("--n", n, 2, 100_000)
    seed_of(seed)
    if out is not None:
        writable(out)

    quiet()
    from sfumato.bench import core, generate, report

    measure = {"generate": generate.run, "core": core.run}[suite]
    report.show(measure(n, seed, device, out), as_json=json)
