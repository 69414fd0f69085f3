"""``sfumato bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from sfumato.commands.options import Device, Json, Seed, seed_of, whole
from sfumato.io.files import writable
from sfumato.io.terminal import quiet


def bench(
    suite: tyro.conf.Positional[
        Literal[
            "generate", "core", "edit", "control", "perceive", "distill", "sets", "scene", "lift", "personalise", "real"
        ]
    ] = "generate",
    *,
    n: Annotated[int, tyro.conf.arg(help="Prompts of each class, or images.")] = 100,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None, tyro.conf.arg(help="Folder for the figures and the images that they come from.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure against the truth, with targets and intervals: the built-in model (generate), the core (core), editing
    methods (edit), methods that control what is painted (control), methods that read images (perceive), score
    distillation (distill), sets of images such as panoramas (sets), scenes in three dimensions (scene), what is lifted
    from words (lift), what is learned of a few pictures (personalise), and what holds on real weights and photographs,
    where they are (real).

    With --out, edit, control, perceive, distill, lift and personalise keep each single result there, and go on where
    they were stopped.

    Example: sfumato bench generate --n 20 --json > generate.json

    Example: sfumato bench core --n 8
    """
    whole("--n", n, 2, 100_000)
    seed_of(seed)
    if out is not None:
        writable(out)

    quiet()
    from importlib import import_module

    from sfumato.bench import report

    measure = import_module(f"sfumato.bench.{suite}").run
    report.show(measure(n, seed, device, out), as_json=json)
